//! The `OTEL_*` variables that the SDK does not read as the specification requires, and warnings about invalid and
//! unsupported variables.
use std::{collections::BTreeSet, env, time::Duration};

use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;
use url::Url;

use super::{ExportError, Signal};
use crate::{
    settings::values::http_url,
    telemetry::settings::{LogsExporter, OpenTelemetry},
};

/// Default timeout of one export. It is shorter than the specification's ten seconds, so that an unresponsive collector
/// delays the end of the process less.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Name suffixes of the export variables. Each follows `OTEL_EXPORTER_OTLP_`, `OTEL_EXPORTER_OTLP_TRACES_` or
/// `OTEL_EXPORTER_OTLP_LOGS_`.
const EXPORT_VARIABLES: [&str; 5] = ["COMPRESSION", "ENDPOINT", "HEADERS", "PROTOCOL", "TIMEOUT"];

/// Supported variables with a number that are not declared as settings.
const NUMBERS: [&str; 9] = [
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
];

/// Returns the two names of a variable: the name for one signal, and the name for all signals.
fn names_of(signal: Signal, variable: &str) -> [String; 2] {
    [format!("OTEL_EXPORTER_OTLP_{}_{variable}", signal.name()), format!("OTEL_EXPORTER_OTLP_{variable}")]
}

/// Reads an environment variable that is not declared as a setting. An empty value counts as unset.
fn read_variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Returns the items of a comma-separated list.
pub(in crate::telemetry) fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Returns the endpoint of a signal. Returns `None` if the variable of the signal's exporter turns the export off, or
/// if the signal is traces and no endpoint is set.
///
/// # Errors
/// The signal's own endpoint variable is not an `http` or `https` URL, or log records are to be exported and no
/// endpoint is set. The URL is checked here, because the exporter would silently drop all data if the URL had no
/// scheme.
pub(super) fn endpoint(signal: Signal, settings: &OpenTelemetry) -> Result<Option<Url>, ExportError> {
    let is_exported = match signal {
        // The SDK does not read `OTEL_TRACES_EXPORTER`.
        Signal::Traces => {
            !names(&read_variable("OTEL_TRACES_EXPORTER").unwrap_or_default()).any(|name| name == "none")
        }
        Signal::Logs => settings.logs_exporter == LogsExporter::Otlp,
    };
    let [signal_variable, _] = names_of(signal, "ENDPOINT");
    let endpoint = match read_variable(&signal_variable) {
        Some(endpoint) => Some(
            http_url(endpoint.trim())
                .map_err(|rule| ExportError::Endpoint { name: signal_variable, rule })?,
        ),
        None => settings.endpoint.clone(),
    };
    match (signal, endpoint) {
        _ if !is_exported => Ok(None),
        (Signal::Logs, None) => Err(ExportError::NoEndpoint),
        (_, endpoint) => Ok(endpoint),
    }
}

/// Returns the protocol of the export.
pub(super) fn protocol(signal: Signal, settings: &OpenTelemetry) -> String {
    let [signal_variable, _] = names_of(signal, "PROTOCOL");
    read_variable(&signal_variable).unwrap_or_else(|| settings.protocol.clone())
}

/// Returns the timeout of one export. The specification's variables are in milliseconds.
pub(super) fn timeout(signal: Signal) -> Duration {
    let milliseconds =
        names_of(signal, "TIMEOUT").into_iter().find_map(|name| read_variable(&name)?.parse().ok());
    milliseconds.map_or(EXPORT_TIMEOUT, Duration::from_millis)
}

/// Returns the size of a queue, in items. The default is that of the specification.
pub(super) fn queue_size(variable: &str) -> usize {
    const DEFAULT_QUEUE_SIZE: usize = 2_048;
    let configured = read_variable(variable).and_then(|size| size.parse().ok());
    configured.filter(|size| *size > 0).unwrap_or(DEFAULT_QUEUE_SIZE)
}

/// Parses the value of `OTEL_RESOURCE_ATTRIBUTES`. Keys and values are percent-decoded, which the SDK does not do
/// (opentelemetry-rust 0.33). Returns `None` if any pair is malformed, because the specification requires that the
/// whole value is then ignored.
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
pub(super) fn attributes(settings: &OpenTelemetry) -> Vec<KeyValue> {
    settings.resource_attributes.as_deref().and_then(resource_attributes).unwrap_or_default()
}

/// Returns warnings about invalid and unsupported `OTEL_*` variables. The caller logs them once the log is set up.
///
/// The specification requires that an unknown value is ignored with a warning. The SDK warns before the log is set
/// up, so the service repeats the warning.
pub(in crate::telemetry) fn warnings(settings: &OpenTelemetry) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in names(&settings.propagators) {
        if !matches!(name, "tracecontext" | "baggage" | "b3" | "b3multi" | "jaeger" | "none") {
            warnings.push(format!(
                "OTEL_PROPAGATORS: ignored {name}; supported values are tracecontext, baggage, b3, b3multi, jaeger \
                 and none"
            ));
        }
    }
    for name in names(&read_variable("OTEL_TRACES_EXPORTER").unwrap_or_default()) {
        if !matches!(name, "otlp" | "none") {
            warnings
                .push(format!("OTEL_TRACES_EXPORTER: ignored {name}; supported values are otlp and none"));
        }
    }
    let compression = Signal::ALL.into_iter().flat_map(|signal| names_of(signal, "COMPRESSION"));
    for variable in compression.collect::<BTreeSet<_>>() {
        if read_variable(&variable)
            .is_some_and(|value| !["gzip", "none"].contains(&value.to_ascii_lowercase().as_str()))
        {
            warnings.push(format!("ignored {variable}; supported values are gzip and none"));
        }
    }
    let timeouts = Signal::ALL.into_iter().flat_map(|signal| names_of(signal, "TIMEOUT"));
    for variable in timeouts.chain(NUMBERS.map(str::to_owned)).collect::<BTreeSet<_>>() {
        let minimum = u64::from(variable.ends_with("_MAX_QUEUE_SIZE"));
        if let Some(value) = read_variable(&variable)
            && !value.parse().is_ok_and(|number: u64| number >= minimum)
        {
            warnings.push(format!("ignored {variable}: it is not a number of at least {minimum}"));
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
    let is_export_variable = |rest: &str| {
        let without_signal = ["TRACES_", "LOGS_"].iter().find_map(|signal| rest.strip_prefix(signal));
        EXPORT_VARIABLES.contains(&without_signal.unwrap_or(rest))
    };
    let is_known = name == "OTEL_TRACES_EXPORTER"
        || NUMBERS.contains(&name)
        || OpenTelemetry::settings().any(|setting| setting.name == name)
        || name.strip_prefix("OTEL_EXPORTER_OTLP_").is_some_and(is_export_variable);
    name.starts_with("OTEL_") && !is_known
}

fn sampler_warning(settings: &OpenTelemetry) -> Option<String> {
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
             always_on, always_off and traceidratio, each also with the prefix parentbased_"
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
