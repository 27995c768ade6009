//! The command `cargo dev`.
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dev::prepare;

/// Runs the service on this machine, with everything that it needs.
#[derive(Debug, Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Regenerate `.sqlx`, the description of the queries that the service is compiled against
    Prepare(Prepare),
}

#[derive(Debug, Args)]
struct Prepare {
    /// Change nothing; fail if `.sqlx` is out of date
    #[arg(long)]
    check: bool,
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Prepare(arguments)) => prepare(&arguments).await,
        None => Ok(ExitCode::FAILURE),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("cargo dev: {error}");
        ExitCode::FAILURE
    })
}

/// What takes its time says so, on the stream that is for people.
fn progress(line: &str) {
    eprintln!("  {line}");
}

async fn prepare(arguments: &Prepare) -> Outcome {
    let difference = prepare::run(arguments.check, &progress).await?;
    if difference.is_empty() {
        println!(".sqlx is up to date");
    } else if arguments.check {
        print!(".sqlx is out of date:\n{difference}");
        println!("`cargo dev prepare` brings it up to date.");
        return Ok(ExitCode::FAILURE);
    } else {
        print!(".sqlx is brought up to date:\n{difference}");
    }
    Ok(ExitCode::SUCCESS)
}
