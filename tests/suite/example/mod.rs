//! The tests of the example domain: products, orders and payments, and the payment gateway.
//!
//! A project without the example replaces this directory. The other tests use these items of this directory:
//! [`permissions::ROWS`], [`permissions::Fixtures`] and [`permissions::FORBIDDEN_TO_AUDITORS`].
mod alerts;
mod campaign;
mod catalog;
mod checklist;
mod console;
mod crashes;
mod database;
mod discrepancies;
mod gateway_bad_responses;
mod idempotency;
mod invalid_requests;
mod log_review_queries;
mod newest_migration;
mod orders;
mod outages;
mod payment_traces;
mod payments;
pub(crate) mod permissions;
mod reconciliation;
mod recovery;
mod refunds;
mod replicated_payments;
mod round_trips;
mod secrets;
mod settings;
mod shutdown_and_panics;
mod stack;
mod tour;
mod traffic;
mod webhooks;
