//! Password guessing: responses and their timing do not reveal which accounts exist. Lockouts (NIST SP 800-53 AC-7) and
//! rate limits reject further attempts. The audit log has pseudonyms of unknown accounts, and aggregates many denials.
use std::{collections::BTreeSet, time::Instant};

use dev::harness::{HttpResponse, PASSWORD, Service, eventually};
use serde_json::{Value, json};

use super::{WRONG, log_in, register};
use crate::{builder, service};

/// Logs in with an address in `X-Forwarded-For`, which the service uses only if the test configures a trusted proxy.
async fn log_in_from(service: &Service, address: &str, email: &str, password: &str) -> HttpResponse {
    let credentials = json!({ "email": email, "password": password });
    let client = service.anonymous().with_header("x-forwarded-for", address);
    client.post("/v1/sessions").json(&credentials).await
}

/// Returns the parts of a rejection that must not depend on its reason: the status, the body without ids, and the names
/// of the headers.
fn comparable_parts(rejection: &HttpResponse) -> (u16, Value, BTreeSet<String>) {
    let mut body = rejection.json();
    for id in ["correlation_id", "trace_id"] {
        body.as_object_mut().unwrap().remove(id);
    }
    (rejection.status, body, rejection.headers.keys().map(ToString::to_string).collect())
}

#[tokio::test]
async fn failed_logins_get_the_same_response_for_any_reason() {
    let service = service().await;
    let customer = service.customer().await;
    let unknown = log_in(&service, "absent@example.com", WRONG).await.assert_problem(401, "bad-credentials");
    let no_address = log_in(&service, "absent", WRONG).await.assert_problem(401, "bad-credentials");
    let wrong = log_in(&service, &customer.email, WRONG).await.assert_problem(401, "bad-credentials");
    for _ in 0..6 {
        let _wrong = log_in(&service, &customer.email, WRONG).await;
    }
    let locked = log_in(&service, &customer.email, PASSWORD).await.assert_problem(401, "bad-credentials");

    assert_eq!(comparable_parts(&unknown), comparable_parts(&wrong));
    assert_eq!(comparable_parts(&no_address), comparable_parts(&wrong));
    assert_eq!(comparable_parts(&locked), comparable_parts(&wrong));
}

#[tokio::test]
async fn five_failed_attempts_lock_an_account_for_a_while() {
    let service = builder().setting("LOCKOUT_SECONDS", "5").start().await;
    let customer = service.customer().await;
    for _ in 0..5 {
        let _wrong = log_in(&service, &customer.email, WRONG).await.assert_problem(401, "bad-credentials");
    }
    let _locked = log_in(&service, &customer.email, PASSWORD).await.assert_problem(401, "bad-credentials");
    let _unaffected = customer.get("/v1/me").await.assert_status(200);
    let lockouts = service.audit_events("action = 'lockout'").await;
    assert_eq!(lockouts.len(), 1, "the lockout must be recorded once");
    assert_eq!((&lockouts[0]["user_id"], &lockouts[0]["result"]), (&json!(customer.id), &json!("failure")));

    eventually("the lockout ends despite further attempts", async || {
        (log_in(&service, &customer.email, PASSWORD).await.status == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_login_deletes_earlier_failed_attempts() {
    let service = service().await;
    let customer = service.customer().await;
    for _ in 0..3 {
        for _ in 0..4 {
            let _wrong = log_in(&service, &customer.email, WRONG).await.assert_status(401);
        }
        let _right = log_in(&service, &customer.email, PASSWORD).await.assert_status(201);
    }
}

#[tokio::test]
async fn an_attacker_is_locked_out_and_the_owner_is_not() {
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let customer = service.customer().await;
    for _ in 0..8 {
        let _wrong = log_in_from(&service, "203.0.113.7", &customer.email, WRONG).await.assert_status(401);
    }
    let _locked = log_in_from(&service, "203.0.113.7", &customer.email, PASSWORD).await.assert_status(401);
    let _owner = log_in_from(&service, "198.51.100.4", &customer.email, PASSWORD).await.assert_status(201);
    let attempts = service.audit_events("event_type = 'authentication' and result = 'failure'").await;
    assert!(attempts.iter().all(|event| event["ip_address"] == "203.0.113.7"), "{attempts:#?}");
}

#[tokio::test]
async fn an_untrusted_forwarded_address_is_ignored() {
    let service = service().await;
    let customer = service.customer().await;
    for attacker in 0..6 {
        let _wrong = log_in_from(&service, &format!("203.0.113.{attacker}"), &customer.email, WRONG).await;
    }
    let _locked = log_in_from(&service, "198.51.100.4", &customer.email, PASSWORD).await.assert_status(401);
    let attempts = service.audit_events("event_type = 'authentication' and result = 'failure'").await;
    assert!(attempts.iter().all(|event| event["ip_address"] == "127.0.0.1"), "{attempts:#?}");
}

#[tokio::test]
async fn many_addresses_together_lock_an_account() {
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let customer = service.customer().await;
    for attacker in 0..50 {
        let address = format!("203.0.113.{attacker}");
        let _wrong = log_in_from(&service, &address, &customer.email, WRONG).await.assert_status(401);
        // While all networks together are below their limit, a login from another network succeeds.
        if attacker == 40 {
            let _owner =
                log_in_from(&service, "198.51.100.3", &customer.email, PASSWORD).await.assert_status(201);
        }
    }
    let _locked = log_in_from(&service, "198.51.100.4", &customer.email, PASSWORD).await.assert_status(401);
}

#[tokio::test]
async fn expired_attempts_are_deleted() {
    let mut service = builder().setting("LOCKOUT_SECONDS", "1").start().await;
    let _wrong = log_in(&service, "absent@example.com", WRONG).await.assert_status(401);
    let attempts = "select count(*) from login_attempts";
    assert_eq!(
        service.database().number(attempts).await,
        2,
        "there must be one count for the network, and one for all networks"
    );
    eventually("the attempts expire", async || {
        let unexpired = format!("{attempts} where expires_at >= now()");
        (service.database().number(unexpired).await == 0).then_some(())
    })
    .await;
    // The worker that deletes expired attempts runs once a minute, and also when the service starts.
    service.terminate().await;
    service.restart().await;
    eventually("the attempts are deleted", async || {
        (service.database().number(attempts).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_address_cannot_lock_an_account_for_other_addresses() {
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let customer = service.customer().await;
    for _ in 0..60 {
        let _rejected = log_in_from(&service, "203.0.113.7", &customer.email, WRONG).await.assert_status(401);
    }
    let _owner = log_in_from(&service, "198.51.100.4", &customer.email, PASSWORD).await.assert_status(201);
    assert_eq!(service.audit_events("action = 'lockout'").await.len(), 1);
}

#[tokio::test]
async fn one_address_cannot_lock_an_account_over_a_long_time() {
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let customer = service.customer().await;
    // Lets time pass for the stored attempts. A lockout lasts 900 seconds.
    let pass = async |seconds: u32| {
        let shift =
            format!("update login_attempts set expires_at = expires_at - interval '{seconds} seconds'");
        service.database().execute(shift).await;
    };
    for _ in 0..11 {
        for _ in 0..5 {
            let _wrong =
                log_in_from(&service, "203.0.113.7", &customer.email, WRONG).await.assert_status(401);
        }
        pass(450).await;
        let _owner =
            log_in_from(&service, "198.51.100.4", &customer.email, PASSWORD).await.assert_status(201);
        pass(460).await;
    }
}

#[tokio::test]
async fn the_addresses_of_one_ipv6_network_are_locked_out_together() {
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let customer = service.customer().await;
    for host in 1..=5 {
        let address = format!("2001:db8:0:1::{host}");
        let _wrong = log_in_from(&service, &address, &customer.email, WRONG).await.assert_status(401);
    }
    let _locked =
        log_in_from(&service, "2001:db8:0:1:ffff::1", &customer.email, PASSWORD).await.assert_status(401);
    let _other_network =
        log_in_from(&service, "2001:db8:0:2::1", &customer.email, PASSWORD).await.assert_status(201);
    let lockouts = service.audit_events("action = 'lockout'").await;
    assert_eq!((lockouts.len(), &lockouts[0]["ip_address"]), (1, &json!("2001:db8:0:1:ffff::1")));
}

#[tokio::test]
async fn the_audit_log_and_attempts_share_one_account_pseudonym() {
    let service = service().await;
    let _wrong = log_in(&service, "absent@example.com", WRONG).await.assert_status(401);
    let events = service.audit_events("action = 'login' and result = 'failure'").await;
    let rows =
        service.database().rows("select distinct encode(account, 'hex') as account from login_attempts");
    assert_eq!(rows.await, [json!({ "account": events[0]["metadata"]["unknown_account"] })]);
}

#[tokio::test]
async fn concurrent_attempts_cannot_exceed_the_lockout_limit() {
    let service = service().await;
    let customer = service.customer().await;
    let attempts = (0..20).map(|_| {
        let credentials = json!({ "email": customer.email, "password": WRONG });
        service.anonymous().post("/v1/sessions").json(&credentials).in_background()
    });
    for attempt in attempts.collect::<Vec<_>>() {
        let _wrong = attempt.response().await.assert_problem(401, "bad-credentials");
    }
    let verified = service.metric("authentication_failures_total{reason=\"bad_credentials\"}").await;
    let locked = service.metric("authentication_failures_total{reason=\"locked_out\"}").await;
    assert_eq!((verified, locked), (5, 15));
}

#[tokio::test]
async fn an_attempt_is_counted_before_its_password_is_verified() {
    // Hashing takes seconds with these parameters. The service must count an attempt before it hashes the password.
    // Otherwise a client could disconnect during the hashing, and avoid the lockout.
    let service = builder()
        .setting("ARGON2_MEMORY_KIB", "32768")
        .setting("ARGON2_ITERATIONS", "64")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    for email in ["absent@example.com", "absent.else@example.com"] {
        let before = service.database().number("select count(*) from login_attempts").await;
        let credentials = json!({ "email": email, "password": WRONG });
        let started = Instant::now();
        let attempt = service.anonymous().post("/v1/sessions").json(&credentials).in_background();
        eventually("the attempt is counted", async || {
            let counted = service.database().number("select count(*) from login_attempts").await;
            (counted > before).then_some(())
        })
        .await;
        let counted = started.elapsed();
        assert_eq!(attempt.response().await.status, 401);
        let responded = started.elapsed();
        assert!(counted < responded / 2, "counted after {counted:.1?}, responded after {responded:.1?}");
    }
}

#[tokio::test]
async fn many_logins_do_not_block_registrations() {
    let service = builder()
        .setting("ARGON2_MEMORY_KIB", "32768")
        .setting("ARGON2_ITERATIONS", "4")
        .setting("LOGIN_ATTEMPTS_BEFORE_LOCKOUT", "100000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let started = Instant::now();
    let credentials = json!({ "email": "absent@example.com", "password": WRONG });
    let logins: Vec<_> = (0..24)
        .map(|_| service.anonymous().post("/v1/sessions").json(&credentials).in_background())
        .collect();
    eventually("all logins are counted", async || {
        (service.database().number("select coalesce(sum(attempts), 0)::bigint from login_attempts").await
            >= 24)
            .then_some(())
    })
    .await;
    let _registered = register(&service, "new@example.com", PASSWORD).await.assert_status(201);
    let registered = started.elapsed();
    for login in logins {
        assert_eq!(login.response().await.status, 401);
    }
    let all = started.elapsed();
    assert!(registered < all / 2, "registered after {registered:.1?}, the logins took {all:.1?}");
}

#[tokio::test]
async fn an_unknown_account_has_a_pseudonym_in_the_audit_log() {
    let service = service().await;
    for email in ["absent@example.com", "Absent@Example.com", "other@example.com"] {
        let _wrong = log_in(&service, email, WRONG).await.assert_status(401);
    }
    let attempts = service.audit_events("action = 'login' and result = 'failure'").await;
    let pseudonyms: Vec<_> =
        attempts.iter().map(|event| event["metadata"]["unknown_account"].as_str().unwrap()).collect();
    assert_eq!(pseudonyms[0], pseudonyms[1], "one account must have one pseudonym");
    assert_ne!(pseudonyms[1], pseudonyms[2], "two accounts must have different pseudonyms");
    let unkeyed = service.database().rows("select encode(sha256('absent@example.com'), 'hex') as hash").await;
    assert!(
        !pseudonyms.contains(&unkeyed[0]["hash"].as_str().unwrap()),
        "a pseudonym must not be the plain hash of the address, which an attacker could compute"
    );
    assert!(!json!(attempts).to_string().to_lowercase().contains("absent@"), "{attempts:#?}");
}

#[tokio::test]
async fn a_flood_of_denials_is_aggregated_in_the_audit_log() {
    let service = service().await;
    let customer = service.customer().await;
    let rejections = (0..230).map(|_| customer.get("/v1/audit-events").in_background());
    for rejection in rejections.collect::<Vec<_>>() {
        let _rejected = rejection.response().await.assert_problem(403, "forbidden");
    }
    service.terminate().await;
    let written = service.audit_events("event_type = 'authorization' and action = 'access'").await.len();
    let counted = service.audit_events("action = 'refuse' and resource = 'requests'").await;
    let suppressed: u64 = counted.iter().map(|event| event["metadata"]["count"].as_u64().unwrap()).sum();
    // The service writes at most a hundred denials of an address in a minute as separate events. A new minute may begin
    // during the requests, and then up to a hundred more are written.
    assert!((100..=200).contains(&written), "{written}");
    assert_eq!(u64::try_from(written).unwrap() + suppressed, 230);
    assert!(counted.iter().all(|event| event["ip_address"] == "127.0.0.1"), "{counted:#?}");
}

#[tokio::test]
async fn unknown_address_and_wrong_password_take_the_same_time() {
    // The hash must take much longer than the rest of a login. Otherwise the test could not detect a missing hash.
    let service = builder()
        .setting("ARGON2_MEMORY_KIB", "8192")
        .setting("ARGON2_ITERATIONS", "8")
        .setting("LOGIN_ATTEMPTS_BEFORE_LOCKOUT", "100000")
        .start()
        .await;
    let customer = service.customer().await;
    // If one of the logins computed no hash, it would be faster in every round. Other load on the machine differs
    // between rounds, so one round with equal times is sufficient.
    let mut rounds = Vec::new();
    for _ in 0..10 {
        let (known, unknown) = fastest_rejections(&service, [&customer.email, "absent@example.com"]).await;
        assert!(unknown > 0.005, "no hash was computed for an unknown address: {unknown} s");
        if (0.7..1.43).contains(&(known / unknown)) {
            return;
        }
        rounds.push((known, unknown));
    }
    panic!("a known and an unknown address take different times in every round, in seconds: {rounds:?}");
}

/// Returns the shortest time of a login with a wrong password for each of two e-mail addresses, in seconds.
async fn fastest_rejections(service: &Service, [one, other]: [&str; 2]) -> (f64, f64) {
    let mut fastest = (f64::MAX, f64::MAX);
    // The addresses alternate, so that other load on the machine affects both. Load only adds time, so the shortest
    // time is the most precise one.
    for _ in 0..10 {
        for (email, best) in [(one, &mut fastest.0), (other, &mut fastest.1)] {
            let started = Instant::now();
            let _wrong = log_in(service, email, WRONG).await.assert_status(401);
            *best = best.min(started.elapsed().as_secs_f64());
        }
    }
    fastest
}

#[tokio::test]
async fn the_address_limit_applies_before_the_body_is_read() {
    let service = builder().setting("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "1").start().await;
    let _first = log_in(&service, "a@example.com", WRONG).await.assert_status(401);
    for path in ["/v1/sessions", "/v1/users"] {
        let request = service.anonymous().post(path).header("content-type", "application/json");
        let _rejected = request.body("no JSON").await.assert_problem(429, "too-many-requests");
    }
}

#[tokio::test]
async fn logins_from_one_client_address_are_rate_limited() {
    let service = builder().setting("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "3").start().await;
    let responses = [
        log_in(&service, "a@example.com", WRONG).await,
        log_in(&service, "b@example.com", WRONG).await,
        register(&service, "c@example.com", PASSWORD).await,
        log_in(&service, "d@example.com", WRONG).await,
        register(&service, "e@example.com", PASSWORD).await,
    ];
    assert_eq!(responses.each_ref().map(|response| response.status), [401, 401, 201, 429, 429]);
    let rejected = responses[3].clone().assert_problem(429, "too-many-requests");
    let seconds: u64 = rejected.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds), "{rejected}");
}
