//! The custom scalars.

use async_graphql::{InputValueError, InputValueResult, Pos, Scalar, ScalarType, Value};
use chrono::{DateTime as ChronoDateTime, Datelike, SecondsFormat, SubsecRound, Timelike, Utc};
use serde::{Serialize, Serializer};

/// An instant in UTC with microsecond precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime(pub ChronoDateTime<Utc>);

/// A date and time in UTC with microseconds, such as `2026-01-05T09:00:01.000000Z`.
/// Follows [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339). Input may use any offset and is truncated to
/// microseconds.
#[Scalar(specified_by_url = "https://www.rfc-editor.org/rfc/rfc3339")]
impl ScalarType for DateTime {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else {
            return Err(InputValueError::expected_type(value));
        };
        ChronoDateTime::parse_from_rfc3339(text)
            .ok()
            .map(|instant| instant.with_timezone(&Utc))
            // Leap seconds are refused.
            .filter(|instant| is_storable(*instant) && instant.nanosecond() < 1_000_000_000)
            .map(|instant| Self(instant.trunc_subsecs(6)))
            .ok_or_else(|| {
                InputValueError::custom(
                    "Expected an RFC 3339 date and time, such as 2026-01-05T09:00:00Z.",
                )
            })
    }

    fn to_value(&self) -> Value {
        self.with_text(|text| Value::from(text))
    }
}

impl DateTime {
    /// Passes the text of the instant to a function. It is on the stack, since answers have many of them.
    pub(crate) fn with_text<R>(self, read: impl FnOnce(&str) -> R) -> R {
        let (date, time) = (self.0.date_naive(), self.0.time());
        let is_plain = is_storable(self.0) && time.nanosecond() < 1_000_000_000;
        let year = u32::try_from(date.year()).ok().filter(|_| is_plain);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |at: usize, digits: usize, mut number: u32| {
            for place in (at..at + digits).rev() {
                text[place] = b'0' + u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
        };
        put(0, 4, year.unwrap_or_default());
        put(5, 2, date.month());
        put(8, 2, date.day());
        put(11, 2, time.hour());
        put(14, 2, time.minute());
        put(17, 2, time.second());
        put(20, 6, time.nanosecond() / 1_000);
        match str::from_utf8(&text) {
            Ok(text) if year.is_some() => read(text),
            _ => read(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true)),
        }
    }
}

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl From<ChronoDateTime<Utc>> for DateTime {
    fn from(instant: ChronoDateTime<Utc>) -> Self {
        Self(instant)
    }
}

/// Whether both databases can store and order the instant: its year must have four digits.
pub(crate) fn is_storable(instant: ChronoDateTime<Utc>) -> bool {
    (0..=9_999).contains(&instant.year())
}

const MICROS: i64 = 1_000_000;

/// An exact decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    /// The number in millionths.
    pub micros: i64,
}

impl Decimal {
    fn from_text(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_number =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || fraction.len() > 6 {
            return None;
        }
        let whole: i64 = whole.parse().ok()?;
        let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
        let micros = whole.checked_mul(MICROS)?.checked_add(fraction)?;
        Some(Self {
            micros: if negative { -micros } else { micros },
        })
    }
}

/// An exact decimal number, serialized as a string with six decimal places, such as `"0.270000"`.
/// Input is a string with up to six decimal places, or an integer. The server refuses numbers with a decimal point or
/// an exponent, because a client may already have rounded them.
#[Scalar]
impl ScalarType for Decimal {
    fn parse(value: Value) -> InputValueResult<Self> {
        let text = match &value {
            Value::String(text) => text.clone(),
            // Other numbers were parsed as doubles and may have lost digits.
            Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
            Value::Number(_) => {
                return Err(InputValueError::custom(
                    "Send a decimal fraction as a string, such as \"0.27\". A JSON number may lose digits.",
                ));
            }
            _ => return Err(InputValueError::expected_type(value)),
        };
        Self::from_text(&text).ok_or_else(|| {
            InputValueError::custom(
                "Expected a decimal number with at most six decimals, such as \"0.27\".",
            )
        })
    }

    fn to_value(&self) -> Value {
        let sign = if self.micros < 0 { "-" } else { "" };
        let micros = self.micros.unsigned_abs();
        let unit = MICROS.unsigned_abs();
        Value::String(format!("{sign}{}.{:06}", micros / unit, micros % unit))
    }
}

/// The reason why the custom scalar of that name rejects a value; `None` if it accepts the value.
pub(crate) fn misfit(name: &str, value: Value) -> Option<String> {
    fn message<T: ScalarType + async_graphql::InputType>(value: Value) -> Option<String> {
        let error = <T as ScalarType>::parse(value).err()?;
        Some(error.into_server_error(Pos::default()).message)
    }
    match name {
        "DateTime" => message::<DateTime>(value),
        "Decimal" => message::<Decimal>(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_six_decimal_places() {
        for (text, micros, shown) in [
            ("0", 0, "0.000000"),
            ("0.27", 270_000, "0.270000"),
            ("-1.000001", -1_000_001, "-1.000001"),
            ("15", 15_000_000, "15.000000"),
            ("9223372036854.775807", i64::MAX, "9223372036854.775807"),
        ] {
            let decimal = Decimal::from_text(text).expect(text);
            assert_eq!(decimal.micros, micros);
            assert_eq!(decimal.to_value(), Value::String(shown.to_owned()));
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "1e3",
            "0.1234567",
            "9223372036854.775808",
            "--1",
            "1,5",
            "+1",
        ] {
            assert_eq!(Decimal::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_with_a_point_or_exponent_are_rejected_as_decimals() {
        let parse = |json: &str| {
            let json = serde_json::from_str(json).expect("JSON");
            Decimal::parse(Value::from_json(json).expect("a value"))
        };
        for (json, micros) in [
            ("15", 15_000_000),
            ("-3", -3_000_000),
            ("9007199254741", 9_007_199_254_741_000_000),
            ("\"0.1\"", 100_000),
        ] {
            assert_eq!(parse(json).ok().map(|decimal| decimal.micros), Some(micros));
        }
        for json in [
            "0.10000000000000000001",
            "0.27",
            "1.0000000000000000001",
            "1.0",
            "1e3",
            "1e30",
            "100000000000000000000",
            "18446744073709551615",
            "1E-7",
            "\"1e3\"",
            "true",
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn times_are_serialized_in_utc_with_microseconds() {
        let parsed =
            DateTime::parse(Value::from("2026-01-05T10:00:01.1234567+01:00")).expect("an instant");
        assert_eq!(
            parsed.to_value(),
            Value::from("2026-01-05T09:00:01.123456Z")
        );
        assert!(DateTime::parse(Value::from("2026-01-05")).is_err());
        assert!(DateTime::parse(Value::from(1)).is_err());
    }

    #[test]
    fn times_have_the_text_of_chrono() {
        // The first and last storable second and their neighbors, and the second before a full minute.
        let seconds = [
            -62_167_219_201,
            -62_167_219_200,
            -1,
            0,
            951_782_400,
            253_402_300_799,
            253_402_300_800,
        ];
        for second in seconds {
            for nanos in [0, 999, 1_000, 123_456_789, 999_999_999, 1_500_000_000] {
                let Some(time) = ChronoDateTime::from_timestamp(second, nanos) else {
                    continue;
                };
                let expected = time.to_rfc3339_opts(SecondsFormat::Micros, true);
                assert_eq!(DateTime(time).with_text(str::to_owned), expected);
            }
        }
    }
}
