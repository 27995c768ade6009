//! The audit trail: who did what, provably (NIST SP 800-53 AU-2, AU-3, AU-12).
//!
//! The rule: a change and its audit event commit in **one** statement or transaction, by the SQL function
//! `record_audit_event`; neither exists without the other. A refusal has no change to travel with and is
//! written alone, by [`record`]. Once committed, each event is mirrored as a log line.
//!
//! Never in it: passwords, tokens, card data.
mod event;
mod metrics;
mod record;
mod routes;
mod trail;

pub use event::{Event, EventResult, EventType};
pub use metrics::initialise as initialise_metrics;
pub use record::{Recorded, make_partitions, record, record_once_possible, record_with};
pub use routes::routes;
