//! The stack of `docker-compose.yml` and the workflows: rules, dashboards and runbooks agree with each other and with
//! the service's metrics, and the real programs accept them.
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
