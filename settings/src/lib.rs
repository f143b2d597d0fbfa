//! Declarations of settings: each has its name, type, default, bounds and documentation in one place, in the crate that
//! uses it.
//!
//! [`settings!`] declares a struct of settings, [`choice!`] an enumeration whose variants are written as words. A struct
//! can be a part of another one; the configuration is a struct of structs.

mod value;

pub use toml::Value;

/// A value with a text notation, shared by the TOML file and environment variables.
pub trait Setting {
    /// Describes valid values, to follow "must be".
    fn expected(&self) -> String;
    /// Parses and sets the value; returns false and keeps the old value if the text is invalid.
    fn set(&mut self, text: &str) -> bool;
    /// Why a text is invalid, to follow the key's name, if there is more to say than what is expected.
    fn problem(&self, _text: &str) -> Option<String> {
        None
    }
    /// The value for display, with secrets masked.
    fn show(&self) -> Value;
    /// The value for comparison with its bounds.
    fn magnitude(&self) -> u128 {
        0
    }
    /// Whether an invalid text must not appear in an error message.
    fn is_secret(&self) -> bool {
        false
    }
}

/// Parses a value in TOML's notation.
pub fn parse(text: &str) -> Option<Value> {
    text.parse().ok()
}

/// A key while it is read, checked or shown.
pub struct Key<'a> {
    /// The name with those of the groups around it, such as `server.listen`.
    pub path: String,
    /// The lines of its documentation.
    pub about: &'static [&'static str],
    /// The value.
    pub value: &'a mut dyn Setting,
    /// The smallest and the largest value, if it is bounded.
    pub bounds: Option<[Box<dyn Setting>; 2]>,
}

impl Key<'_> {
    /// Compares the value with its bounds.
    ///
    /// # Errors
    /// The value is out of bounds; the text follows the key's name.
    pub fn check_bounds(&self) -> Result<(), String> {
        let Some([low, high]) = &self.bounds else {
            return Ok(());
        };
        if (low.magnitude()..=high.magnitude()).contains(&self.value.magnitude()) {
            return Ok(());
        }
        let (low, high, found) = (low.show(), high.show(), self.value.show());
        Err(format!("must be from {low} to {high}, not {found}"))
    }
}

/// A struct that [`settings!`] declared.
pub trait Group {
    /// Adds the keys, in the order of their declaration, with `prefix` before their names.
    fn add_keys<'a>(&'a mut self, prefix: &str, keys: &mut Vec<Key<'a>>);

    /// All keys.
    fn keys(&mut self) -> Vec<Key<'_>> {
        let mut keys = Vec::new();
        self.add_keys("", &mut keys);
        keys
    }
}

/// Declares structs of settings: types, documentation, defaults and bounds.
///
/// A field is a key with a default and perhaps bounds, or a group of keys with a prefix for their names.
///
/// ```
/// use gathering_settings::{Group, settings};
///
/// settings! {
///     /// Limits of a pool.
///     pub struct Pool {
///         /// Most connections.
///         most: u32 = 20, from 1, to 100;
///     }
///
///     /// All settings.
///     pub struct Config {
///         /// The pool.
///         pool: Pool, prefix "pool.";
///     }
/// }
///
/// let mut config = Config::default();
/// let mut keys = config.keys();
/// assert_eq!(keys[0].path, "pool.most");
/// assert!(keys[0].value.set("101"));
/// assert_eq!(keys[0].check_bounds(), Err("must be from 1 to 100, not 101".to_owned()));
/// ```
#[macro_export]
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        pub struct $Group:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty
                $(= $default:expr $(, from $low:expr, to $high:expr)?)?
                $(, prefix $prefix:literal)?;
            )*
        }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        pub struct $Group {
            $( $(#[doc = $doc])* pub $key: $type, )*
        }

        impl Default for $Group {
            fn default() -> Self {
                Self { $( $key: $crate::settings!(@default $($default)?), )* }
            }
        }

        impl $crate::Group for $Group {
            fn add_keys<'a>(&'a mut self, prefix: &str, keys: &mut Vec<$crate::Key<'a>>) {
                $( $crate::settings! {
                    @add (keys, prefix, &mut self.$key, $key, $type, [$($doc),*])
                    $(default $default $(, from $low, to $high)?)?
                    $(prefix $prefix)?
                } )*
            }
        }
    )*};

    (@default) => { Default::default() };
    (@default $default:expr) => { $default };

    (@add ($keys:ident, $path:ident, $value:expr, $key:ident, $type:ty, [$($doc:literal),*])
        default $default:expr $(, from $low:expr, to $high:expr)?
    ) => {
        $keys.push($crate::Key {
            path: format!("{}{}", $path, stringify!($key)),
            about: &[$($doc),*],
            value: $value,
            bounds: [$({
                let bounds: [$type; 2] = [$low, $high];
                bounds.map(|bound| Box::new(bound) as Box<dyn $crate::Setting>)
            })?]
            .into_iter()
            .next(),
        });
    };
    (@add ($keys:ident, $path:ident, $value:expr, $key:ident, $type:ty, [$($doc:literal),*])
        prefix $prefix:literal
    ) => {
        $crate::Group::add_keys($value, &format!("{}{}", $path, $prefix), $keys);
    };
}

/// Declares an enum with a word for each variant.
#[macro_export]
macro_rules! choice {
    ($(
        $(#[doc = $about:literal])*
        pub enum $Choice:ident { $( $(#[doc = $doc:literal])* $variant:ident = $word:literal, )* }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Choice {
            $( $(#[doc = $doc])* $variant, )*
        }

        impl $crate::Setting for $Choice {
            fn expected(&self) -> String {
                format!("one of {}", [$($word),*].join(", "))
            }
            fn set(&mut self, text: &str) -> bool {
                *self = match text {
                    $( $word => Self::$variant, )*
                    _ => return false,
                };
                true
            }
            fn show(&self) -> $crate::Value {
                $crate::Value::String(match self { $( Self::$variant => $word, )* }.to_owned())
            }
        }
    )*};
}
