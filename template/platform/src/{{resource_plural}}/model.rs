//! The {{resource_plural_words}}, and the rules for their fields.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::platform::http::{extract::Validate, problem::FieldError, timestamp};

/// A {{resource_words}} record.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct {{Resource}} {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub owner_id: Uuid,
    /// What its owner calls it.
    #[schema(example = "First")]
    pub name: String,
    /// When it was created.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    #[serde(serialize_with = "timestamp::serialize")]
    pub updated_at: DateTime<Utc>,
}

/// What there is to say of a {{resource_words}} record, when it is created and when it is changed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct {{Resource}}Fields {
    /// What its owner calls it: 1 to 200 characters.
    #[schema(example = "First", min_length = 1, max_length = 200)]
    pub name: String,
}

/// The longest name, in characters. Its twin in SQL is the constraint `{{resource}}_name_is_in_bounds`.
const LONGEST_NAME: usize = 200;

impl Validate for {{Resource}}Fields {
    fn validate(&self) -> Vec<FieldError> {
        let fits = (1..=LONGEST_NAME).contains(&self.name.trim().chars().count());
        if fits && !self.name.chars().any(char::is_control) {
            return Vec::new();
        }
        let rule = format!("must have 1 to {LONGEST_NAME} characters, none of them a control character");
        vec![FieldError::new("/name", rule)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_200_characters_and_no_control_character() {
        let is_valid = |name: &str| {{Resource}}Fields { name: name.to_owned() }.validate().is_empty();
        assert!(is_valid("a") && is_valid(&"ä".repeat(LONGEST_NAME)));
        assert!(!is_valid("") && !is_valid("  ") && !is_valid(&"ä".repeat(LONGEST_NAME + 1)));
        assert!(!is_valid("two\nlines"));
    }
}
