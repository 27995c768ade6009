//! Registration, login, logout, sessions, password changes, the rules and hashes of passwords, and the commands
//! `user create` and `user end-sessions`.
mod lockout;
pub(crate) mod permissions;

use std::time::{Duration, Instant};

use dev::harness::{HttpResponse, PASSWORD, PATH, Service, User, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, service};

pub const WRONG: &str = "not the password of any user";

pub async fn register(service: &Service, email: &str, password: &str) -> HttpResponse {
    let registration = json!({ "email": email, "password": password, "name": "Grace Hopper" });
    service.anonymous().post("/v1/users").json(&registration).await
}

pub async fn log_in(service: &Service, email: &str, password: &str) -> HttpResponse {
    let credentials = json!({ "email": email, "password": password });
    service.anonymous().post("/v1/sessions").json(&credentials).await
}

#[tokio::test]
async fn a_user_registers_logs_in_and_reads_their_account() {
    let service = service().await;
    let registered = register(&service, "Grace@Example.com", PASSWORD).await.assert_status(201);
    let user = registered.json();
    assert_eq!(user["email"], "grace@example.com", "the address must be stored in lower case");
    assert_eq!((&user["name"], &user["role"]), (&json!("Grace Hopper"), &json!("customer")));
    assert_eq!(registered.header("location"), Some("/v1/me"));

    let session = log_in(&service, "GRACE@example.com", PASSWORD).await.assert_status(201).json();
    assert_eq!(session["user"], user);
    let expires_at: chrono::DateTime<chrono::Utc> = session["expires_at"].as_str().unwrap().parse().unwrap();
    let minutes = (expires_at - chrono::Utc::now()).num_minutes();
    assert!((715..=720).contains(&minutes), "a session must last twelve hours, not {minutes} minutes");

    let me = service
        .anonymous()
        .with_token(session["token"].as_str().unwrap())
        .get("/v1/me")
        .await
        .assert_status(200);
    assert_eq!(me.json(), user);
}

#[tokio::test]
async fn an_email_address_is_registered_once_in_any_case() {
    let service = service().await;
    let _registered = register(&service, "grace@example.com", PASSWORD).await.assert_status(201);
    let _taken = register(&service, "GRACE@example.com", "another long password")
        .await
        .assert_problem(409, "conflict");
    let _first = log_in(&service, "grace@example.com", PASSWORD).await.assert_status(201);
}

#[tokio::test]
async fn concurrent_registrations_of_one_address_create_one_user() {
    let service = service().await;
    let (one, other) = tokio::join!(
        register(&service, "grace@example.com", PASSWORD),
        register(&service, "grace@example.com", PASSWORD)
    );
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
}

#[tokio::test]
async fn all_errors_of_a_registration_are_reported_at_once() {
    let service = service().await;
    let registration = json!({ "email": "nobody", "password": "short", "name": " " });
    let _rejected = service.anonymous().post("/v1/users").json(&registration).await.assert_invalid_at(&[
        "/email",
        "/password",
        "/name",
    ]);
}

#[tokio::test]
async fn a_password_has_8_to_1024_characters() {
    let service = service().await;
    for (password, is_accepted) in [
        ("1234567".to_owned(), false),
        ("mxqzvkwt".to_owned(), true),
        ("\u{1F511}\u{1F40E}\u{1F50B}".repeat(2), false),
        ("\u{1F511}\u{1F40E}\u{1F50B}\u{1F4CE}\u{1F344}\u{2693}\u{1F3B2}\u{1F9F2}".to_owned(), true),
        (format!("mxqzvkwt {}", "p".repeat(1015)), true),
        (format!("mxqzvkwt {}", "p".repeat(1016)), false),
        (format!("mxqzvkwt {}", "\u{1F511}".repeat(1015)), true),
    ] {
        let email = format!("{}@example.com", Uuid::now_v7().simple());
        let response = register(&service, &email, &password).await;
        if is_accepted {
            let _registered = response.assert_status(201);
            let _known = log_in(&service, &email, &password).await.assert_status(201);
        } else {
            let _weak = response.assert_invalid_at(&["/password"]);
        }
    }
}

#[tokio::test]
async fn a_common_password_is_rejected_on_every_route() {
    let service = service().await;
    for common in
        ["12345678", "password", "Passw0rd", "qwertyuiop", "aaaaaaaa", "Grace Hopper", "grace@example.com"]
    {
        let _rejected =
            register(&service, "grace@example.com", common).await.assert_invalid_at(&["/password"]);
    }
    let customer = service.customer().await;
    let account = customer.email.split('@').next().unwrap();
    for common in ["iloveyou1", &customer.email, account, "Ada Lovelace", "lovelace1815"] {
        let _rejected =
            change_password(&customer, PASSWORD, common).await.assert_invalid_at(&["/new_password"]);
    }
    let create = ["user", "create", "--email", "root.of.all@example.com", "--name", "Ada Lovelace"];
    let create = [&create[..], &["--role", "admin"]].concat();
    for common in ["password1", "root.of.all@example.com", "RootOfAll", "Ada Lovelace"] {
        let rejected = service.command(&create, &[("USER_PASSWORD", common)]).await;
        assert_eq!(rejected.code(), Some(1), "{common}");
        assert!(rejected.stderr.contains("must not be a common password"), "{common}: {}", rejected.stderr);
    }
}

async fn change_password(user: &User, current: &str, new: &str) -> HttpResponse {
    user.put("/v1/me/password").json(&json!({ "current_password": current, "new_password": new })).await
}

#[tokio::test]
async fn an_email_address_has_no_display_name() {
    let service = service().await;
    let named = "Eve <victim@example.com>";
    let _rejected = register(&service, named, PASSWORD).await.assert_invalid_at(&["/email"]);
    let create = ["user", "create", "--email", named, "--role", "customer"];
    assert_eq!(service.command(&create, &[("USER_PASSWORD", PASSWORD)]).await.code(), Some(1));
    let _victim = register(&service, "victim@example.com", PASSWORD).await.assert_status(201);
    let _not_the_victim = log_in(&service, named, PASSWORD).await.assert_problem(401, "bad-credentials");
}

/// A password for which a strength estimator would need about a second. The service does not estimate the strength: it
/// looks passwords up in a list of common ones.
const EXPENSIVE_PASSWORD: &str = "4@8({[<3693!4@8({[<3693!4@8({[<3693!4@8({[<3693!4@8({[<3693!4@8(";

#[tokio::test]
async fn hostile_passwords_do_not_slow_down_other_requests() {
    let service = service().await;
    // Other load on the machine differs between rounds, but work that blocks the service slows down every round. One
    // fast round is therefore sufficient.
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let registrations = (0..20).map(|_| {
            let email = format!("{}@example.com", Uuid::now_v7().simple());
            let registration = json!({ "email": email, "password": EXPENSIVE_PASSWORD, "name": "Eve" });
            service.anonymous().post("/v1/users").json(&registration).in_background()
        });
        let registrations = registrations.collect::<Vec<_>>();
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(service.ops("/healthz").await.0, 200);
            let _other = service.anonymous().get("/problems").await.assert_status(200);
            slowest = slowest.max(started.elapsed());
        }
        for registration in registrations {
            let _registered = registration.response().await.assert_status(201);
        }
        if slowest < Duration::from_millis(250) {
            return;
        }
        rounds.push(slowest);
    }
    panic!("other requests were slowed down each time: {rounds:?}");
}

#[tokio::test]
async fn a_login_during_a_password_change_starts_no_session() {
    let service = service().await;
    let customer = service.customer().await;
    let _other = register(&service, "grace@example.com", "another long password").await.assert_status(201);
    // The password change commits after the login has read and verified the old hash.
    let other_hash = "select password_hash from users where email = 'grace@example.com'";
    let change = format!("update users set password_hash = ({other_hash}) where id = '{}'", customer.id);
    let change = service.database().hold(&change).await;
    let credentials = json!({ "email": customer.email, "password": PASSWORD });
    let login = service.anonymous().post("/v1/sessions").json(&credentials).in_background();
    service.database().wait_for_blocked_statements(1).await;
    change.commit().await;
    let _rejected = login.response().await.assert_problem(401, "bad-credentials");
    assert_eq!(
        service.database().number("select count(*) from sessions").await,
        1,
        "only the customer's earlier session must exist"
    );
}

#[tokio::test]
async fn one_of_two_concurrent_password_changes_succeeds() {
    // A hash takes so long that both requests verify the current password before either request stores its new one.
    let slow = builder().setting("ARGON2_MEMORY_KIB", "32768").setting("ARGON2_ITERATIONS", "8");
    let service = slow.setting("REQUEST_TIMEOUT_MS", "60000").start().await;
    let customer = service.customer().await;
    let (one, other) = tokio::join!(
        change_password(&customer, PASSWORD, "the first new password"),
        change_password(&customer, PASSWORD, "the second new password"),
    );
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 401]);
    let passwords = ["the first new password", "the second new password"];
    let new = if one.status == 204 { passwords[0] } else { passwords[1] };
    let _in = log_in(&service, &customer.email, new).await.assert_status(201);
    assert_eq!(service.audit_events("action = 'change_password'").await.len(), 1);
}

#[tokio::test]
async fn concurrent_logins_with_an_outdated_hash_all_begin_a_session() {
    let service = service().await;
    let outdated = [("ARGON2_MEMORY_KIB", "16384"), ("ARGON2_ITERATIONS", "4"), ("USER_PASSWORD", PASSWORD)];
    let create = ["user", "create", "--email", "grace@example.com", "--role", "customer"];
    service.command(&create, &outdated).await.succeeded();
    let credentials = json!({ "email": "grace@example.com", "password": PASSWORD });
    let logins =
        [(); 2].map(|()| service.anonymous().post("/v1/sessions").json(&credentials).in_background());
    for login in logins {
        let _in = login.response().await.assert_status(201);
    }
}

#[tokio::test]
async fn as_many_passwords_are_hashed_at_once_as_the_setting_allows() {
    const HASH_BYTES: u64 = 64 * 1024 * 1024;
    let peak = async |concurrency: &str| {
        let service = builder()
            .setting("PASSWORD_HASHING_CONCURRENCY", concurrency)
            .setting("ARGON2_MEMORY_KIB", "65536")
            .setting("REQUEST_TIMEOUT_MS", "60000")
            .start()
            .await;
        let _one = log_in(&service, "nobody@example.com", WRONG).await.assert_status(401);
        let peak_of_one = service.peak_memory();
        let credentials = json!({ "email": "nobody@example.com", "password": WRONG });
        let logins =
            [(); 8].map(|()| service.anonymous().post("/v1/sessions").json(&credentials).in_background());
        for login in logins {
            let _wrong = login.response().await.assert_status(401);
        }
        service.peak_memory() - peak_of_one
    };
    assert!(peak("1").await < HASH_BYTES / 2, "passwords must be hashed one at a time");
    assert!(peak("4").await > HASH_BYTES, "several passwords must be hashed at the same time");
}

#[tokio::test]
async fn an_outdated_hash_is_replaced_at_the_next_login() {
    let service = service().await;
    let customer = service.customer().await;
    let hash = async || {
        let rows =
            service.database().rows(format!("select password_hash from users where id = '{}'", customer.id));
        rows.await[0]["password_hash"].as_str().unwrap().to_owned()
    };
    assert!(hash().await.contains("$m=64,t=1,p=1$"));
    // A second user has the same password, hashed with more expensive parameters. The customer gets a copy of that
    // hash.
    let stronger = [("ARGON2_MEMORY_KIB", "128"), ("ARGON2_ITERATIONS", "2"), ("USER_PASSWORD", PASSWORD)];
    let create = ["user", "create", "--email", "stronger@example.com", "--role", "customer"];
    service.command(&create, &stronger).await.succeeded();
    service
        .database()
        .execute(format!(
            "update users set password_hash = (select password_hash from users where email = 'stronger@example.com')
             where id = '{}'",
            customer.id
        ))
        .await;
    assert!(hash().await.contains("$m=128,t=2,p=1$"));
    let _wrong = log_in(&service, &customer.email, WRONG).await.assert_status(401);
    assert!(
        hash().await.contains("$m=128,t=2,p=1$"),
        "a login with a wrong password must not replace the hash"
    );
    let _known = log_in(&service, &customer.email, PASSWORD).await.assert_status(201);
    let renewed = hash().await;
    assert!(renewed.contains("$m=64,t=1,p=1$"), "{renewed}");
    let _still_known = log_in(&service, &customer.email, PASSWORD).await.assert_status(201);
    assert_eq!(hash().await, renewed, "the hash must be replaced only once");
    assert_eq!(service.audit_events("action = 'renew_password_hash'").await.len(), 1);
}

#[tokio::test]
async fn a_registration_cannot_choose_its_role() {
    let service = service().await;
    let registration =
        json!({ "email": "eve@example.com", "password": PASSWORD, "name": "Eve", "role": "admin" });
    let _rejected =
        service.anonymous().post("/v1/users").json(&registration).await.assert_invalid_at(&["/role"]);
}

#[tokio::test]
async fn a_logout_ends_only_its_own_session() {
    let service = service().await;
    let here = service.customer().await;
    let there = service.log_in(&here.email).await;
    let logged_out = here.delete("/v1/sessions/current").await.assert_status(204);
    assert_eq!(logged_out.text, "");
    let _ended = here.get("/v1/me").await.assert_problem(401, "unauthenticated");
    let _valid_session = there.get("/v1/me").await.assert_status(200);
}

#[tokio::test]
async fn a_password_change_ends_every_session() {
    let service = service().await;
    let here = service.customer().await;
    let there = service.log_in(&here.email).await;
    let other_customer = service.customer().await;
    let _changed = change_password(&here, PASSWORD, "a new and longer password").await.assert_status(204);

    for ended in [&here, &there] {
        let _ended = ended.get("/v1/me").await.assert_problem(401, "unauthenticated");
    }
    let _valid_session = other_customer.get("/v1/me").await.assert_status(200);
    let _old = log_in(&service, &here.email, PASSWORD).await.assert_problem(401, "bad-credentials");
    let _new = log_in(&service, &here.email, "a new and longer password").await.assert_status(201);
    let revoked = service.audit_events("action = 'revoke' and resource = 'sessions'").await;
    assert_eq!(
        (revoked.len(), &revoked[0]["metadata"]["record_count"]),
        (1, &json!(2)),
        "one event must count both sessions"
    );
    let changes = service.audit_events("action = 'change_password'").await;
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0]["user_id"], json!(here.id));
}

#[tokio::test]
async fn a_password_change_requires_the_current_password() {
    let service = service().await;
    let customer = service.customer().await;
    let wrong = change_password(&customer, WRONG, "a new and longer password").await;
    let _wrong = wrong.assert_problem(401, "bad-credentials");
    let _weak = change_password(&customer, PASSWORD, "short").await.assert_invalid_at(&["/new_password"]);
    let _unchanged = log_in(&service, &customer.email, PASSWORD).await.assert_status(201);
    let _valid_session = customer.get("/v1/me").await.assert_status(200);
}

#[tokio::test]
async fn an_expired_session_is_rejected_deleted_and_audited() {
    let mut service = builder().setting("SESSION_TTL_SECONDS", "1").start().await;
    let customer = service.customer().await;
    let ended = eventually("the session ends", async || {
        let response = customer.get("/v1/me").await;
        (response.status != 200).then_some(response)
    })
    .await;
    let ended = ended.assert_problem(401, "unauthenticated");
    assert_eq!(ended.header("www-authenticate"), Some("Bearer"));
    // The worker that deletes expired sessions runs once a minute, and also when the service starts.
    service.terminate().await;
    service.restart().await;
    let expired = eventually("the end of the session is audited", async || {
        service.audit_events("action = 'expire' and resource = 'sessions'").await.pop()
    })
    .await;
    assert_eq!(expired["user_id"], json!(customer.id));
    assert_eq!(service.database().number("select count(*) from sessions").await, 0);
}

#[tokio::test]
async fn a_session_with_a_role_of_a_newer_release_is_deleted() {
    let mut service = builder().setting("SESSION_TTL_SECONDS", "1").start().await;
    let (newer, known) = (service.customer().await, service.customer().await);
    service
        .database()
        .execute(format!(
            "alter table users drop constraint role_is_known; update users set role = 'newer' where id = '{}'",
            newer.id
        ))
        .await;
    eventually("the sessions expire", async || {
        let unexpired = "select count(*) from sessions where expires_at >= now()";
        (service.database().number(unexpired).await == 0).then_some(())
    })
    .await;
    service.terminate().await;
    service.restart().await;
    eventually("the sessions are deleted", async || {
        (service.database().number("select count(*) from sessions").await == 0).then_some(())
    })
    .await;
    let role_in_event = async |user: &User| {
        let expired = format!("action = 'expire' and user_id = '{}'", user.id);
        service.audit_events(&expired).await.remove(0)["role"].clone()
    };
    assert_eq!(
        (role_in_event(&newer).await, role_in_event(&known).await),
        (json!("unknown"), json!("customer"))
    );
}

#[tokio::test]
async fn an_invalid_token_is_rejected_even_on_public_routes() {
    let service = service().await;
    let unknown = service.anonymous().with_token("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    for path in ["/v1/me", "/problems", PATH, "/nothing"] {
        let rejected = unknown.get(path).await.assert_problem(401, "unauthenticated");
        assert_eq!(rejected.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(service.metric("authentication_failures_total{reason=\"bad_token\"}").await, 4);
    let audited = service.audit_events("metadata ->> 'reason' = 'bad_token'").await;
    assert_eq!(audited.len(), 4);
    assert!(audited.iter().all(|event| event["result"] == "failure" && event["ip_address"] == "127.0.0.1"));
    assert!(!json!(audited).to_string().contains("AAAAAAAA"), "the audit log must not contain the token");
    for credentials in ["Basic Z3JhY2U6aG9wcGVy", "Bearer", "Bearer ", ""] {
        let rejected = service.anonymous().get("/v1/me").header("authorization", credentials).await;
        assert_eq!(rejected.status, 401, "{credentials:?}: {rejected}");
    }
}

#[tokio::test]
async fn no_token_or_password_is_stored() {
    let service = service().await;
    let customer = service.customer().await;
    let _created = customer.creates().await.assert_status(201);
    let _wrong = log_in(&service, &customer.email, WRONG).await.assert_status(401);
    let tables = service.database().rows(
        "select relname as name from pg_class
         where relkind = 'r' and relnamespace = 'public'::regnamespace",
    );
    let mut everything = String::new();
    for table in tables.await {
        let rows =
            service.database().rows(format!("select * from {}", table["name"].as_str().unwrap())).await;
        everything.extend(rows.iter().map(Value::to_string));
    }
    everything.extend(service.logs().iter().map(Value::to_string));
    assert!(everything.contains(&customer.id.to_string()), "the searched text must have the customer's id");
    for secret in [customer.token.as_str(), PASSWORD, WRONG] {
        assert!(!everything.contains(secret), "{secret}");
    }
    assert!(everything.contains("$argon2id$"), "passwords must be stored as Argon2id hashes");
}

#[tokio::test]
async fn user_end_sessions_ends_every_session_of_one_user() {
    let service = service().await;
    let (victim, other) = (service.customer().await, service.customer().await);
    let second = service.log_in(&victim.email).await;
    let end = ["user", "end-sessions", "--email", &victim.email, "--reason", "stolen laptop"];
    let output = service.command(&end, &[]).await.succeeded();
    assert!(output.contains("sessions ended: 2"), "{output}");
    for ended in [&victim, &second] {
        let _rejected = ended.get("/v1/me").await.assert_problem(401, "unauthenticated");
    }
    let _unaffected = other.get("/v1/me").await.assert_status(200);
    let _new_session = service.log_in(&victim.email).await.get("/v1/me").await.assert_status(200);
    let recorded = "select metadata from audit_events where action = 'end_all'";
    let recorded = service.database().rows(recorded).await;
    let [event] = &recorded[..] else { panic!("one event must be recorded: {recorded:?}") };
    let expected = json!({ "user_id": victim.id, "reason": "stolen laptop", "record_count": 2 });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&event["metadata"][key], value);
    }

    for (email, message) in [("nobody@example.com", "no user has this"), ("nobody", "must be an e-mail")] {
        let unknown = ["user", "end-sessions", "--email", email, "--reason", "a test"];
        let rejected = service.command(&unknown, &[]).await;
        assert_eq!(rejected.code(), Some(1));
        assert!(rejected.stderr.contains(message), "{}", rejected.stderr);
    }
    let without_reason = &end[..4];
    assert_eq!(service.command(without_reason, &[]).await.code(), Some(2));
}

#[tokio::test]
async fn user_create_reads_the_password_from_stdin_or_environment() {
    let service = service().await;
    let create = ["user", "create", "--email", "root@example.com", "--role", "admin"];
    // With this timeout a request would fail before the pool has a connection, but a command waits for the connection.
    let short_timeout = [("USER_PASSWORD", PASSWORD), ("DATABASE_ACQUIRE_TIMEOUT_MS", "1")];
    let made = service.command(&create, &short_timeout).await.succeeded();
    assert!(made.contains("root@example.com admin"), "{made}");
    assert_eq!(
        service.log_in("root@example.com").await.get("/v1/me").await.assert_status(200).text("role"),
        "admin"
    );

    let again = service.command(&create, &[("USER_PASSWORD", PASSWORD)]).await;
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr.contains("belongs to another user"), "{}", again.stderr);
    let weak = service.command(&create, &[("USER_PASSWORD", "short")]).await;
    assert_eq!(weak.code(), Some(1));
    assert!(weak.stderr.contains("must have at least 8 characters"), "{}", weak.stderr);
    let wrong = ["user", "create", "--email", "x@example.com", "--role", "emperor"];
    assert_eq!(service.command(&wrong, &[("USER_PASSWORD", PASSWORD)]).await.code(), Some(2));
    let as_argument = [&create[..], &["--password", PASSWORD]].concat();
    assert_eq!(service.command(&as_argument, &[]).await.code(), Some(2));
}
