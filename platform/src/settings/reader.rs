//! The machinery behind the table of settings: where values come from, and how mistakes are gathered.
use std::{collections::BTreeMap, fmt};

/// One row of the table of settings.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// What it means, with its unit: the doc comment in the table.
    pub meaning: &'static str,
    /// The group it belongs to.
    pub group: &'static str,
    /// Its default; `None` where a default cannot be safe or means "none".
    pub default: Option<&'static str>,
    /// Whether the service refuses to start without it.
    pub required: bool,
    /// Whether it is never shown, and has no flag.
    pub secret: bool,
    /// Whether the command line has a flag for it.
    pub has_flag: bool,
}

impl Setting {
    /// Its name on the command line, without the dashes.
    pub fn flag(&self) -> String {
        self.name.to_lowercase().replace('_', "-")
    }
}

type Source = Box<dyn Fn(&str) -> Option<String>>;

/// Reads settings by name, and remembers every mistake.
pub struct Reader {
    source: Source,
    mistakes: BTreeMap<&'static str, String>,
}

impl Reader {
    /// Reads from `source`: flags before the environment. An empty value is an unset one, since that is
    /// what shells and compose files make of a variable without a value.
    pub fn new(source: impl Fn(&str) -> Option<String> + 'static) -> Self {
        let source = Box::new(move |name: &str| source(name).filter(|value| !value.trim().is_empty()));
        Self { source, mistakes: BTreeMap::new() }
    }

    /// The effective value as text; the default where nothing is set.
    pub fn effective(&self, setting: &Setting) -> Option<String> {
        (self.source)(setting.name).or_else(|| setting.default.map(str::to_owned))
    }

    /// Adds a mistake that is seen only when several settings are looked at together.
    pub fn mistake(&mut self, name: &'static str, rule: impl Into<String>) {
        self.mistakes.entry(name).or_insert(rule.into());
    }

    /// Ends reading: what `read` made, or every mistake.
    ///
    /// # Errors
    /// All mistakes, together.
    pub fn finish<T>(mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Result<T, Mistakes> {
        match read(&mut self) {
            Some(value) if self.mistakes.is_empty() => Ok(value),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    pub fn required<T>(&mut self, name: &'static str, parse: Parse<T>) -> Option<T> {
        let Some(value) = (self.source)(name) else {
            self.mistake(name, "is not set");
            return None;
        };
        self.parsed(name, &value, parse)
    }

    pub fn optional<T>(&mut self, name: &'static str, parse: Parse<T>) -> Option<Option<T>> {
        match (self.source)(name) {
            Some(value) => self.parsed(name, &value, parse).map(Some),
            None => Some(None),
        }
    }

    pub fn default<T>(&mut self, name: &'static str, parse: Parse<T>, default: &str) -> Option<T> {
        let value = (self.source)(name);
        self.parsed(name, value.as_deref().unwrap_or(default), parse)
    }

    fn parsed<T>(&mut self, name: &'static str, value: &str, parse: Parse<T>) -> Option<T> {
        parse(value.trim()).map_err(|rule| self.mistake(name, rule)).ok()
    }
}

/// Turns text into a value, or says what was expected. What it says never contains the text: it may be a secret.
pub type Parse<T> = fn(&str) -> Result<T, String>;

/// Every mistake in the settings, one to a line.
#[derive(Debug)]
pub struct Mistakes(BTreeMap<&'static str, String>);

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "setting is" } else { "settings are" };
        write!(formatter, "{} {noun} wrong:", self.0.len())?;
        for (name, rule) in &self.0 {
            write!(formatter, "\n  {name} {rule}")?;
        }
        if self.0.contains_key("DATABASE_URL") {
            write!(
                formatter,
                "\nSet them in the environment (docs/settings*.md and .env*.example list all of them), or run `cargo dev`, which does it for you."
            )?;
        }
        Ok(())
    }
}

/// Declares groups of settings: for each a struct that reads itself, and its rows of the table.
///
/// A row reads `"NAME" field: Type = parser, default("text") | required | optional [, secret | no_flag];`
#[macro_export]
macro_rules! groups {
    ($($(#[doc = $about:literal])* $group:ident: $Group:ident {
        $($(#[doc = $doc:literal])* $name:literal $field:ident: $type:ty = $parser:path, $kind:ident $(($default:literal))? $(, $mark:ident)?;)*
    })*) => {$(
        $(#[doc = $about])*
        pub struct $Group { $($(#[doc = $doc])* pub $field: $crate::groups!(@type $kind $type),)* }

        impl $Group {
            /// The rows of this group, in the order of the table.
            pub const SETTINGS: &'static [$crate::settings::Setting] = &[$($crate::settings::Setting {
                name: $name,
                meaning: concat!($($doc),*),
                group: stringify!($group),
                default: $crate::groups!(@default $($default)?),
                required: $crate::groups!(@required $kind),
                secret: $crate::groups!(@secret $($mark)?),
                has_flag: $crate::groups!(@flag $($mark)?),
            },)*];

            /// Returns the rows of this group, in the order of the table.
            pub fn settings() -> impl Iterator<Item = &'static $crate::settings::Setting> {
                Self::SETTINGS.iter()
            }

            /// Reads this group alone, for the commands that need no other.
            pub fn read(reader: &mut $crate::settings::Reader) -> Option<Self> {
                $(let $field = reader.$kind($name, $parser $(, $default)?);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    )*};
    (@type optional $type:ty) => { Option<$type> };
    (@type $kind:ident $type:ty) => { $type };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
    (@required required) => { true };
    (@required $kind:ident) => { false };
    (@secret secret) => { true };
    (@secret $($mark:ident)?) => { false };
    (@flag $mark:ident) => { false };
    (@flag) => { true };
}

/// Assembles groups of settings into one struct with a field for each group.
#[macro_export]
macro_rules! settings {
    ($(#[doc = $doc:literal])* pub struct $Settings:ident { $($(#[doc = $about:literal])* $group:ident: $Group:ty,)* }) => {
        $(#[doc = $doc])*
        pub struct $Settings { $($(#[doc = $about])* pub $group: $Group,)* }

        impl $Settings {
            /// Returns the rows of every group, in the order of the table.
            pub fn settings() -> impl Iterator<Item = &'static $crate::settings::Setting> {
                std::iter::empty()$(.chain(<$Group>::settings()))*
            }

            /// Reads every group before it looks at the first failure, so that every mistake is reported.
            pub fn read(reader: &mut $crate::settings::Reader) -> Option<Self> {
                $(let $group = <$Group>::read(reader);)*
                Some(Self { $($group: $group?,)* })
            }
        }
    };
}
