//! The commands `payments discrepancy list`, `payments discrepancy close` and `payments end`.
use std::error::Error;

use clap::{Arg, ArgMatches, Command};
use platform::database::Database;
use uuid::Uuid;

use super::{EndResult, close_discrepancy, end_without_money, open_discrepancies};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Maximum length of a reason in characters. It is stored in the audit log.
const MAX_REASON: usize = 500;

pub fn command() -> Command {
    let id = |help: &'static str| Arg::new("id").value_name("ID").required(true).help(help);
    let reason = || {
        Arg::new("reason")
            .long("reason")
            .value_name("TEXT")
            .required(true)
            .value_parser(parse_reason)
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
}

fn parse_reason(text: &str) -> Result<String, String> {
    let reason = text.trim();
    if reason.is_empty() || reason.chars().count() > MAX_REASON || reason.contains(char::is_control) {
        return Err(format!("must be 1 to {MAX_REASON} characters in one line"));
    }
    Ok(reason.to_owned())
}

pub async fn execute(arguments: &ArgMatches, database: &Database) -> Outcome {
    match arguments.subcommand() {
        Some(("discrepancy", arguments)) => match arguments.subcommand() {
            Some(("list", _)) => list(database).await,
            Some(("close", arguments)) => close(arguments, database).await,
            _ => Ok(()),
        },
        Some(("end", arguments)) => end(arguments, database).await,
        _ => Ok(()),
    }
}

async fn list(database: &Database) -> Outcome {
    for found in open_discrepancies(database).await? {
        let record = found.record_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        println!(
            "{} {} {} {record} \"{}\": the gateway reports \"{}\", the service had \"{}\"",
            found.id,
            found.recorded_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            found.resource,
            found.what,
            found.gateway_says,
            found.we_say,
        );
    }
    Ok(())
}

/// Returns the id and the reason of a command.
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
