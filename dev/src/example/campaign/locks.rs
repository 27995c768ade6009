//! Locks that other database sessions hold for seconds, and an export of the audit log during a read.
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use crate::process::Launch;

/// The tables that are locked. Every request with a session token uses at least one of these tables.
pub(super) const TABLES: [&str; 6] =
    ["idempotency_keys", "orders", "payments", "refunds", "sessions", "users"];

/// Number of the newest rows that are locked.
const LOCKED_ROWS: u32 = 50;

/// Time for which the reader of the audit log keeps its transaction open.
const READING_TIME: Duration = Duration::from_secs(6);

/// Deadline of the export. The export waits until the reader's transaction has ended, and until the event that records
/// the export is sealed, that is, part of the hash chain over the audit log.
const EXPORT_DEADLINE: Duration = Duration::from_secs(45);

/// Maximum time for which a session waits for a lock on the audit log. The export waits for the reader without
/// requesting a lock, and then requests the lock with a `lock_timeout` of half a second. So a longer wait is a violation.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(4);

/// Interval of checks for lock waits. A failed export is retried after four intervals.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Locks of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// A lock against every other access to a table.
    Table(&'static str),
    /// Locks on the newest rows of a table.
    Rows(&'static str),
}

impl Lock {
    fn statement(self) -> String {
        match self {
            Self::Table(table) => format!("lock table {table} in access exclusive mode"),
            Self::Rows(table) => {
                format!("select from {table} order by created_at desc limit {LOCKED_ROWS} for update")
            }
        }
    }

    /// Holds the locks for this time.
    pub(super) async fn hold(self, owner_url: Url, time: Duration) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect(owner_url.as_str()).await?;
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(AssertSqlSafe(self.statement())).execute(&mut *transaction).await?;
        sleep(time).await;
        transaction.rollback().await
    }
}

/// The exports of a campaign. The directory of the files is removed on drop.
pub(super) struct Exports {
    directory: PathBuf,
    files: Mutex<Vec<PathBuf>>,
}

impl Exports {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let directory = std::env::temp_dir().join(format!("exports-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&directory)?;
        Ok(Arc::new(Self { directory, files: Mutex::default() }))
    }

    /// Returns the complete files of the exports. A file gets its final name only when it is complete. The verification
    /// of the audit log needs the files of dropped partitions.
    pub(super) fn complete_files(&self) -> Vec<PathBuf> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().filter(|file| file.exists()).cloned().collect()
    }

    /// Reserves a past month for an export. Returns the name of the month's partition, the export's file and the month.
    fn reserve_partition(&self) -> (String, PathBuf, String) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let (year, month) = (2000 + files.len() / 12, files.len() % 12 + 1);
        let partition = format!("audit_events_{year}_{month:02}");
        let file = self.directory.join(format!("{year}-{month:02}.jsonl.gz"));
        files.push(file.clone());
        (partition, file, format!("{year}-{month:02}"))
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        // Files left in the system's temporary directory are harmless.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The components that an export uses.
pub(super) struct Exporter {
    pub(super) executable: PathBuf,
    pub(super) owner_url: Url,
    pub(super) database_url: Url,
    pub(super) exports: Arc<Exports>,
}

impl Exporter {
    /// Exports and drops an old partition while another transaction reads the audit log. Returns a violation if a
    /// session waited too long for a lock on the audit log. Such a wait is a violation, because every audited change
    /// would wait too.
    pub(super) async fn export_during_read(self) -> Vec<String> {
        // An error is not a violation, because another fault of the campaign may have stopped the database, or may hold a
        // lock that the export needs.
        self.export().await.unwrap_or_default()
    }

    async fn export(&self) -> Result<Vec<String>, sqlx::Error> {
        let (partition, file, month) = self.exports.reserve_partition();
        let mut connection = PgConnection::connect(self.owner_url.as_str()).await?;
        let create = format!(
            "set lock_timeout = '1s';
             create table {partition} partition of audit_events
             for values from ('{month}-01 00:00Z') to ('{month}-28 00:00Z');
             insert into audit_events
               (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             select gen_random_uuid(), '{month}-05', 'data_change', 'things', 'create', 'success', '0', '{month}-05'
             from generate_series(1, 100)"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;

        let reads = async {
            let mut reader = PgConnection::connect(self.owner_url.as_str()).await?;
            let mut transaction = reader.begin().await?;
            sqlx::query("select count(*) from audit_events").execute(&mut *transaction).await?;
            sleep(READING_TIME).await;
            transaction.rollback().await
        };
        let exported = async {
            let started = Instant::now();
            // The export fails until the events are sealed, so a failed export is repeated.
            while started.elapsed() < READING_TIME && !self.run(&file, &month).await {
                sleep(POLL_INTERVAL * 4).await;
            }
        };
        let ended = async { tokio::join!(reads, exported).0 };
        tokio::select! {
            read = ended => read.map(|()| Vec::new()),
            waits = find_long_wait(&mut connection) => waits,
        }
    }

    /// Runs `audit export`. Returns whether the command succeeded.
    async fn run(&self, file: &Path, month: &str) -> bool {
        let until = format!("{month}-28");
        let launch = Launch::new(&self.executable)
            .args(["audit", "export", "--until", &until, "--to"])
            .args([file])
            .directory("/".as_ref())
            .env("APP_ENV", "test")
            .env("DATABASE_URL", self.database_url.as_str())
            .env("DATABASE_MIGRATION_URL", self.owner_url.as_str());
        let Ok(command) = launch.start() else { return false };
        command.wait(EXPORT_DEADLINE).await.is_ok_and(|status| status.success())
    }
}

/// Waits until a session has waited for a lock on the audit log for more than [`MAX_LOCK_WAIT`]. Returns the violation.
async fn find_long_wait(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    loop {
        let waits: Vec<String> = sqlx::query_scalar(
            "select distinct left(query, 60)
             from pg_locks
             join pg_stat_activity using (pid)
             where not granted
               and relation in (
                 select inhrelid from pg_inherits where inhparent = 'audit_events'::regclass
                 union all
                 select 'audit_events'::regclass
               )
               and waitstart < clock_timestamp() - make_interval(secs => $1)",
        )
        .bind(MAX_LOCK_WAIT.as_secs_f64())
        .fetch_all(&mut *connection)
        .await?;
        if !waits.is_empty() {
            let seconds = MAX_LOCK_WAIT.as_secs();
            return Ok(vec![format!(
                "an export during a read blocked the audit log: for more than {seconds} s, these statements waited: {}",
                waits.join("; ")
            )]);
        }
        sleep(POLL_INTERVAL).await;
    }
}
