//! The test bed: a PostgreSQL server of its own with identical databases, the service's executable, and a simulator of
//! the payment gateway.
//!
//! The PostgreSQL server is as durable as in production: `fsync`, `synchronous_commit` and full page writes are on. All
//! other settings that affect performance are PostgreSQL's defaults, and no library is preloaded. Each case creates its
//! own databases, with [`PRODUCTS`] products, and with [`CUSTOMERS`] customers and their sessions. A case adds the
//! orders that it needs.
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dev::{
    cargo,
    example::gateway::{Settings, Simulator},
    postgres::{Purpose, Rights, Server},
    process::Launch,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::sleep;
use url::Url;

/// Number of products. The number is large enough that the figures reveal a plan which reads all products.
pub const PRODUCTS: u64 = 1_000;

/// Number of customers. Every customer has a session.
pub const CUSTOMERS: u64 = 100;

pub const GATEWAY_API_KEY: &str = "sk_for_measurements";
pub const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIG1lYXN1cmVtZW50cywgbmV2ZXIgZWxzZXdoZXJl";

const OWNER: &str = "bench_owner";
const SERVICE: &str = "bench_service";

/// Password of both roles. The password needs no secrecy, because the server listens on this machine only, and ends
/// with this process.
const PASSWORD: &str = "for-measurements-only";

const TEMPLATE_DATABASE: &str = "bench_template";

/// Deadline for sealing ten million events.
const SEALING_DEADLINE: Duration = Duration::from_mins(30);

/// Deadline of a migration.
const COMMAND_DEADLINE: Duration = Duration::from_mins(2);

/// The database server, the service's executable and the gateway.
pub struct TestBed {
    pub executable: PathBuf,
    pub gateway: Simulator,
    /// Process id of the PostgreSQL server.
    pub postmaster: u32,
    /// Directory of PostgreSQL's programs.
    pub programs: PathBuf,
    /// The server's version, for the report.
    pub version: String,
    pub directory: PathBuf,
    server: Server,
}

/// A database with the schema of this release.
#[derive(Clone, Debug)]
pub struct Database {
    pub name: String,
    /// The database's URL with the service's restricted role.
    pub url: Url,
    pub owner_url: Url,
    /// The database's URL with the server's administrator.
    pub admin_url: Url,
}

impl TestBed {
    /// Builds the service in the Cargo profile of this program, unless an executable is given. Starts the PostgreSQL
    /// server and the gateway, and creates the template of all databases.
    pub async fn start(
        directory: PathBuf,
        executable: Option<PathBuf>,
        progress: &dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        let executable = if let Some(executable) = executable {
            executable
        } else {
            progress("building the service");
            cargo::build_service().await?
        };
        let server = Server::find_or_start(Purpose::Durable, progress).await?;
        let mut admin = PgConnection::connect(server.admin_url().as_str()).await?;
        let lock: String =
            sqlx::query_scalar("select pg_read_file('postmaster.pid')").fetch_one(&mut admin).await?;
        let postmaster = lock
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .parse()
            .context("failed to parse postmaster.pid")?;
        let programs: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
            .fetch_one(&mut admin)
            .await?;
        let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut admin).await?;
        admin.close().await?;
        let gateway = Simulator::start(Settings {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            api_key: GATEWAY_API_KEY.to_owned(),
            webhook_secret: GATEWAY_WEBHOOK_SECRET.to_owned(),
            webhook_url: None,
            ledger_file: None,
        })
        .await?;
        server.create_login(OWNER, PASSWORD, Rights::Owner).await?;
        server.create_login(SERVICE, PASSWORD, Rights::Restricted).await?;
        server.create_database(TEMPLATE_DATABASE, Some(OWNER)).await?;
        let programs = programs.into();
        let test_bed = Self { executable, gateway, postmaster, programs, version, directory, server };
        let template = test_bed.with_urls(TEMPLATE_DATABASE);
        test_bed.migrate(&template).await?;
        template.execute(&seed()).await?;
        Ok(test_bed)
    }

    fn with_urls(&self, name: &str) -> Database {
        Database {
            name: name.to_owned(),
            url: self.server.url(name, SERVICE, PASSWORD),
            owner_url: self.server.url(name, OWNER, PASSWORD),
            admin_url: self.server.admin_url_of(name),
        }
    }

    /// Creates a database with products, customers and their sessions, but without orders.
    pub async fn database(&self, name: &str) -> anyhow::Result<Database> {
        self.server.create_database_from_template(name, TEMPLATE_DATABASE, Some(OWNER)).await?;
        let database = self.with_urls(name);
        // `migrate` sets defaults of the service's role for one database (`alter role … in database`). A copy of the
        // template has no such defaults.
        self.migrate(&database).await?;
        // Analyzes only tables with rows. If the statistics show an empty table, the planner chooses a sequential scan,
        // and a connection keeps that plan while the table grows. Tables of a new service have no such statistics.
        database.execute("vacuum analyze products, users, sessions").await?;
        Ok(database)
    }

    /// Drops a database after its last use.
    pub async fn drop(&self, database: &Database) -> anyhow::Result<()> {
        Ok(self.server.drop_database(&database.name).await?)
    }

    async fn migrate(&self, database: &Database) -> anyhow::Result<()> {
        let migrate = Launch::new(&self.executable)
            .args(["migrate"])
            .directory(Path::new("/"))
            .env("APP_ENV", "test")
            .env("RUST_LOG", "warn")
            .env("DATABASE_URL", database.url.as_str())
            .env("DATABASE_MIGRATION_URL", database.owner_url.as_str())
            .start()?;
        if !migrate.wait(COMMAND_DEADLINE).await?.success() {
            bail!("migrate failed: {:#?}", migrate.tail(10));
        }
        Ok(())
    }

    /// Writes a checkpoint, so that no run is slowed down by the writes of the previous run.
    pub async fn checkpoint(&self) -> anyhow::Result<()> {
        let mut admin = PgConnection::connect(self.server.admin_url().as_str()).await?;
        sqlx::raw_sql("checkpoint").execute(&mut admin).await?;
        Ok(admin.close().await?)
    }

    /// Stops the gateway and the PostgreSQL server.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.gateway.stop().await;
        Ok(self.server.stop().await?)
    }
}

impl Database {
    /// Runs statements as the administrator.
    pub async fn execute(&self, statements: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(self.admin_url.as_str()).await?;
        for statement in statements.split(";\n") {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await
                .context(statement.to_owned())?;
        }
        Ok(connection.close().await?)
    }

    /// Adds the orders with the numbers `from..to`, distributed evenly among the customers. Order `n` has the id that
    /// [`order`] returns, belongs to customer `n % CUSTOMERS`, and has two lines. Triggers and foreign keys are
    /// disabled, because with them millions of orders would take an hour. The inserted rows violate no foreign key.
    pub async fn add_orders(&self, from: u64, to: u64) -> anyhow::Result<()> {
        self.execute(
            &format!(
                "set session_replication_role = replica;
             insert into orders (id, customer_id, currency, total_amount, created_at, updated_at)
             select {order}, {customer}, 'EUR', 3 * 1290, now() - interval '1 day', now() - interval '1 day'
             from generate_series({from}, {last}) as n;
             insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
             select {order}, line, {product}, 'Mug', 1290, line, 1290 * line
             from generate_series({from}, {last}) as n, generate_series(1, 2) as line;
             vacuum analyze orders, order_items",
                order = sql_id("01000000-0000-7000-8000-", "n"),
                customer = sql_id("02000000-0000-7000-8000-", &format!("n % {CUSTOMERS}")),
                product = sql_id("03000000-0000-7000-8000-", &format!("(n + line) % {PRODUCTS}")),
                last = to - 1,
            )
            .replace(";\n             ", ";\n"),
        )
        .await
    }

    /// Adds the audit events with the numbers `from..to`. The service seals these events like any others. The ids of
    /// the events ascend, like the service's ids.
    pub async fn add_audit_events(&self, from: u64, to: u64) -> anyhow::Result<()> {
        self.execute(&format!(
            "insert into audit_events (
               id, \"timestamp\", event_type, user_id, role, resource, action, result, metadata, correlation_id,
               service_version
             )
             select
               {event}, now(), 'data_change', {customer}, 'customer', 'orders', 'create', 'success',
               '{{}}', 'filling-' || n, '0.1.0'
             from generate_series({from}, {last}) as n;
vacuum analyze audit_events",
            event = sql_id("04000000-0000-7000-8000-", "n"),
            customer = sql_id("02000000-0000-7000-8000-", &format!("n % {CUSTOMERS}")),
            last = to - 1,
        ))
        .await
    }

    /// Waits until the service has sealed every event.
    pub async fn wait_until_sealed(&self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(self.admin_url.as_str()).await?;
        let began = Instant::now();
        let events: i64 =
            sqlx::query_scalar("select count(*) from audit_events").fetch_one(&mut connection).await?;
        let sealed = "select coalesce(sum(event_count), 0)::bigint from audit_seals";
        while sqlx::query_scalar::<_, i64>(sealed).fetch_one(&mut connection).await? < events {
            if began.elapsed() > SEALING_DEADLINE {
                bail!("the audit log is not sealed after {SEALING_DEADLINE:?}");
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(connection.close().await?)
    }
}

/// Returns the SQL expression of an id as [`order`], [`customer`] and [`product`] format it.
pub fn sql_id(kind: &str, number: &str) -> String {
    format!("('{kind}' || lpad(to_hex(({number})::bigint), 12, '0'))::uuid")
}

pub fn order(number: u64) -> String {
    format!("01000000-0000-7000-8000-{number:012x}")
}

pub fn customer(number: u64) -> String {
    format!("02000000-0000-7000-8000-{:012x}", number % CUSTOMERS)
}

pub fn product(number: u64) -> String {
    format!("03000000-0000-7000-8000-{:012x}", number % PRODUCTS)
}

/// Returns the token of a customer's session.
pub fn token(number: u64) -> String {
    format!("token-of-customer-{}", number % CUSTOMERS)
}

fn seed() -> String {
    format!(
        "insert into products (id, sku, name, unit_amount, currency)
         select {product}, 'SKU-' || n, 'Product ' || n, 100 + n, 'EUR'
         from generate_series(0, {PRODUCTS} - 1) as n;
insert into users (id, email, name, password_hash, role)
         select {customer}, 'customer-' || n || '@example.com', 'Customer ' || n, 'no password', 'customer'
         from generate_series(0, {CUSTOMERS} - 1) as n;
insert into sessions (id, user_id, token_hash, expires_at)
         select gen_random_uuid(), {customer}, sha256(convert_to('token-of-customer-' || n, 'UTF8')), now() + interval '7 days'
         from generate_series(0, {CUSTOMERS} - 1) as n",
        product = sql_id("03000000-0000-7000-8000-", "n"),
        customer = sql_id("02000000-0000-7000-8000-", "n"),
    )
}

/// Returns an unused address.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
