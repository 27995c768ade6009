//! The audit log after the database was restored from a backup, with the steps of docs/runbooks/DatabaseRestored.md.
use dev::harness::{CommandOutput, Service, eventually};
use serde_json::Value;

use super::{
    seals::{cause_three_events, sealing_service, verify, wait_until_everything_is_sealed},
    verification::{Scratch, log_lines, tamper},
};

async fn after_restore(service: &Service, heads: &str, more: &[&str]) -> CommandOutput {
    let arguments = ["after-restore", "--reason", "disk failure", "--known-heads", heads];
    service.command(&[&arguments[..], more].concat(), &[]).await
}

/// Waits until every event is sealed, and the current process has logged the head: the last seal of the chain. Returns
/// the number of this seal.
async fn wait_until_head_is_logged(service: &Service) -> i64 {
    wait_until_everything_is_sealed(service).await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.wait_for_log("the head is logged", |line| line["seal_number"] == head).await;
    head
}

/// Returns the rows of the tables that `after-restore` changes, and the number of audit events.
async fn changed_tables(service: &Service) -> Vec<Value> {
    let query = "select
        (select json_agg(audit_epochs) from audit_epochs) as epochs,
        (select json_agg(audit_restores) from audit_restores) as restores,
        (select json_agg(audit_lost_heads order by number) from audit_lost_heads) as lost_heads,
        (select json_agg(sessions) from sessions) as sessions,
        (select json_agg(idempotency_keys) from idempotency_keys) as idempotency_keys,
        (select count(*) from audit_events) as events";
    service.database().rows(query).await
}

#[tokio::test]
async fn the_steps_of_the_restore_runbook_give_a_verified_log() {
    let mut service = sealing_service().await;
    let scratch = Scratch::new();
    let (customer, other) = (service.customer().await, service.customer().await);
    let _created = customer.creates().await.assert_status(201);
    let kept = wait_until_head_is_logged(&service).await;
    assert_eq!(service.metric("audit_restores").await, 0);
    let mut log = log_lines(&service);
    service.terminate().await;
    service.database().back_up().await;
    service.restart().await;
    let _logged_out = other.delete("/v1/sessions/current").await.assert_status(204);
    for _ in 0..2 {
        let _lost = customer.creates().await.assert_status(201);
        wait_until_head_is_logged(&service).await;
    }
    let lost = service.database().number("select number from audit_seal_head").await;
    assert!(lost > kept);

    // Stop, and restore.
    service.terminate().await;
    log += &log_lines(&service);
    service.database().restore().await;
    let heads = scratch.write("heads.jsonl", &log);
    // This moves the expiry of the idempotency key into the period whose changes are lost. `after-restore` must extend
    // such a key, because the client may still retry the request.
    service
        .database()
        .execute(
            "update idempotency_keys
             set completed_at = sealed_at + (now() - sealed_at) / 2 - interval '24 hours'
             from (select max(sealed_at) as sealed_at from audit_seals) as seals
             where completed_at is not null",
        )
        .await;
    let found = verify(&service, &["--heads", &heads]).await;
    assert_eq!(found.code(), Some(1), "{}", found.stdout);
    let missing = format!("seal {}: missing, although it was logged", kept + 1);
    assert!(found.stderr.contains(&missing), "{}", found.stderr);

    // Migrate, and run the command.
    service.command(&["migrate"], &[]).await.succeeded();
    let before = changed_tables(&service).await;
    let unconfirmed = after_restore(&service, &heads, &[]).await;
    assert_eq!(unconfirmed.code(), Some(1), "{}", unconfirmed.stdout);
    assert!(unconfirmed.stderr.contains("the command was not confirmed"), "{}", unconfirmed.stderr);
    assert_eq!(changed_tables(&service).await, before);
    let done = after_restore(&service, &heads, &["--yes"]).await.succeeded();
    let gap = format!("heads of seals {} to {lost} are not in the database", kept + 1);
    assert!(done.contains(&gap) && done.contains("epoch 2 of the audit log has begun"), "{done}");
    assert!(done.contains("sessions ended: 2; idempotency keys extended: 1"), "{done}");
    let after = changed_tables(&service).await;
    let again = after_restore(&service, &heads, &["--yes"]).await.succeeded();
    assert!(again.starts_with("nothing to do: this restore is recorded already\n"), "{again}");
    assert_eq!(changed_tables(&service).await, after);

    // Verify.
    let gap = format!("restored: seals {} to {lost} were logged and are lost", kept + 1);
    let verified = verify(&service, &["--heads", &heads]).await.succeeded();
    assert!(verified.contains(&gap) && verified.contains("disk failure"), "{verified}");

    // Start, and watch.
    service.restart().await;
    for user in [&customer, &other] {
        let _ended = user.get("/v1/me").await.assert_status(401);
    }
    service.customer().await;
    let head = wait_until_head_is_logged(&service).await;
    assert!(head > kept + 1, "the service must add a seal after the seal of `after-restore`");
    let both = scratch.write("both.jsonl", &(log + &log_lines(&service)));
    let verified = verify(&service, &["--heads", &both]).await.succeeded();
    assert!(verified.contains(&gap), "{verified}");
    let restores = service.audit_events("action = 'restore' and event_type = 'audit'").await;
    assert_eq!(restores.len(), 1);
    assert_eq!(
        (&restores[0]["epoch"], &restores[0]["metadata"]["reason"]),
        (&2.into(), &"disk failure".into())
    );
    assert_eq!(restores[0]["metadata"]["lost_head_count"], lost - kept);
    eventually("the restore is in the metrics", async || {
        (service.metric("audit_restores").await == 1).then_some(())
    })
    .await;

    // Verification accepts a missing seal only if the recorded restore lists it in `audit_lost_heads`, and only while
    // this list is unchanged.
    let forged = format!("{{\"seal_number\":{lost},\"seal_hash\":\"{}\"}}\n", "00".repeat(32));
    let forged = scratch.write("forged.jsonl", &(std::fs::read_to_string(&both).unwrap() + &forged));
    assert_eq!(verify(&service, &["--heads", &forged]).await.code(), Some(1));
    service
        .database()
        .execute(
            "alter table audit_lost_heads disable trigger user;
             insert into audit_lost_heads (event_id, number, hash)
             select event_id, 999, sha256('') from audit_restores",
        )
        .await;
    assert_eq!(
        verify(&service, &["--heads", &both]).await.code(),
        Some(1),
        "verification must reject the changed list"
    );
}

#[tokio::test]
async fn sealing_stops_when_the_chain_is_set_back() {
    let service = sealing_service().await;
    let scratch = Scratch::new();
    for _ in 0..2 {
        cause_three_events(&service).await;
        wait_until_head_is_logged(&service).await;
    }
    let heads = scratch.write("heads.jsonl", &log_lines(&service));
    let set_back = "
        delete from audit_seals where number = (select max(number) from audit_seals);
        update audit_seal_head
        set number = last.number, hash = last.hash
        from (select number, hash from audit_seals order by number desc limit 1) as last";
    tamper(&service, set_back).await;
    service
        .wait_for_log("an alert names the command", |line| line.to_string().contains("run `after-restore`"))
        .await;
    let seals = service.database().number("select count(*) from audit_seals").await;
    service.customer().await;
    let failures = || {
        let lines = service.logs();
        lines.iter().filter(|line| line["message"] == "worker failed").count()
    };
    let before = failures();
    eventually("the sealer retries and fails", async || (failures() > before).then_some(())).await;
    assert_eq!(
        service.database().number("select count(*) from audit_seals").await,
        seals,
        "nothing is sealed"
    );

    after_restore(&service, &heads, &["--yes"]).await.succeeded();
    wait_until_head_is_logged(&service).await;
    let all = scratch.write("all.jsonl", &log_lines(&service));
    let verified = verify(&service, &["--heads", &all]).await.succeeded();
    assert!(verified.contains("were logged and are lost"), "{verified}");
}
