//! `notifications`: who is told what happens to rollouts, and how.

use super::admin;
use super::cx::Cx;
use super::decode::Located;
use super::observe::sent_headers;
use super::reach::forbidden;
use super::secret::{REDACTED, Redacted};
use super::upstream_tls::ca_of;
use crate::model::{ServiceName, Span};
use crate::rollout::Trigger;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, Uri, header};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

/// Somebody who is told by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// How logs and metrics call it; unique.
    pub name: String,
    /// Where it is posted. For many receivers the address itself is the secret.
    pub url: Redacted,
    /// What it is told of; at least one.
    pub on: Vec<Trigger>,
    /// Of which services; none: of all.
    pub services: Option<Vec<ServiceName>>,
    /// How a body looks.
    pub format: NotificationFormat,
    /// What each message is signed with; none: messages are not signed.
    pub secret: Option<SigningSecret>,
    /// The authorities that may have signed its certificate; none: whom this system trusts.
    pub ca: Option<PathBuf>,
    /// How long one attempt may take.
    pub timeout: Span,
    /// Sent along.
    pub headers: Vec<(HeaderName, Redacted)>,
}

impl Notification {
    /// Whether it wants to hear of this.
    pub fn wants(&self, service: &ServiceName, trigger: Trigger) -> bool {
        let of = self.services.as_ref();
        self.on.contains(&trigger) && of.is_none_or(|services| services.contains(service))
    }
}

/// How the body of a notification looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotificationFormat {
    /// The event as the API gives it, with one sentence.
    Json,
    /// One sentence, as Slack's incoming webhooks take it.
    Slack,
}

/// The key of a signature (Standard Webhooks); never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(Vec<u8>);

impl SigningSecret {
    /// Reads it as Standard Webhooks writes it: base64 of 24 to 64 bytes, `whsec_` before it or not.
    pub fn parse(text: &str) -> Option<SigningSecret> {
        let text = text.strip_prefix("whsec_").unwrap_or(text);
        let bytes = STANDARD.decode(text).ok()?;
        (24..=64).contains(&bytes.len()).then_some(SigningSecret(bytes))
    }

    /// The key itself; for the one place that signs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// How long an attempt may take when nothing is written, and at most.
const TIMEOUT: Span = Span::secs(10);
const LONGEST: Span = Span::secs(60);
/// What frames a request.
const OURS: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::CONTENT_TYPE,
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NotificationConfig {
    /// Who it is, in logs and metrics; unique.
    name: String,
    /// Where it is posted, `http://` or `https://`; if it is a secret, write `${ENV}`.
    url: String,
    /// Absent: paused, completed, aborted, analysis failed or error, and the alarm.
    on: Option<Vec<Located<Trigger>>>,
    /// Absent: every service.
    services: Option<Vec<Located<ServiceName>>>,
    /// `json` or `slack`. Absent: json.
    format: Option<NotificationFormat>,
    /// Relative to this file; its trimmed content is the key of the signature, in base64. Absent, and no `secret`: no signature.
    secret_file: Option<String>,
    /// The key itself: write `${ENV}`.
    secret: Option<String>,
    /// PEM: who may have signed its certificate. Absent: the authorities that this system trusts.
    ca: Option<String>,
    /// How long one attempt may take, up to 60s. Absent: 10s.
    timeout: Option<Span>,
    /// Sent along; for an API key write `${ENV}`. Absent: none.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

pub(super) fn compile(
    configs: &[Located<NotificationConfig>],
    services: &[ServiceName],
    cx: &mut Cx,
) -> Vec<Notification> {
    let mut all: Vec<Notification> = Vec::new();
    for Located { path, value } in configs {
        let one = value.compile(path, services, cx);
        if all.iter().any(|other| other.name == one.name) {
            cx.error(
                &format!("{path}.name"),
                format!("two notifications are called `{}`", one.name),
                "rename one",
            );
        }
        all.push(one);
    }
    all
}

impl NotificationConfig {
    fn compile(&self, path: &str, services: &[ServiceName], cx: &mut Cx) -> Notification {
        if self.name.trim().is_empty() {
            cx.error(
                &format!("{path}.name"),
                "the name is empty",
                "write who is told, for example on-call",
            );
        }
        if let Err((what, mend)) = check_url(&self.url) {
            cx.error(&format!("{path}.url"), what, mend);
        }
        if self.on.as_ref().is_some_and(Vec::is_empty) {
            cx.error(
                &format!("{path}.on"),
                "nothing would be told",
                "write for example [on-rollout-aborted], or remove it for what calls for a person",
            );
        }
        for service in self.services.iter().flatten() {
            if !services.contains(&service.value) {
                cx.warn(
                    &service.path,
                    format!("there is no service `{}`", service.value),
                    "",
                );
            }
        }
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        if timeout.is_zero() || timeout > LONGEST {
            cx.error(
                &format!("{path}.timeout"),
                format!("an attempt that takes {timeout}"),
                format!("write up to {LONGEST}: whatever comes next waits for it"),
            );
        }
        let headers = sent_headers(&self.headers, &format!("{path}.headers"), cx);
        for (name, _) in &headers {
            if name.as_str().starts_with("webhook-") || OURS.contains(name) {
                cx.error(
                    &format!("{path}.headers.{name}"),
                    format!("`{name}` is written by Serin"),
                    "remove it",
                );
            }
        }
        let ca = ca_of(self.ca.as_deref(), (&self.url, false), path, cx);
        Notification {
            name: self.name.clone(),
            url: Redacted::new(&self.url),
            on: match &self.on {
                Some(on) => on.iter().map(|trigger| trigger.value).collect(),
                None => Trigger::TELLING.to_vec(),
            },
            services: self
                .services
                .as_ref()
                .map(|services| services.iter().map(|service| service.value.clone()).collect()),
            format: self.format.unwrap_or(NotificationFormat::Json),
            secret: self.signing_secret(path, cx),
            ca: ca.map(|ca| ca.path),
            timeout,
            headers,
        }
    }

    fn signing_secret(&self, path: &str, cx: &mut Cx) -> Option<SigningSecret> {
        let (file, text) = (self.secret_file.as_deref(), self.secret.as_deref());
        let key = if file.is_some() { "secretFile" } else { "secret" };
        let written = admin::secret(path, file, text, cx)?;
        let secret = SigningSecret::parse(written.expose());
        if secret.is_none() {
            cx.error(
                &format!("{path}.{key}"),
                "this is not a key for signatures: base64 of 24 to 64 bytes, with `whsec_` before it or without",
                "make one with: openssl rand -base64 32",
            );
        }
        secret
    }
}

/// What is wrong with an address, and how to mend it; never what stands in it.
fn check_url(text: &str) -> Result<(), (String, &'static str)> {
    const MEND: &str = "write for example https://hooks.example.com/serin";
    let url = text.parse::<Uri>().ok().filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
    });
    let Some(url) = url else {
        return Err(("this is not an address to post to".to_owned(), MEND));
    };
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err((
            "a user and password in an address are not sent".to_owned(),
            "write headers: {authorization: \"Basic ${ENV}\"}",
        ));
    }
    let host = url.host().unwrap_or_default();
    let ip = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    match ip.ok().and_then(forbidden) {
        Some(why) => Err((format!("{host} is {why}"), "name the receiver's own address")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_base64_of_enough_bytes_and_shown_nowhere() {
        let key = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            Some(&key),
            SigningSecret::parse("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").as_ref()
        );
        assert_eq!((key.expose().len(), format!("{key:?}").as_str()), (24, REDACTED));
        for wrong in [
            "",
            "whsec_",
            "hunter2hunter2hunter2hunter2hunter2!",
            "c2hvcnQ=",
            &STANDARD.encode([7; 65]),
        ] {
            assert_eq!(SigningSecret::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_address_is_one_of_http_and_of_no_metadata_service() {
        for fine in [
            "https://hooks.example.com/services/T0/B0?x=1",
            "http://127.0.0.1:8080",
            "http://[::1]:8080/",
        ] {
            assert_eq!(check_url(fine), Ok(()), "{fine}");
        }
        for (wrong, says) in [
            ("hooks.example.com", "not an address"),
            ("ftp://hooks.example.com", "not an address"),
            ("https://", "not an address"),
            ("https://user:pass@hooks.example.com", "user and password"),
            ("http://169.254.169.254/latest", "credentials"),
            ("http://[fe80::1]/", "link-local"),
            ("http://[::ffff:169.254.169.254]/", "link-local"),
        ] {
            assert!(check_url(wrong).unwrap_err().0.contains(says), "{wrong}");
        }
    }
}
