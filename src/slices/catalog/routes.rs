//! Routes that list, show, add and change products.
use axum::{
    Json as JsonBody,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use platform::{
    database::Database,
    http::{
        extract::{Id, Json, Query},
        pagination::{Page, PageQuery},
        problem::{Problem, ProblemBody},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    model::{NewProduct, Product, ProductChange},
    store::{self, CatalogError},
};
use crate::{accounts::Admin, slices::Slices};

/// Returns the routes of the catalog.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new()
        .routes(routes!(list_products, create_product))
        .routes(routes!(show_product, change_product))
}

/// List products
#[utoipa::path(
    get, path = "/v1/products", tag = "catalog", params(PageQuery),
    responses((status = 200, description = "A page of products, oldest first", body = Page<Product>))
)]
async fn list_products(
    State(database): State<Database>,
    Query(query): Query<PageQuery>,
) -> Result<JsonBody<Page<Product>>, Problem> {
    let page = query.parse()?;
    let products = store::list(&database, page).await?;
    Ok(JsonBody(page.page(products, |product| product.id)))
}

/// Show a product
#[utoipa::path(
    get, path = "/v1/products/{id}", tag = "catalog", params(("id" = uuid::Uuid, Path, description = "The product's id")),
    responses((status = 200, description = "The product", body = Product))
)]
async fn show_product(State(database): State<Database>, Id(id): Id) -> Result<JsonBody<Product>, Problem> {
    Ok(JsonBody(store::find(&database, id).await?.ok_or(CatalogError::ProductNotFound)?))
}

/// Add a product
#[utoipa::path(
    post, path = "/v1/products", tag = "catalog", request_body = NewProduct, security(("session" = ["admin"])),
    responses(
        (
            status = 201, description = "The product", body = Product,
            headers(("location" = String, description = "The product")),
            links(("order_product" = (
                operation_id = "place_order",
                request_body = json!({ "items": [{ "product_id": "{$response.body#/id}", "quantity": 1 }] }),
                description = "The product can be ordered."
            )))
        ),
        (status = 409, description = "The SKU belongs to another product", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn create_product(
    State(database): State<Database>,
    _admin: Admin,
    Json(new): Json<NewProduct>,
) -> Result<Response, Problem> {
    let product = store::create(&database, new).await?;
    let location = format!("/v1/products/{}", product.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], JsonBody(product)).into_response())
}

/// Change a product
/// A new price applies to new orders. Existing orders keep their prices.
#[utoipa::path(
    patch, path = "/v1/products/{id}", tag = "catalog", request_body = ProductChange, security(("session" = ["admin"])),
    params(("id" = uuid::Uuid, Path, description = "The product's id")),
    responses((status = 200, description = "The product", body = Product))
)]
async fn change_product(
    State(database): State<Database>,
    _admin: Admin,
    Id(id): Id,
    Json(change): Json<ProductChange>,
) -> Result<JsonBody<Product>, Problem> {
    Ok(JsonBody(store::change(&database, id, change).await?.ok_or(CatalogError::ProductNotFound)?))
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::SkuTaken => Self::conflict("The SKU belongs to another product."),
            CatalogError::ProductNotFound => Self::not_found(),
            CatalogError::Database(error) => error.into(),
        }
    }
}
