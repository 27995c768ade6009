//! The last release and this release serve the same database at the same time. The test replaces the replicas of the
//! last release one after the other (a roll), and then rolls back. [`longest_locks`] measures the locks of migrations.
//!
//! `.ci/checks/release --long` builds the last release, and passes its executable in `LAST_RELEASE`.
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    pin::pin,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dev::harness::{
    Balancer, Database, HttpResponse, Request, Service, TABLE, User, eventually, run, seed_rows, within,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::watch;

use crate::{
    EXECUTABLE,
    audit::{
        retention::insert_old_events,
        seals::{UNSEALED, wait_until_everything_is_sealed},
        verification::Scratch,
    },
};

/// Returns the number of rows that a test inserts: 100 000 with `.ci/checks/release --long`, otherwise 10 000.
pub fn rows() -> u32 {
    if std::env::var_os("LAST_RELEASE").is_some() { 100_000 } else { 10_000 }
}

/// Number of clients that send requests at the same time. All of them have the session of one customer.
const CUSTOMERS: usize = 3;

/// Number of requests that the test waits for after a step, such as the replacement of one replica.
const REQUESTS: usize = 60;

/// Maximum time until the inserted audit events are sealed.
const UNTIL_SEALED: Duration = Duration::from_mins(5);

/// Maximum time for which a migration holds a lock that blocks writers.
const MAX_LOCK: Duration = Duration::from_millis(100);

/// The requests of the clients during the whole test, and their results.
#[derive(Default)]
struct Load {
    served: AtomicUsize,
    replays: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// The requests whose response had the status 201, with their responses.
    changes: Mutex<Vec<(Request, HttpResponse)>>,
}

impl Load {
    /// Sends requests until `closed` is true, and repeats each request whose response has the status 201. During a
    /// roll, a replica of the other release often serves the repetition.
    async fn send_until_closed(self: Arc<Self>, customer: User, mut closed: watch::Receiver<bool>) {
        while !*closed.borrow_and_update() {
            let listed = customer.lists().await;
            match customer.uses_every_customer_route().await {
                Ok(exchanges) if listed.status == 200 => {
                    self.served.fetch_add(exchanges.len() + 1, Ordering::Relaxed);
                    let changes = exchanges.into_iter().filter(|(_, response)| response.status == 201);
                    for (request, response) in changes {
                        self.repeat(&request, &response).await;
                        self.changes.lock().unwrap().push((request, response));
                    }
                }
                other => {
                    self.failures.lock().unwrap().push(format!("{listed}\n{:?}", other.err()));
                }
            }
        }
    }

    /// Repeats a change. Records a failure unless the response is a replay with the status and the body of the first
    /// response.
    async fn repeat(&self, request: &Request, response: &HttpResponse) {
        let again = request.clone().await;
        if again.is_replayed() && (again.status, &again.text) == (response.status, &response.text) {
            self.replays.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.lock().unwrap().push(format!("{response}\nand repeated {again}"));
        }
    }

    /// Repeats each request in `changes`.
    async fn repeat_all(&self) {
        let changes = self.changes.lock().unwrap().clone();
        for (request, response) in &changes {
            self.repeat(request, response).await;
        }
    }

    /// Waits until [`REQUESTS`] more requests were served. Panics if a request has failed.
    async fn wait_until_more_served(&self) {
        let enough = self.served.load(Ordering::Relaxed) + REQUESTS;
        eventually("more requests are served", async || {
            assert_eq!(*self.failures.lock().unwrap(), [""; 0]);
            (self.served.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }
}

/// Runs an `audit` command of an executable. The command has no timeout, because with many events it takes long.
async fn audit(executable: &Path, service: &Service, arguments: &[&str]) -> Output {
    let mut command = Command::new(executable);
    command.arg("audit").args(arguments).env_clear().envs(service.database().settings()).current_dir("/");
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

/// Runs `audit verify` of an executable with these arguments. Returns the output.
async fn verify(executable: &Path, service: &Service, arguments: &[&str]) -> String {
    let output = audit(executable, service, &[&["verify"], arguments].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exports the audit events that were recorded before `until`, once they are sealed.
async fn export(executable: &Path, service: &Service, until: &str, file: &str) {
    within(UNTIL_SEALED, "the events are exported", async || {
        let output = audit(executable, service, &["export", "--until", until, "--to", file]).await;
        output.status.success().then_some(())
    })
    .await;
}

/// Replaces one replica after the other by a replica that runs `executable`. Waits until more requests are served after
/// each replacement, and finally repeats each request in [`Load::changes`].
async fn roll(services: &mut [Service], executable: &Path, balancer: &Balancer, load: &Load) {
    for service in services {
        assert_eq!(service.terminate().await.code(), Some(0));
        service.restart_as(executable).await;
        balancer.add(service);
        eventually("all three replicas are ready", async || (balancer.ready() == 3).then_some(())).await;
        load.wait_until_more_served().await;
    }
    load.repeat_all().await;
}

/// Applies the migrations of this release with its command `migrate`. Returns the result of [`longest_locks`].
pub async fn migrate(database: &Database) -> HashMap<String, Duration> {
    let settings = database.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let migrating = async { run(Path::new(EXECUTABLE), &["migrate"], &settings).await.succeeded() };
    longest_locks(database, migrating).await
}

/// Awaits `migrating`, and polls the locks of sessions with the `application_name` `migrate` in the meantime. Returns
/// each observed lock that blocks writers of an existing table, with the longest time for which it was held. A lock
/// that is held only between two polls is not observed.
pub async fn longest_locks<T>(
    database: &Database,
    migrating: impl Future<Output = T>,
) -> HashMap<String, Duration> {
    let mut observer = PgConnection::connect(database.owner_url().as_str()).await.unwrap();
    let mut migrating = pin!(migrating);
    let mut clock = tokio::time::interval(Duration::from_millis(1));
    let (mut held, mut longest) = (HashMap::<String, Instant>::new(), HashMap::new());
    let mut before = Instant::now();
    loop {
        tokio::select! {
            _ = &mut migrating => return longest,
            _ = clock.tick() => {}
        }
        // The query finds no lock on a table that the migration creates, because the table is not visible here until
        // the commit.
        let locks: Vec<String> = sqlx::query_scalar(
            "select distinct format('%s on %s', mode, relname)
             from pg_locks
             join pg_class on pg_class.oid = relation
             where granted
               and relnamespace = 'public'::regnamespace
               and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
               and pid in (
                 select pid
                 from pg_stat_activity
                 where application_name = 'migrate' and datname = current_database()
               )",
        )
        .fetch_all(&mut observer)
        .await
        .unwrap();
        let now = Instant::now();
        held.retain(|lock, _| locks.contains(lock));
        for lock in locks {
            let time = now - *held.entry(lock.clone()).or_insert(before);
            longest
                .entry(lock)
                .and_modify(|longest: &mut Duration| *longest = time.max(*longest))
                .or_insert(time);
        }
        before = now;
    }
}

/// Returns the locks that were held longer than [`MAX_LOCK`].
pub fn too_long(locks: &HashMap<String, Duration>) -> Vec<&String> {
    locks.iter().filter(|(_, held)| **held > MAX_LOCK).map(|(lock, _)| lock).collect()
}

/// Adds a column to every table except `_sqlx_migrations` while the replicas serve, as a later migration may do.
/// Asserts that a prepared `select *` from [`TABLE`] then fails with `cached plan must not change result type`. A
/// statement of the service that selects every column would fail in the same way.
async fn add_a_column_to_every_table(database: &Database, name: &str) {
    let mut session = PgConnection::connect(database.owner_url().as_str()).await.unwrap();
    let every_column = format!("select * from {TABLE} limit 1");
    let mut read = async || {
        let statement = sqlx::query(AssertSqlSafe(every_column.as_str()));
        statement.fetch_one(&mut session).await.map(|_| ()).map_err(|error| error.to_string())
    };
    read().await.unwrap();
    let tables = "select relname from pg_class
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition
          and relname <> '_sqlx_migrations'";
    for table in database.rows(tables).await {
        let table = table["relname"].as_str().unwrap();
        database.execute(format!("alter table {table} add column {name} text")).await;
    }
    let error = read().await.unwrap_err();
    assert!(error.contains("cached plan must not change result type"), "{error}");
}

#[tokio::test]
#[ignore = "needs an executable of the last release"]
async fn a_roll_forth_and_back_fails_no_request() {
    let last = PathBuf::from(std::env::var_os("LAST_RELEASE").expect("LAST_RELEASE is not set"));
    let this = Path::new(EXECUTABLE);
    let started = Instant::now();
    let scratch = Scratch::new();
    let builder = Service::builder(last.clone())
        .setting("SHUTDOWN_GRACE_SECONDS", "3")
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1");
    let mut services = vec![builder.start().await];
    for _ in 1..3 {
        services.push(services[0].replica().await);
    }
    insert_old_events(&services[0], "2021-02", 5).await;
    let of_the_last = scratch.path("of-the-last-release.jsonl.gz");
    export(&last, &services[0], "2021-03-01", &of_the_last).await;
    insert_old_events(&services[0], "2021-03", 7).await;

    let customer = services[0].customer().await;
    seed_rows(services[0].database(), customer.id, rows()).await;
    let (seeded, sealing) = (started.elapsed(), Instant::now());
    within(UNTIL_SEALED, "every event is sealed", async || {
        (services[0].database().number(UNSEALED).await == 0).then_some(())
    })
    .await;
    println!("{} rows in {seeded:.1?}, and their events sealed in {:.1?}", rows(), sealing.elapsed());

    let balancer = Balancer::start().await;
    for service in &services {
        balancer.add(service);
    }
    eventually("all three replicas are ready", async || (balancer.ready() == 3).then_some(())).await;
    let (load, rolling) = (Arc::new(Load::default()), Instant::now());
    let (closed, closing) = watch::channel(false);
    let customers: Vec<_> = (0..CUSTOMERS)
        .map(|_| {
            tokio::spawn(
                Arc::clone(&load).send_until_closed(balancer.user_through(&customer), closing.clone()),
            )
        })
        .collect();
    load.wait_until_more_served().await;

    add_a_column_to_every_table(services[0].database(), "of_this_release").await;
    load.wait_until_more_served().await;
    let locks = migrate(services[0].database()).await;
    println!("longest locks of the pending migrations, under load: {locks:?}");
    assert_eq!(too_long(&locks), [""; 0]);
    load.wait_until_more_served().await;
    roll(&mut services, this, &balancer, &load).await;
    add_a_column_to_every_table(services[0].database(), "of_the_next_release").await;
    load.wait_until_more_served().await;
    let of_this = scratch.path("of-this-release.jsonl.gz");
    export(this, &services[0], "2021-04-01", &of_this).await;
    roll(&mut services, &last, &balancer, &load).await;

    closed.send_replace(true);
    for customer in customers {
        customer.await.unwrap();
    }
    let (served, replays) = (load.served.load(Ordering::Relaxed), load.replays.load(Ordering::Relaxed));
    let failures = load.failures.lock().unwrap().clone();
    let rows = services[0].database().number(format!("select count(*) from {TABLE}")).await;
    println!(
        "{rows} rows, {served} requests, {replays} equal replays, six replaced replicas in {:.1?}: {} failures",
        rolling.elapsed(),
        failures.len()
    );
    assert_eq!(failures, [""; 0]);
    wait_until_everything_is_sealed(&services[0]).await;
    for executable in [this, &last] {
        for file in [&of_the_last, &of_this] {
            verify(executable, &services[0], &["--export", file]).await;
        }
        println!("{}", verify(executable, &services[0], &["--exported", &of_the_last, &of_this]).await);
    }
    services[0].invariants_hold().await;
}
