//! The commands `audit verify` and `audit export`.
use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use clap::{Arg, ArgMatches, Command, value_parser};
use platform::{
    audit,
    database::{self, Database},
    http::timestamp::Timestamp,
};

use super::{Outcome, flags, reader, runtime};

/// Minimum interval between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

pub(super) fn command() -> Command {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf)).help(help)
    };
    let settings = || flags(|setting| matches!(setting.group, "process" | "database"));
    Command::new("audit")
        .about("Verify or export the audit log")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("verify")
                .about("Verify that no audit event was changed after it was sealed; exit code 1 if one was")
                .arg(file("export", "Verify this export instead of the database"))
                .arg(file("heads", "Also compare with the heads in this file of JSON lines; only logged heads reveal a regenerated chain"))
                .arg(
                    file("log", "Also compare with the heads in the service's JSON log; several files if the log is rotated")
                        .num_args(1..),
                )
                .arg(
                    Arg::new("exported")
                        .long("exported")
                        .value_name("FILE|SHA256")
                        .num_args(1..)
                        .value_parser(str::parse::<audit::ExternalExport>)
                        .conflicts_with("export")
                        .help("The exports of events that are no longer in the database, or the SHA-256 of each; without them, missing events are reported"),
                )
                .args(settings()),
        )
        .subcommand(
            Command::new("export")
                .about("Export the events that are not in an earlier export to a file, and drop partitions older than AUDIT_RETENTION_DAYS; as the owner")
                .arg(
                    Arg::new("until")
                        .long("until")
                        .value_name("TIME")
                        .required(true)
                        .value_parser(parse_time)
                        .help("Export the events recorded before this time: RFC 3339, or a date (UTC)"),
                )
                .arg(file("to", "The gzip file to write; it must not exist").required(true))
                .args(flags(|setting| {
                    matches!(setting.group, "process" | "database") || setting.name == "AUDIT_RETENTION_DAYS"
                })),
        )
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let date = |text: &str| text.parse::<NaiveDate>().map(|date| date.and_time(NaiveTime::MIN).and_utc());
    let time = text.parse().or_else(|_| date(text)).map_err(|_| "must be RFC 3339 or a date".to_owned())?;
    Timestamp::try_from(time).map(DateTime::from).map_err(|error| error.to_string())
}

pub(super) fn execute(arguments: &ArgMatches) -> Outcome {
    match arguments.subcommand() {
        Some(("verify", arguments)) => verify(arguments),
        Some(("export", arguments)) => export(arguments),
        _ => Ok(()),
    }
}

fn verify(arguments: &ArgMatches) -> Outcome {
    let path = |name: &str| arguments.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let logs = arguments.get_many::<PathBuf>("log").unwrap_or_default();
    let mut heads = audit::KnownHeads::new();
    if let Some(file) = path("heads") {
        audit::read_heads(file, &mut heads)?;
    }
    for log in logs.clone() {
        audit::read_log(log, &mut heads)?;
    }
    if heads.is_empty() && (path("heads").is_some() || logs.len() > 0) {
        return Err(
            "found no head in the given files: a head is a JSON log line with seal_number and seal_hash"
                .into(),
        );
    }
    let report = match path("export") {
        Some(export) => audit::verify_export(export, heads, &progress())?,
        None => verify_database(arguments, heads)?,
    };
    print!("{report}");
    Ok(())
}

fn verify_database(
    arguments: &ArgMatches,
    heads: audit::KnownHeads,
) -> Result<audit::Report, Box<dyn std::error::Error + Send + Sync>> {
    let settings = reader(arguments)?.finish(database::Settings::read)?;
    let exports: Vec<_> = arguments.get_many("exported").unwrap_or_default().cloned().collect();
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&settings, "audit verify").await?;
        Ok(audit::verify(&database, heads, &exports, &progress()).await?)
    })
}

fn export(arguments: &ArgMatches) -> Outcome {
    let (settings, audit_settings) = reader(arguments)?
        .finish(|reader| database::Settings::read(reader).zip(audit::Settings::read(reader)))?;
    let until = arguments.get_one::<DateTime<Utc>>("until").copied().ok_or("--until is missing")?;
    let path: &Path = arguments.get_one::<PathBuf>("to").ok_or("--to is missing")?;
    let owner = database::Settings { url: settings.owner().clone(), ..settings };
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&owner, "audit export").await?;
        let result =
            audit::export(&database, until, audit_settings.retention_days, path, &progress()).await?;
        if let Some(audit::ExportSummary { first_seal, last_seal, events, file_sha256 }) = result.written {
            println!(
                "{}: {events} events under seals {first_seal} to {last_seal}, SHA-256 {file_sha256}",
                path.display()
            );
        }
        for partition in result.dropped {
            println!("dropped: {partition}");
        }
        Ok(())
    })
}

/// Returns a function that prints the progress to standard error, at most once per [`PROGRESS_INTERVAL`].
fn progress() -> impl Fn(i64, u64) + Send + Sync {
    let last_report = Mutex::new(Instant::now());
    move |seals, events| {
        if let Ok(mut last_report) = last_report.lock()
            && last_report.elapsed() >= PROGRESS_INTERVAL
        {
            eprintln!("{seals} seals, {events} events …");
            *last_report = Instant::now();
        }
    }
}
