//! A running server: its databases, logins, base backups and standbys.
use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Error, Ownership, Purpose,
    base_backup::RESET_RECOVERY_SETTINGS,
    cluster::{BaseBackup, Cluster},
    search::{self, RunningServer},
    sql,
};
use crate::process::Signal;

/// Deadline of a point-in-time recovery, which replays the WAL of the minutes since the base backup.
const RECOVERY_DEADLINE: Duration = Duration::from_mins(1);

/// Interval of checks whether a recovery has ended.
const RECOVERY_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running server on which this process has the right to create databases and roles.
#[derive(Debug)]
pub struct Server {
    admin_url: Url,
    /// Ownership comment of every object that this value creates.
    ownership: Ownership,
    cluster: Option<Cluster>,
}

/// Existence and ownership of a database or role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    /// Created by this `cargo dev` environment or, if this process runs tests, by any test run.
    Ours,
    /// Any other database or role. Contains its comment.
    Foreign(String),
}

/// Rights of a login in addition to logging in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The right to create and grant roles, which the migrations of a schema owner need.
    Owner,
    /// Only explicitly granted rights.
    Restricted,
}

impl Server {
    /// Finds or starts a server, in the search order of [this module](super). On a server that this process has not
    /// started, drops the databases and roles that ended test runs have left. `progress` receives a line for each step.
    pub async fn find_or_start(purpose: Purpose, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let ownership = Ownership::of(&purpose);
        Ok(match search::find(&purpose, progress).await? {
            RunningServer::Configured(admin_url) => {
                let server = Self { admin_url, ownership, cluster: None };
                server.drop_stale(progress).await?;
                server
            }
            RunningServer::Started(cluster) => {
                Self { admin_url: cluster.admin_url.clone(), ownership, cluster: Some(cluster) }
            }
        })
    }

    /// Returns the administrator's URL, including the password.
    pub fn admin_url(&self) -> &Url {
        &self.admin_url
    }

    /// Returns the URL of a database on this server for the given login.
    pub fn url(&self, database: &str, role: &str, password: &str) -> Url {
        let mut url = self.admin_url.clone();
        // Both calls fail only for a URL without a host. Such a server could not have been reached.
        url.set_username(role).ok();
        url.set_password(Some(password)).ok();
        url.set_path(database);
        url
    }

    /// Returns the administrator's URL of a database on this server.
    pub fn admin_url_of(&self, database: &str) -> Url {
        let mut url = self.admin_url.clone();
        url.set_path(database);
        url
    }

    /// Returns the server's log file, if this process has started the server.
    pub fn log(&self) -> Option<PathBuf> {
        self.cluster.as_ref().map(Cluster::log)
    }

    /// Returns whether a database with this name exists, and whether this process is allowed to change it.
    pub async fn find_database(&self, name: &str) -> Result<Presence, Error> {
        let mut connection = self.connect().await?;
        let presence = self.database(&mut connection, name).await;
        connection.close().await?;
        presence
    }

    /// Creates an empty database. Its owner is `owner`, or the administrator.
    pub async fn create_database(&self, name: &str, owner: Option<&str>) -> Result<(), Error> {
        self.create(name, "template0", owner).await
    }

    /// Creates a copy of a database. The original must have no connections.
    pub async fn create_database_from_template(
        &self,
        name: &str,
        template: &str,
        owner: Option<&str>,
    ) -> Result<(), Error> {
        self.create(name, template, owner).await
    }

    async fn create(&self, name: &str, template: &str, owner: Option<&str>) -> Result<(), Error> {
        let mut create = format!("create database {} template {}", sql::name(name), sql::name(template));
        if let Some(owner) = owner {
            create.push_str(" owner ");
            create.push_str(&sql::name(owner));
        }
        self.execute(&[create, self.mark_as_ours(name)]).await
    }

    /// Returns the statement that sets the ownership comment of a database.
    pub(crate) fn mark_as_ours(&self, name: &str) -> String {
        format!("comment on database {} is {}", sql::name(name), sql::text(&self.ownership.to_string()))
    }

    /// Closes the connections of a database that is [`Presence::Ours`], and drops the database. A missing database is
    /// not an error.
    pub async fn drop_database(&self, name: &str) -> Result<(), Error> {
        match self.find_database(name).await? {
            Presence::Absent => Ok(()),
            Presence::Ours => {
                self.execute(&[format!("drop database if exists {} with (force)", sql::name(name))]).await
            }
            Presence::Foreign(comment) => {
                Err(Error::NotOurs { kind: "database", name: name.to_owned(), comment })
            }
        }
    }

    /// Creates a login with this password and these rights, or changes both for a login that is [`Presence::Ours`].
    pub async fn create_login(&self, role: &str, password: &str, rights: Rights) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let comment: Option<(Option<String>,)> = sqlx::query_as(
            "select shobj_description(oid, 'pg_authid')
             from pg_roles
             where rolname = $1",
        )
        .bind(role)
        .fetch_optional(&mut connection)
        .await?;
        let createrole = match rights {
            Rights::Owner => "createrole",
            Rights::Restricted => "nocreaterole",
        };
        let name = sql::name(role);
        let attributes = format!("login {createrole} password {}", sql::text(password));
        let statements = match self.presence(comment) {
            Presence::Absent => vec![
                format!("create role {name} {attributes}"),
                format!("comment on role {name} is {}", sql::text(&self.ownership.to_string())),
                // Without superuser rights, only a member of this role can create a database that the role owns.
                format!(
                    "do $$ begin if not (select rolsuper from pg_roles where rolname = current_user) then grant {name} to current_user; end if; end $$"
                ),
            ],
            Presence::Ours => vec![format!("alter role {name} {attributes}")],
            Presence::Foreign(comment) => {
                return Err(Error::NotOurs { kind: "role", name: role.to_owned(), comment });
            }
        };
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    /// Allows an owner's migrations to grant these roles and to change the roles' settings. Missing roles are ignored.
    /// The owner's `CREATEROLE` is not enough: since PostgreSQL 16 it excludes roles that another role has created.
    pub async fn allow_to_grant(&self, owner: &str, roles: &[&str]) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let not_grantable: Vec<String> = sqlx::query_scalar(
            "select rolname::text
             from pg_roles
             where rolname = any ($1)
             and not pg_has_role($2, oid, 'member with admin option')",
        )
        .bind(roles)
        .bind(owner)
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        let owner = sql::name(owner);
        let grant = |role: &String| format!("grant {} to {owner} with admin option", sql::name(role));
        self.execute(&not_grantable.iter().map(grant).collect::<Vec<_>>()).await
    }

    /// Runs statements one by one as the administrator, in the database of the administrator's URL.
    pub(super) async fn execute(&self, statements: &[String]) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    /// Stops the server with a signal and restarts it. Fails for a server that this process has not started.
    pub async fn restart(&mut self, signal: Signal, progress: &dyn Fn(&str)) -> Result<(), Error> {
        match &mut self.cluster {
            Some(cluster) => {
                cluster.restart(signal, progress).await?;
                self.admin_url = cluster.admin_url.clone();
                Ok(())
            }
            None => Err(Error::NotStartedHere),
        }
    }

    /// Starts a standby of the server. Fails for a server that this process has not started.
    pub async fn standby(&self, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        self.standby_with_primary_at(&self.admin_url, progress).await
    }

    /// Starts a standby that connects to its primary at this URL.
    pub(super) async fn standby_with_primary_at(
        &self,
        source: &Url,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let cluster = self.cluster.as_ref().ok_or(Error::NotStartedHere)?;
        self.start_on_backup(cluster.back_up(Some(source)).await?, progress).await
    }

    /// Makes a base backup of the server.
    pub(super) async fn back_up(&self) -> Result<BaseBackup, Error> {
        self.cluster.as_ref().ok_or(Error::NotStartedHere)?.back_up(None).await
    }

    /// Starts a server on a base backup of this server.
    pub(super) async fn start_on_backup(
        &self,
        backup: BaseBackup,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let cluster = backup.start(progress).await?;
        Ok(Self {
            admin_url: cluster.admin_url.clone(),
            ownership: self.ownership.clone(),
            cluster: Some(cluster),
        })
    }

    /// Stops this server. Starts another server on a base backup of this server, and recovers the backup to a moment.
    /// The data of this server stays, because the recovery reads its WAL.
    pub(super) async fn start_recovered(
        &self,
        backup: BaseBackup,
        moment: DateTime<Utc>,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let cluster = self.cluster.as_ref().ok_or(Error::NotStartedHere)?;
        // A recovery ends at the first commit after the moment, so the first statement commits a transaction. The
        // second statement writes the WAL to disk.
        let commit = ["select pg_current_xact_id()", "select pg_switch_wal()"].map(ToOwned::to_owned);
        self.execute(&commit).await?;
        // A clean shutdown would end the backup's connection, which owns a temporary replication slot. Without the
        // slot, the shutdown would remove WAL that the recovery needs.
        cluster.halt(Signal::SIGQUIT).await?;
        backup.recover_to(moment, cluster)?;
        let server = self.start_on_backup(backup, progress).await?;
        server.wait_until_recovered().await?;
        server.execute(&RESET_RECOVERY_SETTINGS.map(ToOwned::to_owned)).await?;
        Ok(server)
    }

    /// Waits until the server has recovered and accepts writes.
    async fn wait_until_recovered(&self) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let deadline = Instant::now() + RECOVERY_DEADLINE;
        while Instant::now() < deadline {
            if !sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut connection).await? {
                return Ok(connection.close().await?);
            }
            sleep(RECOVERY_POLL_INTERVAL).await;
        }
        Err(Error::NotRecovered(RECOVERY_DEADLINE))
    }

    /// Promotes a standby to primary. Fails if the promotion is not complete within a minute.
    pub async fn promote(&self) -> Result<(), Error> {
        let promote = "do $$ begin if not pg_promote() then raise 'the promotion timed out'; end if; end $$";
        self.execute(&[promote.to_owned()]).await
    }

    /// Stops a server that this process has started. Any other server keeps running.
    pub async fn stop(self) -> Result<(), Error> {
        match self.cluster {
            Some(cluster) => cluster.stop().await,
            None => Ok(()),
        }
    }

    /// Stops the server with a signal. Its data stays.
    pub(super) async fn halt(&self, signal: Signal) -> Result<(), Error> {
        self.cluster.as_ref().ok_or(Error::NotStartedHere)?.halt(signal).await
    }

    /// Stops the server with a signal, and deletes its data if it is temporary.
    pub(super) async fn stop_by(self, signal: Signal) -> Result<(), Error> {
        self.cluster.ok_or(Error::NotStartedHere)?.stop_by(signal).await
    }

    /// Opens a connection for one task. A [`Server`] stores no connection, because a stored connection would end with
    /// the runtime of the test that opened it.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        Ok(PgConnection::connect(self.admin_url.as_str()).await?)
    }

    async fn database(&self, connection: &mut PgConnection, name: &str) -> Result<Presence, Error> {
        let comment: Option<(Option<String>,)> = sqlx::query_as(
            "select shobj_description(oid, 'pg_database')
             from pg_database
             where datname = $1",
        )
        .bind(name)
        .fetch_optional(connection)
        .await?;
        Ok(self.presence(comment))
    }

    fn presence(&self, comment: Option<(Option<String>,)>) -> Presence {
        let Some((comment,)) = comment else { return Presence::Absent };
        let comment = comment.unwrap_or_else(|| "no comment".to_owned());
        let is_ours = match (Ownership::parse(&comment), &self.ownership) {
            (Some(Ownership::Environment(created_for)), Ownership::Environment(this)) => created_for == *this,
            (Some(Ownership::Tests { .. }), Ownership::Tests { .. }) => true,
            _ => false,
        };
        if is_ours { Presence::Ours } else { Presence::Foreign(comment) }
    }

    /// Drops databases and roles that ended test runs have left on the server.
    async fn drop_stale(&self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let databases: Vec<(String, Option<String>)> =
            sqlx::query_as("select datname::text, shobj_description(oid, 'pg_database') from pg_database")
                .fetch_all(&mut connection)
                .await?;
        let roles: Vec<(String, Option<String>)> =
            sqlx::query_as("select rolname::text, shobj_description(oid, 'pg_authid') from pg_roles")
                .fetch_all(&mut connection)
                .await?;
        connection.close().await?;
        let stale = |(name, comment): (String, Option<String>)| {
            Ownership::parse(&comment?)?.is_stale().then_some(name)
        };
        for database in databases.into_iter().filter_map(stale) {
            progress(&format!("dropping {database} of an earlier test run"));
            self.execute(&[format!("drop database if exists {} with (force)", sql::name(&database))]).await?;
        }
        for role in roles.into_iter().filter_map(stale) {
            // Dropping fails for a role that still owns objects in a database. The next run then tries again.
            self.execute(&[format!("drop role if exists {}", sql::name(&role))]).await.ok();
        }
        Ok(())
    }
}
