//! Passwords that attackers try first (NIST SP 800-63B-4, section 3.1.1.2), rejected wherever a password is chosen.
//!
//! The check is a look-up instead of an estimate of strength. The time of an estimate depends on the password, so an
//! unauthenticated client could choose the cost of the computation. The whole password is compared, never a part of it.
use passwords::analyzer::is_common_password;

/// Returns whether the password is a common one, or the name of its user or of this service.
pub(super) fn contains(password: &str, email: &str, name: &str) -> bool {
    let account = email.split('@').next().unwrap_or_default();
    let names = [email, account, name, env!("CARGO_PKG_NAME")].into_iter().chain(name.split_whitespace());
    // Entries of the list with capital letters are common in that case only.
    is_common_password(password)
        || is_common_password(password.to_lowercase())
        || names.map(folded).any(|name| is_derived(&folded(password), &name))
}

/// Returns whether the password is the name, with or without digits around it.
fn is_derived(password: &str, name: &str) -> bool {
    let same = |password: &str, name: &str| !name.is_empty() && password == name;
    same(password, name) || same(password.trim_matches(char::is_numeric), name.trim_matches(char::is_numeric))
}

/// Returns the letters and digits of a text, in lower case.
fn folded(text: &str) -> String {
    text.to_lowercase().chars().filter(|character| character.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(password: &str) -> bool {
        contains(password, "ada.lovelace1815@example.com", "Augusta King")
    }

    #[test]
    fn a_common_password_is_rejected_in_any_case() {
        for common in ["12345678", "password", "Passw0rd", "PASSWORD", "qwertyuiop", "basketball", "drowssap"]
        {
            assert!(is_refused(common), "{common}");
        }
        assert!(is_refused("123456789ABCDe"), "the list has it with these capital letters only");
        for repeated in ["aaaaaaaaaaaa", "abcdefghij", "abcabcabc"] {
            assert!(is_refused(repeated), "{repeated}");
        }
    }

    #[test]
    fn a_name_with_added_signs_and_digits_is_rejected() {
        for name in [
            "ada.lovelace1815@example.com",
            "Ada-Lovelace",
            "ADALOVELACE1815",
            "2026adalovelace!",
            "Augusta King",
            "augusta1815",
            concat!(env!("CARGO_PKG_NAME"), "2026"),
        ] {
            assert!(is_refused(name), "{name}");
        }
    }

    #[test]
    fn a_password_may_contain_a_name_or_a_common_password() {
        for fits in
            ["ada and the engine", "correct horse battery staple", "mxqzvkwt", "purple basketball shoes"]
        {
            assert!(!is_refused(fits), "{fits}");
        }
    }

    #[test]
    fn an_empty_name_rejects_nothing() {
        assert!(!contains("mxqzvkwt", "@", " "));
    }
}
