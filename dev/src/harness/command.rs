//! A command of the executable, run until its exit.
use std::{path::Path, process::ExitStatus};

use crate::process::{Child, Launch, Stream};

use super::WAIT_TIMEOUT;

/// The result of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    /// Returns the exit code; `None` if a signal ended the command.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Asserts success, and returns standard output.
    pub fn succeeded(self) -> String {
        assert!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a command of the executable with these settings. The command runs in `/`, so it does not read the checkout's
/// `.env` file. The command inherits only the environment variables that [`Launch::new`] keeps.
pub async fn run(executable: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> CommandOutput {
    finish(start(executable, arguments, settings)).await
}

pub(super) fn start(executable: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Child {
    let mut launch = Launch::new(executable).args(arguments).directory(Path::new("/"));
    for (name, value) in settings {
        launch = launch.env(name, value);
    }
    launch.start().expect("failed to start the executable")
}

pub(super) async fn finish(child: Child) -> CommandOutput {
    let status = child.wait(WAIT_TIMEOUT).await.expect("the command did not end");
    let text = |stream| {
        let lines = child.lines().into_iter().filter(|line| line.stream == stream);
        lines.map(|line| line.text + "\n").collect()
    };
    CommandOutput { status, stdout: text(Stream::Stdout), stderr: text(Stream::Stderr) }
}
