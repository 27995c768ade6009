//! The products table.
use platform::{
    audit::Event,
    database::{Database, violated_constraint},
    http::pagination::PageRequest,
};
use uuid::Uuid;

use super::model::{NewProduct, Product, ProductChange};

/// A rejected or failed request about the catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another product has the SKU.
    #[error("another product has this sku")]
    SkuTaken,
    /// There is no such product.
    #[error("there is no such product")]
    ProductNotFound,
    /// The statement failed, or the database is unreachable.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Returns the products of a page, oldest first, and one more product if another page follows.
pub(super) async fn list(database: &Database, page: PageRequest) -> Result<Vec<Product>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Product,
        r#"
        select id, sku, name, unit_amount, currency, active
        from products
        where id > $1
        order by id
        limit $2
        "#,
        page.after.unwrap_or(Uuid::nil()),
        page.rows(),
    );
    database.run("products.list", async |connection| statement.fetch_all(connection).await).await
}

/// Returns one product.
pub(super) async fn find(database: &Database, id: Uuid) -> Result<Option<Product>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Product,
        "select id, sku, name, unit_amount, currency, active from products where id = $1",
        id
    );
    database.run("products.select", async |connection| statement.fetch_optional(connection).await).await
}

/// Stores a product, and audits the creation.
pub(super) async fn create(database: &Database, new: NewProduct) -> Result<Product, CatalogError> {
    let id = Uuid::now_v7();
    let event = Event::change("products", "create").records([id]).with("unit_amount", new.unit_amount);
    let statement = sqlx::query!(
        r#"
        with created as (
          insert into products (id, sku, name, unit_amount, currency)
          values ($1, $2, $3, $4, $5)
          returning id, sku, name, unit_amount, currency, active
        )
        select
          id as "id!", sku as "sku!", name as "name!", unit_amount as "unit_amount!", currency as "currency!",
          active as "active!", record_audit_event($6)
        from created
        "#,
        id,
        new.sku,
        new.name.trim(),
        new.unit_amount,
        new.currency,
        event.to_json(),
    );
    let created =
        database.run("products.insert", async |connection| statement.fetch_one(connection).await).await;
    let row = created.map_err(|error| match violated_constraint(&error) {
        Some("sku_is_taken_once") => CatalogError::SkuTaken,
        _ => error.into(),
    })?;
    event.log_and_count();
    Ok(Product {
        id: row.id,
        sku: row.sku,
        name: row.name,
        unit_amount: row.unit_amount,
        currency: row.currency,
        active: row.active,
    })
}

/// Changes a product, and records an audit event. The event has the product's price and its state (`active`) before and
/// after the change. Returns `None` if there is no such product.
pub(super) async fn change(
    database: &Database,
    id: Uuid,
    change: ProductChange,
) -> Result<Option<Product>, sqlx::Error> {
    let event = Event::change("products", "update").records([id]);
    let statement = sqlx::query!(
        r#"
        with before as materialized (
          select unit_amount, active from products where id = $1 for update
        ), changed as (
          update products
          set
            name = coalesce($2, name),
            unit_amount = coalesce($3, products.unit_amount),
            active = coalesce($4, products.active),
            updated_at = now()
          from before
          where products.id = $1
          returning id, sku, name, products.unit_amount, currency, products.active
        )
        select
          id as "id!", sku as "sku!", name as "name!", changed.unit_amount as "unit_amount!",
          currency as "currency!", changed.active as "active!",
          record_audit_event(jsonb_set($5::jsonb, '{metadata}', ($5::jsonb -> 'metadata') || jsonb_build_object(
            'unit_amount_before', before.unit_amount, 'unit_amount', changed.unit_amount,
            'active_before', before.active, 'active', changed.active
          )))
        from changed, before
        "#,
        id,
        change.name.as_deref().map(str::trim),
        change.unit_amount,
        change.active,
        event.to_json(),
    );
    let row = database
        .run("products.update", async |connection| statement.fetch_optional(connection).await)
        .await?;
    Ok(row.map(|row| {
        event.log_and_count();
        Product {
            id: row.id,
            sku: row.sku,
            name: row.name,
            unit_amount: row.unit_amount,
            currency: row.currency,
            active: row.active,
        }
    }))
}
