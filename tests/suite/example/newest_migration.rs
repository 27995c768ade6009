//! The newest migration, applied to a database that has the preceding schema and many rows.
use std::path::Path;

use dev::harness::{Database, MUG, seed_rows};
use sqlx::{Connection, Executor, PgConnection, migrate::Migrator};
use uuid::Uuid;

use crate::operations::last_release::{longest_locks, migrate, rows, too_long};

#[tokio::test]
#[ignore = "a part of `.ci/checks/release --long`"]
async fn the_newest_migration_does_not_block_writers() {
    let database = Database::create_empty().await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut migrations: Vec<_> = Migrator::new(directory).await.unwrap().iter().cloned().collect();
    let newest = migrations.pop().unwrap();
    let mut owner = PgConnection::connect(database.owner_url().as_str()).await.unwrap();
    Migrator::with_migrations(migrations).run(&mut owner).await.unwrap();
    let customer = Uuid::now_v7();
    database
        .execute(format!(
            "insert into users (id, email, name, password_hash, role) values ('{customer}', 'a@b.example', 'A', '', 'customer');
             insert into products (id, sku, name, unit_amount, currency) values ('{MUG}', 'MUG-01', 'Mug', 1290, 'EUR')"
        ))
        .await;
    seed_rows(&database, customer, rows()).await;
    database
        .execute(
            "insert into payments (id, order_id, gateway_key, amount, currency, gateway_request, correlation_id)
             select gen_random_uuid(), id, gen_random_uuid(), total_amount, currency, '', '' from orders",
        )
        .await;

    let locks = migrate(&database).await;
    println!("longest locks of {} with {} orders and payments: {locks:?}", newest.description, rows());
    assert_eq!(too_long(&locks), [""; 0]);

    // A lock that is held for 200 ms shows that the measurement finds locks that are held too long.
    let waiting = async {
        let planted =
            "set application_name = 'migrate'; begin; lock table orders in share mode; select pg_sleep(0.2)";
        owner.execute(planted).await.unwrap();
    };
    assert_eq!(too_long(&longest_locks(&database, waiting).await), ["ShareLock on orders"]);
}
