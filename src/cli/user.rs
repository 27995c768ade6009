//! The commands `user create` and `user end-sessions`.
use std::io::{IsTerminal, Read};

use clap::{Arg, ArgMatches, Command};
use platform::{
    database::{self, Database},
    settings::{Mistakes, Setting},
};

use super::{Outcome, flags, reader, reason, runtime};
use crate::accounts::{self, Email, Password, Passwords, Role};

pub(super) fn command() -> Command {
    let is_common = |setting: &Setting| matches!(setting.group, "process" | "database" | "logs");
    let email = || Arg::new("email").long("email").required(true);
    Command::new("user")
        .about("Manage users")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("create")
                .about("Create a user; the password is read from USER_PASSWORD or from standard input")
                .arg(email())
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
                .args(flags(|setting| is_common(setting) || setting.name.starts_with("ARGON2_"))),
        )
        .subcommand(
            Command::new("end-sessions")
                .about("End every session of a user, for example after a stolen password or token")
                .arg(email())
                .arg(reason("Why the sessions end; it is stored in the audit log"))
                .args(flags(is_common)),
        )
}

pub(super) fn execute(arguments: &ArgMatches) -> Outcome {
    match arguments.subcommand() {
        Some(("create", arguments)) => create(arguments),
        Some(("end-sessions", arguments)) => end_sessions(arguments),
        _ => Ok(()),
    }
}

fn create(arguments: &ArgMatches) -> Outcome {
    let (accounts_settings, database_settings) = reader(arguments)?
        .finish(|reader| {
            let accounts = accounts::Settings::read(reader)?;
            accounts.check(reader);
            Some(accounts).zip(database::Settings::read(reader))
        })
        .map_err(|mistakes: Mistakes| mistakes)?;
    let email = email_of(arguments)?;
    let role = Role::parse(&text_of(arguments, "role"))
        .ok_or("--role must be customer, support, auditor or admin")?;
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

fn end_sessions(arguments: &ArgMatches) -> Outcome {
    let settings = reader(arguments)?.finish(database::Settings::read)?;
    let (email, reason) = (email_of(arguments)?, text_of(arguments, "reason"));
    runtime()?.block_on(async {
        let database = Database::connect_for_command(&settings, "user end-sessions").await?;
        let ended = accounts::end_sessions_of(&database, &email, &reason).await?;
        let ended = ended.ok_or("no user has this e-mail address")?;
        println!("sessions ended: {ended}");
        Ok(())
    })
}

fn text_of(arguments: &ArgMatches, name: &str) -> String {
    arguments.get_one::<String>(name).cloned().unwrap_or_default()
}

fn email_of(arguments: &ArgMatches) -> Result<Email, &'static str> {
    Email::parse(&text_of(arguments, "email")).ok_or("--email must be an e-mail address")
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
