//! The reader of settings, which collects mistakes, and the macros that declare settings.
use std::{collections::BTreeMap, fmt};

/// One setting: a row of a declaration with [`groups!`](crate::groups).
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// The meaning, with its unit: the doc comment of the row.
    pub meaning: &'static str,
    /// The group of the setting.
    pub group: &'static str,
    /// The default. `None` if the row is `required` or `optional`.
    pub default: Option<&'static str>,
    /// `true` if the service does not start without it.
    pub required: bool,
    /// `true` if the value is never printed, and the command line has no flag for the setting.
    pub secret: bool,
    /// `true` if the command line has a flag for it.
    pub has_flag: bool,
}

impl Setting {
    /// Returns the name of the flag on the command line, without the leading dashes.
    pub fn flag(&self) -> String {
        self.name.to_lowercase().replace('_', "-")
    }
}

type Source = Box<dyn Fn(&str) -> Option<String>>;

/// The reader of settings by name, which collects every mistake. Reading a setting with a mistake returns `None`.
pub struct Reader {
    source: Source,
    mistakes: BTreeMap<&'static str, String>,
}

impl Reader {
    /// Creates a reader of `source`, which returns the text of a setting by its name. A blank value counts as unset,
    /// because shells and compose files pass a variable without a value as an empty one.
    pub fn new(source: impl Fn(&str) -> Option<String> + 'static) -> Self {
        let source = Box::new(move |name: &str| source(name).filter(|value| !value.trim().is_empty()));
        Self { source, mistakes: BTreeMap::new() }
    }

    /// Returns the text of a setting, or its default if the setting is unset.
    pub fn effective(&self, setting: &Setting) -> Option<String> {
        (self.source)(setting.name).or_else(|| setting.default.map(str::to_owned))
    }

    /// Adds a mistake in the setting `name`, unless that setting already has one. `rule` follows the name in the error
    /// message. A mistake in the combination of several settings is added to one of them.
    pub fn mistake(&mut self, name: &'static str, rule: impl Into<String>) {
        self.mistakes.entry(name).or_insert(rule.into());
    }

    /// Reads the settings with `read`, and returns the result of `read` if there are no mistakes.
    ///
    /// # Errors
    /// At least one setting is missing or invalid. The error contains all mistakes.
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

    /// Returns `Some(None)` if the setting is unset, and `None` if it has a mistake.
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

/// A function that parses text into a value. Its error states the expected format, and never contains the text, which
/// may be a secret.
pub type Parse<T> = fn(&str) -> Result<T, String>;

/// All mistakes in the settings, one per line.
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
                "\nSet them in the environment (docs/settings*.md and .env*.example list all of them), or run `cargo dev`, which sets them."
            )?;
        }
        Ok(())
    }
}

/// Declares groups of settings. For each group, the macro generates a struct with a function that reads it, and a list
/// of the group's settings.
///
/// The syntax of a row is `"NAME" field: Type = parser, default("text") | required | optional [, secret | no_flag];`
#[macro_export]
macro_rules! groups {
    ($($(#[doc = $about:literal])* $group:ident: $Group:ident {
        $($(#[doc = $doc:literal])* $name:literal $field:ident: $type:ty = $parser:path, $kind:ident $(($default:literal))? $(, $mark:ident)?;)*
    })*) => {$(
        $(#[doc = $about])*
        pub struct $Group { $($(#[doc = $doc])* pub $field: $crate::groups!(@type $kind $type),)* }

        impl $Group {
            /// The settings of this group, in the order of their rows.
            pub const SETTINGS: &'static [$crate::settings::Setting] = &[$($crate::settings::Setting {
                name: $name,
                meaning: concat!($($doc),*),
                group: stringify!($group),
                default: $crate::groups!(@default $($default)?),
                required: $crate::groups!(@required $kind),
                secret: $crate::groups!(@secret $($mark)?),
                has_flag: $crate::groups!(@flag $($mark)?),
            },)*];

            /// Returns the settings of this group, in the order of their rows.
            pub fn settings() -> impl Iterator<Item = &'static $crate::settings::Setting> {
                Self::SETTINGS.iter()
            }

            /// Reads this group. Commands that need only a few groups read each of them.
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
            /// Returns the settings of every group, in the order of the groups and their rows.
            pub fn settings() -> impl Iterator<Item = &'static $crate::settings::Setting> {
                std::iter::empty()$(.chain(<$Group>::settings()))*
            }

            /// Reads every group, even if a group before it has a mistake, so that the mistakes of all groups are
            /// reported.
            pub fn read(reader: &mut $crate::settings::Reader) -> Option<Self> {
                $(let $group = <$Group>::read(reader);)*
                Some(Self { $($group: $group?,)* })
            }
        }
    };
}
