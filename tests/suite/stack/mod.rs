//! The stack of `docker-compose.yml`: rules, dashboards and runbooks agree with each other and with the service's
//! metrics, and the real programs accept the configuration. Also the standby, and the workflows of `.github`.
pub(crate) mod alerting;
mod compose;
pub(crate) mod files;
mod queries;
mod standby;
pub(crate) mod tools;
mod workflows;

pub(crate) use self::{
    files::repository,
    tools::{run, tool},
};
