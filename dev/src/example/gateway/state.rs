//! The execution of requests. The effect of a request depends on its idempotency key and on earlier requests.
//!
//! Each request is executed under one lock, and adds at most one entry to the ledger. [`super::routes`] sends the
//! response.
//!
//! Memory bound: a key takes about 200 bytes, and expires after [`KEY_LIFETIME`], regardless of use. Only a digest of
//! the request is stored, to detect a different request with the same key.
use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Error,
    charges::{
        Charge, ChargeRequest, ChargeStatus, DeclineCode, PaymentMethod, Refund, RefundRequest, RefundStatus,
    },
    ledger::{Entry, Journal, KeyedRequest, Ledger, LedgerEntry, LedgerIndex},
    listing::{self, Page, PageFaults, PageRequest},
};

/// Lifetime of an idempotency key.
const KEY_LIFETIME: TimeDelta = TimeDelta::hours(24);

/// Minimum interval between two removals of expired keys.
const SWEEP_INTERVAL: TimeDelta = TimeDelta::minutes(10);

/// The reason why a request had no effect.
#[derive(Debug)]
pub(super) enum Rejection {
    /// The payment method rejects the request with this status.
    ByPaymentMethod(u16),
    /// The key belongs to a different request.
    KeyReused,
    /// The charge does not exist.
    NoSuchCharge,
    /// The ledger could not be written.
    LedgerFailure(Error),
}

/// The charge or refund that was executed for an idempotency key, and the time and status of the response.
#[derive(Debug)]
pub(super) struct Outcome<T> {
    pub(super) done: T,
    /// True if this request executed the charge or refund.
    pub(super) is_new: bool,
    /// Earliest time of the response to this request and to every other request with the same key. `None` means never.
    pub(super) respond_at: Option<Instant>,
    /// Status of the response in place of 201, if the payment method causes an error after the charge.
    pub(super) error_status_after: Option<u16>,
}

#[derive(Clone, Copy)]
struct Key {
    /// Digest of the first request with the key.
    digest: [u8; 32],
    /// Time of the first request.
    since: DateTime<Utc>,
    uses: u32,
    done: Option<LedgerIndex>,
    /// Earliest time of the response to any request with the key.
    due: Instant,
}

/// The ledger, its file and the keys.
#[derive(Default)]
pub(super) struct GatewayState {
    ledger: Ledger,
    /// Time of creation of each charge of the ledger.
    charges_created: Vec<DateTime<Utc>>,
    /// Time of creation of each refund of the ledger.
    refunds_created: Vec<DateTime<Utc>>,
    keys: HashMap<String, Key>,
    /// Time of the last removal of expired keys.
    last_sweep: DateTime<Utc>,
    journal: Option<Journal>,
    closed: bool,
}

impl GatewayState {
    /// Creates a state from the entries of the file. Further entries are appended to the file.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let mut state = Self::default();
        let journal = Journal::open(path, |Entry { at, keyed, done }| {
            let done = Some(state.add_entry(at, done));
            if let Some(keyed) = keyed.filter(|_| !is_expired(at, Utc::now())) {
                let digest = keyed.digest();
                state.keys.insert(keyed.key, Key { digest, since: at, uses: 1, done, due: Instant::now() });
            }
        })?;
        state.journal = Some(journal);
        Ok(state)
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns a page of the charges.
    pub(super) fn list_charges(
        &self,
        request: &PageRequest,
        delay: TimeDelta,
        faults: &PageFaults,
    ) -> Page<Charge> {
        listing::page(&self.ledger.charges, &self.charges_created, request, delay, faults)
    }

    /// Returns a page of the refunds.
    pub(super) fn list_refunds(
        &self,
        request: &PageRequest,
        delay: TimeDelta,
        faults: &PageFaults,
    ) -> Page<Refund> {
        listing::page(&self.ledger.refunds, &self.refunds_created, request, delay, faults)
    }

    pub(super) fn expire_keys(&mut self) {
        self.keys.clear();
    }

    /// Rejects all further entries.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.journal = None;
    }

    /// Executes a charge, or returns the charge that an earlier request with the same key executed.
    pub(super) fn charge(
        &mut self,
        keyed: KeyedRequest,
        request: &ChargeRequest,
        decline: Option<DeclineCode>,
        slow_response: Duration,
    ) -> Result<Outcome<Charge>, Rejection> {
        let method = request.payment_method;
        let delay = if method == PaymentMethod::Slow { slow_response } else { Duration::ZERO };
        let key = self.claim(&keyed, delay)?;
        if let Some(status) = method.rejection_status(key.uses) {
            return Err(Rejection::ByPaymentMethod(status));
        }
        let respond_at = (method != PaymentMethod::Timeout).then_some(key.due);
        let error_status_after = (method == PaymentMethod::ErrorAfterCharge).then_some(500);
        if let Some(LedgerIndex::Charge(index)) = key.done
            && let Some(charge) = self.ledger.charges.get(index).cloned()
        {
            return Ok(Outcome { done: charge, is_new: false, respond_at, error_status_after });
        }
        let charge = Charge::new(request, method.decline_code().or(decline));
        self.execute(keyed, LedgerEntry::Charge(charge.clone()))?;
        Ok(Outcome { done: charge, is_new: true, respond_at, error_status_after })
    }

    /// Executes a refund, or returns the refund that an earlier request with the same key executed. A new refund fails
    /// if the charge took no money, or if the sum of refunds would exceed the charge.
    pub(super) fn refund(
        &mut self,
        keyed: KeyedRequest,
        charge_id: &str,
        request: &RefundRequest,
    ) -> Result<Outcome<Refund>, Rejection> {
        let charge = self.ledger.charge(charge_id).ok_or(Rejection::NoSuchCharge)?;
        let rest = match charge.status {
            ChargeStatus::Succeeded => charge.amount - self.ledger.refunded_amount(charge_id),
            ChargeStatus::Declined => 0,
        };
        let status = if request.amount <= rest { RefundStatus::Succeeded } else { RefundStatus::Failed };
        let key = self.claim(&keyed, Duration::ZERO)?;
        let respond_at = Some(key.due);
        if let Some(LedgerIndex::Refund(index)) = key.done
            && let Some(refund) = self.ledger.refunds.get(index).cloned()
        {
            return Ok(Outcome { done: refund, is_new: false, respond_at, error_status_after: None });
        }
        let refund = Refund::new(request, charge_id, status);
        self.execute(keyed, LedgerEntry::Refund(refund.clone()))?;
        Ok(Outcome { done: refund, is_new: true, respond_at, error_status_after: None })
    }

    /// Records a charge or refund without a request, with the given time of creation.
    pub(super) fn record_entry(&mut self, at: DateTime<Utc>, done: LedgerEntry) -> Result<(), Error> {
        self.write(Entry { at, keyed: None, done }).map(|_| ())
    }

    /// Rejects the request if its key belongs to a different request. Otherwise counts a use of the key. A new or
    /// expired key is registered, and its responses are due after `delay`.
    fn claim(&mut self, keyed: &KeyedRequest, delay: Duration) -> Result<Key, Rejection> {
        let now = Utc::now();
        if now - self.last_sweep >= SWEEP_INTERVAL {
            self.keys.retain(|_, key| !is_expired(key.since, now));
            self.last_sweep = now;
        }
        if self.keys.get(&keyed.key).is_some_and(|key| is_expired(key.since, now)) {
            self.keys.remove(&keyed.key);
        }
        let digest = keyed.digest();
        let due = Instant::now() + delay;
        let new = Key { digest, since: now, uses: 0, done: None, due };
        let key = self.keys.entry(keyed.key.clone()).or_insert(new);
        if key.digest != digest {
            return Err(Rejection::KeyReused);
        }
        key.uses += 1;
        Ok(*key)
    }

    fn execute(&mut self, keyed: KeyedRequest, done: LedgerEntry) -> Result<(), Rejection> {
        let name = keyed.key.clone();
        let index = self
            .write(Entry { at: Utc::now(), keyed: Some(keyed), done })
            .map_err(Rejection::LedgerFailure)?;
        if let Some(key) = self.keys.get_mut(&name) {
            key.done = Some(index);
        }
        Ok(())
    }

    fn write(&mut self, entry: Entry) -> Result<LedgerIndex, Error> {
        if self.closed {
            return Err(Error::Stopped);
        }
        if let Some(journal) = &mut self.journal {
            journal.append(&entry)?;
        }
        Ok(self.add_entry(entry.at, entry.done))
    }

    fn add_entry(&mut self, at: DateTime<Utc>, done: LedgerEntry) -> LedgerIndex {
        let index = self.ledger.record_entry(done);
        match index {
            LedgerIndex::Charge(_) => self.charges_created.push(at),
            LedgerIndex::Refund(_) => self.refunds_created.push(at),
        }
        index
    }
}

fn is_expired(since: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now - since >= KEY_LIFETIME
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn pay(state: &mut GatewayState) {
        let reference = Uuid::now_v7();
        let keyed = KeyedRequest {
            key: reference.to_string(),
            path: "/v1/charges".to_owned(),
            body: "{}".to_owned(),
        };
        let request = ChargeRequest {
            amount: 100,
            currency: "EUR".to_owned(),
            payment_method: PaymentMethod::Ok,
            reference,
        };
        assert!(state.charge(keyed, &request, None, Duration::ZERO).is_ok());
    }

    #[test]
    fn an_expired_key_is_deleted() {
        let mut state = GatewayState::default();
        for _ in 0..100 {
            pay(&mut state);
        }
        assert_eq!((state.keys.len(), state.ledger.charges.len()), (100, 100));

        for key in state.keys.values_mut().take(60) {
            key.since -= KEY_LIFETIME;
        }
        state.last_sweep -= SWEEP_INTERVAL;
        pay(&mut state);
        assert_eq!((state.keys.len(), state.ledger.charges.len()), (41, 101));
    }

    #[test]
    fn a_key_or_a_charge_takes_at_most_200_bytes() {
        let key = Uuid::now_v7().to_string();
        assert!(size_of::<(String, Key)>() + key.len() <= 200, "{}", size_of::<(String, Key)>());
        let mut state = GatewayState::default();
        pay(&mut state);
        let texts: usize =
            state.ledger.charges.iter().map(|charge| charge.id.len() + charge.currency.len()).sum();
        assert!(size_of::<Charge>() + texts <= 200, "{}", size_of::<Charge>());
    }
}
