//! Products, and the rules for their fields.
use platform::http::{extract::Validate, problem::FieldError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The highest price of one piece, in minor units. It keeps every total below 2^53, above which many JSON readers lose
/// precision. Mirrors the constraint `unit_amount_is_in_bounds`.
pub const MAX_UNIT_AMOUNT: i64 = 10_000_000_000;

/// Something that can be ordered.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Product {
    /// The product's id.
    pub id: Uuid,
    /// What the warehouse calls it.
    #[schema(example = "MUG-01")]
    pub sku: String,
    /// What customers call it.
    #[schema(example = "Mug")]
    pub name: String,
    /// The price of one piece, in minor units.
    #[schema(example = 1290)]
    pub unit_amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
    /// Whether it can be ordered.
    pub active: bool,
}

/// A product to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProduct {
    /// What the warehouse calls it: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    #[schema(example = "MUG-01", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub sku: String,
    /// What customers call it: 1 to 200 characters.
    #[schema(
        example = "Mug",
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    pub name: String,
    /// The price of one piece, in minor units.
    #[schema(example = 1290, minimum = 1, maximum = 10_000_000_000_i64)]
    pub unit_amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR", pattern = "^[A-Z]{3}$")]
    pub currency: String,
}

/// What may change of a product.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductChange {
    /// Another name.
    #[schema(
        example = "Large mug",
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    pub name: Option<String>,
    /// Another price, in minor units, for orders from now on.
    #[schema(example = 1490, minimum = 1, maximum = 10_000_000_000_i64)]
    pub unit_amount: Option<i64>,
    /// Whether it can be ordered.
    pub active: Option<bool>,
}

impl Validate for NewProduct {
    fn validate(&self) -> Vec<FieldError> {
        let sku_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let mut errors = Vec::new();
        if !(1..=64).contains(&self.sku.len()) || !self.sku.bytes().all(sku_alphabet) {
            errors.push(FieldError::new("/sku", "must have 1 to 64 characters of A-Z a-z 0-9 . _ -"));
        }
        check_name(&self.name, &mut errors);
        check_unit_amount(self.unit_amount, &mut errors);
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            errors.push(FieldError::new("/currency", "must be an ISO 4217 code such as EUR"));
        }
        errors
    }
}

impl Validate for ProductChange {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(name) = &self.name {
            check_name(name, &mut errors);
        }
        if let Some(unit_amount) = self.unit_amount {
            check_unit_amount(unit_amount, &mut errors);
        }
        errors
    }
}

fn check_name(name: &str, errors: &mut Vec<FieldError>) {
    if !(1..=200).contains(&name.trim().chars().count()) || name.chars().any(char::is_control) {
        errors.push(FieldError::new(
            "/name",
            "must have 1 to 200 characters, none of them a control character",
        ));
    }
}

fn check_unit_amount(unit_amount: i64, errors: &mut Vec<FieldError>) {
    if !(1..=MAX_UNIT_AMOUNT).contains(&unit_amount) {
        errors.push(FieldError::new(
            "/unit_amount",
            format!("must be between 1 and {MAX_UNIT_AMOUNT} minor units"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// Returns whether a value fits the schema of the document.
    fn fits<T: ToSchema>(value: &Value) -> bool {
        jsonschema::is_valid(&serde_json::to_value(T::schema()).unwrap(), value)
    }

    fn accepts<T: DeserializeOwned + Validate>(value: &Value) -> bool {
        serde_json::from_value::<T>(value.clone()).is_ok_and(|value| value.validate().is_empty())
    }

    proptest! {
        #[test]
        fn the_schema_of_a_product_accepts_what_is_valid(
            sku in prop_oneof!["[A-Za-z0-9._-]{0,3}", "[A-Z]{63,66}", "[ -~]{1,2}", Just("\u{e4}".to_owned()), Just("A\n".to_owned())],
            name in prop_oneof!["[ a\u{0}\u{7f}\u{85}\u{a0}\u{3000}\u{e4}]{0,4}", "[a\u{e4}]{199,202}"],
            unit_amount in prop_oneof![-1..3_i64, MAX_UNIT_AMOUNT - 1..MAX_UNIT_AMOUNT + 2, any::<i64>()],
            currency in prop_oneof!["[A-Z]{2,4}", "[A-Za-z\u{c4}]{3}", Just("EUR\n".to_owned())],
        ) {
            for product in [
                json!({ "sku": sku, "name": "Mug", "unit_amount": 1, "currency": "EUR" }),
                json!({ "sku": "MUG-01", "name": name, "unit_amount": 1, "currency": "EUR" }),
                json!({ "sku": "MUG-01", "name": "Mug", "unit_amount": unit_amount, "currency": "EUR" }),
                json!({ "sku": "MUG-01", "name": "Mug", "unit_amount": 1, "currency": currency }),
            ] {
                prop_assert_eq!(fits::<NewProduct>(&product), accepts::<NewProduct>(&product), "{}", product);
            }
            for change in [json!({ "name": name }), json!({ "unit_amount": unit_amount })] {
                prop_assert_eq!(fits::<ProductChange>(&change), accepts::<ProductChange>(&change), "{}", change);
            }
        }
    }
}
