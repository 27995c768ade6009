//! Panics: each is logged as one `error` line, and counted.
//!
//! Rust's default hook writes to standard error instead, outside of the log and without the correlation id.
use std::{
    backtrace::Backtrace,
    panic::{self, PanicHookInfo},
    thread,
};

crate::metrics! {
    /// Panics, caught or not.
    static PANICS: counter = "panics_total";
}

/// Installs the hook that logs and counts panics.
pub(super) fn start() {
    initialize();
    panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    PANICS.inc();
    tracing::error!(
        target: "panic",
        thread = thread::current().name(),
        location = panic.location().map(tracing::field::display),
        backtrace = %Backtrace::force_capture(),
        "panicked: {}",
        panic.payload_as_str().unwrap_or("(not a string)"),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{
        Event, Subscriber,
        field::{Field, Visit},
    };
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    /// A layer that stores every logged field as text.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber> Layer<S> for Memory {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    impl Visit for Memory {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push((field.name().to_owned(), format!("{value:?}")));
        }
    }

    #[test]
    fn a_panic_is_one_line_with_location_and_backtrace() {
        fn spills_the_tea() {
            panic!("the tea is spilt");
        }
        let memory = Memory::default();
        let before = PANICS.get();
        let previous_hook = panic::take_hook();
        panic::set_hook(Box::new(report));
        let caught =
            tracing::subscriber::with_default(tracing_subscriber::registry().with(memory.clone()), || {
                panic::catch_unwind(spills_the_tea)
            });
        panic::set_hook(previous_hook);
        assert!(caught.is_err());
        // Other tests of this process may panic meanwhile, on threads of their own.
        assert!(PANICS.get() > before);
        let fields = memory.0.lock().unwrap();
        let field = |name: &str| {
            let found: Vec<_> = fields.iter().filter(|(known, _)| known == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0].1.clone()
        };
        assert_eq!(field("message"), "panicked: the tea is spilt");
        assert!(field("location").contains("panics.rs"));
        assert!(field("backtrace").contains("spills_the_tea"), "{}", field("backtrace"));
    }
}
