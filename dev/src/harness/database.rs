//! The database of one service, by default cloned from a migrated template. Tests read and change the database as its
//! owner.
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, PgTransaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;
use url::Url;

use super::{command, eventually};
use crate::{
    example::harness::seed_data,
    postgres::{self, Purpose, Rights, Server},
    project,
};

/// Password of the owner and of the service's role. The password needs no secrecy, because a server that the tests
/// start listens on this machine only. On a server of `DEV_DATABASE_URL` or `DATABASE_URL`, the password is valid until
/// a later run drops both roles.
const PASSWORD: &str = "for-tests-only";

/// A database that is dropped at the end of its test.
#[derive(Debug)]
pub struct Database {
    server: &'static Server,
    name: String,
    owner_url: Url,
    service_url: Url,
    owner: PgPool,
}

impl Database {
    /// Creates a database with the schema of this release and the data that every test uses.
    pub(super) async fn create(executable: &Path, settings: &[(String, String)]) -> Self {
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let server = shared_server().await;
        let template = TEMPLATE.get_or_init(|| create_template(server, executable)).await;
        let database = Self::named(server, next_name());
        server
            .create_database_from_template(&database.name, template, Some(&owner_role()))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        // `migrate` sets parameters of the service's role for this database, which a clone does not have.
        database.migrate(executable, settings).await;
        database
    }

    /// Creates a database on a separate server, for tests that block a resource shared by all databases of a server. A
    /// server of `DEV_DATABASE_URL` or `DATABASE_URL` is used in place of a separate server.
    pub(super) async fn create_on_dedicated_server(executable: &Path, settings: &[(String, String)]) -> Self {
        let started = Server::find_or_start(Purpose::Tests, &|line| eprintln!("{line}")).await;
        let server: &'static Server = Box::leak(Box::new(started.unwrap_or_else(|error| panic!("{error}"))));
        create_roles(server).await;
        let database = Self::named(server, next_name());
        let created = server.create_database(&database.name, Some(&owner_role())).await;
        created.unwrap_or_else(|error| panic!("{error}"));
        database.migrate(executable, settings).await;
        seed_data(&database).await;
        database
    }

    /// Creates a database without a schema.
    pub async fn create_empty() -> Self {
        let server = shared_server().await;
        create_roles_once(server).await;
        let database = Self::named(server, next_name());
        let created = server.create_database(&database.name, Some(&owner_role())).await;
        created.unwrap_or_else(|error| panic!("{error}"));
        database
    }

    fn named(server: &'static Server, name: String) -> Self {
        let owner_url = server.url(&name, &owner_role(), PASSWORD);
        let options: PgConnectOptions = owner_url.as_str().parse().expect("the server's URL is invalid");
        Self {
            server,
            owner: PgPoolOptions::new().max_connections(3).connect_lazy_with(options),
            service_url: server.url(&name, &service_role(), PASSWORD),
            owner_url,
            name,
        }
    }

    async fn migrate(&self, executable: &Path, settings: &[(String, String)]) {
        let database_settings = self.settings();
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(database_settings.iter().map(|(name, value)| (*name, value.as_str())))
            .collect();
        command::run(executable, &["migrate"], &settings).await.succeeded();
    }

    /// Returns the settings of a process that uses the database. The settings contain the URLs of the service's
    /// restricted role and of the owner.
    pub fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("APP_ENV", "test".to_owned()),
            ("DATABASE_URL", self.service_url.to_string()),
            ("DATABASE_MIGRATION_URL", self.owner_url.to_string()),
        ]
    }

    /// Returns the URL that connects as the owner.
    pub fn owner_url(&self) -> &Url {
        &self.owner_url
    }

    /// Returns the URL that connects as the service's role.
    pub fn service_url(&self) -> &Url {
        &self.service_url
    }

    /// Starts a standby of the server, which must be a dedicated server. Panics if the tests did not start the server.
    pub async fn standby(&self) -> Standby {
        let started = self.server.standby(&|line| eprintln!("{line}")).await;
        let server = started.unwrap_or_else(|error| panic!("{error}"));
        let service_url = server.url(&self.name, &service_role(), PASSWORD);
        Standby { server, service_url }
    }

    /// Runs a statement as the administrator of the server.
    pub async fn execute_as_administrator(&self, statement: &str) {
        let mut admin = PgConnection::connect(self.server.admin_url_of(&self.name).as_str())
            .await
            .expect("failed to connect to the server");
        let run = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin).await;
        run.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }

    /// Returns the name of the service's role.
    pub fn service_role(&self) -> String {
        service_role()
    }

    /// Runs statements as the owner.
    pub async fn execute(&self, statements: impl Into<String>) {
        let statements = statements.into();
        let run = sqlx::raw_sql(AssertSqlSafe(statements.as_str())).execute(&self.owner).await;
        run.unwrap_or_else(|error| panic!("{error}: {statements}"));
    }

    /// Runs a statement as the service's role, and rolls the statement back. The error is the SQLSTATE of the
    /// rejection.
    pub async fn try_as_service(&self, statement: &str) -> Result<(), String> {
        let mut connection =
            PgConnection::connect(self.service_url.as_str()).await.expect("the role failed to log in");
        let mut transaction = connection.begin().await.expect("failed to begin a transaction");
        let result = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await;
        result.map(|_| ()).map_err(|error| {
            let code = error.as_database_error().and_then(|error| error.code().map(Into::into));
            code.unwrap_or_else(|| panic!("{error}: {statement}"))
        })
    }

    /// Runs a statement as the owner in a transaction, and returns the open transaction. The transaction holds its
    /// locks until it ends.
    pub async fn hold(&self, statement: &str) -> OpenTransaction {
        let mut transaction = self.owner.begin().await.expect("failed to begin a transaction");
        let run = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await;
        run.unwrap_or_else(|error| panic!("{error}: {statement}"));
        OpenTransaction(transaction)
    }

    /// Closes all sessions of the database, and copies the whole database for [`Self::restore`].
    pub async fn back_up(&self) {
        let (owner, backup) = (owner_role(), format!("{}_backup", self.name));
        let copy = format!("create database \"{backup}\" template \"{}\" owner \"{owner}\"", self.name);
        // A copy has no comment. Without the comment, nobody would drop the database.
        self.execute_without_sessions(&[&copy, &self.server.mark_as_ours(&backup)]).await;
    }

    /// Replaces the database with its copy from [`Self::back_up`]. All later changes are lost.
    pub async fn restore(&self) {
        let drop = format!("drop database \"{}\"", self.name);
        let rename = format!("alter database \"{0}_backup\" rename to \"{0}\"", self.name);
        self.execute_without_sessions(&[&drop, &rename]).await;
    }

    /// Closes all sessions of this database, and runs statements as the server's administrator.
    async fn execute_without_sessions(&self, statements: &[&str]) {
        let mut admin = PgConnection::connect(self.server.admin_url().as_str())
            .await
            .expect("failed to connect to the server");
        eventually("all sessions have ended", async || {
            let end = format!(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = '{}'",
                self.name
            );
            let sessions: i64 = sqlx::query_scalar(AssertSqlSafe(end)).fetch_one(&mut admin).await.ok()?;
            (sessions == 0).then_some(())
        })
        .await;
        for statement in statements {
            let run = sqlx::raw_sql(AssertSqlSafe(*statement)).execute(&mut admin).await;
            run.unwrap_or_else(|error| panic!("{error}: {statement}"));
        }
    }

    /// Locks a table exclusively until the returned transaction ends.
    pub async fn lock(&self, table: &str) -> OpenTransaction {
        self.hold(&format!("lock table {table} in access exclusive mode")).await
    }

    /// Waits until at least this number of statements in this database wait for a lock.
    pub async fn wait_for_blocked_statements(&self, statements: i64) {
        // In `pg_locks`, a wait for a row lock has no database. `pg_stat_activity` has the database of each session.
        let waiting = "select count(*) from pg_locks
                       where not granted
                         and pid in (select pid from pg_stat_activity where datname = current_database())";
        eventually("statements wait for a lock", async || {
            (self.number(waiting).await >= statements).then_some(())
        })
        .await;
    }

    /// Returns the rows of a query, each as a JSON object.
    pub async fn rows(&self, query: impl AsRef<str>) -> Vec<Value> {
        let query = format!("select to_jsonb(found) from ({}) as found", query.as_ref());
        let rows = sqlx::query_scalar(AssertSqlSafe(query.as_str())).fetch_all(&self.owner).await;
        rows.unwrap_or_else(|error| panic!("{error}: {query}"))
    }

    /// Returns the number that a query such as `select count(*) …` selects.
    pub async fn number(&self, query: impl AsRef<str>) -> i64 {
        let query = query.as_ref();
        let number = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.owner).await;
        number.unwrap_or_else(|error| panic!("{error}: {query}"))
    }
}

/// A standby of the server of a [`Database`].
#[derive(Debug)]
pub struct Standby {
    server: Server,
    service_url: Url,
}

impl Standby {
    /// Returns the URL of the database on the standby, which connects as the service's role.
    pub fn service_url(&self) -> &Url {
        &self.service_url
    }

    /// Promotes the standby to primary.
    pub async fn promote(&self) {
        self.server.promote().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// An open transaction.
#[derive(Debug)]
#[must_use = "the transaction ends when the value is dropped"]
pub struct OpenTransaction(PgTransaction<'static>);

impl OpenTransaction {
    /// Rolls the transaction back.
    pub async fn release(self) {
        self.0.rollback().await.expect("failed to roll the transaction back");
    }

    /// Commits the transaction.
    pub async fn commit(self) {
        self.0.commit().await.expect("failed to commit the transaction");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server, std::mem::take(&mut self.name));
        // The test's runtime is ending, so a thread drops the database. If the process ends first, the database remains
        // only on a server that the tests did not start, and the next run drops the database.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(server.drop_database(&name)).ok();
            }
        });
    }
}

/// Returns a name with the process id, because concurrent runs may share a server.
fn unique(what: &str) -> String {
    format!("{}_test_{}_{what}", project::identifier(), std::process::id())
}

fn next_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    unique(&COUNT.fetch_add(1, Ordering::Relaxed).to_string())
}

fn owner_role() -> String {
    unique("owner")
}

fn service_role() -> String {
    unique("service")
}

async fn shared_server() -> &'static Server {
    postgres::for_tests().await.unwrap_or_else(|error| panic!("{error}"))
}

async fn create_roles_once(server: &Server) {
    static CREATED: OnceCell<()> = OnceCell::const_new();
    CREATED.get_or_init(async || create_roles(server).await).await;
}

async fn create_roles(server: &Server) {
    for (role, rights) in [(owner_role(), Rights::Owner), (service_role(), Rights::Restricted)] {
        let created = server.create_login(&role, PASSWORD, rights).await;
        created.unwrap_or_else(|error| panic!("{error}"));
    }
    // On a server that persists between runs, the owner of an earlier run has created `app_runtime`. The migrations of
    // this run's owner must be allowed to grant that role, too.
    let allowed = server.allow_to_grant(&owner_role(), &[service_role().as_str(), "app_runtime"]).await;
    allowed.unwrap_or_else(|error| panic!("{error}"));
}

async fn create_template(server: &'static Server, executable: &Path) -> String {
    create_roles_once(server).await;
    let template = Database::named(server, unique("template"));
    let created = server.create_database(&template.name, Some(&owner_role())).await;
    created.unwrap_or_else(|error| panic!("{error}"));
    template.migrate(executable, &[]).await;
    seed_data(&template).await;
    // A database with connections cannot be cloned.
    template.owner.close().await;
    let mut template = template;
    std::mem::take(&mut template.name)
}
