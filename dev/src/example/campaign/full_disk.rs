//! A directory whose log files are links to `/dev/full`, which fails every write like a full disk.
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use chrono::{Days, Utc};
use uuid::Uuid;

use crate::project;

/// A device on which every write fails with ENOSPC, as on a full disk. The device exists on Linux and FreeBSD.
const FULL_DEVICE: &str = "/dev/full";

/// The directory, created on first use and removed on drop.
pub(super) struct FullDisk(PathBuf);

impl FullDisk {
    pub(super) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("full-disk-{}", Uuid::now_v7().simple())))
    }

    /// Returns the directory, with links for the log files of today and tomorrow, because a replica can run past
    /// midnight (UTC). Returns `None` on a system without the device.
    pub(super) fn path(&self) -> io::Result<Option<&Path>> {
        if !Path::new(FULL_DEVICE).exists() {
            return Ok(None);
        }
        fs::create_dir_all(&self.0)?;
        for day in [Utc::now(), Utc::now() + Days::new(1)] {
            for log in [project::name(), "audit"] {
                let link = self.0.join(format!("{log}.{}.log", day.format("%Y-%m-%d")));
                if link.symlink_metadata().is_err() {
                    symlink(FULL_DEVICE, link)?;
                }
            }
        }
        Ok(Some(&self.0))
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // A directory that cannot be removed is harmless, because it contains only links.
        let _ = fs::remove_dir_all(&self.0);
    }
}
