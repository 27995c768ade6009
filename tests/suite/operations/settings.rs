//! The lists of settings, compared with the settings of the executable. `.env*.example` and the documents list every
//! setting. `serve --help` has a flag for every setting except secrets and `OTEL_*`.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use dev::harness::run;

use crate::{
    EXECUTABLE,
    docs::{
        assert_complete,
        compliance::{rows, with_parts},
    },
};

/// Secret settings of the platform. They have no flag, because other users of the machine can read command lines.
const SECRETS: [&str; 4] = ["DATABASE_URL", "DATABASE_MIGRATION_URL", "OPS_TOKEN", "ALERT_WEBHOOK_URL"];

/// The heading of the tables of settings.
const HEADING: &str = "| name | meaning | default |";

/// Returns every setting of the executable, with its default.
async fn settings() -> BTreeMap<String, Option<String>> {
    let output = run(Path::new(EXECUTABLE), &["config"], &[]).await.stdout;
    let setting = |line: &str| {
        let unset = line.strip_prefix("# ").and_then(|comment| comment.strip_suffix(" is not set"));
        match (unset, line.split_once('=')) {
            (Some(name), _) => (name.to_owned(), None),
            (None, Some((name, value))) => (name.to_owned(), Some(value.to_owned())),
            (None, None) => panic!("{line}"),
        }
    };
    output.lines().map(setting).collect()
}

async fn names() -> BTreeSet<String> {
    settings().await.into_keys().collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[tokio::test]
async fn env_example_has_every_setting_with_its_default() {
    let text = with_parts(".env.example");
    let example: BTreeMap<String, (bool, String)> = text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            let uncommented = name.trim_start_matches("# ").trim_start_matches('#');
            is_name(uncommented)
                .then(|| (uncommented.to_owned(), (uncommented == name, value.trim_matches('"').to_owned())))
        })
        .collect();
    let settings = settings().await;
    let named = |settings: Vec<&String>| settings.into_iter().cloned().collect();
    assert_complete(
        ".env*.example",
        &named(example.keys().collect()),
        "the settings",
        &named(settings.keys().collect()),
    );
    for (name, default) in settings {
        let (active, value) = &example[&name];
        if let Some(default) = default {
            assert_eq!((*active, value), (true, &default), "{name}: .env*.example lacks the default");
        }
    }
}

#[tokio::test]
async fn every_setting_has_a_flag_except_secrets_and_otel() {
    let help = run(Path::new(EXECUTABLE), &["serve", "--help"], &[]).await.succeeded();
    let flags: BTreeSet<_> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|flag| *flag != "help")
        .map(|flag| flag.to_uppercase().replace('-', "_"))
        .collect();
    let expected: BTreeSet<_> = names()
        .await
        .into_iter()
        .filter(|name| {
            !SECRETS.contains(&name.as_str())
                && !dev::harness::SECRETS.contains(&name.as_str())
                && !name.starts_with("OTEL_")
        })
        .collect();
    assert_complete("serve --help", &flags, "the settings that have flags", &expected);
}

#[tokio::test]
async fn the_documents_have_one_row_for_every_setting() {
    let listed: Vec<_> = rows(HEADING)
        .iter()
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`'))
        .filter(|word| is_name(word))
        .map(str::to_owned)
        .collect();
    let names = names().await;
    let rows = listed.len();
    assert_complete(
        &format!("the tables \"{HEADING}\" of docs"),
        &listed.into_iter().collect(),
        "the settings",
        &names,
    );
    assert_eq!(rows, names.len(), "a setting must not have two rows");
}
