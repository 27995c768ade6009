//! The log filter, which can be changed while the process runs.
use std::sync::{Arc, PoisonError, RwLock};

use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::settings::Environment;

/// The development filter: `debug`, but `info` for libraries, whose `debug` lines would outnumber the service's own.
const DEVELOPMENT: &str =
    "debug,h2=info,hyper=info,opentelemetry=info,reqwest=info,rustls=info,sqlx=info,tonic=info,tower=info";

const DEFAULT: &str = "info";

/// The handle that reads and changes the log filter. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter(Arc<Inner>);

struct Inner {
    handle: reload::Handle<EnvFilter, Registry>,
    default: String,
    current: RwLock<String>,
}

/// Returns the filter of the log lines, and the handle that changes it. Only the filter can be replaced, not its layer.
/// A layer with a filter is registered with the subscriber once, at start. A layer that replaced it would not be
/// registered, so its filter would not work.
pub(crate) fn reloadable(
    environment: Environment,
    configured: Option<&str>,
) -> Result<(reload::Layer<EnvFilter, Registry>, LogFilter), String> {
    let by_environment = if environment == Environment::Development { DEVELOPMENT } else { DEFAULT };
    let expression = configured.unwrap_or(by_environment).to_owned();
    let (filter, handle) = reload::Layer::new(parse(&expression)?);
    let inner = Inner { handle, default: expression.clone(), current: RwLock::new(expression) };
    Ok((filter, LogFilter(Arc::new(inner))))
}

impl LogFilter {
    /// Returns the current filter.
    pub fn current(&self) -> String {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the filter that the process started with.
    pub fn default_filter(&self) -> &str {
        &self.0.default
    }

    /// Replaces the filter immediately.
    ///
    /// # Errors
    /// The expression is invalid, or the layer of the filter no longer exists. Then the filter does not change.
    pub fn set(&self, expression: &str) -> Result<(), String> {
        let filter = parse(expression)?;
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        self.0.handle.reload(filter).map_err(|error| error.to_string())?;
        expression.clone_into(&mut current);
        // Libraries that use the `log` crate check this maximum level before the filter, so it must allow what the
        // filter allows.
        tracing_log::log::set_max_level(tracing_log::AsLog::as_log(
            &tracing::level_filters::LevelFilter::current(),
        ));
        Ok(())
    }
}

fn parse(expression: &str) -> Result<EnvFilter, String> {
    if expression.contains('[') {
        return Err(
            "directives for spans and their fields ([…]) are not supported: name targets and levels, \
                    such as info,app::accounts=debug"
                .to_owned(),
        );
    }
    if expression.contains(|letter: char| letter.is_control() && !letter.is_whitespace()) {
        return Err("control characters are not supported".to_owned());
    }
    if expression.trim().is_empty() {
        return Err("an empty filter logs errors only: write error or off".to_owned());
    }
    // In a filter, `app` means all code of the service, which is in the crates `app` and `platform`. So a directive for
    // `app` is repeated for `platform`.
    let own = expression.split(',').filter_map(|directive| directive.trim().strip_prefix("app"));
    let own = own.filter(|rest| rest.is_empty() || rest.starts_with('='));
    let directives: Vec<_> = own.map(|rest| format!("platform{rest}")).collect();
    EnvFilter::builder()
        .parse([&[expression.to_owned()], directives.as_slice()].concat().join(","))
        .map_err(|error| format!("{error}: a filter is a list such as info,app::accounts=debug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_unless_the_filter_is_set() {
        let default = |environment, configured| {
            let (_layer, filter) = reloadable(environment, configured).unwrap();
            filter.default_filter().to_owned()
        };
        assert!(default(Environment::Development, None).starts_with("debug,"));
        assert_eq!(default(Environment::Production, None), "info");
        assert_eq!(default(Environment::Development, Some("app=trace")), "app=trace");
    }

    #[test]
    fn a_filter_can_be_changed_while_it_is_in_use() {
        let (_layer, filter) = reloadable(Environment::Production, None).unwrap();
        filter.set("warn,app=debug").unwrap();
        assert_eq!(filter.current(), "warn,app=debug");
        assert_eq!(filter.default_filter(), "info");
    }

    #[test]
    fn an_invalid_filter_changes_nothing() {
        let (_layer, filter) = reloadable(Environment::Production, None).unwrap();
        for wrong in ["app=loud", "info,app=debug=trace", "[request]=debug", " ", "off,a\0=info"] {
            assert!(filter.set(wrong).is_err(), "{wrong}");
        }
        assert_eq!(filter.current(), "info");
        assert!(reloadable(Environment::Production, Some("app=loud")).is_err());
    }
}
