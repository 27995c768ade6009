//! The PostgreSQL installations of this machine.
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Error, MIN_MAJOR_VERSION, unix_user::UnixUser};
use crate::process::Launch;

/// A directory that contains `initdb` and `postgres`.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    pub(super) major: u32,
    version: String,
}

impl Binaries {
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the installation in a directory, with the version that `postgres --version` reports. The program runs as
    /// `unix_user`, so an installation that this user cannot run is an error.
    pub(super) async fn inspect(directory: &Path, unix_user: &UnixUser) -> Result<Self, String> {
        let postgres = unix_user.launch(&directory.join("postgres")).args(["--version"]);
        let output = run(postgres).await.map_err(|error| match unix_user {
            UnixUser::Other { name, .. } => format!("user {name} failed to run `postgres`: {error}"),
            UnixUser::Current => error.to_string(),
        })?;
        let version = output.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let major = digits.parse().map_err(|_| format!("its version is {output:?}"))?;
        Ok(Self { directory: directory.to_owned(), major, version })
    }
}

impl fmt::Display for Binaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {} in {}", self.version, self.directory.display())
    }
}

/// Returns every usable installation in search order. Skipped installations are reported.
pub(super) async fn installed(unix_user: &UnixUser, progress: &dyn Fn(&str)) -> Vec<Binaries> {
    let mut usable = Vec::new();
    for directory in directories().await {
        match Binaries::inspect(&directory, unix_user).await {
            Ok(binaries) if binaries.major < MIN_MAJOR_VERSION => {
                progress(&format!("skipped {binaries}: older than {MIN_MAJOR_VERSION}"));
            }
            Ok(binaries) => usable.push(binaries),
            Err(reason) => progress(&format!("skipped {}: {reason}", directory.display())),
        }
    }
    usable
}

/// Returns the directories of the programs, without duplicates. Many locations are links to the same directory.
async fn directories() -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    // Debian does not add the server programs to `PATH`, so that several versions can be installed.
    candidates.extend(newest_first("/usr/lib/postgresql", "", "bin"));
    candidates.extend(newest_first("/usr", "pgsql-", "bin"));
    if let Ok(directory) = run(Launch::new("pg_config").args(["--bindir"])).await {
        candidates.push(directory.into());
    }
    candidates.extend(newest_first("/opt/homebrew/opt", "postgresql@", "bin"));
    candidates.extend(newest_first("/usr/local/opt", "postgresql@", "bin"));
    candidates.extend(newest_first("/Applications/Postgres.app/Contents/Versions", "", "bin"));

    let mut unique = BTreeSet::new();
    candidates
        .into_iter()
        .filter(|directory| directory.join("initdb").is_file())
        // The programs find their libraries and templates relative to their real path.
        .filter_map(|directory| directory.join("postgres").canonicalize().ok()?.parent().map(Path::to_owned))
        .filter(|directory| unique.insert(directory.clone()))
        .collect()
}

/// Returns the directories `parent/PREFIX<number>/child`, highest number first.
fn newest_first(parent: &str, prefix: &str, child: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut versions: Vec<(f64, PathBuf)> = entries
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(child)))
        })
        .collect();
    versions.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    versions.into_iter().map(|(_, directory)| directory).collect()
}

/// Runs a program until its exit, and returns its output. If the program fails, the error contains the output.
pub(super) async fn run(launch: Launch) -> Result<String, Error> {
    let program = launch.program();
    let child = launch.start().map_err(Error::io(format!("run {program}")))?;
    let status = child.wait(Duration::from_mins(2)).await?;
    let lines: Vec<String> = child.lines().into_iter().map(|line| line.text).collect();
    let output = lines.join("\n");
    if status.success() { Ok(output) } else { Err(Error::Program { program, output }) }
}
