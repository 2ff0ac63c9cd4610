//! HTTP requests to providers: bounded in time and size, certificates checked unless the operator says otherwise.

use super::{Fetched, Question, shorten};
use crate::{config::authorities, upstream::AnyCertificate};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use std::{
    collections::BTreeMap,
    error::Error,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// The largest answer that is read.
const LARGEST: usize = 4 * 1024 * 1024;

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

type Private = BTreeMap<PathBuf, (Arc<RootCertStore>, Https)>;

/// Clients made when they are first needed: most configurations need none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    checked: Arc<OnceLock<Result<Https, String>>>,
    unchecked: Arc<OnceLock<Result<Https, String>>>,
    /// By the file of the authorities, with what was in it.
    private: Arc<Mutex<Private>>,
}

impl Clients {
    /// Asks.
    pub(crate) async fn fetch(&self, question: Question) -> Result<Fetched, String> {
        let (timeout, place) = (question.timeout, place(&question.url));
        match tokio::time::timeout(timeout, self.exchange(question)).await {
            Ok(result) => result.map_err(|why| format!("ask {place}: {why}")),
            Err(_) => {
                let patience = crate::model::Span::from(timeout);
                Err(format!("ask {place}: no answer within {patience}"))
            }
        }
    }

    async fn exchange(&self, question: Question) -> Result<Fetched, String> {
        let client = match &question.ca {
            Some(file) => self.trusting(file.clone()).await?,
            None if question.insecure => self.unchecked.get_or_init(unchecked).clone()?,
            None => self.checked.get_or_init(checked).clone()?,
        };
        let mut request = http::Request::builder()
            .method(question.method)
            .uri(&question.url)
            .header(
                http::header::USER_AGENT,
                concat!("serin/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in &question.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(question.body)))
            .map_err(|error| format!("the request cannot be made: {error}"))?;
        let response = client.request(request).await.map_err(|error| chain(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(http::header::RETRY_AFTER);
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = Limited::new(response.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|error| format!("the answer broke off: {error}"))?;
        Ok(Fetched {
            status,
            body: body.to_bytes().to_vec(),
            retry_after,
        })
    }
}

impl Clients {
    /// The client that believes the authorities in a file. It is read each time: a rollout may take longer than they live, and
    /// measurements are rare.
    async fn trusting(&self, file: PathBuf) -> Result<Https, String> {
        let path = file.clone();
        // Files may lie on a network.
        let read = tokio::task::spawn_blocking(move || authorities(&path));
        let roots = read
            .await
            .map_err(|_| "reading the authorities was interrupted".to_owned())?
            .map_err(|(what, mend)| format!("{what}; {mend}"))?;
        let mut private = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        match private.get(&file) {
            Some((known, client)) if known.roots == roots.roots => Ok(client.clone()),
            Some(_) | None => {
                let roots = Arc::new(roots);
                let client = private_client(Arc::clone(&roots))?;
                private.insert(file, (roots, client.clone()));
                Ok(client)
            }
        }
    }
}

/// Who was asked, for people: no path, query or user, where secrets may be.
fn place(url: &str) -> String {
    let url: http::Uri = url.parse().unwrap_or_default();
    let port = url.port_u16().map_or(String::new(), |port| format!(":{port}"));
    let (scheme, host) = (url.scheme_str(), url.host());
    format!("{}://{}{port}", scheme.unwrap_or("http"), host.unwrap_or("?"))
}

/// What caused the client's error, for people; the client itself says only that there was one.
fn chain(error: &dyn Error) -> String {
    let cause = error.source().unwrap_or(error);
    let mut text = cause.to_string();
    let mut source = cause.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    shorten(&text, 300)
}

fn client(connector: HttpsConnector<HttpConnector>) -> Https {
    Client::builder(TokioExecutor::new()).build(connector)
}

fn checked() -> Result<Https, String> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(ring::default_provider())
        .map_err(|error| format!("the system's certificates cannot be read: {error}"))?
        .https_or_http()
        .enable_http1()
        .build();
    Ok(client(connector))
}

fn private_client(roots: Arc<RootCertStore>) -> Result<Https, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(speaking(config))
}

fn speaking(config: ClientConfig) -> Https {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .build();
    client(connector)
}

fn unchecked() -> Result<Https, String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(speaking(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_who_was_asked_and_no_secret() {
        assert_eq!(
            place("https://user:secret@prometheus.test:9090/api?token=secret"),
            "https://prometheus.test:9090"
        );
        assert_eq!(place("not a url"), "http://?");
    }
}
