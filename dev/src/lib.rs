//! The local environment of the service, the test harness, and further development tools.
//!
//! This crate runs the service's executable and communicates with it over sockets, like a user. The crate never links
//! the service.
//!
//! - [`postgres`]: finds or starts a PostgreSQL server, and creates databases on it
//! - [`process`]: child processes, and the watchdog that ends child processes even after `kill -9` of their parent
//! - [`project`]: the name of the service, and the path of the checkout that this crate is built in
//! - [`environment`]: the service and its dependencies on one machine, as run by `cargo dev`
//! - [`signals`]: signals that end a tool of this crate
//! - [`cargo`]: runs of cargo by this crate
//! - [`doctor`]: the programs that this machine lacks
//! - [`console`]: the web page with all telemetry of the service
//! - [`tcp_proxy`]: a TCP proxy that can cut, slow and stall connections
//! - [`ports`]: ports that stay free until a server listens on them, and while it restarts
//! - [`prepare`]: regenerates `.sqlx` against a migrated database
//! - [`example`]: all domain code of this crate
//! - [`failover`]: a primary and its standby, with failover and restore at the console's request
//! - [`faults`]: faults that are switched on and off at run time
//! - [`harness`]: the test harness: a service with its own database
//! - [`http`]: the HTTP client of this crate
//! - [`alert_inbox`]: the web page with received alerts, in place of a pager
//! - [`otlp`]: receives spans and log records over OTLP
//! - [`secret`]: reads secrets from the environment
//! - [`traffic`]: generates light, realistic traffic
//! - [`update`]: merges a newer revision of the template into a generated project
pub mod alert_inbox;
pub mod cargo;
pub mod console;
pub mod doctor;
pub mod environment;
pub mod example;
pub mod failover;
pub mod faults;
pub mod harness;
pub mod http;
pub mod otlp;
pub mod ports;
pub mod postgres;
pub mod prepare;
pub mod process;
pub mod project;
pub mod secret;
pub mod signals;
pub mod tcp_proxy;
pub mod traffic;
pub mod update;
