//! The `OTEL_*` variables: those that the SDK does not read as the specification requires, and warnings about the others.
use std::{env, time::Duration};

use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;
use url::Url;

use super::{TracesError, export::QUEUE_SIZE};
use crate::{settings::values::http_url, telemetry::settings::Traces};

/// Timeout of one export. It is shorter than the specification's ten seconds, so that an unresponsive collector
/// cannot delay the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const COMPRESSION: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];
const TIMEOUT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// The supported variables of the specification, in addition to those in the table of settings.
const SUPPORTED: [&str; 15] = [
    ENDPOINT,
    COMPRESSION[0],
    COMPRESSION[1],
    TIMEOUT[0],
    TIMEOUT[1],
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_TRACES_EXPORTER",
    QUEUE_SIZE,
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
];

/// Reads an environment variable that is not in the table of settings. An empty value counts as unset.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Returns the items of a list that is separated by commas.
pub(super) fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Returns the receiver of spans, or `None` if spans are not exported: no endpoint is set, or `OTEL_TRACES_EXPORTER`,
/// which the SDK does not read, forbids the export.
///
/// # Errors
/// The endpoint for traces is not a URL. Without its scheme, the exporter would lose every span without a message.
pub(super) fn endpoint(settings: &Traces) -> Result<Option<Url>, TracesError> {
    let endpoint = match set(ENDPOINT) {
        Some(endpoint) => Some(http_url(endpoint.trim()).map_err(TracesError::Endpoint)?),
        None => settings.endpoint.clone(),
    };
    let exporters = set("OTEL_TRACES_EXPORTER").unwrap_or_default();
    Ok(endpoint.filter(|_| !names(&exporters).any(|name| name == "none")))
}

/// Returns the protocol of the export.
pub(super) fn protocol(settings: &Traces) -> String {
    set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").unwrap_or_else(|| settings.protocol.clone())
}

/// Returns the timeout of one export. The specification's variables are in milliseconds.
pub(super) fn timeout() -> Duration {
    let milliseconds = TIMEOUT.into_iter().find_map(|name| set(name)?.parse().ok());
    milliseconds.map_or(EXPORT_TIMEOUT, Duration::from_millis)
}

/// Returns the attributes of `OTEL_RESOURCE_ATTRIBUTES`. Keys and values are percent-decoded, which the SDK does not do
/// (opentelemetry-rust 0.33). As the specification requires, one malformed pair makes the whole value invalid.
fn resource_attributes(text: &str) -> Option<Vec<KeyValue>> {
    let decode = |text: &str| {
        let is_encoded =
            |rest: &str| rest.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let decoded = percent_decode_str(text.trim()).decode_utf8().ok()?;
        text.split('%').skip(1).all(is_encoded).then(|| decoded.into_owned())
    };
    let attribute = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let key = decode(key).filter(|key| !key.is_empty())?;
        Some(KeyValue::new(key, decode(value)?))
    };
    names(text).map(attribute).collect()
}

/// Returns the attributes of `OTEL_RESOURCE_ATTRIBUTES`, or none if the value is invalid.
pub(super) fn attributes(settings: &Traces) -> Vec<KeyValue> {
    settings.resource_attributes.as_deref().and_then(resource_attributes).unwrap_or_default()
}

/// Returns warnings about these settings, to be logged once the log is set up.
///
/// The specification requires that an unknown value is ignored with a warning. The SDK warns before the log is set
/// up, so the service repeats the warning.
pub(in crate::telemetry) fn warnings(settings: &Traces) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in names(&settings.propagators) {
        if !matches!(name, "tracecontext" | "baggage" | "b3" | "b3multi" | "jaeger" | "none") {
            warnings.push(format!(
                "OTEL_PROPAGATORS: ignored {name}; supported values are tracecontext, baggage, b3, b3multi, jaeger \
                 and none"
            ));
        }
    }
    for name in names(&set("OTEL_TRACES_EXPORTER").unwrap_or_default()) {
        if !matches!(name, "otlp" | "none") {
            warnings
                .push(format!("OTEL_TRACES_EXPORTER: ignored {name}; supported values are otlp and none"));
        }
    }
    for variable in COMPRESSION {
        if set(variable).is_some_and(|value| !["gzip", "none"].contains(&value.to_ascii_lowercase().as_str()))
        {
            warnings.push(format!("ignored {variable}; supported values are gzip and none"));
        }
    }
    if settings.resource_attributes.as_deref().is_some_and(|text| resource_attributes(text).is_none()) {
        warnings.push(
            "ignored OTEL_RESOURCE_ATTRIBUTES: it is not a list of key=value, percent-encoded".to_owned(),
        );
    }
    warnings.extend(sampler_warning(settings));
    let mut unsupported: Vec<_> = env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| is_unsupported(name))
        .collect();
    unsupported.sort();
    warnings.extend(unsupported.iter().map(|name| format!("ignored {name}, which is not supported")));
    warnings
}

fn is_unsupported(name: &str) -> bool {
    let is_known = SUPPORTED.contains(&name) || Traces::settings().any(|setting| setting.name == name);
    name.starts_with("OTEL_") && !is_known
}

fn sampler_warning(settings: &Traces) -> Option<String> {
    match settings.sampler.as_str() {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => None,
        "traceidratio" | "parentbased_traceidratio" => {
            let ratio = settings.sampler_argument.as_deref().and_then(|ratio| ratio.parse::<f64>().ok());
            let is_ratio = ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio));
            (!is_ratio).then(|| {
                "OTEL_TRACES_SAMPLER_ARG is not a ratio between 0 and 1: every trace is sampled".to_owned()
            })
        }
        name => Some(format!(
            "OTEL_TRACES_SAMPLER: ignored {name} and used parentbased_always_on; supported values are \
             always_on, always_off, traceidratio and these three after parentbased_"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Vec<(String, String)>> {
        let pair = |attribute: KeyValue| (attribute.key.to_string(), attribute.value.to_string());
        resource_attributes(text).map(|attributes| attributes.into_iter().map(pair).collect())
    }

    #[test]
    fn resource_attributes_are_percent_decoded() {
        let attributes = [("team", "a b"), ("city", "Köln"), ("list", "x,y=z"), ("empty", "")];
        let expected = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let text = "team=a%20b, city = K%C3%B6ln ,list=x%2Cy%3Dz,empty=,";
        assert_eq!(read(text).as_deref(), Some(&expected[..]));
    }

    #[test]
    fn one_malformed_resource_attribute_makes_all_of_them_invalid() {
        for text in ["team", "=a", "team=a,city", "team=%", "team=%4", "team=%zz", "team=%ff"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(""), Some(Vec::new()));
    }
}
