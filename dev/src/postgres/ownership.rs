//! The comment that identifies the databases and roles of this project.
use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use nix::{
    sys::signal::kill,
    unistd::{Pid, gethostname},
};

use super::Purpose;
use crate::project;

/// The `cargo dev` environment or the test process that created a database or role. The server stores this information
/// as the comment of the database or role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// An environment with this data directory. Two environments on one server must not share a database, because
    /// the stored data would not match their separate simulators.
    Environment(String),
    /// A single test process, or a process that starts a [`Purpose::Durable`] server.
    Tests { host: String, pid: u32, started: DateTime<Utc> },
}

impl Ownership {
    /// Returns the ownership of objects that this process creates for this purpose.
    pub(super) fn of(purpose: &Purpose) -> Self {
        match purpose {
            Purpose::Development { directory } => Self::Environment(directory.display().to_string()),
            Purpose::Tests | Purpose::Durable => {
                Self::Tests { host: host(), pid: std::process::id(), started: Utc::now() }
            }
        }
    }

    /// Parses the comment of a database or role. Returns `None` for a comment that this project has not written.
    pub fn parse(comment: &str) -> Option<Self> {
        let rest = comment.strip_prefix(&prefix())?;
        if let Some(directory) = rest.strip_prefix("the environment in ") {
            return Some(Self::Environment(directory.to_owned()));
        }
        let mut words = rest.strip_prefix("tests on ")?.split(' ');
        let host = words.next()?.to_owned();
        let pid = words.next()?.parse().ok()?;
        let started = words.next()?.parse().ok()?;
        Some(Self::Tests { host, pid, started })
    }

    /// Returns whether the test run has ended. A run counts as ended if its process on this machine has exited, or if
    /// the run started more than a day ago. An environment never counts as ended.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Environment(_) => false,
            Self::Tests { host: created_on, pid, started } => {
                (*created_on == host() && !is_alive(*pid)) || Utc::now() - *started > TimeDelta::days(1)
            }
        }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&prefix())?;
        match self {
            Self::Environment(path) => write!(f, "the environment in {path}"),
            Self::Tests { host, pid, started } => {
                write!(f, "tests on {host} {pid} {}", started.to_rfc3339_opts(SecondsFormat::Secs, true))
            }
        }
    }
}

fn prefix() -> String {
    format!("made by {} dev for ", project::name())
}

fn host() -> String {
    let name = gethostname().ok().and_then(|name| name.into_string().ok());
    name.map_or_else(|| "unknown".to_owned(), |name| name.replace(' ', "-"))
}

/// Returns whether a process exists. A process of another user, which cannot be signalled, exists too.
fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_parsed_as_it_was_written() {
        let environment = Ownership::Environment("/home/a b/service".to_owned());
        assert_eq!(Ownership::parse(&environment.to_string()), Some(environment));
        let started = "2026-01-02T03:04:05Z".parse().unwrap();
        let tests = Ownership::Tests { host: "h".to_owned(), pid: 7, started };
        assert_eq!(Ownership::parse(&tests.to_string()), Some(tests));
        assert_eq!(Ownership::parse("production, do not touch"), None);
    }

    #[test]
    fn only_a_finished_test_run_is_stale() {
        assert!(!Ownership::of(&Purpose::Tests).is_stale());
        assert!(!Ownership::Environment("/gone".to_owned()).is_stale());
        let ended = Ownership::Tests { host: host(), pid: 0x7fff_fff0, started: Utc::now() };
        assert!(ended.is_stale());
        let on_other_host = |started| Ownership::Tests { host: "elsewhere".to_owned(), pid: 1, started };
        assert!(!on_other_host(Utc::now()).is_stale());
        assert!(on_other_host(Utc::now() - TimeDelta::days(2)).is_stale());
    }
}
