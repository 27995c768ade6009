//! What watches the service: rules, dashboards and runbooks fit each other and the service's own metrics, and the
//! real programs take them.
pub(crate) mod alerting;
pub(crate) mod files;
mod queries;
pub(crate) mod tools;
mod workflows;

pub(crate) use self::{
    files::repository,
    tools::{run, tool},
};
