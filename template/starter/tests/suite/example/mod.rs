//! The tests of notes.
//!
//! The other tests use these items of the module: [`permissions::ROWS`], [`permissions::Fixtures`] and
//! [`permissions::FORBIDDEN_TO_AUDITORS`].
mod console;
mod notes;
pub(crate) mod permissions;
mod round_trips;
mod traffic;
