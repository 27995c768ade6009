//! Parsers for the text of settings. Each error states the expected format and never repeats the text, which may be a
//! secret.
use std::{
    collections::BTreeMap, fmt::Display, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr,
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use super::Environment;

pub fn environment(text: &str) -> Result<Environment, String> {
    match text {
        "development" => Ok(Environment::Development),
        "test" => Ok(Environment::Test),
        "staging" => Ok(Environment::Staging),
        "production" => Ok(Environment::Production),
        _ => Err("must be development, test, staging or production".into()),
    }
}

pub fn flag(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

pub fn count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, 0 or more".into())
}

pub fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    let is_zero = text.parse::<u128>() == Ok(0);
    text.parse().ok().filter(|_| !is_zero).ok_or_else(|| "must be a whole number, 1 or more".into())
}

/// Returns a number if it is at most `max`.
fn bounded<T: PartialOrd + Display + Copy>(number: T, max: T) -> Result<T, String> {
    if number <= max { Ok(number) } else { Err(format!("must be at most {max}")) }
}

/// Parses a number of requests per second or per minute, at most a million. A limiter stores the time per request in
/// whole nanoseconds. This time would be zero for more than a billion requests per second, far above the maximum.
pub fn rate(text: &str) -> Result<u32, String> {
    bounded(count(text)?, 1_000_000)
}

/// Parses a number of days. The maximum is a century, because subtracting many more days from the current time would
/// overflow.
pub fn days(text: &str) -> Result<u32, String> {
    bounded(count(text)?, 36_500)
}

/// Maximum number of connections of a pool. A new pool allocates a slot for each possible connection, so a much larger
/// number could exhaust the memory.
const MAX_POOL_SIZE: NonZeroU32 = NonZeroU32::new(10_000).unwrap();

pub fn pool_size(text: &str) -> Result<NonZeroU32, String> {
    bounded(positive(text)?, MAX_POOL_SIZE)
}

/// Maximum number of seconds or milliseconds. It exceeds any sensible duration, and adding it to a time cannot
/// overflow.
const MAX_DURATION: u64 = 10 * 365 * 24 * 60 * 60;

pub fn seconds(text: &str) -> Result<Duration, String> {
    match count(text)? {
        long if long > MAX_DURATION => Err("must be at most ten years".into()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// Parses a number of seconds that must not be zero.
pub fn positive_seconds(text: &str) -> Result<Duration, String> {
    positive::<std::num::NonZeroU64>(text)?;
    seconds(text)
}

pub fn milliseconds(text: &str) -> Result<Duration, String> {
    match positive::<std::num::NonZeroU64>(text)?.get() {
        long if long > MAX_DURATION => Err(format!("must be at most {MAX_DURATION}")),
        milliseconds => Ok(Duration::from_millis(milliseconds)),
    }
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:8080".into())
}

pub fn http_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("must be an http or https URL".into()),
    }
}

pub fn directory(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

pub fn secret(text: &str) -> Result<SecretString, String> {
    Ok(SecretString::from(text))
}

pub fn forwarded_header(text: &str) -> Result<HeaderName, String> {
    match text.parse::<HeaderName>() {
        Ok(name) if ["x-forwarded-for", "forwarded"].contains(&name.as_str()) => Ok(name),
        _ => Err("must be x-forwarded-for or forwarded".into()),
    }
}

pub fn list_of_networks(text: &str) -> Result<Vec<IpNet>, String> {
    items(text)
        .map(|item| item.parse().or_else(|_| item.parse().map(std::net::IpAddr::into)))
        .collect::<Result<_, _>>()
        .map_err(|_: std::net::AddrParseError| {
            "must be networks such as 10.0.0.0/8, separated by commas".into()
        })
}

pub fn list_of_origins(text: &str) -> Result<Vec<HeaderValue>, String> {
    let expected = "must be origins such as https://shop.example, separated by commas";
    items(text)
        .map(|item| match Url::parse(item) {
            // An origin has no path. An item with a trailing slash would match no browser's `Origin` header.
            Ok(url) if url.origin().ascii_serialization() == item => {
                HeaderValue::from_str(item).map_err(|_| expected.into())
            }
            _ => Err(expected.into()),
        })
        .collect()
}

pub fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let is_name = |name: &str| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    items(text)
        .map(|item| match item.split_once('=') {
            Some((name, value)) if is_name(name) => Ok((name.to_owned(), value.to_owned())),
            _ => Err("must be labels such as namespace=example, separated by commas".into()),
        })
        .collect()
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_a_maximum_where_arithmetic_needs_one() {
        assert_eq!(rate("1000000"), Ok(1_000_000));
        assert_eq!(days("36500"), Ok(36_500));
        assert_eq!(pool_size("10000").map(NonZeroU32::get), Ok(10_000));
        assert_eq!(positive_seconds("1"), Ok(Duration::from_secs(1)));
        for error in [
            rate("1000001").err(),
            rate("4294967295").err(),
            days("36501").err(),
            pool_size("10001").err(),
            pool_size("0").err(),
            positive_seconds("0").err(),
            positive_seconds("18446744073709551615").err(),
        ] {
            assert!(error.unwrap().starts_with("must be "));
        }
    }
}
