//! The notation of values from the standard library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Setting, Value};

macro_rules! whole_numbers {
    ($($type:ty)*) => {$(
        impl Setting for $type {
            fn expected(&self) -> String {
                "a whole number".to_owned()
            }
            fn set(&mut self, text: &str) -> bool {
                text.parse().map(|n| *self = n).is_ok()
            }
            fn show(&self) -> Value {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
            fn magnitude(&self) -> u128 {
                u128::try_from(*self).unwrap_or(u128::MAX)
            }
        }
    )*};
}

whole_numbers!(u32 u64 usize);

impl Setting for bool {
    fn expected(&self) -> String {
        "true or false".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.parse().map(|b| *self = b).is_ok()
    }
    fn show(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Setting for String {
    fn expected(&self) -> String {
        "a text".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.clone_into(self);
        true
    }
    fn show(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Setting for PathBuf {
    fn expected(&self) -> String {
        "a path".to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        *self = text.into();
        true
    }
    fn show(&self) -> Value {
        Value::String(self.display().to_string())
    }
}

impl Setting for SocketAddr {
    fn expected(&self) -> String {
        r#"an address and port such as "127.0.0.1:8000""#.to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        text.parse().map(|address| *self = address).is_ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl Setting for Duration {
    fn expected(&self) -> String {
        r#"a duration such as "250ms", "3s", "5m" or "1h""#.to_owned()
    }
    fn set(&mut self, text: &str) -> bool {
        let (number, unit) = text.split_at(
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len()),
        );
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return false,
        };
        let millis = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor));
        millis.map(|n| *self = Self::from_millis(n)).is_some()
    }
    fn show(&self) -> Value {
        let millis = self.as_millis();
        Value::String(match millis {
            0 => "0s".to_owned(),
            n if n.is_multiple_of(3_600_000) => format!("{}h", n / 3_600_000),
            n if n.is_multiple_of(60_000) => format!("{}m", n / 60_000),
            n if n.is_multiple_of(1_000) => format!("{}s", n / 1_000),
            n => format!("{n}ms"),
        })
    }
    fn magnitude(&self) -> u128 {
        self.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_require_a_unit() {
        let mut duration = Duration::ZERO;
        for (text, milliseconds) in [
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            assert!(duration.set(text), "{text}");
            assert_eq!(duration.as_millis(), milliseconds);
        }
        assert_eq!(duration.show().as_str(), Some("2h"));
        for text in [
            "",
            "3",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert!(!duration.set(text), "{text}");
        }
    }
}
