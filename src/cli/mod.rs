//! The command line: `serve`, `migrate`, `after-restore`, `user create`, `audit verify`, `audit export`, `openapi`,
//! `config`, `probe`, and the commands of the slices.
//!
//! Exit codes: 0 for success, 1 for failure (with one sentence on stderr), 2 for wrong usage. Every setting of the
//! table in [`config`](crate::config) has a flag on the commands that use it. Secrets have no flag, because other users
//! of the machine can read its command lines.
mod after_restore;
mod audit;

use std::{
    collections::HashMap,
    io::{IsTerminal, Read},
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, ArgMatches, Command};
use platform::{
    database::{self, Database},
    migrations, outbound,
    settings::{Mistakes, Process, Reader, Setting},
    telemetry,
};

use crate::{
    BUILD, MIGRATIONS,
    accounts::{self, Email, Password, Passwords, Role},
    api,
    config::Config,
    service, slices,
};

/// Timeout of a probe. A slower response counts as unhealthy.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the command of the process's arguments.
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
        "user" => match arguments.subcommand() {
            Some(("create", arguments)) => create_user(arguments),
            _ => Ok(()),
        },
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
        .subcommand(
            Command::new("user")
                .about("Manage users")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(
                    Command::new("create")
                        .about(
                            "Create a user; the password is read from USER_PASSWORD or from standard input",
                        )
                        .arg(Arg::new("email").long("email").required(true))
                        .arg(
                            Arg::new("role")
                                .long("role")
                                .required(true)
                                .value_parser(["customer", "support", "auditor", "admin"]),
                        )
                        .arg(
                            Arg::new("name")
                                .long("name")
                                .help("Name of the user [default: the part of the e-mail address before the @]"),
                        )
                        .args(flags(|setting| {
                            matches!(setting.group, "process" | "database" | "logs")
                                || setting.name.starts_with("ARGON2_")
                        })),
                ),
        )
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
                    || slices::Settings::settings().any(|of_slices| of_slices.name == setting.name)
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

/// Reads settings from flags first, then from the environment. In development, a `.env` file adds variables that the
/// environment does not have.
fn reader(arguments: &ArgMatches) -> Result<Reader, Box<dyn std::error::Error + Send + Sync>> {
    let given: HashMap<String, String> = Config::settings()
        .filter_map(|setting| {
            let value = arguments.try_get_one::<String>(setting.name).ok()??;
            Some((setting.name.to_owned(), value.clone()))
        })
        .collect();
    let environment = given.get("APP_ENV").cloned().or_else(|| std::env::var("APP_ENV").ok());
    if environment.is_none_or(|environment| environment.is_empty() || environment == "development") {
        match dotenvy::dotenv() {
            Ok(_) => {}
            Err(error) if error.not_found() => {}
            // The error would contain the malformed line, which may be the one with the password.
            Err(dotenvy::Error::LineParse(..)) => {
                return Err("the .env file has a line that is not NAME=value".into());
            }
            Err(error) => return Err(format!("failed to read the .env file: {error}").into()),
        }
    }
    Ok(Reader::new(move |name| given.get(name).cloned().or_else(|| std::env::var(name).ok())))
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
    // Work that was cut at the deadline must not keep the process alive.
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

/// Runs a command of a slice, which uses the database with the service's role.
fn slice_command(name: &str, arguments: &ArgMatches) -> Outcome {
    outbound::install_tls_provider();
    let settings = reader(arguments)?.finish(database::Settings::read)?;
    let settings_of_slices = reader(arguments)?;
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&settings, name).await?;
        slices::execute(name, arguments, &database, settings_of_slices).await
    })
}

fn create_user(arguments: &ArgMatches) -> Outcome {
    let text = |name: &str| arguments.get_one::<String>(name).cloned().unwrap_or_default();
    let (accounts_settings, database_settings) = reader(arguments)?
        .finish(|reader| {
            let accounts = accounts::Settings::read(reader)?;
            accounts.check(reader);
            Some(accounts).zip(database::Settings::read(reader))
        })
        .map_err(|mistakes: Mistakes| mistakes)?;
    let email = Email::parse(&text("email")).ok_or("--email must be an e-mail address")?;
    let role = Role::parse(&text("role")).ok_or("--role must be customer, support, auditor or admin")?;
    let name = arguments.get_one::<String>("name").cloned();
    let name = name.unwrap_or_else(|| email.as_str().split('@').next().unwrap_or_default().to_owned());
    let password = read_password()?;
    if let Some(weakness) = password.weakness(email.as_str(), &name) {
        return Err(format!("the password {weakness}").into());
    }
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&database_settings, "user create").await?;
        let hash = Passwords::new(&accounts_settings).hash(&password).await?;
        let user = accounts::create_user(&database, &email, &name, &hash, role).await?;
        println!("{} {} {}", user.id, user.email, role.as_str());
        Ok(())
    })
}

fn probe(arguments: &ArgMatches) -> Outcome {
    let url = arguments.get_one::<String>("url").cloned().unwrap_or_default();
    let client =
        outbound::client().redirect(reqwest::redirect::Policy::default()).timeout(PROBE_TIMEOUT).build()?;
    runtime()?.block_on(async { client.get(url).send().await?.error_for_status() })?;
    Ok(())
}

fn read_password() -> Result<Password, Box<dyn std::error::Error + Send + Sync>> {
    if let Ok(password) = std::env::var("USER_PASSWORD") {
        return Ok(Password::new(password));
    }
    let mut input = String::new();
    if std::io::stdin().is_terminal() {
        eprintln!("Password (input is visible):");
        std::io::stdin().read_line(&mut input)?;
    } else {
        std::io::stdin().read_to_string(&mut input)?;
    }
    Ok(Password::new(input.trim_end_matches(['\r', '\n'])))
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
