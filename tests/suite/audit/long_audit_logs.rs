//! Sealing and verification read the events of the audit log in pages. Both need the memory of one page, for a log of
//! any length.
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use dev::harness::{Service, eventually};

use super::seals::{cause_three_events, sealing_service};
use crate::EXECUTABLE;

/// Number of events in the long log. All of them together need 60 MB, more than [`MAX_GROWTH_BYTES`] allows. A longer
/// log is tested manually: `LONG_AUDIT_LOG=1000000 cargo test --test suite long_audit_logs -- --nocapture`.
const EVENTS: i32 = 60_000;

/// Maximum growth of the peak memory from a short log to the long one, in bytes. It applies to the service, and to
/// `audit verify`. Most of the growth is one page of events, and memory that the allocator does not return.
const MAX_GROWTH_BYTES: u64 = 24 * 1024 * 1024;

/// Returns the peak memory of a process in bytes, or `None` after its end.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))?;
    Some(peak.trim().parse::<u64>().ok()? * 1024)
}

/// Runs `audit verify`. Returns the peak memory of its process in bytes, and its duration.
fn verify(service: &Service) -> (u64, Duration) {
    let started = Instant::now();
    let mut verifying = Command::new(EXECUTABLE)
        .args(["audit", "verify"])
        .env_clear()
        .env("APP_ENV", "test")
        .env("DATABASE_URL", service.database().service_url().as_str())
        // A slow read of one page of events must not end the verification.
        .env("DATABASE_STATEMENT_TIMEOUT_MS", "60000")
        .current_dir("/")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_memory(verifying.id()).unwrap_or_default());
        if let Some(status) = verifying.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{status}");
    assert!(peak > 0, "the memory of the process must be measured");
    (peak, started.elapsed())
}

async fn unsealed_events(service: &Service) -> i64 {
    let sealed = "select coalesce(sum(event_count), 0)::bigint from audit_seals";
    service.database().number(format!("select count(*) - ({sealed}) from audit_events")).await
}

/// Waits until every event is sealed. Fails if sealing makes no progress.
async fn wait_until_sealed(service: &Service) {
    loop {
        let waiting = unsealed_events(service).await;
        if waiting == 0 {
            return;
        }
        eventually("more events are sealed", async || {
            (unsealed_events(service).await < waiting).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn sealing_and_verification_use_the_memory_of_one_page() {
    if !cfg!(target_os = "linux") {
        println!("skipped: the peak memory is read from /proc of Linux");
        return;
    }
    let events = std::env::var("LONG_AUDIT_LOG").map_or(EVENTS, |count| count.parse().unwrap());
    let service = sealing_service().await;
    cause_three_events(&service).await;
    wait_until_sealed(&service).await;
    let (short_peak, _) = verify(&service);
    let before = service.peak_memory();

    service
        .database()
        .execute(format!(
            "insert into audit_events (id, timestamp, event_type, user_id, resource, action, result, service_version, metadata)
             select gen_random_uuid(), now(), 'data_change', gen_random_uuid(), 'things', 'create', 'success', '0.1.0',
                    jsonb_build_object('record_ids', jsonb_build_array(gen_random_uuid()), 'note', repeat('x', 500))
             from generate_series(1, {events})"
        ))
        .await;
    let started = Instant::now();
    wait_until_sealed(&service).await;
    let (sealing, sealing_growth) = (started.elapsed(), service.peak_memory().saturating_sub(before));
    let (peak, verifying) = verify(&service);
    let verifying_growth = peak.saturating_sub(short_peak);

    let mebibytes = |bytes: u64| bytes / 1024 / 1024;
    println!(
        "{events} events: sealed in {sealing:.1?} ({:.0} a second, {} MiB, {} more than before), verified in {verifying:.1?} ({:.0} a second, {} MiB, {} more than a short log)",
        f64::from(events) / sealing.as_secs_f64(),
        mebibytes(service.peak_memory()),
        mebibytes(sealing_growth),
        f64::from(events) / verifying.as_secs_f64(),
        mebibytes(peak),
        mebibytes(verifying_growth),
    );
    assert!(
        sealing_growth < MAX_GROWTH_BYTES,
        "sealing the long log took {sealing_growth} bytes more than a short one"
    );
    assert!(
        verifying_growth < MAX_GROWTH_BYTES,
        "verifying the long log took {verifying_growth} bytes more than a short one"
    );
}
