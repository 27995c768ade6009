//! The user that the server's programs run as.
//!
//! PostgreSQL refuses root. In a container root is often the only user that anyone thinks of, so there it
//! runs as an unprivileged one, with data where that user can reach it.
use std::{
    fmt, fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use nix::unistd::{User, geteuid};

use super::Error;
use crate::process::Launch;

/// Who runs the server.
#[derive(Clone, Debug)]
pub(super) enum Account {
    /// The user of this process.
    Own,
    /// We are root, and this user takes its place.
    Other { name: String, uid: u32, gid: u32 },
}

impl Account {
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

    /// A program that runs as this user.
    pub(super) fn launch(&self, program: &Path) -> Launch {
        let launch = Launch::new(program).directory(Path::new("/"));
        match self {
            Self::Own => launch,
            Self::Other { uid, gid, .. } => launch.account(*uid, *gid),
        }
    }

    /// Makes the path this user's alone.
    pub(super) fn own(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let doing = || Error::io(format!("set the owner of {}", path.display()));
        if let Self::Other { uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid)).map_err(doing())?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(doing())
    }

    /// Where a directory that this user can use may be made and forgotten. Root's `TMPDIR` may lie where
    /// no one else can go.
    pub(super) fn temporary_directory(&self) -> PathBuf {
        match self {
            Self::Own => std::env::temp_dir(),
            Self::Other { .. } => "/tmp".into(),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the current user"),
            Self::Other { name, .. } => write!(f, "user {name}"),
        }
    }
}
