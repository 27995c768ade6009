//! Passwords that attackers try first (NIST SP 800-63B-4, section 3.1.1.2), rejected wherever a password is chosen.
//!
//! The check looks the password up in a list of common passwords, and does not estimate its strength. The time of an
//! estimate depends on the password, so an unauthenticated client could choose the cost of the computation. The check
//! compares the whole password with each entry and each name, so a password may contain a common password or a name.
use passwords::analyzer::is_common_password;

/// Returns whether the password is a common one, or derived from the user's e-mail address or name, or from the name of
/// this service.
pub(super) fn contains(password: &str, email: &str, name: &str) -> bool {
    let account = email.split('@').next().unwrap_or_default();
    let names = [email, account, name, env!("CARGO_PKG_NAME")].into_iter().chain(name.split_whitespace());
    // The list has some passwords only in a spelling with capital letters, so the password is looked up unchanged and
    // in lower case.
    is_common_password(password)
        || is_common_password(password.to_lowercase())
        || names.map(normalized).any(|name| is_derived(&normalized(password), &name))
}

/// Returns whether the password is the name. Digits before and after the password and the name are ignored.
fn is_derived(password: &str, name: &str) -> bool {
    let is_same = |password: &str, name: &str| !name.is_empty() && password == name;
    is_same(password, name)
        || is_same(password.trim_matches(char::is_numeric), name.trim_matches(char::is_numeric))
}

/// Returns the letters and digits of a text, in lower case.
fn normalized(text: &str) -> String {
    text.to_lowercase().chars().filter(|character| character.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_rejected(password: &str) -> bool {
        contains(password, "ada.lovelace1815@example.com", "Augusta King")
    }

    #[test]
    fn a_common_password_is_rejected_in_any_case() {
        for common in ["12345678", "password", "Passw0rd", "PASSWORD", "qwertyuiop", "basketball", "drowssap"]
        {
            assert!(is_rejected(common), "{common}");
        }
        assert!(is_rejected("123456789ABCDe"), "an entry with capital letters must be found");
        for repeated in ["aaaaaaaaaaaa", "abcdefghij", "abcabcabc"] {
            assert!(is_rejected(repeated), "{repeated}");
        }
    }

    #[test]
    fn a_name_with_added_digits_and_punctuation_is_rejected() {
        for name in [
            "ada.lovelace1815@example.com",
            "Ada-Lovelace",
            "ADALOVELACE1815",
            "2026adalovelace!",
            "Augusta King",
            "augusta1815",
            concat!(env!("CARGO_PKG_NAME"), "2026"),
        ] {
            assert!(is_rejected(name), "{name}");
        }
    }

    #[test]
    fn a_password_may_contain_a_name_or_a_common_password() {
        for accepted in
            ["ada and the engine", "correct horse battery staple", "mxqzvkwt", "purple basketball shoes"]
        {
            assert!(!is_rejected(accepted), "{accepted}");
        }
    }

    #[test]
    fn an_empty_name_rejects_nothing() {
        assert!(!contains("mxqzvkwt", "@", " "));
    }
}
