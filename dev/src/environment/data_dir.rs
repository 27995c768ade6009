//! The data directory of a checkout, which persists between runs, and the lock that allows one run at a time.
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::project;

/// A checkout's data directory, locked while this value lives.
#[derive(Debug)]
pub(super) struct DataDir {
    directory: PathBuf,
    lock: File,
}

impl DataDir {
    /// Creates and locks the given directory, or the default of this checkout. If another run holds the lock, the error
    /// contains the pid of that run, and its addresses once it has started.
    pub(super) fn lock(directory: Option<&Path>) -> Result<Self, Error> {
        let directory = directory.map_or_else(|| directory_of(&project::root()), Path::to_owned);
        let error = |source| Error::DataDir { path: directory.clone(), source };
        // If this process runs as root, the database server runs as another Unix user. Mode 0711 allows that user to
        // traverse the directory.
        DirBuilder::new().recursive(true).mode(0o711).create(&directory).map_err(error)?;
        let directory = directory.canonicalize().map_err(error)?;
        let error = |source| Error::DataDir { path: directory.clone(), source };
        let path = directory.join("running");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&path)
            .map_err(error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::AlreadyRuns(holder.trim().to_owned()));
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        lock.set_len(0).map_err(error)?;
        writeln!(lock, "pid {}", std::process::id()).map_err(error)?;
        Ok(Self { directory, lock })
    }

    /// Writes the addresses of this run into the lock file. The error of a second run contains the addresses.
    pub(super) fn write_addresses(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.lock, "{line}")
    }

    /// Returns the error for a failed access to a file in the directory.
    pub(super) fn error(&self, source: io::Error) -> Error {
        Error::DataDir { path: self.directory.clone(), source }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates an empty directory for temporary data. Deletes the temporary data of an earlier run.
    pub(super) fn scratch(&self) -> Result<PathBuf, Error> {
        let path = self.directory.join("scratch");
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(self.error(source)),
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir(&path).map_err(|source| self.error(source))?;
        Ok(path)
    }

    pub(super) fn service_log(&self) -> PathBuf {
        self.directory.join("service.log")
    }
}

/// Returns the data directory of a checkout. Each checkout has its own directory, so that two checkouts never share a
/// database. The directory's name contains the checkout's name for readability and a hash of the whole path for
/// uniqueness.
fn directory_of(checkout: &Path) -> PathBuf {
    let path = checkout.display().to_string();
    let digest = hex::encode(Sha256::digest(path.as_bytes()));
    let name = checkout.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let key = format!("{name}-{}", digest.get(..8).unwrap_or_default());
    state_directory().join(format!("{}-dev", project::name())).join(key)
}

/// Returns the directory in which programs store their state for the current Unix user. Root's home directory is
/// inaccessible to the Unix user of the database server, so root uses `/var/lib`.
fn state_directory() -> PathBuf {
    if geteuid().is_root() {
        return "/var/lib".into();
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let in_home = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(in_home)))
        .unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_checkouts_of_one_name_have_two_directories() {
        let (one, other) = (directory_of(Path::new("/a/service")), directory_of(Path::new("/b/service")));
        assert_ne!(one, other);
        assert!(one.file_name().unwrap().to_str().unwrap().starts_with("service-"));
    }
}
