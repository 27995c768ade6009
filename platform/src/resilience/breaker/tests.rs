use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::time::advance;

use super::{
    circuit::{Call, PROBES_IN_FLIGHT},
    *,
};

const SETTINGS: Settings = Settings {
    window: Duration::from_secs(10),
    minimum_calls: 4,
    failure_ratio: 0.5,
    open_for: Duration::from_secs(5),
    probes: 2,
};

fn fail(breaker: &Breaker, times: usize) {
    for _ in 0..times {
        breaker.acquire().unwrap().failed();
    }
}

async fn half_open(name: &'static str) -> Breaker {
    let breaker = Breaker::new(name, SETTINGS);
    fail(&breaker, 4);
    advance(SETTINGS.open_for).await;
    breaker
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_when_half_of_enough_calls_fail() {
    let breaker = Breaker::new("test_opens", SETTINGS);
    breaker.acquire().unwrap().succeeded();
    breaker.acquire().unwrap().succeeded();
    fail(&breaker, 1);
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), State::Open);
    advance(Duration::from_secs(2)).await;
    let rejection = breaker.acquire().unwrap_err();
    assert_eq!(rejection.retry_after, Duration::from_secs(3));
    assert_eq!(rejection.retry_after_seconds(), 3);
}

#[tokio::test(start_paused = true)]
async fn failures_before_the_window_do_not_count() {
    let breaker = Breaker::new("test_window", SETTINGS);
    fail(&breaker, 3);
    advance(SETTINGS.window).await;
    fail(&breaker, 3);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn enough_successful_probes_close_the_breaker() {
    let breaker = half_open("test_closes").await;
    let (first, second) = (breaker.acquire().unwrap(), breaker.acquire().unwrap());
    assert_eq!(breaker.acquire().unwrap_err(), PROBES_IN_FLIGHT);
    first.succeeded();
    assert_eq!(breaker.state(), State::HalfOpen);
    second.succeeded();
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, 3);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_opens_the_breaker_again() {
    let breaker = half_open("test_reopens").await;
    let probe = breaker.acquire().unwrap();
    breaker.acquire().unwrap().succeeded();
    probe.failed();
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.acquire().unwrap_err().retry_after, SETTINGS.open_for);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_makes_room_for_another() {
    let breaker = half_open("test_cancelled").await;
    for _ in 0..10 {
        drop(breaker.acquire().unwrap());
    }
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.acquire().unwrap().succeeded();
    breaker.acquire().unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn background_calls_do_not_use_up_the_probes() {
    let breaker = half_open("test_background").await;
    let background = breaker.acquire_in_background().unwrap();
    assert_eq!(
        breaker.acquire_in_background().unwrap_err(),
        PROBES_IN_FLIGHT,
        "wrong rejection of a second background call"
    );
    let (first, second) = (breaker.acquire().unwrap(), breaker.acquire().unwrap());
    drop(background);
    let without_verdict = breaker.acquire_in_background().unwrap();
    first.succeeded();
    second.succeeded();
    assert_eq!(breaker.state(), State::Closed);
    drop(without_verdict);
}

#[tokio::test(start_paused = true)]
async fn background_calls_alone_close_the_breaker() {
    let breaker = half_open("test_background_closes").await;
    breaker.acquire_in_background().unwrap().succeeded();
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.acquire_in_background().unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_from_before_a_transition_changes_nothing() {
    let breaker = Breaker::new("test_late", SETTINGS);
    let late: Vec<_> = (0..4).map(|_| breaker.acquire().unwrap()).collect();
    fail(&breaker, 4);
    advance(SETTINGS.open_for).await;
    let probe = breaker.acquire().unwrap();
    late.into_iter().for_each(Permit::failed);
    assert_eq!(breaker.state(), State::HalfOpen);
    probe.succeeded();
    breaker.acquire().unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn every_transition_is_reported() {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let breaker = Breaker::new("test_heard", SETTINGS).on_transition({
        let reported = Arc::clone(&reported);
        move |state| reported.lock().unwrap().push(state)
    });
    let gauge = STATE.with_label_values(&["test_heard"]);
    fail(&breaker, 4);
    assert_eq!(gauge.get(), 2);
    advance(SETTINGS.open_for).await;
    breaker.acquire().unwrap().succeeded();
    assert_eq!(gauge.get(), 1);
    breaker.acquire().unwrap().succeeded();
    assert_eq!(gauge.get(), 0);
    assert_eq!(*reported.lock().unwrap(), [State::Open, State::HalfOpen, State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_is_never_open_for_longer_than_ten_seconds() {
    let breaker = Breaker::new("test_longest", Settings { open_for: MAX_OPEN_TIME * 6, ..SETTINGS });
    fail(&breaker, 4);
    advance(MAX_OPEN_TIME).await;
    assert!(breaker.acquire().is_ok());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Call(Call),
    Succeed,
    Fail,
    Cancel,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Call(Call::Foreground)),
        2 => Just(Step::Call(Call::Background)),
        2 => Just(Step::Succeed),
        3 => Just(Step::Fail),
        1 => Just(Step::Cancel),
        1 => (1_u64..6_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn random_calls_keep_the_invariants_of_the_breaker(steps in proptest::collection::vec(step(), 1..200)) {
        let mut circuit = Circuit::closed(&SETTINGS);
        let mut now = Instant::now();
        let mut calls: VecDeque<(u64, Call)> = VecDeque::new();
        let mut opened_at = None;
        for step in steps {
            let before = circuit.state();
            let verdict = match step {
                Step::Call(call) => {
                    if let Ok(transitions) = circuit.admit(call, &SETTINGS, now) {
                        calls.push_back((transitions, call));
                        if let Some(opened_at) = opened_at {
                            prop_assert!(now >= opened_at + SETTINGS.open_for, "admitted while open");
                        }
                    }
                    None
                }
                Step::Wait(milliseconds) => { now += Duration::from_millis(milliseconds); None }
                Step::Succeed => Some(Verdict::Succeeded),
                Step::Fail => Some(Verdict::Failed),
                Step::Cancel => Some(Verdict::Cancelled),
            };
            if let Some(verdict) = verdict && let Some(call) = calls.pop_front() {
                circuit.judge(call, verdict, &SETTINGS, now);
            }
            let probes = |kind| calls.iter().filter(|call| **call == (circuit.transitions, kind)).count();
            if circuit.state() == State::HalfOpen {
                let (requests, background) = (probes(Call::Foreground), probes(Call::Background));
                prop_assert!(requests <= SETTINGS.probes as usize, "{requests} concurrent probes");
                prop_assert!(background <= 1, "{background} concurrent background calls");
            }
            if before != State::Open && circuit.state() == State::Open {
                prop_assert!(matches!(step, Step::Fail), "opened without a failure");
                opened_at = Some(now);
            }
            if circuit.state() != State::Open {
                opened_at = None;
            }
        }
    }
}
