//! What watches the service: rules, dashboards and runbooks fit each other and the service's own metrics, and the
//! real programs take them.
mod alerting;
mod files;
mod queries;
mod tools;

pub(crate) use self::{
    files::repository,
    tools::{run, tool},
};
