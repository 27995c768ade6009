//! The operating-system user of the server's programs.
//!
//! PostgreSQL refuses to run as root. Containers often have root as the only user, so there PostgreSQL runs as an
//! unprivileged user, with its data where that user has access.
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
    Own,
    /// This unprivileged user, because the process runs as root.
    Other { name: String, uid: u32, gid: u32 },
}

impl UnixUser {
    pub(super) fn choose() -> Result<Self, Error> {
        if !geteuid().is_root() {
            return Ok(Self::Own);
        }
        ["postgres", "nobody"]
            .into_iter()
            .filter_map(|name| User::from_name(name).ok().flatten())
            .find(|user| !user.uid.is_root())
            .map(|user| Self::Other { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
            .ok_or(Error::NoAccount)
    }

    /// Prepares a program to run as this user.
    pub(super) fn launch(&self, program: &Path) -> Launch {
        let launch = Launch::new(program).directory(Path::new("/"));
        match self {
            Self::Own => launch,
            Self::Other { uid, gid, .. } => launch.account(*uid, *gid),
        }
    }

    /// Makes this user the owner of the path, and sets the mode.
    pub(super) fn own(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let doing = || Error::io(format!("set the owner of {}", path.display()));
        if let Self::Other { uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid)).map_err(doing())?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(doing())
    }

    /// Returns a directory for temporary directories that this user can access. Root's `TMPDIR` may be inaccessible to
    /// other users.
    pub(super) fn temporary_directory(&self) -> PathBuf {
        match self {
            Self::Own => std::env::temp_dir(),
            Self::Other { .. } => "/tmp".into(),
        }
    }
}

impl fmt::Display for UnixUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the current user"),
            Self::Other { name, .. } => write!(f, "user {name}"),
        }
    }
}
