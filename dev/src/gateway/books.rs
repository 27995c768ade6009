//! The gateway's decisions: what a request does, given its key and what was done before.
//!
//! Everything here happens under one lock and ends with an entry in the ledger or without one. How and when the
//! answer travels is decided elsewhere.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Error,
    charges::{
        Charge, ChargeRequest, ChargeStatus, DeclineCode, PaymentMethod, Refund, RefundRequest, RefundStatus,
    },
    ledger::{Done, Entry, Journal, Ledger},
};

/// How long a key is remembered.
const KEY_LIFETIME: TimeDelta = TimeDelta::hours(24);

/// What a client asked for under a key. The same key with anything else in it is another request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) key: String,
    pub(super) path: String,
    /// Byte for byte.
    pub(super) body: String,
}

/// Why nothing was done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The payment method turns the request away with this status.
    TurnedAway(u16),
    /// The key belongs to another request.
    KeyReused,
    /// There is no such charge.
    NoSuchCharge,
    /// The ledger could not be written.
    Broken(Error),
}

/// What was done, now or when the key was first used.
#[derive(Debug)]
pub(super) struct Outcome<T> {
    pub(super) done: T,
    /// Whether this request did it.
    pub(super) is_new: bool,
    /// When it may be told, to this request as to every other one under the key. `None` is never.
    pub(super) answer_at: Option<Instant>,
    /// The status in place of a 201, where the payment method hides what was done.
    pub(super) hidden_by: Option<u16>,
}

struct Key {
    asked: Asked,
    since: DateTime<Utc>,
    uses: u32,
    done: Option<Done>,
    /// When the first request's answer is due.
    due: Instant,
}

/// The ledger, its file and the keys.
#[derive(Default)]
pub(super) struct Books {
    ledger: Ledger,
    keys: HashMap<String, Key>,
    journal: Option<Journal>,
    closed: bool,
}

impl Books {
    /// Books that begin with what the file holds and go on in it.
    pub(super) fn with_journal(mut journal: Journal) -> Self {
        let mut books = Self::default();
        for entry in journal.take_entries() {
            if let Some(asked) = entry.asked.filter(|_| !is_over(entry.at)) {
                let key = Key {
                    since: entry.at,
                    uses: 1,
                    done: Some(entry.done.clone()),
                    due: Instant::now(),
                    asked,
                };
                books.keys.insert(key.asked.key.clone(), key);
            }
            books.ledger.enter(entry.done);
        }
        books.journal = Some(journal);
        books
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    /// Nothing is entered from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.journal = None;
    }

    /// Carries out a charge, unless it was carried out before under this key.
    pub(super) fn charge(
        &mut self,
        asked: Asked,
        request: &ChargeRequest,
        decline: Option<DeclineCode>,
        slow_answer: Duration,
    ) -> Result<Outcome<Charge>, Refusal> {
        let method = request.payment_method;
        let patience = if method == PaymentMethod::Slow { slow_answer } else { Duration::ZERO };
        let key = self.claim(&asked, patience)?;
        if let Some(status) = method.turns_away(key.uses) {
            return Err(Refusal::TurnedAway(status));
        }
        let answer_at = (method != PaymentMethod::Timeout).then_some(key.due);
        let hidden_by = (method == PaymentMethod::ErrorAfterCharge).then_some(500);
        if let Some(Done::Charge(charge)) = &key.done {
            return Ok(Outcome { done: charge.clone(), is_new: false, answer_at, hidden_by });
        }
        let charge = Charge::new(request, method.decline_code().or(decline));
        self.carry_out(asked, Done::Charge(charge.clone()))?;
        Ok(Outcome { done: charge, is_new: true, answer_at, hidden_by })
    }

    /// Carries out a refund, unless it was carried out before under this key. It fails if the charge took no
    /// money or less than would be given back altogether.
    pub(super) fn refund(
        &mut self,
        asked: Asked,
        charge_id: &str,
        request: &RefundRequest,
    ) -> Result<Outcome<Refund>, Refusal> {
        let charge = self.ledger.charge(charge_id).ok_or(Refusal::NoSuchCharge)?;
        let rest = match charge.status {
            ChargeStatus::Succeeded => charge.amount - self.ledger.refunded_amount(charge_id),
            ChargeStatus::Declined => 0,
        };
        let status = if request.amount <= rest { RefundStatus::Succeeded } else { RefundStatus::Failed };
        let key = self.claim(&asked, Duration::ZERO)?;
        let answer_at = Some(key.due);
        if let Some(Done::Refund(refund)) = &key.done {
            return Ok(Outcome { done: refund.clone(), is_new: false, answer_at, hidden_by: None });
        }
        let refund = Refund::new(request, charge_id, status);
        self.carry_out(asked, Done::Refund(refund.clone()))?;
        Ok(Outcome { done: refund, is_new: true, answer_at, hidden_by: None })
    }

    /// Enters a charge that nobody asked for.
    pub(super) fn enter(&mut self, charge: Charge) -> Result<(), Error> {
        self.write(Entry { at: Utc::now(), asked: None, done: Done::Charge(charge) })
    }

    /// Counts a use of the key, and refuses it if it stands for another request. A key that is new, or older
    /// than its lifetime, begins here; its answer is due after `patience`.
    fn claim(&mut self, asked: &Asked, patience: Duration) -> Result<&mut Key, Refusal> {
        if self.keys.get(&asked.key).is_some_and(|key| is_over(key.since)) {
            self.keys.remove(&asked.key);
        }
        let key = self.keys.entry(asked.key.clone()).or_insert_with(|| Key {
            asked: asked.clone(),
            since: Utc::now(),
            uses: 0,
            done: None,
            due: Instant::now() + patience,
        });
        if key.asked != *asked {
            return Err(Refusal::KeyReused);
        }
        key.uses += 1;
        Ok(key)
    }

    fn carry_out(&mut self, asked: Asked, done: Done) -> Result<(), Refusal> {
        let name = asked.key.clone();
        self.write(Entry { at: Utc::now(), asked: Some(asked), done: done.clone() })
            .map_err(Refusal::Broken)?;
        if let Some(key) = self.keys.get_mut(&name) {
            key.done = Some(done);
        }
        Ok(())
    }

    fn write(&mut self, entry: Entry) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Stopped);
        }
        if let Some(journal) = &mut self.journal {
            journal.append(&entry)?;
        }
        self.ledger.enter(entry.done);
        Ok(())
    }
}

fn is_over(since: DateTime<Utc>) -> bool {
    Utc::now() - since >= KEY_LIFETIME
}
