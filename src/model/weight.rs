//! How much traffic a canary gets: an exact fraction of the whole, never a float.
//!
//! People write percentages (`5`, `0.01`, `"33.33%"`) or an exact fraction of the whole (`"1/3"`).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{cmp::Ordering, fmt, str::FromStr};

/// A fraction `p/q` of the whole, in lowest terms, between 0 and 1 inclusive.
///
/// `q` is at most 1,000,000,000, so seven decimals of a percent are exact and products of `p` or `q` with a number below
/// `q` fit 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Weight {
    p: u32,
    q: u32,
}

/// A weight that cannot be used, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWeight {
    /// Not a number, percentage or fraction.
    #[error(
        "`{0}` is not a weight: write a percentage such as 5 or 0.01, or an exact fraction such as \"1/3\""
    )]
    Syntax(String),
    /// Below 0 or above 100 %.
    #[error(
        "weight {0} is out of range: it must be between 0 and 100 percent (or a fraction between 0 and 1)"
    )]
    Range(String),
    /// More than seven decimals, or a denominator above one thousand million.
    #[error(
        "weight {0} is finer than Serin can split: use at most seven decimals of a percent, or a denominator up to 1000000000"
    )]
    TooFine(String),
}

const MAX_Q: u64 = 1_000_000_000;

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Weight {
    /// No traffic.
    pub const ZERO: Weight = Weight { p: 0, q: 1 };
    /// All traffic.
    pub const FULL: Weight = Weight { p: 1, q: 1 };

    /// The exact fraction `p/q` of the whole.
    pub fn fraction(p: u64, q: u64) -> Result<Weight, BadWeight> {
        let shown = || format!("{p}/{q}");
        if q == 0 || p > q {
            return Err(BadWeight::Range(shown()));
        }
        let g = gcd(p, q);
        let (p, q) = (p / g, q / g);
        match (u32::try_from(p), u32::try_from(q)) {
            (Ok(p), Ok(q)) if u64::from(q) <= MAX_Q => Ok(Weight { p, q }),
            _ => Err(BadWeight::TooFine(shown())),
        }
    }

    /// A whole number of percent, clamped to 100.
    pub fn percent(percent: u32) -> Weight {
        let percent = percent.min(100);
        Weight::fraction(u64::from(percent), 100).unwrap_or(Weight::ZERO)
    }

    /// The numerator.
    pub const fn p(self) -> u32 {
        self.p
    }

    /// The denominator, at least 1.
    pub const fn q(self) -> u32 {
        self.q
    }

    /// Whether no traffic is meant.
    pub const fn is_zero(self) -> bool {
        self.p == 0
    }

    /// Whether all traffic is meant.
    pub const fn is_full(self) -> bool {
        self.p == self.q
    }

    /// As a share of the whole in [0, 1]: for display and statistics, never for deciding.
    pub fn as_ratio(self) -> f64 {
        f64::from(self.p) / f64::from(self.q)
    }

    /// As a percentage in [0, 100]: for display and statistics, never for deciding.
    pub fn as_percent(self) -> f64 {
        self.as_ratio() * 100.0
    }

    /// What is left for the other version.
    #[must_use]
    pub const fn complement(self) -> Weight {
        Weight {
            p: self.q - self.p,
            q: self.q,
        }
    }

    /// Reads a percentage given as a floating-point number, exactly as its shortest decimal form.
    pub fn from_percent_f64(percent: f64) -> Result<Weight, BadWeight> {
        if !percent.is_finite() {
            return Err(BadWeight::Syntax(percent.to_string()));
        }
        format!("{percent}").parse()
    }
}

impl Ord for Weight {
    fn cmp(&self, other: &Self) -> Ordering {
        (u64::from(self.p) * u64::from(other.q)).cmp(&(u64::from(other.p) * u64::from(self.q)))
    }
}

impl PartialOrd for Weight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Weight {
    type Err = BadWeight;

    fn from_str(s: &str) -> Result<Self, BadWeight> {
        let syntax = || BadWeight::Syntax(s.to_owned());
        let text = s.trim();
        if let Some((p, q)) = text.split_once('/') {
            let number = |t: &str| t.trim().parse::<u64>().map_err(|_| syntax());
            return Weight::fraction(number(p)?, number(q)?);
        }
        let text = text.strip_suffix('%').unwrap_or(text).trim_end();
        if text.starts_with('-') {
            return Err(BadWeight::Range(s.to_owned()));
        }
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
            return Err(syntax());
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > 7 {
            return Err(BadWeight::TooFine(s.to_owned()));
        }
        let whole = whole.trim_start_matches('0');
        if whole.len() > 3 {
            return Err(BadWeight::Range(s.to_owned()));
        }
        let value: u64 = format!("0{whole}{decimals}").parse().map_err(|_| syntax())?;
        let scale = 10u64.pow(u32::try_from(decimals.len()).map_err(|_| syntax())?);
        Weight::fraction(value, 100 * scale).map_err(|error| match error {
            BadWeight::Range(_) => BadWeight::Range(s.to_owned()),
            BadWeight::TooFine(_) => BadWeight::TooFine(s.to_owned()),
            BadWeight::Syntax(_) => syntax(),
        })
    }
}

impl fmt::Display for Weight {
    /// A percentage where it is exact within seven decimals (`5%`, `33.33%`), otherwise the fraction (`1/3`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scaled = u64::from(self.p) * MAX_Q;
        if !scaled.is_multiple_of(u64::from(self.q)) {
            return write!(f, "{}/{}", self.p, self.q);
        }
        let value = scaled / u64::from(self.q);
        let (whole, rest) = (value / 10_000_000, value % 10_000_000);
        if rest == 0 {
            write!(f, "{whole}%")
        } else {
            let decimals = format!("{rest:07}");
            write!(f, "{whole}.{}%", decimals.trim_end_matches('0'))
        }
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Weight {
    /// A number of percent where that is exact, otherwise the fraction as text: what [`Deserialize`] reads back.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = self.to_string();
        match shown.strip_suffix('%') {
            Some(percent) => match percent.parse::<u64>() {
                Ok(whole) => serializer.serialize_u64(whole),
                Err(_) => serializer.serialize_f64(percent.parse().map_err(serde::ser::Error::custom)?),
            },
            None => serializer.serialize_str(&shown),
        }
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Weight;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a percentage such as 5 or 0.01, or an exact fraction such as \"1/3\"")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Weight, E> {
                v.to_string().parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Weight, E> {
                v.to_string().parse().map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Weight, E> {
                Weight::from_percent_f64(v).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Weight, E> {
                v.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_fractions_are_exact() {
        for (text, p, q) in [
            ("5", 1, 20),
            ("0.01", 1, 10_000),
            ("33.33%", 3333, 10_000),
            ("1/3", 1, 3),
            ("100", 1, 1),
            ("0", 0, 1),
            ("0.0000001", 1, 1_000_000_000),
        ] {
            let weight: Weight = text.parse().unwrap();
            assert_eq!((weight.p(), weight.q()), (p, q), "{text}");
        }
    }

    #[test]
    fn a_weight_out_of_range_or_too_fine_is_refused() {
        for (text, part) in [
            ("101", "out of range"),
            ("-1", "out of range"),
            ("4/3", "out of range"),
            ("1/0", "out of range"),
            ("0.00000001", "finer"),
            ("1/1000000007", "finer"),
            ("abc", "not a weight"),
            ("", "not a weight"),
            (".", "not a weight"),
            ("5e3", "not a weight"),
        ] {
            let error = text.parse::<Weight>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for text in ["5%", "0.01%", "33.33%", "1/3", "99.9999999%", "0%", "100%"] {
            let weight: Weight = text.parse().unwrap();
            assert_eq!(weight.to_string(), text);
            let json = serde_json::to_string(&weight).unwrap();
            assert_eq!(serde_json::from_str::<Weight>(&json).unwrap(), weight, "{json}");
        }
    }

    #[test]
    fn weights_order_by_value() {
        let w = |t: &str| t.parse::<Weight>().unwrap();
        assert!(w("1/3") < w("33.34") && w("1/3") > w("33.33"));
        assert_eq!(w("66.67").complement(), w("33.33"));
    }
}
