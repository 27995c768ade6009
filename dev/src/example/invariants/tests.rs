//! Tests that the check finds violated invariants, and compares long ledgers in pages without gaps. The checked tables
//! are copies without constraints and triggers, which would prevent most violations.
use std::net::SocketAddr;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, migrate::Migrator};
use url::Url;
use uuid::Uuid;

use crate::{
    example::{
        gateway::{Charge, ChargeStatus, Settings, Simulator},
        invariants,
    },
    postgres::{self, Server},
    project,
};

/// Four orders: paid (1), with a payment in flight (2), declined (3), and cancelled without payment (4). The payment of
/// order N has the id 10 + N. `parcels` represents a table that a new feature adds. One of its rows was created with an
/// idempotency key.
const RECORDS: &str = "
    drop schema if exists records cascade;
    create schema records;
    do $$
    declare name text;
    begin
      for name in select tablename from pg_tables where schemaname = 'public' loop
        execute format('create table records.%I as table public.%I with no data', name, name);
      end loop;
    end $$;
    alter table payments alter refunded_amount set default 0, alter refund_reserved_amount set default 0,
      drop gateway_key, add gateway_key uuid generated always as (id) stored;
    alter table refunds drop gateway_key, add gateway_key uuid generated always as (id) stored;
    create function id(number int) returns uuid language sql as
      $$ select format('00000000-0000-7000-8000-0000000000%s', lpad(number::text, 2, '0'))::uuid $$;

    create table parcels (id uuid primary key);
    insert into parcels values (id(31)), (id(32));
    insert into orders (id, status, total_amount, currency, live_payment_id) values
      (id(1), 'paid', 4200, 'EUR', id(11)),
      (id(2), 'pending_payment', 4200, 'EUR', id(12)),
      (id(3), 'pending_payment', 4200, 'EUR', null),
      (id(4), 'cancelled', 4200, 'EUR', null);
    insert into order_items (order_id, amount) select id, 2100 from orders union all select id, 2100 from orders;
    insert into payments (id, order_id, status, amount, currency, gateway_charge_id) values
      (id(11), id(1), 'succeeded', 4200, 'EUR', 'ch_1'),
      (id(12), id(2), 'processing', 4200, 'EUR', null),
      (id(13), id(3), 'declined', 4200, 'EUR', 'ch_3');
    insert into idempotency_keys (scope, key, resource_id, response_body, completed_at) values
      ('user', 'order', id(1), format('{\"id\":\"%s\"}', id(1)), now()),
      ('user', 'payment', id(11), format('{\"id\":\"%s\"}', id(11)), now()),
      ('user', 'parcel', id(31), format('{\"id\":\"%s\"}', id(31)), now()),
      ('user', 'in flight', id(12), null, null),
      ('gateway', 'msg_1', null, '', now());
    insert into audit_events (event_type, resource, action, result, metadata)
      select 'data_change', reported.resource, reported.action, 'success', jsonb_build_object('record_ids', array[reported.id])
      from (
        select 'orders' as resource, 'create' as action, id from orders
        union all select 'payments', 'create', id from payments
        union all select 'payments', 'settle', id from payments where status <> 'processing'
        union all select 'parcels', 'create', id(31)
      ) reported;
";

/// Changes of [`RECORDS`], each with the invariant that the change violates.
const VIOLATIONS: [(&str, &str); 19] = [
    (
        "delete from audit_events where resource = 'orders' and metadata -> 'record_ids' ->> 0 = id(1)::text",
        "each start and each settlement has exactly one audit event",
    ),
    (
        "insert into audit_events select * from audit_events where action = 'settle' limit 1",
        "each start and each settlement has exactly one audit event",
    ),
    (
        "update audit_events set action = 'settle' where metadata -> 'record_ids' ->> 0 = id(12)::text",
        "each start and each settlement has exactly one audit event",
    ),
    (
        "insert into order_items (order_id, amount) values (id(4), 1)",
        "an order's total is the sum of its items",
    ),
    (
        "insert into payments (id, order_id, status, amount, currency) values (id(14), id(2), 'processing', 4200, 'EUR')",
        "an order has at most one payment in progress or charged",
    ),
    (
        "update payments set currency = 'USD' where id = id(12)",
        "a payment has the amount and currency of its order",
    ),
    (
        "update orders set status = 'pending_payment' where id = id(1)",
        "an order has the status of its payment",
    ),
    ("update orders set status = 'paid' where id = id(3)", "an order has the status of its payment"),
    ("update orders set live_payment_id = null where id = id(2)", "an order has the status of its payment"),
    (
        "insert into refunds (id, payment_id, status, amount) values (id(21), id(11), 'processing', 7)",
        "a payment's refunded and reserved amounts are the sums of its refunds",
    ),
    (
        "update idempotency_keys set resource_id = id(99) where key = 'order'",
        "a completed idempotency key has exactly one effect, and refers to it",
    ),
    (
        "update idempotency_keys set completed_at = now(), response_body = '{}' where key = 'in flight'",
        "a completed idempotency key has exactly one effect, and refers to it",
    ),
    (
        "delete from parcels where id = id(31)",
        "a completed idempotency key has exactly one effect, and refers to it",
    ),
    (
        "delete from audit_events where resource = 'parcels'",
        "each start and each settlement has exactly one audit event",
    ),
    (
        "update idempotency_keys set completed_at = null where key = 'payment'",
        "a completed effect has a completed idempotency key",
    ),
    ("delete from payments where id = id(13)", "a charge has a payment"),
    ("update payments set status = 'failed' where id = id(13)", "a declined charge has a declined payment"),
    ("update payments set gateway_charge_id = 'ch_3' where id = id(11)", "a payment names its charge"),
    (
        "insert into payments (id, order_id, status, amount, currency) values (id(14), id(4), 'declined', 4200, 'EUR')",
        "a settled payment has its charge",
    ),
];

/// Number of payments: two and a half pages.
const PAYMENTS: i64 = invariants::PAGE_SIZE * 5 / 2;

/// `PAYMENTS` paid orders: order N has payment N, with the charge `ch_N`.
const MANY_PAYMENTS: &str = "
    truncate orders, order_items, payments, idempotency_keys, audit_events;
    create function many(kind int, number bigint) returns uuid language sql as
      $$ select format('00000000-0000-700%s-8000-%s', kind, lpad(to_hex(number), 12, '0'))::uuid $$;
    create index on order_items (order_id);
    create index on refunds (payment_id);
    insert into orders (id, status, total_amount, currency, live_payment_id)
      select many(1, n), 'paid', 4200, 'EUR', many(2, n) from generate_series(1, PAYMENTS) n;
    insert into order_items (order_id, amount) select id, 4200 from orders;
    insert into payments (id, order_id, status, amount, currency, gateway_charge_id)
      select many(2, n), many(1, n), 'succeeded', 4200, 'EUR', 'ch_' || n from generate_series(1, PAYMENTS) n;
    insert into audit_events (event_type, resource, action, result, metadata)
      select 'data_change', reported.resource, reported.action, 'success', jsonb_build_object('record_ids', array[reported.id])
      from (
        select 'orders' as resource, 'create' as action, id from orders
        union all select 'payments', 'create', id from payments
        union all select 'payments', 'settle', id from payments
      ) reported;
    analyze;
";

fn charge_of_many(number: i64) -> Charge {
    let reference = format!("00000000-0000-7002-8000-{number:012x}").parse().unwrap();
    Charge { id: format!("ch_{number}"), reference, ..charge(1, ChargeStatus::Succeeded) }
}

async fn gateway() -> Simulator {
    Simulator::start(Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        api_key: "sk_test".to_owned(),
        webhook_secret: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".to_owned(),
        webhook_url: None,
        ledger_file: None,
    })
    .await
    .unwrap()
}

fn charge(number: u128, status: ChargeStatus) -> Charge {
    Charge {
        id: format!("ch_{number}"),
        reference: format!("00000000-0000-7000-8000-0000000000{}", 10 + number).parse().unwrap(),
        status,
        decline_code: None,
        amount: 4200,
        currency: "EUR".to_owned(),
    }
}

/// Creates a migrated database. [`RECORDS`] copies its tables into the schema `records`, which is first in the search
/// path.
async fn create_migrated_database(server: &Server, name: &str) -> (Url, PgConnection) {
    server.create_database(name, None).await.unwrap();
    let url = server.admin_url_of(name);
    let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
    let migrator = Migrator::new(project::root().join("migrations")).await.unwrap();
    migrator.run(&mut connection).await.unwrap();
    let search_path = format!("alter database {name} set search_path = records, public");
    sqlx::raw_sql(AssertSqlSafe(search_path)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    (url.clone(), PgConnection::connect(url.as_str()).await.unwrap())
}

#[tokio::test]
async fn consistent_records_pass_and_each_violation_is_named() {
    let server = postgres::for_tests().await.unwrap();
    let name = format!("invariants_{}", Uuid::now_v7().simple());
    let (url, mut connection) = create_migrated_database(server, &name).await;

    let gateway = gateway().await;
    gateway.record(charge(1, ChargeStatus::Succeeded)).unwrap();
    gateway.record(charge(2, ChargeStatus::Succeeded)).unwrap();
    gateway.record(charge(3, ChargeStatus::Declined)).unwrap();

    sqlx::raw_sql(RECORDS).execute(&mut connection).await.unwrap();
    let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
    assert!(report.holds(), "{report}");
    assert_eq!((report.orders, report.payments, report.payments_in_flight, report.charges), (4, 3, 1, 3));

    for (violation, rule) in VIOLATIONS {
        sqlx::raw_sql(AssertSqlSafe(format!("{RECORDS}; {violation}")))
            .execute(&mut connection)
            .await
            .unwrap();
        let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
        assert!(report.violations.iter().any(|violation| violation.rule == rule), "{violation}: {report}");
    }

    sqlx::raw_sql(RECORDS).execute(&mut connection).await.unwrap();
    gateway.record(charge(2, ChargeStatus::Succeeded)).unwrap();
    let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
    assert_eq!(report.violations.len(), 1, "{report}");
    assert_eq!(report.violations[0].rule, "a payment is charged once");

    connection.close().await.unwrap();
    gateway.stop().await;
    server.drop_database(&name).await.unwrap();
}

#[tokio::test]
async fn long_ledgers_are_compared_in_pages_without_gaps() {
    let server = postgres::for_tests().await.unwrap();
    let name = format!("invariants_{}", Uuid::now_v7().simple());
    let (url, mut connection) = create_migrated_database(server, &name).await;
    let records = format!("{RECORDS}; {}", MANY_PAYMENTS.replace("PAYMENTS", &PAYMENTS.to_string()));
    sqlx::raw_sql(AssertSqlSafe(records)).execute(&mut connection).await.unwrap();
    let gateway = gateway().await;
    for number in 1..=PAYMENTS {
        gateway.record(charge_of_many(number)).unwrap();
    }
    let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
    assert!(report.holds(), "{report}");
    assert_eq!((report.pages, report.charges), (3, report.payments));

    // The first and the last payment of each page get a second charge. The numbers 0 and `PAYMENTS + 1` have no
    // payment.
    let page = invariants::PAGE_SIZE;
    let violations = [0, 1, page, page + 1, 2 * page, 2 * page + 1, PAYMENTS, PAYMENTS + 1];
    for number in violations {
        gateway.record(Charge { id: format!("second_{number}"), ..charge_of_many(number) }).unwrap();
    }
    let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
    let found = |rule: &str| report.violations.iter().filter(|violation| violation.rule == rule).count();
    assert_eq!(found("a payment is charged once"), violations.len() - 2, "{report}");
    assert_eq!(found("a charge has a payment"), 2, "{report}");

    sqlx::raw_sql("update payments set amount = 1").execute(&mut connection).await.unwrap();
    let report = invariants::check(url.as_str(), &gateway.url()).await.unwrap();
    assert_eq!(report.violations.len(), invariants::MAX_VIOLATIONS);
    assert!(report.unreported > report.payments, "only {} violations are unreported", report.unreported);

    connection.close().await.unwrap();
    gateway.stop().await;
    server.drop_database(&name).await.unwrap();
}
