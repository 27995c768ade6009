//! The operating-system user of the server's programs.
//!
//! PostgreSQL refuses to run as root. If this process runs as root, as in many containers, PostgreSQL runs as an
//! unprivileged user. PostgreSQL's data is then in a directory that this user can access.
use std::{
    fmt, fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use nix::unistd::{User, geteuid};

use super::Error;
use crate::process::Launch;

/// The user that runs the server.
#[derive(Clone, Debug)]
pub(super) enum UnixUser {
    /// The user of this process.
    Current,
    /// An unprivileged user, because this process runs as root.
    Other { name: String, uid: u32, gid: u32 },
}

impl UnixUser {
    pub(super) fn choose() -> Result<Self, Error> {
        if !geteuid().is_root() {
            return Ok(Self::Current);
        }
        ["postgres", "nobody"]
            .into_iter()
            .filter_map(|name| User::from_name(name).ok().flatten())
            .find(|user| !user.uid.is_root())
            .map(|user| Self::Other { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
            .ok_or(Error::NoUnixUser)
    }

    /// Prepares a program to run as this user.
    pub(super) fn launch(&self, program: &Path) -> Launch {
        let launch = Launch::new(program).directory(Path::new("/"));
        match self {
            Self::Current => launch,
            Self::Other { uid, gid, .. } => launch.run_as(*uid, *gid),
        }
    }

    /// Makes this user the owner of the path, and sets the mode.
    pub(super) fn set_owner(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let error = || Error::io(format!("set the owner of {}", path.display()));
        if let Self::Other { uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid)).map_err(error())?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(error())
    }

    /// Returns a directory for temporary directories that this user can access. Root's `TMPDIR` may be inaccessible to
    /// other users.
    pub(super) fn temporary_directory(&self) -> PathBuf {
        match self {
            Self::Current => std::env::temp_dir(),
            Self::Other { .. } => "/tmp".into(),
        }
    }
}

impl fmt::Display for UnixUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("the current user"),
            Self::Other { name, .. } => write!(f, "user {name}"),
        }
    }
}
