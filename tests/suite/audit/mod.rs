//! The audit log: an operation fails if its event cannot be recorded, auditors can read the log, and their reads are
//! audited. The routes reject invalid query parameters, and the SQL statements use indexes and partitions. The SQL
//! functions set their search path and are not public. In staging and production, the service does not start if its
//! database role can change the log.
mod long_audit_logs;
mod restore;
pub(crate) mod retention;
pub(crate) mod seals;
pub(crate) mod verification;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{SecondsFormat, TimeDelta, Utc};
use dev::harness::{PASSWORD, PATH, Service, TABLE, User};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::service;

/// The columns that the service is allowed to set. The database sets the others.
pub const WRITABLE: &str = "id, \"timestamp\", event_type, user_id, role, resource, action, result, ip_address, \
                        metadata, correlation_id, request_id, trace_id, service_version";

#[tokio::test]
async fn an_operation_that_cannot_be_audited_fails() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let id = customer.creates().await.assert_status(201).id();
    let sessions = service.database().number("select count(*) from sessions").await;
    service.database().execute("revoke insert on audit_events from app_runtime").await;

    let another = customer.creates();
    let log_in = |password: &str| {
        let credentials = json!({ "email": customer.email, "password": password });
        service.anonymous().post("/v1/sessions").json(&credentials)
    };
    for (operation, request) in [
        ("creating", another.clone()),
        ("logging in", log_in(PASSWORD)),
        ("failing to log in", log_in("not the password of any user")),
        ("staff's reading", support.get(format!("{PATH}/{id}"))),
        ("staff's reading a list", support.lists()),
    ] {
        let rejected = request.await;
        assert_eq!(rejected.status, 500, "{operation}: {rejected}");
    }
    // A 403 grants nothing, so the service sends the 403 even if its audit event cannot be recorded.
    let _rejected = support.creates().await.assert_problem(403, "forbidden");
    assert!(service.metric("audit_write_failures_total").await >= 4);

    service.database().execute(format!("grant insert ({WRITABLE}) on audit_events to app_runtime")).await;
    assert_eq!(service.database().number(format!("select count(*) from {TABLE}")).await, 1);
    assert_eq!(service.database().number("select count(*) from sessions").await, sessions);
    assert!(!another.await.assert_status(201).is_replayed());
}

/// Returns the events of all pages for these query parameters.
async fn audit_log(auditor: &User, query: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page =
            auditor.get(format!("/v1/audit-events?limit=3{query}{cursor}")).await.assert_status(200).json();
        all.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

/// Causes events: a customer registers, logs in, creates a record, and is denied the audit log.
async fn cause_events(service: &Service) -> (User, Uuid) {
    let customer = service.customer().await;
    let id = customer.creates().await.assert_status(201).id();
    let _rejected = customer.get("/v1/audit-events").await.assert_problem(403, "forbidden");
    (customer, id)
}

#[tokio::test]
async fn an_auditor_reads_events_with_all_required_fields() {
    let service = service().await;
    let (customer, id) = cause_events(&service).await;
    let auditor = service.auditor().await;
    let created = audit_log(&auditor, &format!("&resource={TABLE}&user_id={}", customer.id)).await;
    let created = created.iter().find(|event| event["action"] == "create").unwrap();
    for (field, value) in [
        ("event_type", json!("data_change")),
        ("user_id", json!(customer.id)),
        ("role", json!("customer")),
        ("resource", json!(TABLE)),
        ("result", json!("success")),
        ("ip_address", json!("127.0.0.1")),
    ] {
        assert_eq!(created[field], value, "{field} in {created:#}");
    }
    assert_eq!(created["metadata"]["record_ids"], json!([id]));
    let timestamp = created["timestamp"].as_str().unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(timestamp).is_ok(), "{created:#}");
    for field in ["id", "correlation_id", "trace_id", "service_version"] {
        assert!(created[field].is_string(), "{field} in {created:#}");
    }
}

#[tokio::test]
async fn the_audit_log_filters_and_pages_without_gaps() {
    let service = service().await;
    let (customer, _) = cause_events(&service).await;
    let auditor = service.auditor().await;
    let stored = async |condition: &str| {
        let mut ids: Vec<_> =
            service.audit_events(condition).await.iter().map(|event| event["id"].clone()).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    let read = async |query: &str| {
        let mut ids: Vec<_> =
            audit_log(&auditor, query).await.iter().map(|event| event["id"].clone()).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    let rfc3339 = |minutes| {
        let time = Utc::now() + TimeDelta::minutes(minutes);
        time.to_rfc3339_opts(SecondsFormat::Secs, true)
    };
    for (query, condition) in [
        ("&event_type=data_change".to_owned(), "event_type = 'data_change'".to_owned()),
        ("&event_type=authorization".to_owned(), "event_type = 'authorization'".to_owned()),
        (format!("&user_id={}", customer.id), format!("user_id = '{}'", customer.id)),
        (format!("&resource={TABLE}"), format!("resource = '{TABLE}'")),
        (
            format!("&resource={TABLE}&user_id={}&event_type=data_change", customer.id),
            format!("resource = '{TABLE}' and user_id = '{}' and event_type = 'data_change'", customer.id),
        ),
        (format!("&event_type=data_change&from={}", rfc3339(-5)), "event_type = 'data_change'".to_owned()),
        (format!("&event_type=data_change&from={}", rfc3339(5)), "false".to_owned()),
        (format!("&event_type=data_change&to={}", rfc3339(-5)), "false".to_owned()),
    ] {
        let expected = stored(&condition).await;
        assert_eq!(read(&query).await, expected, "{query}");
        assert_eq!(
            expected.is_empty(),
            condition == "false",
            "only the condition `false` must select no event: {query}"
        );
    }
    for query in
        ["event_type=gossip", "user_id=me", "from=yesterday", "to=tomorrow", "limit=0", "cursor=nonsense"]
    {
        let rejected = auditor.get(format!("/v1/audit-events?{query}")).await;
        assert_eq!(rejected.status, 400, "{query}: {rejected}");
    }
}

#[tokio::test]
async fn reading_and_sealing_use_the_indexes_of_the_audit_log() {
    let service = service().await;
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, user_id, resource, action, result, service_version)
             select
               gen_random_uuid(), now(), case when n % 50 = 0 then 'authorization' else 'data_change' end,
               ('01980000-0000-7000-8000-' || lpad((n % 500)::text, 12, '0'))::uuid, 'table' || n % 20, 'x', 'success',
               '0.1.0'
             from generate_series(1, 50000) n;
             analyze audit_events",
        )
        .await;
    let statements: Vec<_> =
        crate::database::statements().into_iter().map(|(statement, _)| statement).collect();
    let statement = |part: &str| statements.iter().find(|statement| statement.contains(part)).unwrap();
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    for (mode, part, values) in [
        ("force_custom_plan", "limit $8", "null, null, null, null, null, null, null, 21"),
        ("force_custom_plan", "limit $8", "'authorization', null, null, null, null, null, null, 21"),
        (
            "force_custom_plan",
            "limit $8",
            "null, '01980000-0000-7000-8000-000000000007', null, null, null, null, null, 21",
        ),
        ("force_custom_plan", "limit $8", "null, null, 'table7', null, null, null, null, 21"),
        (
            "force_custom_plan",
            "limit $8",
            "null, null, null, now() - interval '1 minute', now(), null, null, 21",
        ),
        ("force_custom_plan", "limit $8", "null, null, null, null, null, now(), gen_random_uuid(), 21"),
        ("force_generic_plan", "<= ($4, $5::text::xid8, $6)", "1, '1', 1, 1, '9223372036854775807', 1, 2000"),
        ("force_generic_plan", "as unsealed", "1, '1', 1, 1"),
        ("force_generic_plan", "select extract(epoch from clock_timestamp() - least(", "1, '1', 1, now()"),
    ] {
        let statement = statement(part);
        let explain = format!("deallocate all; set plan_cache_mode = {mode}; prepare checked as {statement}");
        connection.execute(AssertSqlSafe(explain)).await.unwrap();
        let explain = format!("explain (format json) execute checked({values})");
        let plan: Value =
            sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
        let this_month = format!("audit_events_{}", Utc::now().format("%Y_%m"));
        for node in crate::database::nodes(&plan) {
            let is_full_scan = node["Node Type"] == "Seq Scan" && node["Relation Name"] == this_month;
            assert!(!is_full_scan, "{values}: {statement}\n{plan:#}");
        }
        assert!(
            plan.to_string().contains(&this_month),
            "the plan must read the partition of this month: {plan:#}"
        );
    }
}

#[tokio::test]
async fn a_time_range_is_read_from_its_partitions_only() {
    let service = service().await;
    // Partitions exist for the next three months.
    let month =
        |ahead: u32| (Utc::now() + chrono::Months::new(ahead)).format("audit_events_%Y_%m").to_string();
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             select gen_random_uuid(), now(), 'data_change', 'x', 'x', 'success', '0.1.0', now() + n % 3 * interval '1 month'
             from generate_series(1, 30000) n;
             analyze audit_events",
        )
        .await;
    let statements = crate::database::statements();
    let (statement, _) = statements.iter().find(|(statement, _)| statement.contains("limit $8")).unwrap();
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    connection
        .execute(AssertSqlSafe(format!(
            "set plan_cache_mode = force_custom_plan; prepare checked as {statement}"
        )))
        .await
        .unwrap();
    let next = "date_trunc('month', now(), 'UTC') + interval '1 month'";
    let until = "date_trunc('month', now(), 'UTC') + interval '2 months' - interval '1 microsecond'";
    let explain =
        format!("explain (format json) execute checked(null, null, null, {next}, {until}, null, null, 21)");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
    let read: Vec<_> = crate::database::nodes(&plan)
        .iter()
        .filter_map(|node| node["Relation Name"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(read, [month(1)], "{plan:#}");
    assert!(!plan.to_string().contains("Seq Scan"), "{plan:#}");
}

#[tokio::test]
async fn reading_the_audit_log_is_audited() {
    let service = service().await;
    let auditor = service.auditor().await;
    let by_auditor =
        format!("event_type = 'data_access' and resource = 'audit_events' and user_id = '{}'", auditor.id);
    for times in 1..=2 {
        let _read = auditor.get("/v1/audit-events?resource=users").await.assert_status(200);
        let events = service.audit_events(&by_auditor).await;
        assert_eq!(events.len(), times);
        assert!(events.iter().all(|event| event["metadata"]["filter"] == json!({ "resource": "users" })));
    }
}

#[tokio::test]
async fn query_values_that_postgresql_cannot_store_are_malformed() {
    let service = service().await;
    let auditor = service.auditor().await;
    let cursor = |micros: i64| {
        URL_SAFE_NO_PAD.encode([micros.to_be_bytes().as_slice(), Uuid::nil().as_bytes()].concat())
    };
    for query in [
        "resource=%00".to_owned(),
        "resource=a%00b".to_owned(),
        "resource=%C3%A4".to_owned(),
        "resource=".to_owned(),
        format!("resource={}", "a".repeat(64)),
        "from=-4713-01-01T00:00:00Z".to_owned(),
        "to=-262143-01-01T00:00:00Z".to_owned(),
        "from=%2B262142-12-31T23:59:59Z".to_owned(),
        "to=9999-12-31T23:59:59-01:00".to_owned(),
        format!("cursor={}", cursor(i64::MIN)),
        format!("cursor={}", cursor(i64::MAX)),
        // One microsecond before the year 0, and the first microsecond of the year 10000.
        format!("cursor={}", cursor(-62_167_219_200_000_001)),
        format!("cursor={}", cursor(253_402_300_800_000_000)),
    ] {
        let rejected = auditor.get(format!("/v1/audit-events?{query}")).await;
        assert_eq!(rejected.status, 400, "{query}: {rejected}");
    }
    for query in [
        "from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59.999999Z".to_owned(),
        format!("resource={}", "a".repeat(63)),
        format!("cursor={}", cursor(-62_167_219_200_000_000)),
        format!("cursor={}", cursor(253_402_300_799_999_999)),
    ] {
        let _page = auditor.get(format!("/v1/audit-events?{query}")).await.assert_status(200);
    }
}

#[tokio::test]
async fn no_query_value_causes_an_internal_error() {
    let service = service().await;
    let admin = service.admin().await;
    let hostile = [
        "%00",
        "a%00b",
        "%FF%FE",
        "%ED%A0%80",
        "-4713-01-01T00:00:00Z",
        "%2B262142-12-31T23:59:59Z",
        "9223372036854775807",
        "-9223372036854775809",
        "gAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "_________38AAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAA",
    ];
    let mut sent = 0;
    for (method, path, operation) in crate::http::openapi::operations() {
        let parameters = operation.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
        for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query") {
            assert_eq!(method, "GET", "only GET may have query parameters: {path}");
            for value in hostile {
                let query = format!("{path}?{}={value}", parameter["name"].as_str().unwrap());
                let response = admin.get(&query).await;
                assert!(response.status < 500, "{query}: {response}");
                sent += 1;
            }
        }
    }
    assert!(sent >= 7 * hostile.len(), "{sent}");
}

/// Returns the functions of the schema: name, settings, source, and whether PUBLIC has the right to execute them.
async fn functions(service: &Service) -> Vec<Value> {
    service
        .database()
        .rows(
            "select proname as name, coalesce(proconfig, '{}') as settings,
               pg_get_functiondef(oid) as source, has_function_privilege('public', oid, 'execute') as public
             from pg_proc where pronamespace = 'public'::regnamespace",
        )
        .await
}

#[tokio::test]
async fn functions_set_their_search_path_and_are_not_public() {
    let service = service().await;
    let functions = functions(&service).await;
    assert!(functions.len() > 5, "{functions:#?}");
    for function in &functions {
        let name = function["name"].as_str().unwrap();
        let settings: Vec<_> = function["settings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|setting| setting.as_str().unwrap())
            .collect();
        let search_path = settings.iter().find_map(|setting| setting.strip_prefix("search_path="));
        assert!(
            search_path.is_some_and(|path| path.ends_with(", pg_temp")),
            "{name}: add `set search_path = public, pg_temp`, or temporary tables come first: {settings:?}"
        );
        let source = function["source"].as_str().unwrap().to_lowercase();
        let uses_times = ["timestamp", "interval", "date_trunc", "to_char", "to_date", "time zone"];
        if uses_times.iter().any(|word| source.replace("clock_timestamp", "").contains(word)) {
            assert!(settings.contains(&"TimeZone=UTC"), "{name}: add `set timezone = 'UTC'`: {settings:?}");
        }
        assert_eq!(
            function["public"], false,
            "{name}: revoke execute from public, and grant it only to app_runtime if the service calls the function"
        );
        // With `standard_conforming_strings = off`, a backslash starts an escape sequence, which would change the
        // function.
        let body = source.split("as $function$").nth(1).unwrap();
        assert!(!body.contains('\\'), "{name}: avoid the backslash");
    }
}

#[tokio::test]
async fn staging_rejects_write_rights_on_audit_tables() {
    let service = service().await;
    let partition = Utc::now().format("audit_events_%Y_%m");
    for (right, table) in [
        ("update (metadata)", "audit_events".to_owned()),
        ("insert", "audit_events".to_owned()),
        ("delete", partition.to_string()),
        ("truncate", "audit_events_default".to_owned()),
        ("insert", "audit_exports".to_owned()),
        ("update", "audit_seal_head".to_owned()),
    ] {
        service.database().execute(format!("grant {right} on {table} to app_runtime")).await;
        let stopped = service.command(&["serve"], &[("APP_ENV", "staging")]).await;
        assert_eq!(stopped.code(), Some(1), "{right} on {table}: {}", stopped.stdout);
        assert!(
            stopped.stderr.contains("can rewrite the audit log"),
            "{right} on {table}: {}",
            stopped.stderr
        );
        service.database().execute(format!("revoke {right} on {table} from app_runtime")).await;
    }
}
