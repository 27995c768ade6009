//! Users, the bodies of the account routes, and the rules for e-mail addresses, names and passwords.
use chrono::{DateTime, Utc};
use email_address::{EmailAddress, Options};
use platform::http::{extract::Validate, problem::FieldError, timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Role, blocklist};

/// A user.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// E-mail address in lower case.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// Name of the user.
    #[schema(example = "Ada Lovelace")]
    pub name: String,
    /// Role, which decides the user's permissions.
    pub role: Role,
    /// Time of registration.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
}

/// An e-mail address, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Parses an address (RFC 5321, at most 254 bytes), and removes white space around it. Returns `None` if the text
    /// is not an address, or has more than an address, such as a display name.
    pub fn parse(text: &str) -> Option<Self> {
        let email = text.trim().to_lowercase();
        // JSON strings can contain NUL, and PostgreSQL rejects NUL in text. No address needs a control character.
        let printable = !email.chars().any(char::is_control);
        let options = Options::default().without_display_text();
        let is_address = || EmailAddress::parse_with_options(&email, options).is_ok();
        (printable && email.len() <= 254 && is_address()).then_some(Self(email))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A password that has not been hashed yet. Its `Debug` output does not contain the password.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Password(SecretString);

impl Password {
    /// Minimum length of a new password in characters, as in NIST SP 800-63B-3. This length does not fulfil revision 4,
    /// which requires 15 characters if the password is the only factor.
    pub const MIN_CHARACTERS: usize = 8;
    /// Maximum length of a password in characters. Without this limit, the client could choose the time that hashing
    /// takes.
    pub const MAX_CHARACTERS: usize = 1024;

    /// Wraps a password that was not read from a request.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Returns the rule that this new password breaks, if any, for the user with this e-mail address and name. The
    /// rules cover the length and the blocklist; there are no composition rules.
    pub fn weakness(&self, email: &str, name: &str) -> Option<&'static str> {
        let password = self.0.expose_secret();
        if password.chars().count() < Self::MIN_CHARACTERS {
            Some("must have at least 8 characters")
        } else if self.is_too_long() {
            Some(TOO_LONG)
        } else if blocklist::contains(password, email, name) {
            Some("must not be a common password, or the name of the user or of the service")
        } else {
            None
        }
    }

    fn is_too_long(&self) -> bool {
        self.0.expose_secret().chars().count() > Self::MAX_CHARACTERS
    }

    pub(super) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

const TOO_LONG: &str = "must have at most 1024 characters";

/// Registration of a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// E-mail address, which is also the login.
    #[schema(example = "ada@example.com", format = Email, max_length = 254)]
    pub email: String,
    /// Password of 8 to 1024 characters.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024, example = "correct horse battery staple")]
    pub password: Password,
    /// Name of the user: 1 to 200 characters.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        example = "Ada Lovelace"
    )]
    pub name: String,
}

impl Validate for NewUser {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if Email::parse(&self.email).is_none() {
            errors.push(FieldError::new("/email", "must be an e-mail address"));
        }
        if let Some(weakness) = self.password.weakness(&self.email, &self.name) {
            errors.push(FieldError::new("/password", weakness));
        }
        if !is_name(&self.name) {
            errors.push(FieldError::new("/name", "must have 1 to 200 characters without control characters"));
        }
        errors
    }
}

fn is_name(name: &str) -> bool {
    (1..=200).contains(&name.trim().chars().count()) && !name.chars().any(char::is_control)
}

/// Credentials of a login.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// E-mail address.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// Password.
    #[schema(value_type = String, format = Password, max_length = 1024, example = "correct horse battery staple")]
    pub password: Password,
}

impl Validate for Credentials {
    /// Checks only the maximum length of the password. An invalid e-mail address or a password that is too short leads
    /// to the same 401 as wrong credentials, so that the response does not reveal whether the account exists.
    fn validate(&self) -> Vec<FieldError> {
        if self.password.is_too_long() {
            return vec![FieldError::new("/password", TOO_LONG)];
        }
        Vec::new()
    }
}

/// Change of a password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// Current password.
    #[schema(value_type = String, format = Password, max_length = 1024, example = "correct horse battery staple")]
    pub current_password: Password,
    /// Password of 8 to 1024 characters.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024, example = "battery horse staple correct")]
    pub new_password: Password,
}

impl Validate for PasswordChange {
    /// Checks only the maximum length of the current password. The rules for the new password need the user's name and
    /// e-mail address, which only the handler has.
    fn validate(&self) -> Vec<FieldError> {
        if self.current_password.is_too_long() {
            return vec![FieldError::new("/current_password", TOO_LONG)];
        }
        Vec::new()
    }
}

/// A new session. No other response contains its token.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewSession {
    /// Token to send as `Authorization: Bearer TOKEN`.
    pub token: String,
    /// Time at which the session expires.
    #[serde(serialize_with = "timestamp::serialize")]
    pub expires_at: DateTime<Utc>,
    /// User of the session.
    pub user: User,
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

    proptest! {
        #[test]
        fn schemas_of_credentials_accept_exactly_the_valid_bodies(
            name in prop_oneof!["[ a\u{0}\u{7f}\u{85}\u{a0}\u{3000}\u{e4}]{0,4}", "[a\u{e4}]{199,202}"],
            // The schema does not describe the blocklist. No common password has these characters, so the blocklist
            // rejects none of the generated passwords.
            password in prop_oneof!["[\u{1f511}\u{1f40e}]{6,10}", "[\u{1f511}\u{1f40e}]{1023,1026}"],
        ) {
            let email = "ada@example.com";
            for user in [
                json!({ "email": email, "password": "mxqzvkwt", "name": name }),
                json!({ "email": email, "password": password, "name": "Ada" }),
            ] {
                prop_assert_eq!(matches_schema::<NewUser>(&user), accepts::<NewUser>(&user), "{}", user);
            }
            let credentials = json!({ "email": email, "password": password });
            prop_assert_eq!(matches_schema::<Credentials>(&credentials), accepts::<Credentials>(&credentials));
            let change = json!({ "current_password": password, "new_password": "mxqzvkwt" });
            prop_assert_eq!(matches_schema::<PasswordChange>(&change), accepts::<PasswordChange>(&change));
        }
    }

    #[test]
    fn an_address_has_at_most_254_characters() {
        let address = |local| format!("{}@{}example.com", "a".repeat(local), "b.".repeat(91));
        assert_eq!(address(60).len(), 254);
        assert!(Email::parse(&address(60)).is_some());
        assert!(Email::parse(&address(61)).is_none());
    }

    #[test]
    fn an_email_address_is_parsed_to_lower_case() {
        assert_eq!(Email::parse(" Ada@Example.COM ").unwrap().as_str(), "ada@example.com");
    }

    #[test]
    fn an_invalid_email_address_is_rejected() {
        for text in ["", "ada", "@example.com", "ada@", "a b@example.com", "ada@exam\u{0}ple.com"] {
            assert!(Email::parse(text).is_none(), "{text:?}");
        }
        for with_display_name in ["Eve <ada@example.com>", "<ada@example.com>", "\"Eve\" <ada@example.com>"] {
            assert!(Email::parse(with_display_name).is_none(), "{with_display_name:?}");
        }
    }

    #[test]
    fn a_common_password_or_the_users_name_is_rejected() {
        let weakness =
            |password: &str| Password::new(password).weakness("grace.hopper@example.com", "Grace Hopper");
        for common in ["Passw0rd", "grace.hopper", "Grace Hopper", "grace.hopper@example.com"] {
            assert!(weakness(common).is_some(), "{common}");
        }
        // There is no composition rule: a password needs neither capital letters nor digits.
        for accepted in ["correct horse battery staple", "mxqzvkwt", "customer-password"] {
            assert_eq!(weakness(accepted), None, "{accepted}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        assert!(!format!("{:?}", Password::new("open sesame")).contains("sesame"));
    }
}
