//! The database of the environment: made, migrated, and with something in it to order and someone to order it.
use std::{path::Path, time::Duration};

use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::{Connection as _, PgConnection};
use url::Url;
use uuid::Uuid;

use super::Error;
use crate::{
    postgres::{Presence, Rights, Server},
    process::Launch,
    project,
};

/// How long a command of the service may take.
const COMMAND_DEADLINE: Duration = Duration::from_mins(2);

/// One user of every role. The passwords are no secret: they open a database on this machine, and stay the same
/// because the database does.
pub(super) const LOGINS: [Login; 4] = [
    Login { role: "customer", email: "customer@example.com", password: "customer-password" },
    SUPPORT,
    Login { role: "auditor", email: "auditor@example.com", password: "auditor-password" },
    Login { role: "admin", email: "admin@example.com", password: "admin-password" },
];

pub(crate) const SUPPORT: Login =
    Login { role: "support", email: "support@example.com", password: "support-password" };

/// A user of the service, as the screen shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Login {
    pub(crate) role: &'static str,
    pub(crate) email: &'static str,
    pub(crate) password: &'static str,
}

/// What can be bought; amounts in cents.
const PRODUCTS: [(&str, &str, i64); 12] = [
    ("BEAN-ETH-250", "Coffee, Ethiopia Guji, 250 g", 1190),
    ("BEAN-COL-250", "Coffee, Colombia Huila, 250 g", 1090),
    ("BEAN-DECAF-250", "Coffee, decaffeinated, 250 g", 1240),
    ("FILTER-02-100", "Paper filters, size 02, 100 pieces", 690),
    ("DRIPPER-V60", "Dripper, ceramic", 2490),
    ("KETTLE-GOOSE", "Kettle with a gooseneck, 0.9 l", 6490),
    ("SCALE-01", "Scale, 0.1 g, with a timer", 4990),
    ("GRINDER-HAND", "Hand grinder, steel burrs", 11900),
    ("MUG-350", "Mug, 350 ml", 1490),
    ("CARAFE-600", "Glass carafe, 600 ml", 2190),
    ("BRUSH-01", "Grinder brush", 790),
    ("GIFT-CARD-50", "Gift card", 5000),
];

/// A database that is ready for the service.
#[derive(Debug)]
pub(crate) struct Database {
    /// As the role that the service runs with.
    pub(crate) url: Url,
    /// As the role that owns the schema.
    pub(crate) owner_url: Url,
    /// Tells it from every other database on every other server.
    pub(super) identity: String,
    /// One that can be ordered, for the examples on the screen.
    pub(super) product: Uuid,
}

/// Makes what is missing and leaves what is there.
pub(crate) async fn prepare(
    server: &Server,
    executable: &Path,
    fresh: bool,
    progress: &dyn Fn(&str),
) -> Result<Database, Error> {
    let name = project::identifier();
    let (owner, restricted) = (format!("{name}_owner"), format!("{name}_app"));
    let (owner_password, password) = (random_password(), random_password());
    if fresh {
        server.drop_database(&name).await?;
    }
    server.create_login(&owner, &owner_password, Rights::Owner).await?;
    server.create_login(&restricted, &password, Rights::Restricted).await?;
    server.allow_to_grant(&owner, &[restricted.as_str(), "app_runtime"]).await?;
    match server.find_database(&name).await? {
        Presence::Ours => {}
        Presence::Absent => {
            progress(&format!("making the database {name}"));
            server.create_database(&name, Some(&owner)).await?;
        }
        Presence::Foreign(made) => return Err(Error::ForeignDatabase { name, made }),
    }
    let url = server.url(&name, &restricted, &password);
    let owner_url = server.url(&name, &owner, &owner_password);

    progress("applying the migrations");
    let migrate = Launch::new(executable)
        .args(["migrate"])
        .env("DATABASE_URL", url.as_str())
        .env("DATABASE_MIGRATION_URL", owner_url.as_str());
    run(migrate, "migrate").await?;

    let product = seed(executable, &url, &owner_url, progress).await?;
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let identity = sqlx::query_scalar(
        "select (select system_identifier from pg_control_system()) || '-' || oid
         from pg_database
         where datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(Database { url, owner_url, identity, product })
}

/// Fills a migrated database with users and products, where they are missing, and gives a product that can be
/// ordered.
pub async fn seed(
    executable: &Path,
    url: &Url,
    owner_url: &Url,
    progress: &dyn Fn(&str),
) -> Result<Uuid, Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let users: Vec<String> = sqlx::query_scalar("select email from users").fetch_all(&mut connection).await?;
    for login in LOGINS.iter().filter(|login| !users.iter().any(|email| email == login.email)) {
        progress(&format!("making the user {}", login.email));
        create_user(executable, url, login).await?;
    }
    let product = offer_products(&mut connection, progress).await?;
    connection.close().await?;
    Ok(product)
}

async fn create_user(executable: &Path, url: &Url, login: &Login) -> Result<(), Error> {
    let create = Launch::new(executable)
        .args(["user", "create", "--email", login.email, "--role", login.role])
        .env("DATABASE_URL", url.as_str())
        .env("USER_PASSWORD", login.password);
    run(create, "user create").await
}

/// Fills an empty catalogue, and gives a product that can be ordered.
async fn offer_products(connection: &mut PgConnection, progress: &dyn Fn(&str)) -> Result<Uuid, Error> {
    let offered = "select id from products where active order by id limit 1";
    if let Some(product) = sqlx::query_scalar(offered).fetch_optional(&mut *connection).await? {
        return Ok(product);
    }
    progress("filling the catalogue");
    for (sku, name, unit_amount) in PRODUCTS {
        sqlx::query(
            "insert into products (id, sku, name, unit_amount, currency)
             values ($1, $2, $3, $4, 'EUR')
             on conflict (sku) do update set active = true",
        )
        .bind(Uuid::now_v7())
        .bind(sku)
        .bind(name)
        .bind(unit_amount)
        .execute(&mut *connection)
        .await?;
    }
    Ok(sqlx::query_scalar(offered).fetch_one(connection).await?)
}

/// Runs a command of the service, far from any `.env`, which it would read in development.
async fn run(launch: Launch, command: &'static str) -> Result<(), Error> {
    let child = launch
        .directory(Path::new("/"))
        .env("APP_ENV", "development")
        .env("RUST_LOG", "warn")
        .start()
        .map_err(Error::Start)?;
    if child.wait(COMMAND_DEADLINE).await?.success() {
        return Ok(());
    }
    let output = child.tail(10).into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n");
    Err(Error::Command { command, output })
}

fn random_password() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 24)
}
