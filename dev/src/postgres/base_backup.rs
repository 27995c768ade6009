//! Base backups, made with PostgreSQL's SQL functions, because a downloaded installation has no `pg_basebackup`.
//!
//! The procedure is described in the chapter "Making a Base Backup Using the Low Level API" of PostgreSQL's manual.
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::{Error, unix_user::UnixUser};

/// Directories that are copied without their contents. The contents of `pg_wal` are copied later, after the other
/// files.
const EMPTY_DIRECTORIES: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Prefixes of the names of files and directories that a backup must not contain.
const EXCLUDED_PREFIXES: [&str; 4] = ["postmaster.pid", "postmaster.opts", "pgsql_tmp", "pg_internal.init"];

/// A completed base backup, with an open connection to the server that was copied.
#[derive(Debug)]
pub(super) struct BackupSession {
    /// The earliest moment to which the backup can be recovered.
    pub(super) ended: DateTime<Utc>,
    /// The connection that owns a temporary replication slot. While the connection is open, the server keeps the WAL
    /// since the start of the backup. A standby or a recovery reads this WAL.
    _keeps_wal: PgConnection,
}

/// Copies the data directory of a running server. With `primary`, the copy becomes a standby of the server at this URL.
pub(super) async fn make(
    server: &Url,
    from: PathBuf,
    to: PathBuf,
    unix_user: UnixUser,
    primary: Option<&Url>,
) -> Result<BackupSession, Error> {
    let mut connection = PgConnection::connect(server.as_str()).await?;
    // The temporary slot keeps the WAL since the start of the backup. The slot ends with the connection.
    let start = "select pg_create_physical_replication_slot('base_backup_' || pg_backend_pid(), true, true);
                 select pg_backup_start('base backup', true)";
    sqlx::raw_sql(start).execute(&mut connection).await?;
    let (data, target, user) = (from.clone(), to.clone(), unix_user.clone());
    run_blocking(move || copy(&data, &target, &user, &EMPTY_DIRECTORIES)).await?;
    let (label, ended): (String, DateTime<Utc>) =
        sqlx::query_as("select labelfile, clock_timestamp() from pg_backup_stop(false)")
            .fetch_one(&mut connection)
            .await?;
    let (wal, target, user) = (from.join("pg_wal"), to.join("pg_wal"), unix_user.clone());
    run_blocking(move || copy(&wal, &target, &user, &[])).await?;

    let write = |name: &str, text: &str| {
        let file = to.join(name);
        fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))?;
        unix_user.set_owner(&file, 0o600)
    };
    write("backup_label", &label)?;
    if let Some(primary) = primary {
        write("standby.signal", "")?;
        let settings = fs::read_to_string(to.join("postgresql.auto.conf")).unwrap_or_default();
        write("postgresql.auto.conf", &format!("{settings}primary_conninfo = '{primary}'\n"))?;
    }
    Ok(BackupSession { ended, _keeps_wal: connection })
}

/// Configures the backup in `data` to recover to a moment, with the WAL in `wal`. After the recovery, the caller must
/// execute [`RESET_RECOVERY_SETTINGS`].
pub(super) fn recover_to(
    moment: DateTime<Utc>,
    data: &Path,
    wal: &Path,
    unix_user: &UnixUser,
) -> Result<(), Error> {
    let settings = format!(
        "restore_command = 'cp \"{}/%f\" \"%p\"'\nrecovery_target_time = '{}'\nrecovery_target_action = 'promote'\n",
        wal.display(),
        moment.to_rfc3339(),
    );
    let append = |name: &str, text: &str| {
        let file = data.join(name);
        let opened = OpenOptions::new().create(true).append(true).open(&file);
        let appended = opened.and_then(|mut opened| opened.write_all(text.as_bytes()));
        appended.map_err(Error::io(format!("write {}", file.display())))?;
        unix_user.set_owner(&file, 0o600)
    };
    append("postgresql.auto.conf", &settings)?;
    append("recovery.signal", "")
}

/// Statements that remove the settings of [`recover_to`]. With these settings a later standby, which is a copy of this
/// server, would stop its recovery at the same moment.
pub(super) const RESET_RECOVERY_SETTINGS: [&str; 3] = [
    "alter system reset recovery_target_time",
    "alter system reset recovery_target_action",
    "alter system reset restore_command",
];

async fn run_blocking(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panicked| Err(Error::io("copy the data")(io::Error::other(panicked))))
}

/// Copies a directory. A file that the server deletes during the copy is skipped, because replaying the WAL deletes it
/// too.
fn copy(from: &Path, to: &Path, unix_user: &UnixUser, empty_directories: &[&str]) -> Result<(), Error> {
    let error_of = |path: &Path| Error::io(format!("copy {}", path.display()));
    fs::create_dir_all(to).map_err(error_of(to))?;
    unix_user.set_owner(to, 0o700)?;
    for entry in fs::read_dir(from).map_err(error_of(from))? {
        let entry = entry.map_err(error_of(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if EXCLUDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if source.is_dir() {
            if empty_directories.contains(&name.as_str()) {
                fs::create_dir_all(&target).map_err(error_of(&target))?;
                unix_user.set_owner(&target, 0o700)?;
            } else {
                copy(&source, &target, unix_user, &[])?;
            }
            continue;
        }
        match fs::copy(&source, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => {
                copied.map_err(error_of(&source))?;
                unix_user.set_owner(&target, 0o600)?;
            }
        }
    }
    Ok(())
}
