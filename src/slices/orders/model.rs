//! Orders and baskets, their rules, and the reasons why an order was not placed or not cancelled.
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use platform::http::{extract::Validate, problem::FieldError, timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The status of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Placed and not paid. The order can be paid or cancelled, unless a payment is in progress.
    PendingPayment,
    /// Paid.
    Paid,
    /// Cancelled before payment.
    Cancelled,
    /// Partially refunded.
    PartiallyRefunded,
    /// Completely refunded.
    Refunded,
}

impl OrderStatus {
    /// Every status.
    pub const ALL: [Self; 5] =
        [Self::PendingPayment, Self::Paid, Self::Cancelled, Self::PartiallyRefunded, Self::Refunded];

    /// Returns the name as written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingPayment => "pending_payment",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::PartiallyRefunded => "partially_refunded",
            Self::Refunded => "refunded",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Returns the reason why an order with this status was not cancelled.
    pub fn why_not_cancelled(self) -> OrderError {
        match self {
            Self::PendingPayment => OrderError::PaymentInProgress,
            Self::Cancelled => OrderError::AlreadyCancelled,
            Self::Paid | Self::PartiallyRefunded | Self::Refunded => OrderError::AlreadyPaid,
        }
    }
}

/// A rejected request about an order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The products of these lines do not exist, or are not active. Lines are counted from 0.
    #[error("the products of the lines {0:?} cannot be ordered")]
    NotForSale(Vec<usize>),
    /// The products of the basket have several currencies.
    #[error("the products have several currencies")]
    SeveralCurrencies,
    /// The order was not placed, but the later search for the reason found that all of its products can be ordered in
    /// one currency. Either the catalog changed in between, and a retry can succeed. Or the idempotency key is already
    /// claimed, and the client gets the stored response instead of this error.
    #[error("the catalog changed during the request")]
    CatalogChanged,
    /// There is no such order, or it belongs to another customer.
    #[error("there is no order {0}, or it belongs to another customer")]
    NotFound(Uuid),
    /// A payment of the order is in progress.
    #[error("a payment of the order is in progress")]
    PaymentInProgress,
    /// The order is cancelled already.
    #[error("the order is cancelled already")]
    AlreadyCancelled,
    /// The order was paid. The payment may have been refunded since then.
    #[error("the order is paid")]
    AlreadyPaid,
}

/// An order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Order {
    /// The order's id.
    pub id: Uuid,
    /// The customer who placed the order.
    pub customer_id: Uuid,
    /// Status of the order.
    pub status: OrderStatus,
    /// ISO 4217 code of the currency of all amounts.
    #[schema(example = "EUR")]
    pub currency: String,
    /// The sum of the items' amounts, in minor units.
    #[schema(example = 2580)]
    pub total_amount: i64,
    /// Lines in the same sequence as in the request.
    pub items: Vec<OrderItem>,
    /// Time of placement.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
    /// Time of the last change.
    #[serde(serialize_with = "timestamp::serialize")]
    pub updated_at: DateTime<Utc>,
}

/// A line of an order, with the product's name and price at the time of the order.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OrderItem {
    /// The ordered product.
    pub product_id: Uuid,
    /// Name of the product at the time of the order.
    #[schema(example = "Mug")]
    pub name: String,
    /// Price of one piece at the time of the order, in minor units.
    #[schema(example = 1290)]
    pub unit_amount: i64,
    /// Number of pieces.
    #[schema(example = 2)]
    pub quantity: i32,
    /// Price of the line, in minor units.
    #[schema(example = 2580)]
    pub amount: i64,
}

/// The order that a customer wants to place.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Basket {
    /// 1 to 100 lines in one currency.
    #[schema(min_items = 1, max_items = 100)]
    pub items: Vec<BasketItem>,
}

/// A line of a basket. The price comes from the catalog.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BasketItem {
    /// The product.
    pub product_id: Uuid,
    /// Number of pieces.
    #[schema(minimum = 1, maximum = 1000, example = 2)]
    pub quantity: i32,
}

impl Basket {
    /// Returns the product of each line.
    pub fn products(&self) -> Vec<Uuid> {
        self.items.iter().map(|item| item.product_id).collect()
    }

    /// Returns the reason why the order of this basket was not placed. `orderable` has the products of the basket that
    /// can be ordered, each with its currency.
    pub fn why_not_placed(&self, orderable: &[(Uuid, String)]) -> OrderError {
        let is_orderable = |product: Uuid| orderable.iter().any(|(id, _)| *id == product);
        let lines = self.items.iter().enumerate();
        let missing: Vec<_> =
            lines.filter(|(_, item)| !is_orderable(item.product_id)).map(|(line, _)| line).collect();
        let currencies: BTreeSet<_> = orderable.iter().map(|(_, currency)| currency).collect();
        if !missing.is_empty() {
            OrderError::NotForSale(missing)
        } else if currencies.len() > 1 {
            OrderError::SeveralCurrencies
        } else {
            OrderError::CatalogChanged
        }
    }
}

/// Maximum number of lines of an order.
pub const MAX_LINES: usize = 100;
/// Maximum number of pieces of a line.
pub const MAX_QUANTITY: i32 = 1000;

impl Validate for Basket {
    fn validate(&self) -> Vec<FieldError> {
        if !(1..=MAX_LINES).contains(&self.items.len()) {
            return vec![FieldError::new("/items", format!("must have 1 to {MAX_LINES} lines"))];
        }
        let invalid =
            self.items.iter().enumerate().filter(|(_, item)| !(1..=MAX_QUANTITY).contains(&item.quantity));
        let message = format!("must be between 1 and {MAX_QUANTITY}");
        invalid
            .map(|(line, _)| FieldError::new(format!("/items/{line}/quantity"), message.as_str()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slices::catalog::MAX_UNIT_AMOUNT;

    #[test]
    fn the_largest_order_fits_into_a_json_number() {
        let largest = MAX_UNIT_AMOUNT * i64::from(MAX_QUANTITY) * i64::try_from(MAX_LINES).unwrap();
        assert!(largest < 1 << 53);
    }

    #[test]
    fn a_basket_is_rejected_by_its_lines_then_by_its_currencies() {
        let (mug, teapot) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let items = [mug, teapot].map(|product_id| BasketItem { product_id, quantity: 1 });
        let basket = Basket { items: items.into() };
        let for_sale = |product, currency: &str| (product, currency.to_owned());
        let why = |orderable: &[(Uuid, String)]| basket.why_not_placed(orderable);
        assert!(matches!(why(&[for_sale(mug, "EUR")]), OrderError::NotForSale(lines) if lines == [1]));
        let mixed = [for_sale(mug, "EUR"), for_sale(teapot, "USD")];
        assert!(matches!(why(&mixed), OrderError::SeveralCurrencies));
        assert!(matches!(why(&[for_sale(mug, "EUR"), for_sale(teapot, "EUR")]), OrderError::CatalogChanged));
    }

    proptest! {
        #[test]
        fn exactly_the_quantities_in_bounds_are_valid(quantity in any::<i32>()) {
            let basket = Basket { items: vec![BasketItem { product_id: Uuid::nil(), quantity }] };
            prop_assert_eq!(basket.validate().is_empty(), (1..=1000).contains(&quantity));
        }
    }
}
