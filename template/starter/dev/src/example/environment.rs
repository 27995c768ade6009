//! The external services that `cargo dev` starts (none), and the commands that the terminal shows for notes. To add an
//! external service, start its simulator in `start`, and return its address from `settings`.
use std::{
    future::{Ready, ready},
    io,
    path::Path,
};

use url::Url;

use super::{Addresses, Flags};
use crate::environment::{
    ports,
    screen::{AUTHORIZED, JSON, NEW_KEY},
};

/// Description of the trace that `/traces/first` shows.
pub(crate) const FIRST_TRACE: &str = "the first created note";

/// Flags that select free ports for the external services: none.
pub const ANY_PORTS: &[&str] = &[];

/// Text that the tests expect in the output of the last command that the terminal shows.
pub const LAST_RESPONSE: &str = "\"name\":\"First\"";

/// Text that the tests expect in the last line that a stopped environment prints.
pub const LAST_LINE: &str = "stopped";

/// Error of starting an external service, or of ending its faults and waiting for its operations in flight.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Ports for the external services, found before any service is started: none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports;

/// Returns the ports that the flags select.
pub(crate) fn find_ports(_flags: &Flags, _progress: &dyn Fn(&str)) -> Ready<Result<Ports, ports::Error>> {
    ready(Ok(Ports))
}

/// Deletes the data that the external services stored in earlier runs.
#[expect(clippy::unnecessary_wraps, reason = "deleting the files of a simulator can fail")]
pub(crate) fn delete_data(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// The external services of one environment.
pub(crate) struct ExternalServices;

#[expect(clippy::unused_self, reason = "with a simulator, the functions read its address")]
impl ExternalServices {
    /// Starts the external services, which store their data in the directory.
    pub(crate) fn start(
        _ports: Ports,
        _directory: &Path,
        _owner_url: &Url,
        _api: &Url,
        _progress: &dyn Fn(&str),
    ) -> Ready<Result<Self, Error>> {
        ready(Ok(Self))
    }

    /// Returns the service's settings with the addresses of the external services.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses
    }

    /// Returns the lines for the terminal: the name and the address of each external service.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Returns a heading, and the commands that the terminal shows after the login command. The commands run in any
    /// POSIX shell.
    pub(crate) fn commands(&self, api: &Url) -> (&'static str, Vec<String>) {
        let body = r#"{"name":"First"}"#;
        let id = r#"s/^{"id":"\([^"]*\)".*/\1/p"#;
        let create = format!(
            "ID=$(curl -s {api}v1/notes {JSON} {AUTHORIZED} {NEW_KEY} -d '{body}' | sed -n '{id}') && echo \"$ID\"",
        );
        let read = format!("curl -s {api}v1/notes/$ID {AUTHORIZED}; echo");
        ("Log in, create a note, read it:", vec![create, read])
    }

    /// Ends every fault of the external services, and waits until each of their operations in flight has an outcome.
    pub(crate) fn settle(&self, _progress: &dyn Fn(&str)) -> Ready<Result<(), Error>> {
        ready(Ok(()))
    }

    pub(crate) fn stop(self) -> Ready<()> {
        ready(())
    }
}
