//! A fault that is switched on and off at fixed intervals, so that the recovery is visible too.
use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use crate::faults::{Fault, Switchboard};

const CALM_TIME: Duration = Duration::from_secs(45);
const FAULT: Duration = Duration::from_mins(2);

/// Alternates between normal operation and the fault, until the future is dropped.
pub(super) async fn play(fault: Fault, switchboard: &Switchboard, progress: &dyn Fn(&str)) -> Infallible {
    let name = fault.name();
    loop {
        progress(&format!("{name}: starts in {} s", CALM_TIME.as_secs()));
        sleep(CALM_TIME).await;
        progress(&format!("{name}: on for {} s", FAULT.as_secs()));
        switch(fault, true, switchboard, progress).await;
        sleep(FAULT).await;
        switch(fault, false, switchboard, progress).await;
        progress(&format!("{name}: off"));
    }
}

async fn switch(fault: Fault, on: bool, switchboard: &Switchboard, progress: &dyn Fn(&str)) {
    if let Err(error) = switchboard.set(fault, on).await {
        progress(&format!("{}: {error}", fault.name()));
    }
}
