//! Tests of creating, reading, listing and changing notes, of their audit events, of idempotency keys, of the service's
//! rights on the table, and of query plans.
use dev::harness::{PATH, Request, Service, User, body};
use serde_json::json;
use uuid::Uuid;

use crate::{database::assert_no_full_scan, service};

/// Returns the number of notes.
async fn count(service: &Service) -> i64 {
    service.database().number("select count(*) from notes").await
}

#[tokio::test]
async fn a_customer_creates_reads_and_renames_a_note() {
    let service = service().await;
    let customer = service.customer().await;
    let created = customer.creates_note(" First ").await.assert_status(201);
    let path = format!("{PATH}/{}", created.id());
    assert_eq!(created.header("location"), Some(path.as_str()));
    assert_eq!(created.text("name"), "First");
    assert_eq!(created.text("owner_id"), customer.id.to_string());
    assert_eq!(
        customer.get(&path).await.assert_status(200).json(),
        created.json(),
        "the stored note must equal the response"
    );

    let changed = customer.patch(&path).json(&json!({ "name": "Second" })).await.assert_status(200);
    assert_eq!(changed.text("name"), "Second");
    assert_eq!(customer.get(&path).await.assert_status(200).json(), changed.json());
    assert_eq!(service.metric("notes_created_total").await, 1);
    let audited = service.audit_events("resource = 'notes'").await;
    let actions: Vec<_> = audited.iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["create", "update"]);
    assert!(audited.iter().all(|event| event["metadata"]["record_ids"] == json!([created.id()])));
    service.invariants_hold().await;
}

#[tokio::test]
async fn invalid_fields_have_pointers() {
    let service = service().await;
    let customer = service.customer().await;
    let path = format!("{PATH}/{}", customer.creates().await.assert_status(201).id());
    let too_long = "n".repeat(201);
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({ "name": null }), "/name"),
        (json!({ "name": 7 }), "/name"),
        (json!({ "name": "" }), "/name"),
        (json!({ "name": "two\nlines" }), "/name"),
        (json!({ "name": too_long }), "/name"),
        (json!({ "name": "First", "a/b~c": 1 }), "/a~1b~0c"),
        (json!([]), ""),
        (json!("First"), ""),
    ] {
        for request in [customer.post(PATH).new_key(), customer.patch(&path)] {
            let _rejected = request.json(&body).await.assert_invalid_at(&[pointer]);
        }
    }
    assert_eq!(count(&service).await, 1);
}

#[tokio::test]
async fn another_customers_note_responds_like_a_missing_one() {
    let service = service().await;
    let (owner, other_customer) = (service.customer().await, service.customer().await);
    let id = owner.creates().await.assert_status(201).id();
    for id in [id, Uuid::now_v7()] {
        let path = format!("{PATH}/{id}");
        let _absent = other_customer.get(&path).await.assert_problem(404, "not-found");
        let _absent = other_customer.patch(&path).json(&body()).await.assert_problem(404, "not-found");
    }
    assert_eq!(other_customer.lists().await.assert_status(200).json()["data"], json!([]));
    let rejected =
        service.audit_events("event_type = 'authorization' and metadata ->> 'reason' = 'not_owner'").await;
    assert_eq!(rejected.len(), 4, "each rejected attempt must have an audit event");
}

#[tokio::test]
async fn a_read_is_audited_only_if_the_data_is_of_another_user() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let path = format!("{PATH}/{}", customer.creates().await.assert_status(201).id());
    let _own = customer.get(&path).await.assert_status(200);
    let _own = customer.lists().await.assert_status(200);
    assert_eq!(service.audit_events("event_type = 'data_access'").await.len(), 0);
    let _read = support.get(&path).await.assert_status(200);
    let _listed = support.lists().await.assert_status(200);
    let read = service.audit_events("event_type = 'data_access' and resource = 'notes'").await;
    assert_eq!(read.len(), 2);
    assert!(read.iter().all(|event| event["user_id"] == json!(support.id)));
}

/// Returns the names of all notes that a user can list, read page by page.
async fn names(user: &User) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = user.get(format!("{PATH}?limit=2{cursor}")).await.assert_status(200).json();
        let data = page["data"].as_array().unwrap();
        all.extend(data.iter().map(|found| found["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test]
async fn a_list_is_paged_newest_first_without_gaps_or_duplicates() {
    let service = service().await;
    let (customer, another) = (service.customer().await, service.customer().await);
    for name in ["1", "2", "3", "4", "5"] {
        let _created = customer.creates_note(name).await.assert_status(201);
    }
    let _another = another.creates_note("another's").await.assert_status(201);
    assert_eq!(names(&customer).await, ["5", "4", "3", "2", "1"]);
    assert_eq!(names(&service.support().await).await, ["another's", "5", "4", "3", "2", "1"]);
}

#[tokio::test]
async fn a_repeated_request_replays_the_bytes_and_creates_one_note() {
    let service = service().await;
    let request = service.customer().await.creates();
    let first = request.clone().await.assert_status(201);
    assert!(!first.is_replayed());
    for _ in 0..3 {
        let again = request.clone().await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!((&again.text, again.header("location")), (&first.text, first.header("location")));
    }
    assert_eq!(count(&service).await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_key_belongs_to_its_user_and_to_the_first_request_under_it() {
    let service = service().await;
    let (one, other) = (service.customer().await, service.customer().await);
    let first = one.creates_note("First").key("shared-key").await.assert_status(201);
    let _reused =
        one.creates_note("Second").key("shared-key").await.assert_problem(422, "idempotency-key-reused");
    let _invalid = one.creates_note("").key("shared-key").await.assert_problem(422, "idempotency-key-reused");
    let others = other.creates_note("First").key("shared-key").await.assert_status(201);
    assert_ne!(first.id(), others.id());
    assert!(!others.is_replayed());
}

#[tokio::test]
async fn a_key_is_required_and_a_rejection_stores_no_key() {
    let service = service().await;
    let customer = service.customer().await;
    let without = customer.creates().without_header("idempotency-key");
    let _rejected = without.await.assert_problem(400, "missing-idempotency-key");
    for key in ["", " ", "naïve", &"k".repeat(256)] {
        let rejected = customer.creates().key(key).try_send().await;
        assert!(rejected.is_ok_and(|rejected| rejected.status == 400), "{key}");
    }
    let _invalid = customer.creates_note("").key("repaired").await.assert_status(422);
    let repaired = customer.creates_note("First").key("repaired").await.assert_status(201);
    assert!(!repaired.is_replayed());
}

#[tokio::test]
async fn fifty_concurrent_duplicates_create_one_note() {
    let service = service().await;
    let request: Request = service.customer().await.creates();
    let duplicates: Vec<_> = (0..50).map(|_| request.clone().in_background()).collect();
    let (mut bodies, mut firsts) = (Vec::new(), 0);
    for duplicate in duplicates {
        let response = duplicate.response().await.assert_status(201);
        firsts += usize::from(!response.is_replayed());
        bodies.push(response.text);
    }
    bodies.dedup();
    assert_eq!((bodies.len(), firsts), (1, 1), "{bodies:#?}");
    assert_eq!(count(&service).await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_services_role_can_change_a_notes_name_and_nothing_else() {
    let service = service().await;
    let _created = service.customer().await.creates().await.assert_status(201);
    for statement in [
        "delete from notes",
        "truncate notes",
        "update notes set owner_id = gen_random_uuid()",
        "update notes set created_at = now()",
    ] {
        let rejected = service.database().try_as_service(statement).await;
        assert_eq!(rejected, Err("42501".to_owned()), "{statement}");
    }
    let nameless = service.database().try_as_service("update notes set name = ''").await;
    assert_eq!(nameless, Err("23514".to_owned()), "the database must reject an empty name, too");
}

#[tokio::test]
async fn no_statement_scans_the_rows_of_all_customers() {
    let service = service().await;
    service
        .database()
        .execute(
            "insert into users (id, email, name, password_hash, role)
             select gen_random_uuid(), format('u%s@example.com', n), 'U', '', 'customer'
             from generate_series(1, 500) n;
             insert into notes (id, owner_id, name)
             select gen_random_uuid(), users.id, 'N' from generate_series(1, 100) n, users;
             analyze notes",
        )
        .await;
    assert!(assert_no_full_scan(&service, "notes").await >= 5, "too few statements were checked");
}
