//! The command `after-restore`: the steps that an operator runs once after the database was restored to an earlier
//! state.
use std::{io::Write, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use platform::{
    audit::{self, KnownHeads, LostSpan},
    database::{self, Database},
    http::idempotency,
    outbound,
};

use super::{Outcome, flags, reader, reason, runtime};
use crate::{accounts, slices};

pub(super) fn command() -> Command {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf)).help(help)
    };
    let is_of_a_slice = |name: &str| slices::Settings::settings().any(|setting| setting.name == name);
    Command::new("after-restore")
        .about("Run the steps that are needed once after the database was restored to an earlier state, as the database's owner")
        .arg(reason("Why the database was restored; it is stored in the audit log"))
        .arg(file(
            "known-heads",
            "File with the logged heads as JSON lines; heads that the database lacks are acknowledged as lost",
        ))
        .arg(file("log", "The service's JSON log, from which heads are read like from --known-heads; several files if the log is rotated").num_args(1..))
        .arg(
            Arg::new("yes")
                .long("yes")
                .action(ArgAction::SetTrue)
                .help("Do not ask for confirmation"),
        )
        .args(flags(move |setting| {
            matches!(setting.group, "process" | "database") || is_of_a_slice(setting.name)
        }))
}

pub(super) fn execute(arguments: &ArgMatches) -> Outcome {
    let (settings, slices_settings) = reader(arguments)?
        .finish(|reader| database::Settings::read(reader).zip(slices::Settings::read(reader)))?;
    let reason = arguments.get_one::<String>("reason").cloned().unwrap_or_default();
    let heads = logged_heads(arguments)?;
    let owner = database::Settings { url: settings.owner().clone(), ..settings };
    outbound::install_tls_provider();
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&owner, "after-restore").await?;
        let span = read_span(&database, &heads).await?;
        if span.is_recorded {
            println!("nothing to do: this restore is recorded already");
        } else {
            describe(&span);
            if !arguments.get_flag("yes") && !confirm()? {
                return Err("nothing was changed, because the command was not confirmed".into());
            }
            record(&database, &heads, &reason).await?;
        }
        let lost_since = audit::seal_restore(&database).await.map_err(|error| {
            format!(
                "the restore is recorded, but its event is not sealed: {error}; run the same command again"
            )
        })?;
        for line in slices::after_restore(&slices_settings, &database, lost_since).await? {
            println!("{line}");
        }
        Ok(())
    })
}

/// Returns the heads that the service has logged, from the files of `--known-heads` and `--log`. A head is the number
/// and the hash of a seal, and each seal covers a range of audit events (see docs/audit.md).
fn logged_heads(arguments: &ArgMatches) -> Result<KnownHeads, audit::VerifyError> {
    let mut heads = KnownHeads::new();
    if let Some(file) = arguments.get_one::<PathBuf>("known-heads") {
        audit::read_heads(file, &mut heads)?;
    }
    for log in arguments.get_many::<PathBuf>("log").unwrap_or_default() {
        audit::read_log(log, &mut heads)?;
    }
    Ok(heads)
}

async fn read_span(database: &Database, heads: &KnownHeads) -> Result<LostSpan, sqlx::Error> {
    let mut transaction = database.begin().await?;
    let span = audit::lost_span(&mut transaction, heads).await?;
    transaction.rollback().await?;
    Ok(span)
}

/// Prints the part of the audit log that the restore has lost, and the changes that [`record`] makes after the
/// confirmation.
fn describe(span: &LostSpan) {
    match span.numbers() {
        Some((first, last)) => println!(
            "changes since {} are lost: {} logged heads of seals {first} to {last} are not in the database",
            span.since.to_rfc3339(),
            span.head_count()
        ),
        None => println!(
            "changes since {} may be lost: the database has every head that was given",
            span.since.to_rfc3339()
        ),
    }
    println!("this ends every session, extends idempotency keys, and begins an epoch of the audit log");
}

fn confirm() -> std::io::Result<bool> {
    eprint!("Enter `yes` to continue: ");
    std::io::stderr().flush()?;
    let mut input = String::new();
    std::io::stdin().read_line(&mut input)?;
    Ok(input.trim() == "yes")
}

/// Records the restore, begins an epoch of the audit log, ends all sessions and extends the idempotency keys, in one
/// transaction. Events are ordered by epoch first, so no new event has the position of a lost one. Changes nothing if a
/// concurrent run of the command has recorded the restore first.
async fn record(database: &Database, heads: &KnownHeads, reason: &str) -> Result<(), sqlx::Error> {
    let mut transaction = database.begin().await?;
    let span = audit::lost_span(&mut transaction, heads).await?;
    if span.is_recorded {
        return transaction.rollback().await;
    }
    let (epoch, restored) = audit::record_restore(&mut transaction, &span, reason).await?;
    let (sessions, ended) = accounts::end_all_sessions(&mut transaction, "restore").await?;
    let keys = idempotency::extend(&mut transaction, span.since).await?;
    transaction.commit().await?;
    restored.into_iter().chain([ended]).for_each(audit::PendingEvent::committed);
    println!(
        "recorded: epoch {epoch} of the audit log has begun, {} logged heads are acknowledged as lost",
        span.head_count()
    );
    println!("sessions ended: {sessions}; idempotency keys extended: {keys}");
    Ok(())
}
