//! Two short campaigns, which inject random faults into three replicas while customers order and pay. The second one
//! also changes the primary of the database in every round. `cargo dev campaign` runs longer campaigns.
use dev::{
    example::campaign::{self, Length, Settings},
    postgres::ReplicationMode,
};

use crate::EXECUTABLE;

#[tokio::test]
async fn no_payment_is_lost_or_charged_twice() {
    let settings = Settings {
        executable: EXECUTABLE.into(),
        seed: 20_261,
        length: Length::Rounds(3),
        replicas: 3,
        rate_per_second: 20.0,
        failover: None,
    };
    let report = campaign::run(settings, &|line| eprintln!("{line}")).await.unwrap();
    assert!(report.holds(), "{report}");
    assert!(report.traffic.counts.payments.succeeded > 0, "no payment succeeded: {report}");
    assert!(report.replica_exits > 0, "no replica was killed: {report}");
}

#[tokio::test]
async fn a_synchronous_standby_loses_no_acknowledged_order() {
    let settings = Settings {
        executable: EXECUTABLE.into(),
        seed: 3,
        length: Length::Rounds(3),
        replicas: 3,
        rate_per_second: 20.0,
        failover: Some(ReplicationMode::Synchronous),
    };
    let report = campaign::run(settings, &|line| eprintln!("{line}")).await.unwrap();
    assert!(report.holds(), "{report}");
    let failovers = report.failovers.as_ref().unwrap();
    assert!(failovers.payments > 0, "no payment succeeded: {report}");
    assert_eq!(failovers.changes.values().map(|change| change.times).sum::<u32>(), 3, "{report}");
}
