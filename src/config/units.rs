//! Small values that only configurations write: `off`, networks, lists of them.

use ipnet::IpNet;
use serde::de::{self, Deserialize, Deserializer};
use std::{fmt, net::IpAddr, str::FromStr};

/// A value, or the word `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OrOff<T>(pub(super) Option<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for OrOff<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "off" | "Off" | "OFF" => Ok(OrOff(None)),
            text => match text.parse() {
                Ok(value) => Ok(OrOff(Some(value))),
                Err(error) => Err(de::Error::custom(format_args!("{error}, or off"))),
            },
        }
    }
}

/// A share or a difference of shares, as a fraction of one: written `1%` or `0.05pp`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share(pub(super) f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let number = text.strip_suffix('%').or_else(|| text.strip_suffix("pp"));
        let number = number.and_then(|number| number.trim().parse::<f64>().ok());
        match number.filter(|number| (0.0..=1000.0).contains(number)) {
            Some(number) => Ok(Share(number / 100.0)),
            None => Err(format!(
                "`{text}` is not a share: write for example 1%, or 0.05pp for a difference"
            )),
        }
    }
}

/// Reads a share or a difference of shares as configurations write it, `1%` or `0.05pp`, as a fraction of one.
pub fn share(text: &str) -> Option<f64> {
    text.parse().ok().map(|Share(share)| share)
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A network such as `10.0.0.0/8`; a single address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network(pub(super) IpNet);

/// Reads a network or a single address.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok();
    net.map(|net| net.trunc()).or_else(|| {
        text.parse::<IpAddr>()
            .ok()
            .map(|ip| IpNet::from(ip.to_canonical()))
    })
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        network(&text).map(Network).ok_or_else(|| {
            de::Error::custom(format_args!(
                "`{text}` is not a network: write for example 10.0.0.0/8 or 192.0.2.7"
            ))
        })
    }
}

/// Loopback and private networks: who is near.
pub(super) fn near() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ]
    .into_iter()
    .filter_map(network)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_say_their_unit() {
        assert_eq!("1%".parse(), Ok(Share(0.01)));
        assert_eq!("0.05pp".parse(), Ok(Share(0.0005)));
        for wrong in ["0.01", "-1%", "%", "1 percent", "nan%", "2000%"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn near_is_loopback_and_private() {
        let near = near();
        assert_eq!(near.len(), 8);
        let is = |ip: &str| {
            near.iter()
                .any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()))
        };
        assert!(is("127.0.0.1") && is("10.1.2.3") && is("::1") && is("172.31.0.1") && is("fd00::1"));
        assert!(!is("8.8.8.8") && !is("172.32.0.1") && !is("2001:db8::1"));
    }
}
