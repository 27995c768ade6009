//! Users, and the rules for what they may call themselves.
use chrono::{DateTime, Utc};
use platform::http::{extract::Validate, problem::FieldError, timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use zxcvbn::matching::patterns::MatchPattern;

use super::Role;

/// Characters of a password that are compared with what is common.
const LONGEST_COMMON: usize = 64;

/// A user, as others may see them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// In lower case.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// What they are called.
    #[schema(example = "Ada Lovelace")]
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Since when.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
}

/// An e-mail address, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Reads an address (RFC 5321, at most 254 characters).
    pub fn parse(text: &str) -> Option<Self> {
        let email = text.trim().to_lowercase();
        // NUL is text to JSON and not to PostgreSQL; no address needs a control character.
        let printable = !email.chars().any(char::is_control);
        (printable && email.len() <= 254 && email_address::EmailAddress::is_valid(&email))
            .then_some(Self(email))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A password on its way to being hashed. It cannot be printed.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Password(SecretString);

impl Password {
    /// The fewest characters of a new password (NIST SP 800-63B, 3.1.1.2).
    pub const SHORTEST: usize = 8;
    /// The most, in bytes: hashing time must not be the client's choice.
    pub const LONGEST: usize = 1024;

    /// A password that was read from elsewhere than a request.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// What is wrong with it as a new password, if anything, for somebody whom these words are about. Length is the
    /// rule, composition is not; and it must not be one of those that are tried first (NIST SP 800-63B, 3.1.1.2).
    pub fn weakness(&self, about: &[&str]) -> Option<&'static str> {
        let password = self.0.expose_secret();
        if password.chars().count() < Self::SHORTEST {
            Some("must have at least 8 characters")
        } else if password.len() > Self::LONGEST {
            Some("must have at most 1024 bytes")
        } else if is_common(password, about) {
            Some("is one of those that are tried first: a common one, a single word, a name, or a pattern")
        } else {
            None
        }
    }

    pub(super) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// Whether the whole password is one thing that is guessed early: on a list of common passwords or words, about its
/// user or this service, or a repetition, a row of keys, a sequence or a date. Two such things together are not.
fn is_common(password: &str, about: &[&str]) -> bool {
    let mut about = about.to_vec();
    about.push(env!("CARGO_PKG_NAME"));
    // Nothing on the lists is longer, and the search takes longer than its text does.
    let beginning: String = password.chars().take(LONGEST_COMMON).collect();
    let estimated = zxcvbn::zxcvbn(&beginning, &about);
    matches!(estimated.sequence(), [only] if !matches!(only.pattern, MatchPattern::BruteForce))
}

/// Somebody who wants to be a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// Where they can be reached; also the login.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, min_length = 8, example = "correct horse battery staple")]
    pub password: Password,
    /// What they are called: 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200, example = "Ada Lovelace")]
    pub name: String,
}

impl Validate for NewUser {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if Email::parse(&self.email).is_none() {
            errors.push(FieldError::new("/email", "must be an e-mail address"));
        }
        let account = self.email.split('@').next().unwrap_or_default();
        if let Some(weakness) = self.password.weakness(&[&self.email, account, &self.name]) {
            errors.push(FieldError::new("/password", weakness));
        }
        if !is_name(&self.name) {
            errors.push(FieldError::new(
                "/name",
                "must have 1 to 200 characters, none of them a control character",
            ));
        }
        errors
    }
}

fn is_name(name: &str) -> bool {
    let name = name.trim();
    (1..=200).contains(&name.chars().count()) && !name.chars().any(char::is_control)
}

/// Somebody who says that they are a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The login.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// The proof.
    #[schema(value_type = String, format = Password, example = "correct horse battery staple")]
    pub password: Password,
}

impl Validate for Credentials {
    /// Nothing is refused as invalid that could simply be wrong: both are the same 401.
    fn validate(&self) -> Vec<FieldError> {
        if self.password.expose().len() > Password::LONGEST {
            return vec![FieldError::new("/password", "must have at most 1024 bytes")];
        }
        Vec::new()
    }
}

/// Somebody who wants another password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The proof that it is still them.
    #[schema(value_type = String, format = Password)]
    pub current_password: Password,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, min_length = 8)]
    pub new_password: Password,
}

impl Validate for PasswordChange {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.current_password.expose().len() > Password::LONGEST {
            errors.push(FieldError::new("/current_password", "must have at most 1024 bytes"));
        }
        if let Some(weakness) = self.new_password.weakness(&[]) {
            errors.push(FieldError::new("/new_password", weakness));
        }
        errors
    }
}

/// A session that has just begun. The only place where its token is seen.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewSession {
    /// To be sent as `Authorization: Bearer TOKEN`.
    pub token: String,
    /// Until when.
    #[serde(serialize_with = "timestamp::serialize")]
    pub expires_at: DateTime<Utc>,
    /// Whose.
    pub user: User,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_stored_in_lower_case() {
        assert_eq!(Email::parse(" Ada@Example.COM ").unwrap().as_str(), "ada@example.com");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "ada", "@example.com", "ada@", "a b@example.com", "ada@exam\u{0}ple.com"] {
            assert!(Email::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_password_is_not_what_is_tried_first() {
        for common in [
            "12345678",
            "password",
            "Passw0rd",
            "PASSWORD",
            "qwertyuiop",
            "basketball",
            "aaaaaaaaaaaa",
            "abcdefghij",
            "drowssap",
            "grace.hopper",
            "Grace Hopper",
            env!("CARGO_PKG_NAME"),
            "abcabcabc",
        ] {
            let weakness = Password::new(common).weakness(&["grace.hopper", "Grace Hopper"]);
            assert!(weakness.is_some(), "{common}");
        }
        // No rule of composition: small letters only are as good.
        for fits in
            ["correct horse battery staple", "mxqzvkwt", "customer-password", "purple basketball shoes"]
        {
            assert_eq!(Password::new(fits).weakness(&["grace.hopper"]), None, "{fits}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        assert!(!format!("{:?}", Password::new("open sesame")).contains("sesame"));
    }
}
