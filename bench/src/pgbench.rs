//! PostgreSQL's own benchmark, which measures the database without a service.
//!
//! The scripts run prepared statements as the service's role. The statements are either the transaction that most
//! services would send ([`naive_order`]), or the service's **own statements** ([`own_order`] and similar functions).
//! The service's statements are read from `.sqlx`, which continuous integration compares with the sources. Variables of
//! pgbench replace `$1`, `$2`, and so on. Arrays are parameters, as in the service, because `ARRAY[:a, :b]` would
//! reveal the number of elements to the planner.
//!
//! pgbench computes only numbers, not texts, so two things differ from the service. SQL builds ids from numbers, which
//! costs a microsecond. Texts (baskets, tokens) are variables with constant values. There are [`VARIANTS`] scripts
//! with different values, and pgbench picks a script at random for each transaction.
use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use dev::{process::Launch, project};
use hdrhistogram::Histogram;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    load::{LoadResult, Window},
    test_bed::{self, CUSTOMERS, Database, TestBed, sql_id},
};

/// Number of scripts, each with its own customer and basket.
const VARIANTS: u64 = 8;

/// Deadline of pgbench's exit after the window, in addition to the duration of the run.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Input of pgbench: one script for each variant.
#[derive(Clone, Debug)]
pub struct Scripts(Vec<String>);

/// Directories in which sqlx stores the service's statements, one description file for each.
const DESCRIPTIONS: [&str; 2] = [".sqlx", "src/slices/.sqlx"];

/// Returns the text of the only statement of the service that contains all of these parts.
pub fn statement(parts: &[&str]) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Description {
        query: String,
    }
    let mut found = Vec::new();
    for directory in DESCRIPTIONS {
        for entry in fs::read_dir(project::root().join(directory))? {
            let description: Description = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
            if parts.iter().all(|part| description.query.contains(part)) {
                found.push(description.query);
            }
        }
    }
    match <[String; 1]>::try_from(found) {
        Ok([statement]) => Ok(statement),
        Err(found) => bail!("{} statements of the service contain {parts:?}, expected 1", found.len()),
    }
}

/// Escapes colons within string literals (`'HH24:MI'`), because pgbench replaces variables even there.
fn escape_colons(statement: &str) -> String {
    let mut written = String::new();
    for (number, piece) in statement.split('\'').enumerate() {
        let is_literal = number % 2 == 1;
        match is_literal {
            true if piece.contains(':') => {
                let _cannot_fail = write!(written, "E'{}'", piece.replace(':', "\\x3a"));
            }
            true => {
                let _cannot_fail = write!(written, "'{piece}'");
            }
            false => written.push_str(piece),
        }
    }
    written
}

/// Escapes colons within string literals of a statement, and replaces `$1`, `$2`, … with expressions.
fn with_arguments(statement: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let statement = escape_colons(statement);
    let mut pieces = statement.split('$');
    let mut written = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.len() - piece.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let (number, rest) = piece.split_at(digits);
        let number: usize = number.parse().context("a parameter has no number")?;
        written.push_str(arguments.get(number - 1).with_context(|| format!("${number} has no argument"))?);
        written.push_str(rest);
    }
    Ok(written)
}

fn each_variant(script: impl Fn(u64) -> anyhow::Result<String>) -> anyhow::Result<Scripts> {
    (0..VARIANTS).map(script).collect::<anyhow::Result<_>>().map(Scripts)
}

/// `\set` commands for a number that is unique to the transaction. Numbers ascend for each client, like the service's
/// ids.
const NEXT_NUMBER: &str = "\\set i :i + 1\n\\set n :run * 1000000000000 + :client_id * 1000000000 + :i\n";

fn session(variant: u64) -> anyhow::Result<String> {
    let statement = statement(&["from sessions", "sessions.token_hash = $1"])?;
    with_arguments(&statement, &[&format!(":token{variant}")])
}

/// Returns scripts of `POST /v1/orders` as the service executes the request: the authentication, and one statement for
/// everything else.
pub fn own_order() -> anyhow::Result<Scripts> {
    let statement = statement(&["insert into orders", "claim_idempotency_key("])?;
    let id = sql_id("04000000-0000-7000-8000-", ":n");
    let event = format!("(:event::jsonb || jsonb_build_object('id', {id}))");
    each_variant(|variant| {
        let customer = format!(":customer{variant}");
        // pgbench turns each occurrence of a variable into a separate parameter. The casts give these parameters their
        // types.
        let arguments = [
            &*id,
            &format!("{customer}::uuid"),
            &format!(":products{variant}"),
            ":quantities",
            &format!("{customer}::text"),
            ":n::text",
            ":hash::bytea",
            &event,
        ];
        let order = with_arguments(&statement, &arguments)?;
        Ok(format!("{NEXT_NUMBER}{};\n{order};\n", session(variant)?))
    })
}

/// Returns scripts of `POST /v1/orders` as most services would execute the request: ten round trips, one per step. The
/// caller is already authenticated.
pub fn naive_order() -> anyhow::Result<Scripts> {
    let id = sql_id("04000000-0000-7000-8000-", ":n");
    let product = |number: &str| sql_id("03000000-0000-7000-8000-", number);
    each_variant(|variant| {
        let customer = format!(":customer{variant}");
        let mut script = format!("{NEXT_NUMBER}\\set p1 random(0, 499)\n\\set p2 random(500, 999)\n");
        write!(
            script,
            "begin;
             insert into idempotency_keys (scope, key, fingerprint, resource_id)
             values ({customer}, :n, :hash, {id}) on conflict do nothing;
             select unit_amount as amount1 from products where id = {product1} and active \\gset
             select unit_amount as amount2 from products where id = {product2} and active \\gset
             \\set total :amount1 + 2 * :amount2
             insert into orders (id, customer_id, currency, total_amount) values ({id}, {customer}, 'EUR', :total);
             insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
             values ({id}, 1, {product1}, 'Product', :amount1, 1, :amount1);
             insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
             values ({id}, 2, {product2}, 'Product', :amount2, 2, 2 * :amount2);
             insert into audit_events (
               id, \"timestamp\", event_type, user_id, role, resource, action, result,
               ip_address, metadata, correlation_id, request_id, trace_id, service_version
             )
             values (
               {id}, now(), 'data_change', {customer}, 'customer', 'orders', 'create', 'success',
               '127.0.0.1', :detail, 'correlation', {id}, '4bf92f3577b34da6a3ce929d0e0e4736', '0.1.0'
             );
             update idempotency_keys
             set response_status = 201, response_body = :response_body, completed_at = now()
             where scope = {customer} and key = :n;
             commit;
",
            product1 = product(":p1"),
            product2 = product(":p2"),
        )?;
        Ok(script.replace("\n             ", "\n"))
    })
}

/// Returns scripts of `GET /v1/orders/{id}`: the authentication and the order.
pub fn own_read(orders: u64) -> anyhow::Result<Scripts> {
    let statement = statement(&["from orders_with_items", "where id = $1"])?;
    let id = sql_id("01000000-0000-7000-8000-", ":n");
    each_variant(|variant| {
        let set_number = format!("\\set n random(0, {}) * {CUSTOMERS} + {variant}\n", orders / CUSTOMERS - 1);
        let order = with_arguments(&statement, &[&id, &format!(":customer{variant}")])?;
        Ok(format!("{set_number}{};\n{order};\n", session(variant)?))
    })
}

/// Returns scripts of `GET /v1/orders`: the authentication, and the newest 21 orders of the caller. The 21st shows that
/// there is a next page.
pub fn own_list() -> anyhow::Result<Scripts> {
    let statement = statement(&["from orders_with_items", "where customer_id = $1"])?;
    each_variant(|variant| {
        let customer = format!(":customer{variant}");
        let list = with_arguments(&statement, &[&customer, "null", ":newest", ":rows"])?;
        Ok(format!("{};\n{list};\n", session(variant)?))
    })
}

/// Returns pgbench's variable definitions for the scripts.
fn definitions() -> Vec<(String, String)> {
    let mut definitions = vec![
        ("i".to_owned(), "0".to_owned()),
        ("quantities".to_owned(), "{1,2}".to_owned()),
        ("hash".to_owned(), format!("\\x{}", "5a".repeat(32))),
        ("newest".to_owned(), "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned()),
        ("rows".to_owned(), "21".to_owned()),
        ("detail".to_owned(), r#"{"lines": 2, "record_count": 1}"#.to_owned()),
        ("response_body".to_owned(), format!(r#"{{"items":"{}"}}"#, "x".repeat(500))),
        (
            "event".to_owned(),
            format!(
                r#"{{"timestamp":"2026-01-01T00:00:00.000000Z","event_type":"data_change","user_id":"{}","role":"customer","resource":"orders","action":"create","result":"success","ip_address":"127.0.0.1","metadata":{{"lines":2,"record_ids":["{}"],"record_count":1}},"correlation_id":"correlation","request_id":"{}","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","service_version":"0.1.0"}}"#,
                test_bed::customer(1),
                test_bed::order(1),
                test_bed::order(1),
            ),
        ),
    ];
    for variant in 0..VARIANTS {
        let products =
            format!("{{{},{}}}", test_bed::product(61 * variant), test_bed::product(500 + 61 * variant));
        definitions.push((format!("products{variant}"), products));
        definitions.push((format!("customer{variant}"), test_bed::customer(variant)));
        definitions.push((format!("token{variant}"), hash_of_token(variant)));
    }
    definitions
}

/// Returns the SHA-256 hash of a customer's token, as a PostgreSQL literal.
fn hash_of_token(number: u64) -> String {
    format!("\\x{}", hex::encode(Sha256::digest(test_bed::token(number))))
}

/// Runs the scripts with `clients` connections. Calls `read_times` with pgbench's process id, at the beginning and
/// at the end of the window.
pub async fn run<T>(
    test_bed: &TestBed,
    database: &Database,
    scripts: &Scripts,
    clients: usize,
    window: Window,
    number: u64,
    mut read_times: impl FnMut(u32) -> T,
) -> anyhow::Result<(LoadResult, [T; 2])> {
    let directory = test_bed.directory.join("pgbench");
    fs::remove_dir_all(&directory).ok();
    fs::create_dir_all(&directory)?;
    let url = &database.url;
    let mut launch = Launch::new(test_bed.programs.join("pgbench"))
        .directory(&directory)
        .env("PGPASSWORD", url.password().unwrap_or_default())
        .args(["--host", "127.0.0.1", "--port", &url.port().unwrap_or(5432).to_string()])
        .args(["--username", url.username(), "--protocol=prepared", "--no-vacuum", "--jobs=1", "--log"])
        .args([format!("--client={clients}"), format!("--define=run={number}")])
        // pgbench accepts whole seconds only. The fraction is replaced by a full second, so that pgbench does not end
        // before the window.
        .args([format!("--time={}", (window.warm_up + window.length).as_secs() + 1)]);
    for (name, value) in definitions() {
        launch = launch.args([format!("--define={name}={value}")]);
    }
    for (index, script) in scripts.0.iter().enumerate() {
        let file = directory.join(format!("{index}.sql"));
        fs::write(&file, script)?;
        launch = launch.args(["--file".as_ref(), file.as_os_str()]);
    }
    let child = launch.args([&database.name]).start()?;
    tokio::time::sleep(window.warm_up).await;
    let (before, began) = (read_times(child.pid()), SystemTime::now());
    tokio::time::sleep(window.length).await;
    let (ended, after) = (SystemTime::now(), read_times(child.pid()));
    let status = child.wait(window.length + window.warm_up + EXIT_TIMEOUT).await?;
    let printed: Vec<String> = child.lines().into_iter().map(|line| line.text).collect();
    if !status.success() || printed.iter().any(|line| line.contains("error:")) {
        bail!("pgbench failed: {}", printed.join("\n"));
    }
    let epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_micros());
    let (from, to) = (epoch(began)?, epoch(ended)?);
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    for file in logs(&directory)? {
        for line in fs::read_to_string(file)?.lines() {
            let (latency, at) =
                parse_transaction(line).with_context(|| format!("not a transaction: {line}"))?;
            if (from..to).contains(&at) {
                latencies.saturating_record(latency.max(1));
            }
        }
    }
    let length = ended.duration_since(began)?;
    Ok((LoadResult { length, latencies, failures: 0 }, [before, after]))
}

fn logs(directory: &std::path::Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log")) {
            logs.push(path);
        }
    }
    Ok(logs)
}

/// Parses a line of pgbench's log. Returns the duration and the end of the transaction, in microseconds.
fn parse_transaction(line: &str) -> Option<(u64, u128)> {
    let mut fields = line.split_ascii_whitespace();
    let latency = fields.nth(2)?.parse().ok()?;
    let seconds: u128 = fields.nth(1)?.parse().ok()?;
    let microseconds: u128 = fields.next()?.parse().ok()?;
    Some((latency, seconds * 1_000_000 + microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_replaced_by_their_number() {
        let replaced =
            with_arguments("select $2, $1::text, $10", &["a", "b", "", "", "", "", "", "", "", "j"]);
        assert_eq!(replaced.unwrap(), "select b, a::text, j");
        assert!(with_arguments("select $2", &["a"]).is_err());
        assert_eq!(with_arguments("select 1", &[]).unwrap(), "select 1");
        let text = "select to_char(now(), 'HH24:MI'), 'it', $1::text";
        let expected = "select to_char(now(), E'HH24\\x3aMI'), 'it', :n::text";
        assert_eq!(with_arguments(text, &[":n"]).unwrap(), expected);
    }

    #[test]
    fn a_line_of_the_log_has_the_latency_and_the_end_time() {
        assert_eq!(parse_transaction("3 199 2241 0 1700000000 412345"), Some((2241, 1_700_000_000_412_345)));
        assert_eq!(parse_transaction("3 199 skipped 0 1700000000 412345"), None);
        assert_eq!(parse_transaction(""), None);
    }

    #[test]
    fn each_statement_of_the_service_is_found_by_its_parts() {
        for scripts in [own_order(), naive_order(), own_read(1_000), own_list()] {
            let Scripts(scripts) = scripts.unwrap();
            assert_eq!(scripts.len() as u64, VARIANTS);
            assert!(scripts.iter().all(|script| !script.contains('$')), "{}", scripts[0]);
        }
    }
}
