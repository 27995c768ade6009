//! A fault that is switched on and off at fixed intervals, so that the recovery is visible too.
use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use crate::faults::{Fault, Switchboard};

/// Time without the fault.
const OFF_TIME: Duration = Duration::from_secs(45);
/// Time with the fault.
const ON_TIME: Duration = Duration::from_mins(2);

/// Switches the fault on and off repeatedly, until the future is dropped.
pub(super) async fn run(fault: Fault, switchboard: &Switchboard, progress: &dyn Fn(&str)) -> Infallible {
    let name = fault.name();
    loop {
        progress(&format!("{name}: starts in {} s", OFF_TIME.as_secs()));
        sleep(OFF_TIME).await;
        progress(&format!("{name}: on for {} s", ON_TIME.as_secs()));
        switch(fault, true, switchboard, progress).await;
        sleep(ON_TIME).await;
        switch(fault, false, switchboard, progress).await;
        progress(&format!("{name}: off"));
    }
}

async fn switch(fault: Fault, on: bool, switchboard: &Switchboard, progress: &dyn Fn(&str)) {
    if let Err(error) = switchboard.set(fault, on).await {
        progress(&format!("{}: {error}", fault.name()));
    }
}
