//! The comparison of the gateway's charges with the stored payments.
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tracing::instrument;

use super::{
    Finding, Outcome, ReconcileError,
    comparison::{PAYMENT_WITHOUT_CHARGE, SEVERAL_CHARGES, UNREADABLE_CHARGE, Verdict, compare_charge},
};
use crate::slices::payments::{
    Payments,
    discrepancies::UNKNOWN_REFERENCE,
    gateway::{Charge, Cursor, Record, Unknown},
    gateway_key::GatewayKey,
    model::{Mismatch, PaymentStatus, check_charge},
    recovery::context_of,
    store::reconciliation::{self as store, ComparedPayment, ListedObjects},
};

impl Payments {
    /// Compares a page of the gateway's charges with the payments. Also returns the cursor of the next page.
    ///
    /// Polls for the reference of each charge that is unreadable, has no payment, or differs from its payment. For a
    /// charge that matches a payment without an outcome, polls only if the payment's request can no longer be sending
    /// the charge. An unreadable charge without a reference is recorded without a poll.
    pub(super) async fn compare_charges(
        &self,
        since: DateTime<Utc>,
        cursor: Option<&Cursor>,
    ) -> Result<(Outcome, Option<String>), ReconcileError> {
        let page = self.0.gateway.charges_after(since, cursor).await?;
        let mut listed = ListedObjects::default();
        for record in &page.records {
            match record {
                Record::Readable(charge) => listed.add(charge.reference, charge.id.as_str()),
                Record::Unreadable { reference: Some(reference), .. } => listed.add(*reference, ""),
                Record::Unreadable { reference: None, .. } => {}
            }
        }
        let payments = store::match_payments(&self.0.database, &listed).await?;
        let payments: BTreeMap<_, _> =
            payments.into_iter().map(|payment| (payment.gateway_key, payment)).collect();

        let mut to_poll = BTreeSet::new();
        let mut findings = Vec::new();
        for record in &page.records {
            match record {
                Record::Readable(charge) => {
                    let verdict = payments.get(&charge.reference).map(|payment| {
                        let in_flight = payment.age < self.0.max_send_time;
                        (compare_charge(charge, payment), in_flight)
                    });
                    match verdict {
                        Some((Verdict::Agrees, _) | (Verdict::Unsettled, true)) => {}
                        _ => drop(to_poll.insert(charge.reference)),
                    }
                }
                Record::Unreadable { reference: Some(reference), .. } => drop(to_poll.insert(*reference)),
                Record::Unreadable { reference: None, why } => {
                    let finding =
                        self.record_finding("payments", None, UNREADABLE_CHARGE, why.clone(), "unknown");
                    findings.push(finding.await?);
                }
            }
        }
        let mut outcome = self.poll_all(to_poll, Self::compare_payment).await?;
        outcome.charges += page.records.len();
        outcome.findings.extend(findings);
        Ok((outcome, page.next.map(|next| next.as_str().to_owned())))
    }

    /// Polls the gateway for the charges with a reference, and compares them with the payment of that reference.
    /// Settles a payment with an unknown outcome, unless its request may still be sending the charge. Records each
    /// difference as a finding.
    #[instrument(name = "reconcile payment", skip_all, fields(%reference))]
    pub(super) async fn compare_payment(self, reference: GatewayKey) -> Result<Outcome, ReconcileError> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut charges = match self.0.gateway.charges(reference, until).await {
            Ok(charges) => charges,
            Err(Unknown::Unreadable(why)) => return self.record_unreadable_charge(reference, why).await,
            Err(unknown) => return Err(unknown.into()),
        };
        charges.retain(|charge| charge.reference == reference);
        charges.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        charges.dedup_by(|one, other| one.id == other.id);

        // The payment is read after the gateway's response. A payment is committed before its charge is sent, so a
        // payment that is missing now was lost.
        let payment = self.find_payment(reference, &charges).await?;
        let Some(payment) = payment else {
            let mut findings = Vec::new();
            for charge in &charges {
                let (id, gateway_says) = (Some(reference.0), charge.id.as_str().to_owned());
                findings.push(
                    self.record_finding("payments", id, UNKNOWN_REFERENCE, gateway_says, "unknown").await?,
                );
            }
            return Ok(Outcome { findings, ..Outcome::default() });
        };
        if payment.status == PaymentStatus::Processing {
            if payment.age < self.0.max_send_time {
                return Ok(Outcome::default());
            }
            let context = context_of(&payment.correlation_id);
            return context.scope(self.settle_by_charges(&payment, &charges)).await;
        }
        let mut findings = Vec::new();
        for charge in &charges {
            if let Verdict::Differs(what) = compare_charge(charge, &payment) {
                findings.push(self.record_charge_difference(&payment, charge, what).await?);
            }
        }
        let has_its_charge = || {
            let id = payment.charge_id.as_deref();
            charges.iter().any(|charge| Some(charge.id.as_str()) == id)
        };
        if payment.status.took_money() && !has_its_charge() {
            let (id, gateway_says) = (Some(payment.id), payment.charge_id.clone().unwrap_or_default());
            let gateway_says = format!("no charge {gateway_says}");
            let we_say = payment.status.as_str();
            findings.push(
                self.record_finding("payments", id, PAYMENT_WITHOUT_CHARGE, gateway_says, we_say).await?,
            );
        }
        Ok(Outcome { findings, ..Outcome::default() })
    }

    async fn find_payment(
        &self,
        reference: GatewayKey,
        charges: &[Charge],
    ) -> Result<Option<ComparedPayment>, ReconcileError> {
        let mut listed = ListedObjects::default();
        listed.add(reference, "");
        for charge in charges {
            listed.add(reference, charge.id.as_str());
        }
        Ok(store::match_payments(&self.0.database, &listed).await?.pop())
    }

    async fn record_unreadable_charge(
        &self,
        reference: GatewayKey,
        why: String,
    ) -> Result<Outcome, ReconcileError> {
        let payment = self.find_payment(reference, &[]).await?;
        let (id, we_say) =
            payment.map_or((reference.0, "unknown"), |payment| (payment.id, payment.status.as_str()));
        let finding = self.record_finding("payments", Some(id), UNREADABLE_CHARGE, why, we_say).await?;
        Ok(Outcome { findings: vec![finding], ..Outcome::default() })
    }

    async fn record_charge_difference(
        &self,
        payment: &ComparedPayment,
        charge: &Charge,
        what: &'static str,
    ) -> Result<Finding, ReconcileError> {
        // Settlement, recovery and webhooks use the same texts for `gateway_says`, so that one difference is recorded
        // once.
        let gateway_says = match what {
            "amount" | "currency" | "reference" => format!("{charge:?}"),
            "contradiction" => charge.status.as_str().to_owned(),
            _ => charge.id.as_str().to_owned(),
        };
        self.record_finding("payments", Some(payment.id), what, gateway_says, payment.status.as_str()).await
    }

    /// Settles a payment with an unknown outcome by its only charge. A mismatch, or several charges, is a finding.
    async fn settle_by_charges(
        &self,
        payment: &ComparedPayment,
        charges: &[Charge],
    ) -> Result<Outcome, ReconcileError> {
        let (what, gateway_says) = match charges {
            // Recovery decides about a payment without a charge.
            [] => return Ok(Outcome::default()),
            [charge] => match check_charge(payment.gateway_key, payment.amount, &payment.currency, charge) {
                Ok(settlement) => {
                    let settled = self.settle(payment.id, payment.order_id, settlement).await?;
                    let settled = usize::from(settled.status != PaymentStatus::Processing);
                    return Ok(Outcome { settled, ..Outcome::default() });
                }
                Err(Mismatch(what)) => (what, format!("{charge:?}")),
            },
            several => (SEVERAL_CHARGES, format!("{} charges", several.len())),
        };
        let finding =
            self.record_finding("payments", Some(payment.id), what, gateway_says, "processing").await?;
        Ok(Outcome { findings: vec![finding], ..Outcome::default() })
    }
}
