//! Base backups by PostgreSQL's functions, because a downloaded installation has no `pg_basebackup`.
//!
//! The procedure is that of the chapter "Making a Base Backup Using the Low Level API" of PostgreSQL's manual.
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::{Error, unix_user::UnixUser};

/// Directories whose content is not part of a backup. Its WAL is copied at the end.
const LEFT_EMPTY: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Files that a backup must not have.
const LEFT_OUT: [&str; 4] = ["postmaster.pid", "postmaster.opts", "pgsql_tmp", "pg_internal.init"];

/// The copied server's part of a backup.
#[derive(Debug)]
pub(super) struct Taken {
    /// The earliest moment to which the backup can be recovered.
    pub(super) ended: DateTime<Utc>,
    /// Keeps the WAL since the start of the backup on the server, for as long as it is open.
    _keeps_wal: PgConnection,
}

/// Copies the data directory of a running server. With `primary`, the copy becomes a standby of the server at this URL.
pub(super) async fn make(
    server: &Url,
    from: PathBuf,
    to: PathBuf,
    account: UnixUser,
    primary: Option<&Url>,
) -> Result<Taken, Error> {
    let mut connection = PgConnection::connect(server.as_str()).await?;
    // The slot keeps the WAL since the start of the backup. It is temporary, and ends with the connection.
    let begin = "select pg_create_physical_replication_slot('base_backup_' || pg_backend_pid(), true, true);
                 select pg_backup_start('base backup', true)";
    sqlx::raw_sql(begin).execute(&mut connection).await?;
    let (data, target, user) = (from.clone(), to.clone(), account.clone());
    in_background(move || copy(&data, &target, &user, &LEFT_EMPTY)).await?;
    let (label, ended): (String, DateTime<Utc>) =
        sqlx::query_as("select labelfile, clock_timestamp() from pg_backup_stop(false)")
            .fetch_one(&mut connection)
            .await?;
    let (wal, target, user) = (from.join("pg_wal"), to.join("pg_wal"), account.clone());
    in_background(move || copy(&wal, &target, &user, &[])).await?;

    let write = |name: &str, text: &str| {
        let file = to.join(name);
        fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))?;
        account.own(&file, 0o600)
    };
    write("backup_label", &label)?;
    if let Some(primary) = primary {
        write("standby.signal", "")?;
        let settings = fs::read_to_string(to.join("postgresql.auto.conf")).unwrap_or_default();
        write("postgresql.auto.conf", &format!("{settings}primary_conninfo = '{primary}'\n"))?;
    }
    Ok(Taken { ended, _keeps_wal: connection })
}

/// Lets the backup in this directory recover to a moment, with the WAL in another directory. The recovery must be
/// followed by [`FORGET_TARGET`].
pub(super) fn recover_to(
    moment: DateTime<Utc>,
    data: &Path,
    wal: &Path,
    account: &UnixUser,
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
        account.own(&file, 0o600)
    };
    append("postgresql.auto.conf", &settings)?;
    append("recovery.signal", "")
}

/// Removes the settings of [`recover_to`], because a later standby is a copy of this server and would stop at the same
/// moment.
pub(super) const FORGET_TARGET: [&str; 3] = [
    "alter system reset recovery_target_time",
    "alter system reset recovery_target_action",
    "alter system reset restore_command",
];

async fn in_background(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panicked| Err(Error::io("copy the data")(io::Error::other(panicked))))
}

/// Copies a directory. A file that the server deletes meanwhile is left out: the WAL of the backup deletes it, too.
fn copy(from: &Path, to: &Path, account: &UnixUser, left_empty: &[&str]) -> Result<(), Error> {
    let doing = |path: &Path| Error::io(format!("copy {}", path.display()));
    fs::create_dir_all(to).map_err(doing(to))?;
    account.own(to, 0o700)?;
    for entry in fs::read_dir(from).map_err(doing(from))? {
        let entry = entry.map_err(doing(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if LEFT_OUT.iter().any(|left_out| name.starts_with(left_out)) {
            continue;
        }
        if source.is_dir() {
            if left_empty.contains(&name.as_str()) {
                fs::create_dir_all(&target).map_err(doing(&target))?;
                account.own(&target, 0o700)?;
            } else {
                copy(&source, &target, account, &[])?;
            }
            continue;
        }
        match fs::copy(&source, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => {
                copied.map_err(doing(&source))?;
                account.own(&target, 0o600)?;
            }
        }
    }
    Ok(())
}
