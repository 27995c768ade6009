//! The comparison of the gateway's refunds with the stored refunds. Mirrors the comparison of charges with payments.
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tracing::instrument;

use super::{
    Finding, Outcome, ReconcileError,
    comparison::{
        REFUND_WITHOUT_GATEWAY_REFUND, SEVERAL_REFUNDS, UNREADABLE_REFUND, Verdict, compare_refund,
    },
};
use crate::slices::payments::{
    Payments,
    discrepancies::UNKNOWN_REFERENCE,
    gateway::{Cursor, GatewayRefund, Record, Unknown},
    gateway_key::GatewayKey,
    model::{Mismatch, RefundStatus, check_refund},
    recovery::context_of,
    store::{
        By,
        reconciliation::{self as store, ComparedRefund, ListedObjects},
        refunds,
    },
};

impl Payments {
    /// Compares a page of the gateway's refunds with the stored refunds. Also returns the cursor of the next page.
    ///
    /// Polls for the reference of each refund that is unreadable, has no stored refund, or differs from its stored
    /// refund. For a refund that matches a stored refund without an outcome, polls only if the stored refund's request
    /// can no longer be sending the refund. An unreadable refund without a reference is recorded without a poll.
    pub(super) async fn compare_refunds(
        &self,
        since: DateTime<Utc>,
        cursor: Option<&Cursor>,
    ) -> Result<(Outcome, Option<String>), ReconcileError> {
        let page = self.0.gateway.refunds_after(since, cursor).await?;
        let mut listed = ListedObjects::default();
        for record in &page.records {
            match record {
                Record::Readable(found) => listed.add(found.reference, found.id.as_str()),
                Record::Unreadable { reference: Some(reference), .. } => listed.add(*reference, ""),
                Record::Unreadable { reference: None, .. } => {}
            }
        }
        let refunds = store::match_refunds(&self.0.database, &listed).await?;
        let refunds: BTreeMap<_, _> =
            refunds.into_iter().map(|refund| (refund.gateway_key, refund)).collect();

        let mut to_poll = BTreeSet::new();
        let mut findings = Vec::new();
        for record in &page.records {
            match record {
                Record::Readable(found) => {
                    let verdict = refunds.get(&found.reference).map(|refund| {
                        let in_flight = refund.age < self.0.max_send_time;
                        (compare_refund(found, refund), in_flight)
                    });
                    match verdict {
                        Some((Verdict::Agrees, _) | (Verdict::Unsettled, true)) => {}
                        _ => drop(to_poll.insert(found.reference)),
                    }
                }
                Record::Unreadable { reference: Some(reference), .. } => drop(to_poll.insert(*reference)),
                Record::Unreadable { reference: None, why } => {
                    let finding =
                        self.record_finding("refunds", None, UNREADABLE_REFUND, why.clone(), "unknown");
                    findings.push(finding.await?);
                }
            }
        }
        let mut outcome = self.poll_all(to_poll, Self::compare_refund).await?;
        outcome.refunds += page.records.len();
        outcome.findings.extend(findings);
        Ok((outcome, page.next.map(|next| next.as_str().to_owned())))
    }

    /// Polls the gateway for the refunds with a reference, and compares them with the stored refund of that reference.
    /// Settles a stored refund with an unknown outcome, unless its request may still be sending the refund. Records
    /// each difference as a finding.
    #[instrument(name = "reconcile refund", skip_all, fields(%reference))]
    pub(super) async fn compare_refund(self, reference: GatewayKey) -> Result<Outcome, ReconcileError> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut reported = match self.0.gateway.refunds(reference, until).await {
            Ok(reported) => reported,
            Err(Unknown::Unreadable(why)) => return self.record_unreadable_refund(reference, why).await,
            Err(unknown) => return Err(unknown.into()),
        };
        reported.retain(|found| found.reference == reference);
        reported.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        reported.dedup_by(|one, other| one.id == other.id);

        let refund = self.find_refund(reference, &reported).await?;
        let Some(refund) = refund else {
            let mut findings = Vec::new();
            for found in &reported {
                let (id, gateway_says) = (Some(reference.0), found.id.as_str().to_owned());
                findings.push(
                    self.record_finding("refunds", id, UNKNOWN_REFERENCE, gateway_says, "unknown").await?,
                );
            }
            return Ok(Outcome { findings, ..Outcome::default() });
        };
        if refund.status == RefundStatus::Processing {
            if refund.age < self.0.max_send_time {
                return Ok(Outcome::default());
            }
            let context = context_of(&refund.correlation_id);
            return context.scope(self.settle_by_refunds(&refund, &reported)).await;
        }
        let mut findings = Vec::new();
        for found in &reported {
            if let Verdict::Differs(what) = compare_refund(found, &refund) {
                findings.push(self.record_refund_difference(&refund, found, what).await?);
            }
        }
        let has_its_refund = || {
            let id = refund.gateway_refund_id.as_deref();
            reported.iter().any(|found| Some(found.id.as_str()) == id)
        };
        if refund.status == RefundStatus::Succeeded && !has_its_refund() {
            let gateway_says = format!("no refund {}", refund.gateway_refund_id.clone().unwrap_or_default());
            let (id, what) = (Some(refund.id), REFUND_WITHOUT_GATEWAY_REFUND);
            findings
                .push(self.record_finding("refunds", id, what, gateway_says, refund.status.as_str()).await?);
        }
        Ok(Outcome { findings, ..Outcome::default() })
    }

    async fn find_refund(
        &self,
        reference: GatewayKey,
        reported: &[GatewayRefund],
    ) -> Result<Option<ComparedRefund>, ReconcileError> {
        let mut listed = ListedObjects::default();
        listed.add(reference, "");
        for found in reported {
            listed.add(reference, found.id.as_str());
        }
        Ok(store::match_refunds(&self.0.database, &listed).await?.pop())
    }

    async fn record_unreadable_refund(
        &self,
        reference: GatewayKey,
        why: String,
    ) -> Result<Outcome, ReconcileError> {
        let refund = self.find_refund(reference, &[]).await?;
        let (id, we_say) =
            refund.map_or((reference.0, "unknown"), |refund| (refund.id, refund.status.as_str()));
        let finding = self.record_finding("refunds", Some(id), UNREADABLE_REFUND, why, we_say).await?;
        Ok(Outcome { findings: vec![finding], ..Outcome::default() })
    }

    async fn record_refund_difference(
        &self,
        refund: &ComparedRefund,
        found: &GatewayRefund,
        what: &'static str,
    ) -> Result<Finding, ReconcileError> {
        // Settlement, recovery and webhooks use the same texts for `gateway_says`, so that one difference is recorded
        // once.
        let gateway_says = match what {
            "amount" | "charge" | "reference" => format!("{found:?}"),
            "contradiction" => found.status.as_str().to_owned(),
            _ => found.id.as_str().to_owned(),
        };
        self.record_finding("refunds", Some(refund.id), what, gateway_says, refund.status.as_str()).await
    }

    /// Settles a stored refund with an unknown outcome by the only refund of the gateway with its reference. A
    /// mismatch, or several refunds, is a finding.
    async fn settle_by_refunds(
        &self,
        refund: &ComparedRefund,
        reported: &[GatewayRefund],
    ) -> Result<Outcome, ReconcileError> {
        let (what, gateway_says) = match reported {
            // Recovery decides about a refund that the gateway does not have.
            [] => return Ok(Outcome::default()),
            [found] => match check_refund(refund.gateway_key, refund.amount, &refund.charge_id, found) {
                Ok(settlement) => {
                    let stored = refunds::find(&self.0.database, By::Id(refund.id)).await?;
                    let Some(stored) = stored else { return Ok(Outcome::default()) };
                    let settled = self.settle_refund(&stored.open, settlement).await?;
                    let settled = usize::from(settled.status != RefundStatus::Processing);
                    return Ok(Outcome { settled, ..Outcome::default() });
                }
                Err(Mismatch(what)) => (what, format!("{found:?}")),
            },
            several => (SEVERAL_REFUNDS, format!("{} refunds", several.len())),
        };
        let finding =
            self.record_finding("refunds", Some(refund.id), what, gateway_says, "processing").await?;
        Ok(Outcome { findings: vec![finding], ..Outcome::default() })
    }
}
