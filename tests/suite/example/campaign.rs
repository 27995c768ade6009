//! A short campaign against several replicas. `cargo dev campaign` runs long ones.
use dev::example::campaign::{self, Length, Settings};

use crate::EXECUTABLE;

#[tokio::test]
async fn no_payment_is_lost_or_charged_twice() {
    let settings = Settings {
        executable: EXECUTABLE.into(),
        seed: 20_261,
        length: Length::Rounds(3),
        replicas: 3,
        rate_per_second: 20.0,
    };
    let report = campaign::run(settings, &|line| eprintln!("{line}")).await.unwrap();
    assert!(report.holds(), "{report}");
    assert!(report.traffic.counts.payments.succeeded > 0, "something was paid: {report}");
    assert!(report.died > 0, "something was killed: {report}");
}
