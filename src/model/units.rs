//! Quantities as people write them: `30s`, `5m`, `64KiB`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr, time::Duration};

/// A length of time, written `30s`, `1h30m`, `250ms`, or as a whole number of seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

/// A quantity that cannot be read, and how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    /// Not a length of time.
    #[error(
        "`{0}` is not a length of time: write for example 250ms, 30s, 5m, 1h30m or a whole number of seconds"
    )]
    Span(String),
    /// Longer than anything is waited for.
    #[error("`{0}` is longer than a hundred years: write at most 36500d")]
    TooLong(String),
    /// Not a size.
    #[error("`{0}` is not a size: write for example 512B, 64KiB, 10MiB, 1GiB or a whole number of bytes")]
    Size(String),
}

impl Span {
    /// The longest that can be written, a hundred years: added to any time of a clock it is one that the clock knows.
    const LONGEST: Span = Span::secs(36_500 * 86_400);

    /// No time at all.
    pub const ZERO: Span = Span(Duration::ZERO);

    /// A span of whole seconds.
    pub const fn secs(secs: u64) -> Span {
        Span(Duration::from_secs(secs))
    }

    /// A span of whole milliseconds.
    pub const fn millis(millis: u64) -> Span {
        Span(Duration::from_millis(millis))
    }

    /// As the standard library's duration.
    pub const fn as_duration(self) -> Duration {
        self.0
    }

    /// In seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }

    /// In whole milliseconds, capped at `u64::MAX`.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Span(duration)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// Splits `12.5ms` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(&str, &str, &str)> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit);
    (!number.is_empty()).then_some((number, unit, rest))
}

impl FromStr for Span {
    type Err = BadUnit;

    fn from_str(s: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit::Span(s.to_owned());
        let mut rest = s.trim();
        if rest.is_empty() {
            return Err(bad());
        }
        let bounded = |span: Span| {
            if span > Span::LONGEST {
                return Err(BadUnit::TooLong(s.to_owned()));
            }
            Ok(span)
        };
        if let Ok(seconds) = rest.parse::<u64>() {
            return bounded(Span::secs(seconds));
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let (number, unit, after) = number_and_unit(rest).ok_or_else(bad)?;
            let scale = match unit.trim() {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return Err(bad()),
            };
            let value: f64 = number.parse().map_err(|_| bad())?;
            let part = Duration::try_from_secs_f64(value * scale).map_err(|_| bad())?;
            total = total.checked_add(part).ok_or_else(bad)?;
            rest = after.trim_start();
        }
        bounded(Span(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, micros) = (self.0.as_secs(), self.0.subsec_micros());
        if secs == 0 && micros == 0 {
            return f.write_str("0s");
        }
        for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
            let count = match unit {
                "d" => secs / length,
                "h" => secs % 86_400 / length,
                "m" => secs % 3600 / length,
                _ => secs % 60,
            };
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        match (micros / 1000, micros % 1000) {
            (0, 0) => Ok(()),
            (millis, 0) => write!(f, "{millis}ms"),
            (0, micros) => write!(f, "{micros}us"),
            (millis, micros) => write!(f, "{millis}ms{micros}us"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct TextOrNumber<T>(std::marker::PhantomData<T>, &'static str);

impl<T: FromStr<Err = BadUnit>> de::Visitor<'_> for TextOrNumber<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<T, E> {
        v.to_string().parse().map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<T, E> {
        v.to_string().parse().map_err(E::custom)
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<T, E> {
        v.to_string().parse().map_err(E::custom)
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<T, E> {
        v.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(
            std::marker::PhantomData,
            "a length of time such as 250ms, 30s, 5m or 1h30m",
        ))
    }
}

/// A number of bytes, written `64KiB`, `10MB` or as a whole number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size in bytes.
    pub const fn bytes(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// A size in kibibytes (1024 bytes).
    pub const fn kib(kib: u64) -> ByteSize {
        ByteSize(kib * 1024)
    }

    /// In bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// In bytes, capped at what the machine can address.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = BadUnit;

    fn from_str(s: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit::Size(s.to_owned());
        let text = s.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let scale: u64 = match unit.trim() {
            "" | "B" => 1,
            "KB" | "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" | "K" | "Ki" => 1 << 10,
            "MiB" | "M" | "Mi" => 1 << 20,
            "GiB" | "G" | "Gi" => 1 << 30,
            _ => return Err(bad()),
        };
        number.checked_mul(scale).map(ByteSize).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(
            std::marker::PhantomData,
            "a size such as 512B, 64KiB or 10MiB",
        ))
    }
}

/// For people: `1,204`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_write_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("5", 5000),
            ("1.5s", 1500),
            ("2d", 172_800_000),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Span>().unwrap().as_millis(), millis, "{text}");
        }
        for bad in ["", "5 parsecs", "m", "-1s", "1.2.3s", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_span_is_never_so_long_that_no_clock_could_count_it() {
        for longest in ["36500d", "3153600000", "876000h"] {
            longest.parse::<Span>().unwrap();
        }
        for longer in [
            "36500d1ms",
            "3153600001",
            "18446744073709551615",
            "213503982334601d",
        ] {
            let error = longer.parse::<Span>().unwrap_err();
            assert!(error.to_string().ends_with("at most 36500d"), "{longer}: {error}");
        }
    }

    #[test]
    fn spans_show_as_they_read() {
        for text in ["30s", "1h30m", "250ms", "1d", "1s500ms", "0s", "20us"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_read_and_show() {
        assert_eq!("64KiB".parse::<ByteSize>().unwrap().as_u64(), 65_536);
        assert_eq!("64KiB".parse::<ByteSize>().unwrap().to_string(), "64KiB");
        assert_eq!("10MB".parse::<ByteSize>().unwrap().as_u64(), 10_000_000);
        for bad in ["", "KiB", "1.5KiB", "12XB", "99999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
