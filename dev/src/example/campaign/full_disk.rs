//! A directory whose files are on a disk that is full: they lead to the device that always is.
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use chrono::{Days, Utc};
use uuid::Uuid;

use crate::project;

/// Linux and FreeBSD have it.
const FULL: &str = "/dev/full";

/// The directory. It is made when it is first asked for, and removed with this.
pub(super) struct FullDisk(PathBuf);

impl FullDisk {
    pub(super) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("full-disk-{}", Uuid::now_v7().simple())))
    }

    /// With the log files of today and tomorrow in it; `None` where there is no such device.
    pub(super) fn path(&self) -> io::Result<Option<&Path>> {
        if !Path::new(FULL).exists() {
            return Ok(None);
        }
        fs::create_dir_all(&self.0)?;
        for day in [Utc::now(), Utc::now() + Days::new(1)] {
            for log in [project::name(), "audit"] {
                let link = self.0.join(format!("{log}.{}.log", day.format("%Y-%m-%d")));
                if link.symlink_metadata().is_err() {
                    symlink(FULL, link)?;
                }
            }
        }
        Ok(Some(&self.0))
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // It holds links only.
        let _ = fs::remove_dir_all(&self.0);
    }
}
