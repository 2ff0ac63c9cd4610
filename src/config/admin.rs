//! `admin`, `telemetry`, `state`: who may do what, who may look, what is remembered.

use super::compiled::{Admin, StateStore, Token, TokenHash, TokenRole};
use super::cx::Cx;
use super::decode::Located;
use super::listener::socket_address;
use super::secret::Redacted;
use super::tls::TlsConfig;
use crate::model::{ByteSize, ServiceName, Span};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AdminConfig {
    /// Absent: 127.0.0.1:9900.
    address: Option<String>,
    /// Relative to this file. Absent: serin.sock.
    socket: Option<String>,
    /// Absent: nobody may change anything over TCP.
    #[serde(default)]
    tokens: Vec<Located<TokenConfig>>,
    /// Names that requests over plain HTTP may call it by. Absent: only IP addresses and `localhost`.
    #[serde(default)]
    hosts: Vec<Located<String>>,
    /// Absent: off loopback TLS is required.
    #[serde(default)]
    insecure: bool,
    /// Absent: HTTP without TLS.
    tls: Option<TlsConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenConfig {
    /// Who it is, in the audit; unique.
    name: String,
    /// viewer, deployer, approver or admin.
    role: TokenRole,
    /// Absent: every service.
    services: Option<Vec<Located<ServiceName>>>,
    /// Relative to this file; its trimmed content is the token. One of this and `secret`.
    secret_file: Option<String>,
    /// The token itself: write `${ENV}`.
    secret: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TelemetryConfig {
    /// Where `/metrics` and the probes are served to anybody.
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateConfig {
    /// Relative to this file. Absent: serin.db.
    path: Option<String>,
    /// Absent: rollouts 100, events 90d, recordings 1GiB.
    #[serde(default)]
    retention: RetentionConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetentionConfig {
    /// Finished rollouts of each service. Absent: 100.
    rollouts: Option<u32>,
    /// Absent: 90d.
    events: Option<Span>,
    /// When the state file holds more, what judges were fed in older rollouts goes. Absent: 1GiB.
    recordings: Option<ByteSize>,
}

/// Where the REST API is served when nothing is written.
pub(super) const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9900);

/// SHA-256 of a token.
pub(super) fn hash(secret: &str) -> TokenHash {
    TokenHash(Sha256::digest(secret.as_bytes()).into())
}

/// Exactly one of `secretFile` and `secret`.
pub(super) fn secret(path: &str, file: Option<&str>, text: Option<&str>, cx: &mut Cx) -> Option<Redacted> {
    match (file, text) {
        (Some(file), None) => cx
            .secret_file(&format!("{path}.secretFile"), file)
            .map(Redacted::new),
        (None, Some(text)) if !text.trim().is_empty() => Some(Redacted::new(text.trim())),
        (None, Some(_)) => {
            cx.error(
                &format!("{path}.secret"),
                "the secret is empty",
                "write secretFile, or set the variable that it names",
            );
            None
        }
        (Some(_), Some(_)) => {
            cx.error(
                &format!("{path}.secret"),
                "secret and secretFile exclude each other",
                "keep one of them",
            );
            None
        }
        (None, None) => None,
    }
}

pub(super) fn compile(config: Option<&AdminConfig>, services: &[ServiceName], cx: &mut Cx) -> Admin {
    let none = AdminConfig::default();
    let config = config.unwrap_or(&none);
    let address = match config.address.as_deref().map(socket_address) {
        None => DEFAULT_ADMIN,
        Some(Ok(address)) => address,
        Some(Err(hint)) => {
            cx.error("admin.address", "this is not an address to listen at", hint);
            DEFAULT_ADMIN
        }
    };
    if !address.ip().is_loopback() && config.tls.is_none() && !config.insecure {
        cx.error(
            "admin.address",
            format!("{address} is not loopback, and tokens would cross the network in clear text"),
            "listen at 127.0.0.1, add tls, or write insecure: true",
        );
    }
    let mut tokens: Vec<Token> = Vec::new();
    for Located { path, value: token } in &config.tokens {
        if tokens.iter().any(|other| other.name == token.name) {
            cx.error(
                &format!("{path}.name"),
                format!("two tokens are called `{}`", token.name),
                "rename one",
            );
        }
        for service in token.services.iter().flatten() {
            if !services.contains(&service.value) {
                cx.warn(
                    &service.path,
                    format!("there is no service `{}`", service.value),
                    "",
                );
            }
        }
        if token.secret.is_none() && token.secret_file.is_none() {
            cx.error(
                path,
                "the token has no secret",
                "add secretFile: ci.token, or secret: ${CI_TOKEN}",
            );
            continue;
        }
        let Some(secret) = secret(path, token.secret_file.as_deref(), token.secret.as_deref(), cx) else {
            continue;
        };
        if secret.expose().len() < 16 {
            cx.warn(
                path,
                "the secret is shorter than 16 bytes",
                "make one with: openssl rand -hex 32",
            );
        }
        tokens.push(Token {
            name: token.name.clone(),
            role: token.role,
            services: token
                .services
                .as_ref()
                .map(|list| list.iter().map(|name| name.value.clone()).collect()),
            hash: hash(secret.expose()),
        });
    }
    Admin {
        address,
        socket: cx.resolve(config.socket.as_deref().unwrap_or("serin.sock")),
        tokens,
        hosts: config
            .hosts
            .iter()
            .filter_map(|host| host_name(host, cx))
            .collect(),
        insecure: config.insecure,
        tls: config.tls.as_ref().map(|tls| tls.compile("admin.tls", cx)),
    }
}

/// A name that others cannot make their own: a whole one, without a port.
fn host_name(Located { path, value }: &Located<String>, cx: &mut Cx) -> Option<String> {
    match ServerName::try_from(value.as_str()) {
        Ok(ServerName::DnsName(name)) => Some(name.as_ref().to_ascii_lowercase()),
        Ok(_) => {
            cx.error(
                path,
                format!("`{value}` is an address, and any address is taken as it is"),
                "remove it; only names stand here",
            );
            None
        }
        Err(_) => {
            cx.error(
                path,
                format!("`{value}` is not a host name"),
                "write the whole name without a port, for example serin.internal",
            );
            None
        }
    }
}

pub(super) fn telemetry(config: Option<&TelemetryConfig>, cx: &mut Cx) -> Option<SocketAddr> {
    match socket_address(&config?.address) {
        Ok(address) => Some(address),
        Err(hint) => {
            cx.error("telemetry.address", "this is not an address to listen at", hint);
            None
        }
    }
}

pub(super) fn state(config: Option<&StateConfig>, cx: &Cx) -> StateStore {
    let none = StateConfig::default();
    let config = config.unwrap_or(&none);
    StateStore {
        path: cx.resolve(config.path.as_deref().unwrap_or("serin.db")),
        keep_rollouts: config.retention.rollouts.unwrap_or(100),
        keep_events: config.retention.events.unwrap_or(Span::secs(90 * 86_400)),
        keep_recordings: config.retention.recordings.unwrap_or(ByteSize::kib(1024 * 1024)),
    }
}
