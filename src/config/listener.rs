//! `listeners`: where requests come in, and how long and how much clients may.

use super::compiled::{
    BindAddress, Limits, Listener, ListenerLimits, Mode, ProxyProtocol, Timeouts, TimeoutsSet,
};
use super::cx::Cx;
use super::decode::Located;
use super::tls::TlsConfig;
use super::units::{Network, OrOff};
use crate::model::{ByteSize, Span};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListenerConfig {
    /// Absent: the address.
    name: Option<String>,
    /// `0.0.0.0:8080` or `unix:/run/serin.sock`.
    address: String,
    /// Of a Unix socket: who may connect, in octal. Absent: whom the umask lets.
    socket_mode: Option<String>,
    /// Absent: a connection's peer is its client.
    proxy_protocol: Option<ProxyProtocolConfig>,
    /// Absent: HTTP without TLS.
    tls: Option<TlsConfig>,
    /// Absent: edge.
    mode: Option<ModeConfig>,
    /// Absent: false; `X-Forwarded-…` say the same.
    #[serde(default)]
    forwarded: bool,
    /// Absent: nobody's forwarded fields are believed.
    #[serde(default)]
    trusted_proxies: Vec<Network>,
    /// Absent: the defaults written at each.
    #[serde(default)]
    timeouts: TimeoutsConfig,
    /// Absent: the defaults written at each.
    #[serde(default)]
    limits: LimitsConfig,
}

/// Every connection begins with a PROXY header, of version 1 or 2.
#[derive(Debug, Deserialize)]
pub(super) struct ProxyProtocolConfig {
    /// The load balancers' networks. Needed at a TCP address: whoever may send the header may claim any address.
    #[serde(default)]
    from: Vec<Network>,
}

impl ProxyProtocolConfig {
    fn compile(&self, path: &str, address: &BindAddress, cx: &mut Cx) -> ProxyProtocol {
        let everybody = |net: &Network| net.0.prefix_len() == 0;
        match address {
            BindAddress::Tcp(_) if self.from.is_empty() => cx.error(
                path,
                "without `from` whoever reaches the port could claim any address",
                "write proxyProtocol: {from: [10.0.0.0/8]}, the networks of your load balancers",
            ),
            BindAddress::Tcp(_) if self.from.iter().any(everybody) => cx.warn(
                &format!("{path}.from"),
                "whoever reaches the port may claim any address",
                "name the networks of your load balancers only",
            ),
            BindAddress::Unix(_) if !self.from.is_empty() => cx.warn(
                &format!("{path}.from"),
                "has no effect at a Unix socket: whoever may connect to it is believed",
                "remove it",
            ),
            BindAddress::Tcp(_) | BindAddress::Unix(_) => {}
        }
        ProxyProtocol {
            from: self.from.iter().map(|net| net.0).collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeConfig {
    Edge,
    Sidecar,
}

/// At a listener and at a service; what is absent at a service is the listener's, what is absent there is the default
/// written at [`Timeouts`].
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TimeoutsConfig {
    connect: Option<Span>,
    first_byte: Option<Span>,
    request_headers: Option<Span>,
    body_idle: Option<Span>,
    response_headers: Option<Span>,
    stream_idle: Option<Span>,
    upgrade_idle: Option<Span>,
    request: Option<OrOff<Span>>,
    write_stall: Option<Span>,
    keep_alive: Option<Span>,
    drain: Option<Span>,
}

impl TimeoutsConfig {
    pub(super) fn compile(&self, path: &str, at_service: bool, cx: &mut Cx) -> TimeoutsSet {
        let set = TimeoutsSet {
            connect: self.connect,
            first_byte: self.first_byte,
            request_headers: self.request_headers,
            body_idle: self.body_idle,
            response_headers: self.response_headers,
            stream_idle: self.stream_idle,
            upgrade_idle: self.upgrade_idle,
            request: self.request.map(|request| request.0),
            write_stall: self.write_stall,
            keep_alive: self.keep_alive,
            drain: self.drain,
        };
        let named = [
            ("connect", set.connect),
            ("firstByte", set.first_byte),
            ("requestHeaders", set.request_headers),
            ("bodyIdle", set.body_idle),
            ("responseHeaders", set.response_headers),
            ("streamIdle", set.stream_idle),
            ("upgradeIdle", set.upgrade_idle),
            ("request", set.request.flatten()),
            ("writeStall", set.write_stall),
            ("keepAlive", set.keep_alive),
        ];
        for (key, _) in named.iter().filter(|(_, span)| span.is_some_and(Span::is_zero)) {
            let hint = if *key == "request" {
                "write off for no limit"
            } else {
                "write for example 10s"
            };
            cx.error(
                &format!("{path}.{key}"),
                "no time at all would refuse everything",
                hint,
            );
        }
        if at_service {
            let before_routing = ["firstByte", "requestHeaders", "keepAlive"];
            for (key, _) in named
                .iter()
                .filter(|(key, span)| span.is_some() && before_routing.contains(key))
            {
                cx.warn(
                    &format!("{path}.{key}"),
                    "has no effect at a service: it is over before the service is known",
                    "move it to the listener",
                );
            }
        }
        set
    }
}

/// The most fields that a request may be allowed. A map of them holds 24,576, ours included, and room for as many as are allowed
/// is taken for each head that is read.
const MOST_FIELDS: u32 = 10_000;

/// At a listener and at a service; each uses what concerns it.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LimitsConfig {
    /// Absent: off; at a service: the listener's.
    body: Option<OrOff<ByteSize>>,
    /// Listener only, 1 to 10,000. Absent: 100.
    headers: Option<u32>,
    /// Listener only. Absent: 64KiB.
    header_bytes: Option<ByteSize>,
    /// Listener only. Absent: 200.
    streams: Option<u32>,
    /// Listener only. Absent: 200.
    resets: Option<u32>,
    /// Listener only. Absent: 256KiB.
    stream_window: Option<ByteSize>,
    /// Listener only. Absent: 1MiB.
    connection_window: Option<ByteSize>,
    /// Service only. Absent: 1024.
    requests: Option<u32>,
    /// Service only. Absent: 1024.
    pending: Option<u32>,
    /// At a listener client connections (absent: as many as files may be open), at a service connections to each
    /// version (absent: 1024).
    connections: Option<u32>,
    /// Service only. Absent: no limit.
    requests_per_connection: Option<u32>,
}

impl LimitsConfig {
    fn check(&self, path: &str, no_effect: &[&str], cx: &mut Cx) {
        let numbers = [
            ("headers", self.headers.map(u64::from)),
            ("headerBytes", self.header_bytes.map(ByteSize::as_u64)),
            ("streams", self.streams.map(u64::from)),
            ("resets", self.resets.map(u64::from)),
            ("streamWindow", self.stream_window.map(ByteSize::as_u64)),
            ("connectionWindow", self.connection_window.map(ByteSize::as_u64)),
            ("requests", self.requests.map(u64::from)),
            ("pending", self.pending.map(u64::from)),
            ("connections", self.connections.map(u64::from)),
            (
                "requestsPerConnection",
                self.requests_per_connection.map(u64::from),
            ),
        ];
        for (key, value) in numbers {
            let key_path = format!("{path}.{key}");
            match value {
                Some(0) if key != "pending" => {
                    cx.error(&key_path, "0 would refuse everything", "write at least 1");
                }
                Some(_) if no_effect.contains(&key) => cx.warn(&key_path, "has no effect here", ""),
                Some(_) | None => {}
            }
        }
    }

    fn listener(&self, path: &str, cx: &mut Cx) -> ListenerLimits {
        self.check(path, &["requests", "pending", "requestsPerConnection"], cx);
        let default = ListenerLimits::default();
        if let Some(headers) = self.headers.filter(|headers| *headers > MOST_FIELDS) {
            let hint = format!("write between 1 and {MOST_FIELDS}");
            cx.error(
                &format!("{path}.headers"),
                format!("{headers} is out of range"),
                hint,
            );
        }
        let mut within = |key: &str, size: Option<ByteSize>, default, least: u64, most: u64, hint| {
            let size = size.unwrap_or(default);
            if !(least..=most).contains(&size.as_u64()) && size.as_u64() > 0 {
                cx.error(&format!("{path}.{key}"), format!("{size} is out of range"), hint);
            }
            size
        };
        ListenerLimits {
            body: self.body.and_then(|body| body.0),
            headers: self.headers.unwrap_or(default.headers),
            header_bytes: within(
                "headerBytes",
                self.header_bytes,
                default.header_bytes,
                1 << 10,
                1 << 20,
                "write between 1KiB and 1MiB",
            ),
            streams: self.streams.unwrap_or(default.streams),
            resets: self.resets.unwrap_or(default.resets),
            stream_window: within(
                "streamWindow",
                self.stream_window,
                default.stream_window,
                16 << 10,
                16 << 20,
                "write between 16KiB and 16MiB",
            ),
            // HTTP/2 has no way to say less than 64 KiB.
            connection_window: within(
                "connectionWindow",
                self.connection_window,
                default.connection_window,
                64 << 10,
                64 << 20,
                "write between 64KiB and 64MiB",
            ),
            connections: self.connections,
        }
    }

    pub(super) fn service(&self, path: &str, cx: &mut Cx) -> Limits {
        let listeners = [
            "headers",
            "headerBytes",
            "streams",
            "resets",
            "streamWindow",
            "connectionWindow",
        ];
        self.check(path, &listeners, cx);
        let default = Limits::default();
        Limits {
            body: self.body.and_then(|body| body.0),
            requests: self.requests.unwrap_or(default.requests),
            pending: self.pending.unwrap_or(default.pending),
            connections: self.connections.unwrap_or(default.connections),
            requests_per_connection: self.requests_per_connection,
        }
    }
}

/// Reads `127.0.0.1:9900`; the error is the hint.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let guess = match text.rsplit_once(':') {
            Some(("" | "*", port)) if port.parse::<u16>().is_ok() => format!("0.0.0.0:{port}"),
            Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
            Some(_) | None if text.parse::<u16>().is_ok() => format!("0.0.0.0:{text}"),
            Some(_) | None => "127.0.0.1:8080 (an IP address and a port)".to_owned(),
        };
        format!("write {guess}")
    })
}

fn bind_address(text: &str) -> Result<BindAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.starts_with('/') && path.len() <= 107 && !path.contains('\0') {
                Ok(BindAddress::Unix(PathBuf::from(path)))
            } else {
                Err("write unix:/run/serin.sock (an absolute path of at most 107 bytes)".to_owned())
            }
        }
        None => socket_address(text).map(BindAddress::Tcp),
    }
}

/// Reads `0660`, as `chmod` does.
fn socket_mode(text: &str, path: &str, address: &BindAddress, cx: &mut Cx) -> Option<u32> {
    if matches!(address, BindAddress::Tcp(_)) {
        cx.error(path, "only a Unix socket has permissions", "remove it");
        return None;
    }
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    let mode = mode.filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        cx.error(
            path,
            format!("`{text}` is not a file mode"),
            "write for example 0660",
        );
    }
    mode
}

/// Every listener that can be understood.
pub(super) fn compile(configs: &[Located<ListenerConfig>], cx: &mut Cx) -> Vec<Listener> {
    let mut listeners: Vec<(String, Listener)> = Vec::new();
    for Located { path, value: config } in configs {
        let address = match bind_address(&config.address) {
            Ok(address) => address,
            Err(hint) => {
                let what = format!("`{}` is not an address to listen at", config.address);
                cx.error(&format!("{path}.address"), what, hint);
                continue;
            }
        };
        let name = config.name.clone().unwrap_or_else(|| address.to_string());
        for (other_path, other) in &listeners {
            let (key, what) = if other.name == name {
                ("name", format!("two listeners are called `{name}`"))
            } else if other.address == address && !matches!(address, BindAddress::Tcp(tcp) if tcp.port() == 0)
            {
                ("address", format!("two listeners have the address {address}"))
            } else {
                continue;
            };
            let hint = format!("the other one is at {}", cx.place(other_path));
            cx.error(&format!("{path}.{key}"), what, hint);
        }
        let timeouts = config.timeouts.compile(&format!("{path}.timeouts"), false, cx);
        let socket_mode = config
            .socket_mode
            .as_ref()
            .and_then(|mode| socket_mode(mode, &format!("{path}.socketMode"), &address, cx));
        let proxy_protocol = config
            .proxy_protocol
            .as_ref()
            .map(|header| header.compile(&format!("{path}.proxyProtocol"), &address, cx));
        let listener = Listener {
            name,
            address,
            socket_mode,
            mode: match config.mode {
                Some(ModeConfig::Edge) | None => Mode::Edge,
                Some(ModeConfig::Sidecar) => Mode::Sidecar,
            },
            forwarded: config.forwarded,
            trusted_proxies: config.trusted_proxies.iter().map(|net| net.0).collect(),
            proxy_protocol,
            tls: config
                .tls
                .as_ref()
                .map(|tls| tls.compile(&format!("{path}.tls"), cx)),
            timeouts: timeouts.over(&Timeouts::default()),
            limits: config.limits.listener(&format!("{path}.limits"), cx),
        };
        listeners.push((path.clone(), listener));
    }
    listeners.into_iter().map(|(_, listener)| listener).collect()
}
