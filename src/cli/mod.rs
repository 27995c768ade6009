//! The command line: `serve`, `migrate`, `after-restore`, `user create`, `user end-sessions`, `audit verify`,
//! `audit export`, `openapi`, `config`, `probe`, and the commands of the slices.
//!
//! Exit codes: 0 for success, 1 for failure (with the reason on stderr), 2 for wrong usage. Every setting in
//! [`config`](crate::config) has a flag on `serve` and `config`, except secrets and `OTEL_*`. The other commands have
//! only some of these flags. Secrets have no flag, because other users of the machine can read command lines.
mod after_restore;
mod audit;
mod user;

use std::{collections::HashMap, process::ExitCode, time::Duration};

use clap::{Arg, ArgMatches, Command};
use platform::{
    database::{self, Database},
    migrations, outbound,
    settings::{Process, Reader, Setting},
    telemetry,
};

use crate::{BUILD, MIGRATIONS, api, config::Config, service, slices};

/// Timeout of a probe. A service that responds later counts as unhealthy.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    BUILD.set();
    let matches = command().get_matches();
    let Some((name, arguments)) = matches.subcommand() else { return ExitCode::from(2) };
    match execute(name, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", env!("CARGO_PKG_NAME"));
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn execute(name: &str, arguments: &ArgMatches) -> Outcome {
    match name {
        "serve" => serve(Config::load(reader(arguments)?)?),
        "migrate" => migrate(reader(arguments)?),
        "after-restore" => after_restore::execute(arguments),
        "user" => user::execute(arguments),
        "probe" => probe(arguments),
        "audit" => audit::execute(arguments),
        "openapi" => {
            println!("{}", api::document().to_pretty_json()?);
            Ok(())
        }
        "config" => show_config(reader(arguments)?),
        slice => slice_command(slice, arguments),
    }
}

fn command() -> Command {
    Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("serve").about("Run the service until SIGTERM or SIGINT").args(flags(|_| true)),
        )
        .subcommand(
            Command::new("migrate")
                .about("Apply the migrations of this release, as the owner of the database")
                .args(flags(|setting| matches!(setting.group, "process" | "database" | "logs"))),
        )
        .subcommand(after_restore::command())
        .subcommand(user::command())
        .subcommand(
            Command::new("probe")
                .about(
                    "Send a GET request, and exit with 1 unless the response is a success: a health check without a shell",
                )
                .arg(Arg::new("url").value_name("URL").default_value("http://127.0.0.1:9000/readyz")),
        )
        .subcommand(audit::command())
        .subcommand(Command::new("openapi").about("Print the OpenAPI document"))
        .subcommand(
            Command::new("config")
                .about("Print the effective settings, without secrets")
                .args(flags(|_| true)),
        )
        .subcommands(slices::commands().into_iter().map(|command| {
            let settings = flags(|setting| {
                matches!(setting.group, "process" | "database")
                    || slices::Settings::settings().any(|slice_setting| slice_setting.name == setting.name)
            });
            command.args(settings.into_iter().map(|setting| setting.global(true)))
        }))
}

fn flags(used: impl Fn(&Setting) -> bool) -> Vec<Arg> {
    let flag = |setting: &Setting| {
        let default = setting
            .default
            .filter(|default| !default.is_empty())
            .map(|default| format!(" [default: {default}]"));
        let help =
            format!("{} [env: {}]{}", setting.meaning.trim(), setting.name, default.unwrap_or_default());
        Arg::new(setting.name).long(setting.flag()).value_name("VALUE").help(help)
    };
    Config::settings().filter(|setting| setting.has_flag && used(setting)).map(flag).collect()
}

/// Returns the argument for an operator's reason.
fn reason(help: &'static str) -> Arg {
    let text = platform::audit::parse_reason;
    Arg::new("reason").long("reason").value_name("TEXT").required(true).value_parser(text).help(help)
}

/// Returns a reader that reads each setting from its flag first, then from the environment. In development, a `.env`
/// file adds variables that the environment does not have.
fn reader(arguments: &ArgMatches) -> Result<Reader, Box<dyn std::error::Error + Send + Sync>> {
    let from_flags: HashMap<String, String> = Config::settings()
        .filter_map(|setting| {
            let value = arguments.try_get_one::<String>(setting.name).ok()??;
            Some((setting.name.to_owned(), value.clone()))
        })
        .collect();
    let environment = from_flags.get("APP_ENV").cloned().or_else(|| std::env::var("APP_ENV").ok());
    if environment.is_none_or(|environment| environment.is_empty() || environment == "development") {
        match dotenvy::dotenv() {
            Ok(_) => {}
            Err(error) if error.not_found() => {}
            // The library's error is not printed, because it has the malformed line, which may contain a password.
            Err(dotenvy::Error::LineParse(..)) => {
                return Err("the .env file has a line that is not NAME=value".into());
            }
            Err(error) => return Err(format!("failed to read the .env file: {error}").into()),
        }
    }
    Ok(Reader::new(move |name| from_flags.get(name).cloned().or_else(|| std::env::var(name).ok())))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn serve(config: Config) -> Outcome {
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let telemetry = telemetry::init(&config.process, &config.logs, &config.opentelemetry)?;
        service::serve(config, telemetry).await?;
        Outcome::Ok(())
    });
    // Tasks that still run after the shutdown deadline must not keep the process alive.
    runtime.shutdown_background();
    served
}

fn migrate(reader: Reader) -> Outcome {
    let settings = reader.finish(|reader| {
        let (process, database) = (Process::read(reader), database::Settings::read(reader)?);
        database.check(process?.environment, reader);
        Some(database)
    })?;
    let migrated = runtime()?.block_on(migrations::migrate(&settings, &MIGRATIONS))?;
    let known = database::newest_version(&MIGRATIONS);
    if migrated.version > known {
        println!(
            "nothing to do: the schema has version {}, which is newer than {known} of this release",
            migrated.version,
        );
    } else {
        println!("applied {} migrations; the schema has version {}", migrated.applied, migrated.version);
    }
    Ok(())
}

/// Runs a command of a slice. The command connects with the service's database role.
fn slice_command(name: &str, arguments: &ArgMatches) -> Outcome {
    outbound::install_tls_provider();
    let settings = reader(arguments)?.finish(database::Settings::read)?;
    let settings_of_slices = reader(arguments)?;
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&settings, name).await?;
        slices::execute(name, arguments, &database, settings_of_slices).await
    })
}

fn probe(arguments: &ArgMatches) -> Outcome {
    let url = arguments.get_one::<String>("url").cloned().unwrap_or_default();
    let client =
        outbound::client().redirect(reqwest::redirect::Policy::default()).timeout(PROBE_TIMEOUT).build()?;
    runtime()?.block_on(async { client.get(url).send().await?.error_for_status() })?;
    Ok(())
}

/// Prints the effective settings in the form of a `.env` file, followed by every mistake in them.
fn show_config(reader: Reader) -> Outcome {
    for setting in Config::settings() {
        match reader.effective(setting) {
            Some(_) if setting.secret => println!("{}=<redacted>", setting.name),
            Some(value) => println!("{}={}", setting.name, outbound::redacted_text(&value)),
            None => println!("# {} is not set", setting.name),
        }
    }
    Config::load(reader)?;
    Ok(())
}
