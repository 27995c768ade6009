//! The commands `payments discrepancy list`, `payments discrepancy close`, `payments end` and `payments reconcile`.
use std::error::Error;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Arg, ArgMatches, Command};
use platform::{
    alerts::Alerts, audit, database::Database, http::timestamp::Timestamp, settings::Reader,
    workers::BackgroundTasks,
};
use uuid::Uuid;

use super::{
    EndResult, Finding, FindingState, Payments, Settings, close_discrepancy, end_without_money,
    open_discrepancies,
};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

pub fn command() -> Command {
    let id = |help: &'static str| Arg::new("id").value_name("ID").required(true).help(help);
    let reason = || {
        Arg::new("reason")
            .long("reason")
            .value_name("TEXT")
            .required(true)
            .value_parser(audit::parse_reason)
            .help("Reason, stored in the audit log")
    };
    Command::new("payments")
        .about("Resolve payments, refunds and discrepancies that need review")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("discrepancy")
                .about("List or close discrepancies with the payment gateway")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(Command::new("list").about("Print every open discrepancy, oldest first"))
                .subcommand(
                    Command::new("close")
                        .about("Close an explained discrepancy")
                        .arg(id("The discrepancy's id, as `list` prints it"))
                        .arg(reason()),
                ),
        )
        .subcommand(
            Command::new("end")
                .about("Fail a payment or refund of unknown outcome, for which the gateway never moved money")
                .arg(id("The id of the payment or refund"))
                .arg(reason()),
        )
        .subcommand(
            Command::new("reconcile")
                .about("Compare the gateway's charges and refunds with the database, and record each difference; exits with 1 if one is open")
                .arg(
                    Arg::new("since")
                        .long("since")
                        .value_name("TIME")
                        .required(true)
                        .value_parser(parse_since)
                        .help("Beginning of the compared period: RFC 3339, or a duration until now, such as 90m, 48h or 7d"),
                ),
        )
}

/// Parses a time in the past, or a duration that ends now. Returns the time, or the beginning of the duration.
fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    let now = Utc::now();
    let duration = |text: &str| {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number = number.parse::<u32>().ok()?.into();
        let duration = match unit {
            "s" => TimeDelta::try_seconds(number),
            "m" => TimeDelta::try_minutes(number),
            "h" => TimeDelta::try_hours(number),
            "d" => TimeDelta::try_days(number),
            _ => None,
        };
        now.checked_sub_signed(duration?)
    };
    let time = text.parse().ok().or_else(|| duration(text)).filter(|time| *time <= now);
    let time = time.ok_or("must be a time in the past (RFC 3339), or a duration such as 90m, 48h or 7d")?;
    Timestamp::try_from(time).map(DateTime::from).map_err(|error| error.to_string())
}

/// Runs a command. Only `reconcile` reads `settings`, because only it calls the gateway.
pub async fn execute(arguments: &ArgMatches, database: &Database, settings: Reader) -> Outcome {
    match arguments.subcommand() {
        Some(("discrepancy", arguments)) => match arguments.subcommand() {
            Some(("list", _)) => list(database).await,
            Some(("close", arguments)) => close(arguments, database).await,
            _ => Ok(()),
        },
        Some(("end", arguments)) => end(arguments, database).await,
        Some(("reconcile", arguments)) => reconcile(arguments, database, settings).await,
        _ => Ok(()),
    }
}

async fn list(database: &Database) -> Outcome {
    for discrepancy in open_discrepancies(database).await? {
        let record = discrepancy.record_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        println!(
            "{} {} {} {record} \"{}\": the gateway reports \"{}\", the database had \"{}\"",
            discrepancy.id,
            discrepancy.recorded_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            discrepancy.resource,
            discrepancy.what,
            discrepancy.gateway_says,
            discrepancy.we_say,
        );
    }
    Ok(())
}

/// Returns the arguments `ID` and `--reason` of a command.
fn id_and_reason(arguments: &ArgMatches) -> Result<(Uuid, String), &'static str> {
    let text = |name: &str| arguments.get_one::<String>(name).cloned().unwrap_or_default();
    let id = text("id").parse().map_err(|_| "ID must be a UUID")?;
    Ok((id, text("reason")))
}

async fn close(arguments: &ArgMatches, database: &Database) -> Outcome {
    let (id, reason) = id_and_reason(arguments)?;
    if close_discrepancy(database, id, &reason).await? {
        println!("closed the discrepancy {id}");
        Ok(())
    } else {
        Err(format!("no open discrepancy has the id {id}").into())
    }
}

async fn end(arguments: &ArgMatches, database: &Database) -> Outcome {
    let (id, reason) = id_and_reason(arguments)?;
    let ended = end_without_money(database, id, &reason).await;
    match ended.map_err(|error| format!("failed to end {id}: {error}"))? {
        EndResult::Payment => println!("the payment {id} has failed; its order can be paid again"),
        EndResult::Refund => println!("the refund {id} has failed; its amount can be refunded again"),
        EndResult::Settled(status) => return Err(format!("{id} is already settled: {status}").into()),
        EndResult::NeedsNoReview => {
            return Err(format!("{id} needs no review: recovery is still polling for its outcome").into());
        }
        EndResult::NotFound => return Err(format!("no payment or refund has the id {id}").into()),
    }
    Ok(())
}

async fn reconcile(arguments: &ArgMatches, database: &Database, settings: Reader) -> Outcome {
    let since = arguments.get_one::<DateTime<Utc>>("since").copied().ok_or("--since is missing")?;
    let settings = settings.finish(Settings::read)?;
    match compare_since(&settings, database, since, |line| println!("{line}")).await? {
        0 => Ok(()),
        1 => Err("1 difference with the gateway is open".into()),
        open => Err(format!("{open} differences with the gateway are open").into()),
    }
}

/// Compares the gateway's charges and refunds since a time with the stored payments and refunds. Records each
/// difference as a discrepancy, and settles payments and refunds of unknown outcome. Passes a line for each difference,
/// and then a summary, to `on_line`. Returns the number of open differences.
///
/// # Errors
/// If the comparison could not be completed.
pub async fn compare_since(
    settings: &Settings,
    database: &Database,
    since: DateTime<Utc>,
    mut on_line: impl FnMut(String),
) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    // A command sends no alerts: it stores each alert with its discrepancy, and the running service sends the alert.
    let payments =
        Payments::start(settings, database, &Alerts::without_receivers(), &BackgroundTasks::new(), 1)?;
    let summary = payments.reconcile(since, |finding| on_line(describe(finding))).await;
    let summary = summary.map_err(|error| format!("the comparison is incomplete: {error}"))?;
    on_line(format!(
        "compared {} charges and {} refunds of the gateway: {} settled, {} differences open, {} closed",
        summary.charges, summary.refunds, summary.settled, summary.open, summary.closed,
    ));
    Ok(summary.open)
}

/// Formats a finding as one line.
fn describe(finding: &Finding) -> String {
    let record = finding.id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let state = match finding.state {
        FindingState::New => "recorded now",
        FindingState::Known => "recorded before",
        FindingState::Closed => "closed",
    };
    format!(
        "{} {record} \"{}\": the gateway reports \"{}\", the database has \"{}\" ({state})",
        finding.resource,
        finding.what,
        finding.gateway_says.escape_debug(),
        finding.we_say,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_past_time_or_a_duration() {
        let hours = |text: &str| parse_since(text).map(|since| (Utc::now() - since).num_hours());
        assert_eq!(hours("48h"), Ok(48));
        assert_eq!(hours("2d"), Ok(48));
        assert_eq!(hours("60m"), Ok(1));
        assert_eq!(hours("7200s"), Ok(2));
        assert!(parse_since("2026-01-01T00:00:00Z").is_ok());
        for rejected in
            ["", "h", "-1h", "1.5h", "1w", "2\u{e4}", "yesterday", "2999-01-01T00:00:00Z", "99999999999d"]
        {
            assert!(parse_since(rejected).is_err(), "{rejected}");
        }
    }
}
