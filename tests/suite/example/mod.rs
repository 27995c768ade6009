//! The tests of the example domain: products, orders and payments, and the payment gateway.
//!
//! A project without the example replaces this directory. The other tests use these items of it: [`permissions::ROWS`],
//! [`permissions::Fixtures`] and [`permissions::FORBIDDEN_TO_AUDITORS`].
mod campaign;
mod catalog;
mod checklist;
mod console;
mod crashes;
mod discrepancies;
mod gateway_bad_responses;
mod idempotency;
mod log_review_queries;
mod newest_migration;
mod orders;
mod outages;
mod payment_traces;
mod payments;
pub(crate) mod permissions;
mod platform;
mod reconciliation;
mod recovery;
mod refunds;
mod replicated_payments;
mod round_trips;
mod secrets;
mod stack;
mod tour;
mod traffic;
mod webhooks;
