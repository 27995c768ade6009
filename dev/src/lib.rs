//! The local environment of the service, and the harness of its tests.
//!
//! It runs the service's executable and talks to it over sockets, as a user would; it never links it.
//!
//! - [`postgres`]: finds or starts a PostgreSQL server, and makes databases on it
//! - [`process`]: child processes, and the watchdog that ends them even after `kill -9` of their parent
//! - [`project`]: the name and the place of the checkout that this is built in
//! - [`environment`]: the whole service on one machine, which is what `cargo dev` runs
//! - [`signals`]: what ends a tool of this crate
//! - [`cargo`]: cargo, run once more from inside
//! - [`console`]: the page on which one sees it all
//! - [`link`]: a TCP link that can be cut, slowed and stalled
//! - `ports`: ports that are still free after a restart
//! - [`prepare`]: regenerates `.sqlx` against a migrated database
//! - [`example`]: everything that knows what the service is for
//! - [`faults`]: faults of the surroundings, switched while the service runs
//! - [`harness`]: the harness of the tests: a service with a database of its own
//! - [`http`]: the HTTP client that the tools share
//! - [`inbox`]: the page that shows received alerts, where a pager would ring
//! - [`otlp`]: receives traces over OTLP
//! - [`secret`]: secrets of the tools
//! - [`traffic`]: drives gentle, realistic traffic
pub mod cargo;
pub mod console;
pub mod environment;
pub mod example;
pub mod faults;
pub mod harness;
pub mod http;
pub mod inbox;
pub mod link;
pub mod otlp;
mod ports;
pub mod postgres;
pub mod prepare;
pub mod process;
pub mod project;
pub mod secret;
pub mod signals;
pub mod traffic;
