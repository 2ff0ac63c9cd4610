//! TLS towards endpoints: whom Serin believes, what it shows, and which HTTP is spoken inside.
//!
//! One [`ClientTls`] for each service, shared by the data plane, readiness probes and health checks, and replaced whole
//! when its files change; connections that are open keep what they were opened with. Sessions are resumed within it.

use crate::{
    config::UpstreamTls,
    model::{EndpointUrl, Scheme},
};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OnceCell,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How one service's `https://` endpoints are talked to.
#[derive(Debug, Default)]
pub struct ClientTls {
    settings: UpstreamTls,
    /// None: whom this system trusts.
    roots: Option<Arc<RootCertStore>>,
    identity: Option<Arc<CertifiedKey>>,
    /// Made at the first connection: most services have no `https://` endpoint.
    made: OnceCell<Arc<ClientConfig>>,
}

/// The authorities that this system trusts: what operators already maintain, their own authority included, and what is
/// updated without a new Serin, which a list compiled in would not be. Read once, when first needed.
async fn system_roots() -> io::Result<Arc<RootCertStore>> {
    static ROOTS: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map(ToString::to_string).unwrap_or_default();
            return Err(io::Error::other(format!(
                "this system has no certificate authorities (install ca-certificates, or name upstreamTls.ca) {why}"
            )));
        }
        Ok(Arc::new(roots))
    };
    ROOTS
        .get_or_try_init(|| async {
            // A hundred files or more: not on a worker's thread.
            tokio::task::spawn_blocking(read)
                .await
                .map_err(io::Error::other)?
        })
        .await
        .cloned()
}

impl ClientTls {
    /// TLS as a service wants it, with what its files hold.
    pub fn new(
        settings: UpstreamTls,
        roots: Option<Arc<RootCertStore>>,
        identity: Option<Arc<CertifiedKey>>,
    ) -> ClientTls {
        ClientTls {
            settings,
            roots,
            identity,
            made: OnceCell::new(),
        }
    }

    /// Whether an endpoint may be talked to by HTTP/1.1.
    pub fn allows_http1(&self) -> bool {
        self.settings.alpn != ["h2"]
    }

    /// Shakes hands on a new connection; whether HTTP/2 is spoken on it. `only_http1`: it must not be.
    pub async fn connect<S>(
        &self,
        endpoint: &EndpointUrl,
        stream: S,
        only_http1: bool,
    ) -> io::Result<(TlsStream<S>, bool)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        debug_assert!(
            endpoint.scheme() == Scheme::Https,
            "only https endpoints speak TLS"
        );
        let name = match &self.settings.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?,
        };
        let config = self.made.get_or_try_init(|| self.config()).await?;
        let connector = TlsConnector::from(Arc::clone(config));
        if only_http1 {
            let connector = connector.with_alpn(vec![b"http/1.1".to_vec()]);
            return Ok((connector.connect(name, stream).await?, false));
        }
        let stream = connector.connect(name, stream).await?;
        let chosen = stream.get_ref().1.alpn_protocol();
        // An endpoint that knows nothing of ALPN speaks HTTP/1.1, unless it was told that only HTTP/2 will do.
        let http2 = chosen == Some(b"h2") || (chosen.is_none() && !self.allows_http1());
        Ok((stream, http2))
    }

    async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder = match (&self.roots, self.settings.verify) {
            (_, false) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
            (Some(roots), true) => builder.with_root_certificates(Arc::clone(roots)),
            (None, true) => builder.with_root_certificates(system_roots().await?),
        };
        let mut config = match &self.identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))))
            }
            None => builder.with_no_client_auth(),
        };
        let offered = self.settings.alpn.iter().map(|name| name.as_bytes().to_vec());
        config.alpn_protocols = offered.collect();
        Ok(Arc::new(config))
    }
}

/// Whether the other side speaks none of the protocols that it was offered.
pub(super) fn is_other_protocol(error: &io::Error) -> bool {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    )
}

/// Accepts any certificate: for whoever wrote that this is wanted.
#[derive(Debug)]
pub struct AnyCertificate(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
