//! The products that `cargo dev` creates in a database without a product for sale.
use sqlx::{Connection as _, PgConnection};
use url::Url;
use uuid::Uuid;

/// Products for sale: SKU, name, and price in cents.
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

/// Creates the products if no product is for sale, and returns a product for sale.
pub(crate) async fn seed(owner_url: &Url, progress: &dyn Fn(&str)) -> Result<Uuid, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let product = seed_in(&mut connection, progress).await?;
    connection.close().await?;
    Ok(product)
}

async fn seed_in(connection: &mut PgConnection, progress: &dyn Fn(&str)) -> Result<Uuid, sqlx::Error> {
    let select_product = "select id from products where active order by id limit 1";
    if let Some(product) = sqlx::query_scalar(select_product).fetch_optional(&mut *connection).await? {
        return Ok(product);
    }
    progress("creating the products");
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
    sqlx::query_scalar(select_product).fetch_one(connection).await
}
