//! Products, and the rules for their fields.
use iso_currency::{Currency, IntoEnumIterator};
use platform::http::{extract::Validate, problem::FieldError};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};
use uuid::Uuid;

/// The highest price of one piece, in minor units. This limit keeps the total of every order below 2^53, above which
/// many JSON readers lose precision. Mirrors the constraint `unit_amount_is_in_bounds`.
pub const MAX_UNIT_AMOUNT: i64 = 10_000_000_000;

/// A product of the catalog.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Product {
    /// The product's id.
    pub id: Uuid,
    /// Stock-keeping unit, which is unique.
    #[schema(example = "MUG-01")]
    pub sku: String,
    /// Name for customers.
    #[schema(example = "Mug")]
    pub name: String,
    /// The price of one piece, in minor units.
    #[schema(example = 1290)]
    pub unit_amount: i64,
    /// ISO 4217 code of the currency.
    #[schema(example = "EUR")]
    pub currency: String,
    /// True if the product can be ordered.
    pub active: bool,
}

/// A new product.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProduct {
    /// Stock-keeping unit, which is unique: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    #[schema(example = "MUG-01", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub sku: String,
    /// Name for customers: 1 to 200 characters.
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
    /// ISO 4217 code of the currency.
    #[schema(schema_with = currency_schema)]
    pub currency: String,
}

/// Change of a product. Omitted fields stay unchanged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductChange {
    /// New name.
    #[schema(
        example = "Large mug",
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    pub name: Option<String>,
    /// New price in minor units, for new orders.
    #[schema(example = 1490, minimum = 1, maximum = 10_000_000_000_i64)]
    pub unit_amount: Option<i64>,
    /// True if the product can be ordered.
    pub active: Option<bool>,
}

impl Validate for NewProduct {
    fn validate(&self) -> Vec<FieldError> {
        let is_sku_character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let mut errors = Vec::new();
        if !(1..=64).contains(&self.sku.len()) || !self.sku.bytes().all(is_sku_character) {
            errors.push(FieldError::new("/sku", "must have 1 to 64 characters of A-Z a-z 0-9 . _ -"));
        }
        check_name(&self.name, &mut errors);
        check_unit_amount(self.unit_amount, &mut errors);
        if !is_currency(&self.currency) {
            errors.push(FieldError::new(
                "/currency",
                "must be the ISO 4217 code of a current currency, such as EUR",
            ));
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

/// Returns whether the text is the code of a current currency. ISO 4217 also has codes that no payment can use: metals,
/// units of account, funds, `XTS` for tests and `XXX` for no currency. The crate `iso_currency` also has currencies
/// that another currency has replaced.
fn is_currency(code: &str) -> bool {
    Currency::from_code(code).is_some_and(is_current)
}

fn is_current(currency: Currency) -> bool {
    !currency.is_special() && !currency.is_fund() && currency.is_superseded().is_none()
}

/// Returns a schema that lists exactly the accepted codes.
fn currency_schema() -> Object {
    let codes = Currency::iter().filter(|currency| is_current(*currency)).map(|currency| currency.code());
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("ISO 4217, without funds, metals and replaced currencies. The minor unit has two decimals in most currencies, none in JPY and three in KWD."))
        .enum_values(Some(codes))
        .examples(["EUR"])
        .build()
}

fn check_name(name: &str, errors: &mut Vec<FieldError>) {
    if !(1..=200).contains(&name.trim().chars().count()) || name.chars().any(char::is_control) {
        errors.push(FieldError::new("/name", "must have 1 to 200 characters without control characters"));
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

    /// Returns whether a value matches the schema in the `OpenAPI` document.
    fn matches_schema<T: ToSchema>(value: &Value) -> bool {
        jsonschema::is_valid(&serde_json::to_value(T::schema()).unwrap(), value)
    }

    fn accepts<T: DeserializeOwned + Validate>(value: &Value) -> bool {
        serde_json::from_value::<T>(value.clone()).is_ok_and(|value| value.validate().is_empty())
    }

    #[test]
    fn only_current_currencies_of_iso_4217_are_accepted() {
        for code in ["EUR", "USD", "JPY", "KWD", "XOF", "XCD"] {
            assert!(is_currency(code), "{code}");
        }
        for code in ["XXX", "XTS", "XAU", "XDR", "ZZZ", "HRK", "CLF", "eur", "EU", "EURO", "", "E\u{20ac}R"] {
            assert!(!is_currency(code), "{code}");
        }
    }

    proptest! {
        #[test]
        fn schemas_of_products_accept_exactly_the_valid_bodies(
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
                prop_assert_eq!(matches_schema::<NewProduct>(&product), accepts::<NewProduct>(&product), "{}", product);
            }
            for change in [json!({ "name": name }), json!({ "unit_amount": unit_amount })] {
                prop_assert_eq!(matches_schema::<ProductChange>(&change), accepts::<ProductChange>(&change), "{}", change);
            }
        }
    }
}
