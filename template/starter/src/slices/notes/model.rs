//! Notes, and the rules for their fields.
use chrono::{DateTime, Utc};
use platform::http::{extract::Validate, problem::FieldError, timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A note.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Note {
    /// The id of the note.
    pub id: Uuid,
    /// The customer who owns the note.
    pub owner_id: Uuid,
    /// The name that the owner chose.
    #[schema(example = "First")]
    pub name: String,
    /// The time of creation.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
    /// The time of the last change.
    #[serde(serialize_with = "timestamp::serialize")]
    pub updated_at: DateTime<Utc>,
}

/// The fields that a client sets when it creates or changes a note.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteFields {
    /// The name of the note: 1 to 200 characters.
    #[schema(
        example = "First",
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    pub name: String,
}

/// Maximum length of a name in characters. The constraint `note_name_is_in_bounds` mirrors this limit.
const MAX_NAME_CHARACTERS: usize = 200;

impl Validate for NoteFields {
    fn validate(&self) -> Vec<FieldError> {
        let has_valid_length = (1..=MAX_NAME_CHARACTERS).contains(&self.name.trim().chars().count());
        if has_valid_length && !self.name.chars().any(char::is_control) {
            return Vec::new();
        }
        let rule = format!("must have 1 to {MAX_NAME_CHARACTERS} characters without control characters");
        vec![FieldError::new("/name", rule)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_200_characters_and_no_control_character() {
        let is_valid = |name: &str| NoteFields { name: name.to_owned() }.validate().is_empty();
        assert!(is_valid("a") && is_valid(&"ä".repeat(MAX_NAME_CHARACTERS)));
        assert!(!is_valid("") && !is_valid("  ") && !is_valid(&"ä".repeat(MAX_NAME_CHARACTERS + 1)));
        assert!(!is_valid("two\nlines"));
    }
}
