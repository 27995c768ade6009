//! The telemetry schema (`docs/telemetry-schema*.md`) lists exactly the spans, span attributes and log fields in the
//! sources. The tests together receive every span attribute and log field that the schema marks as stable.
use std::{collections::BTreeSet, env, fs};

use dev::harness::{RECEIVED_NAMES, Schema};
use syn::{
    Attribute, Expr, ExprLit, Ident, Lit, LitStr, Macro, Meta, Token,
    ext::IdentExt as _,
    parse::{Parse, ParseStream, discouraged::Speculative as _},
    punctuated::Punctuated,
    visit::{self, Visit},
};

use super::{
    assert_complete,
    structure::{CRATES, files},
};

/// The fields that a log line can have in addition to the fields of its event. A field of an event with one of these
/// names gets the prefix `field.`.
const COMMON_LINE_FIELDS: [&str; 11] = [
    "correlation_id",
    "level",
    "message",
    "request_id",
    "service",
    "span_id",
    "target",
    "timestamp",
    "trace_id",
    "user_id",
    "version",
];

/// The arguments of a macro or an attribute of `tracing`.
#[derive(Default)]
struct Arguments {
    /// The first string literal: the name of a span, or the message of an event.
    text: Option<String>,
    fields_before_text: Vec<String>,
    fields_after_text: Vec<String>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut arguments = Self::default();
        while !input.is_empty() {
            let lookahead = input.fork();
            if arguments.text.is_none() && input.peek(LitStr) {
                arguments.text = Some(input.parse::<LitStr>()?.value());
            } else if input.peek(Ident) && input.peek2(Token![:]) && !input.peek2(Token![::]) {
                // `target: "…"`, `parent: …`
                let _ = (input.parse::<Ident>()?, input.parse::<Token![:]>()?, input.parse::<Expr>()?);
            } else if let Ok(name) = field(&lookahead) {
                input.advance_to(&lookahead);
                let no_text_yet = arguments.text.is_none();
                let fields = if no_text_yet {
                    &mut arguments.fields_before_text
                } else {
                    &mut arguments.fields_after_text
                };
                fields.push(name);
            } else {
                // An argument of the format string.
                input.parse::<Expr>()?;
            }
            input.parse::<Option<Token![,]>>()?;
        }
        Ok(arguments)
    }
}

/// Parses a field: `name = value` or a variable, with an optional `%` or `?` before the value. Returns the name.
fn field(input: ParseStream<'_>) -> syn::Result<String> {
    format_mark(input)?;
    let mut name = Vec::new();
    loop {
        name.push(input.call(Ident::parse_any)?.unraw().to_string());
        if input.parse::<Option<Token![.]>>()?.is_none() {
            break;
        }
    }
    if input.parse::<Option<Token![=]>>()?.is_some() {
        format_mark(input)?;
        input.parse::<Expr>()?;
    }
    if !input.is_empty() && !input.peek(Token![,]) {
        return Err(input.error("not a field"));
    }
    Ok(name.join("."))
}

fn format_mark(input: ParseStream<'_>) -> syn::Result<()> {
    input.parse::<Option<Token![%]>>()?;
    input.parse::<Option<Token![?]>>()?;
    Ok(())
}

/// The names of spans, span attributes and log fields in the visited files.
#[derive(Default)]
struct Sources(Schema);

impl<'ast> Visit<'ast> for Sources {
    fn visit_macro(&mut self, invocation: &'ast Macro) {
        let Some(name) = invocation.path.segments.last().map(|last| last.ident.to_string()) else { return };
        match name.as_str() {
            "info_span" => {
                let span: Arguments = invocation.parse_body().unwrap();
                self.0.spans.extend(span.text);
                self.0.span_attributes.extend(span.fields_after_text);
            }
            "error" | "warn" | "info" | "debug" | "trace" => {
                let event: Arguments = invocation.parse_body().unwrap();
                self.0.log_fields.extend(event.fields_before_text);
            }
            _ => {}
        }
        visit::visit_macro(self, invocation);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if !attribute.path().is_ident("instrument") {
            return;
        }
        for argument in attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap() {
            match argument {
                Meta::NameValue(argument) if argument.path.is_ident("name") => {
                    let Expr::Lit(ExprLit { lit: Lit::Str(name), .. }) = argument.value else { continue };
                    self.0.spans.insert(name.value());
                }
                Meta::List(fields) if fields.path.is_ident("fields") => {
                    let fields: Arguments = fields.parse_args().unwrap();
                    self.0.span_attributes.extend(fields.fields_before_text);
                }
                _ => {}
            }
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }
}

#[test]
fn the_telemetry_schema_lists_the_names_in_the_sources() {
    let mut sources = Sources::default();
    for path in CRATES.iter().flat_map(|directory| files(directory)) {
        if !path.ends_with("tests.rs") {
            sources.visit_file(&syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap());
        }
    }
    let Schema { spans, mut span_attributes, log_fields, .. } = sources.0;
    // The bridge to OpenTelemetry converts the fields `otel.*` into the name, the kind and the status of a span, and
    // adds the fields `exception.*` for logged errors.
    span_attributes.retain(|name| !name.starts_with("otel."));
    span_attributes.extend(["exception.message", "exception.stacktrace"].map(str::to_owned));
    let renamed = |name: String| {
        if COMMON_LINE_FIELDS.contains(&name.as_str()) { format!("field.{name}") } else { name }
    };
    let mut log_fields: BTreeSet<_> = log_fields.into_iter().map(renamed).collect();
    log_fields.extend(COMMON_LINE_FIELDS.map(str::to_owned));

    let documented = Schema::documented();
    let file = "docs/telemetry-schema*.md";
    assert_complete(file, &documented.spans, "the spans in the sources", &spans);
    assert_complete(file, &documented.span_attributes, "the span fields in the sources", &span_attributes);
    assert_complete(file, &documented.log_fields, "the event fields in the sources", &log_fields);
}

#[test]
#[ignore = "needs the names that a run of all tests has received"]
fn every_stable_name_was_received() {
    let received = env::var_os(RECEIVED_NAMES).expect("RECEIVED_NAMES must be the path of a file");
    let received = fs::read_to_string(received).unwrap();
    let received: BTreeSet<_> = received.lines().collect();
    let documented = Schema::documented();
    let never = |kind: &str, names: &BTreeSet<String>| -> Vec<String> {
        // A project that calls no other service has no circuit breaker, and so no line with this field.
        let stable = names.intersection(&documented.stable).filter(|name| *name != "field.service");
        stable.map(|name| format!("{kind} {name}")).filter(|name| !received.contains(name.as_str())).collect()
    };
    let never =
        [never("attribute", &documented.span_attributes), never("field", &documented.log_fields)].concat();
    assert!(never.is_empty(), "no test has received {never:#?}");
}
