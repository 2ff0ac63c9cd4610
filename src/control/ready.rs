//! Whether an endpoint is ready: it answers a path with 2xx, or accepts a connection when there is no path.

use super::providers::{Question, fetch::Clients};
use crate::model::{EndpointUrl, Scheme};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// How long one probe may take.
pub(crate) const PROBE: Duration = Duration::from_secs(2);

/// Probes an endpoint once. The caller bounds the time.
pub(crate) async fn probe(
    clients: &Clients,
    endpoint: &EndpointUrl,
    path: Option<&str>,
) -> Result<(), String> {
    let refused = |error: std::io::Error| format!("connect to {endpoint}: {error}");
    match (endpoint.scheme(), path) {
        (Scheme::Unix, path) => {
            let stream = UnixStream::connect(endpoint.host()).await.map_err(refused)?;
            match path {
                None => Ok(()),
                Some(path) => over_http1(TokioIo::new(stream), endpoint, path).await,
            }
        }
        (Scheme::Https, Some(path)) => {
            let question = Question {
                method: http::Method::GET,
                url: format!("https://{}{path}", endpoint.authority()),
                headers: Vec::new(),
                body: String::new(),
                timeout: PROBE,
                insecure: false,
            };
            let (status, _) = clients.fetch(question).await?;
            judge(status, path)
        }
        (scheme @ (Scheme::Http | Scheme::H2c | Scheme::Https), path) => {
            let stream = TcpStream::connect((endpoint.host(), endpoint.port()))
                .await
                .map_err(refused)?;
            match (scheme, path) {
                (_, None) => Ok(()),
                (Scheme::H2c, Some(path)) => over_http2(TokioIo::new(stream), endpoint, path).await,
                (Scheme::Http | Scheme::Https | Scheme::Unix, Some(path)) => {
                    over_http1(TokioIo::new(stream), endpoint, path).await
                }
            }
        }
    }
}

fn judge(status: u16, path: &str) -> Result<(), String> {
    if (200..300).contains(&status) {
        Ok(())
    } else {
        Err(format!("{path} answered {status}"))
    }
}

fn request(uri: String, endpoint: &EndpointUrl) -> Result<Request<Empty<Bytes>>, String> {
    Request::get(uri)
        .header(http::header::HOST, endpoint.authority())
        .header(
            http::header::USER_AGENT,
            concat!("serin-probe/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::new())
        .map_err(|error| format!("the probe cannot be made: {error}"))
}

async fn over_http1<I>(io: I, endpoint: &EndpointUrl, path: &str) -> Result<(), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broke = |error: hyper::Error| format!("{path}: {error}");
    let (mut sender, connection) = http1::handshake(io).await.map_err(broke)?;
    let request = request(path.to_owned(), endpoint)?;
    let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(request).await;
    drop(driver);
    judge(response.map_err(broke)?.status().as_u16(), path)
}

async fn over_http2<I>(io: I, endpoint: &EndpointUrl, path: &str) -> Result<(), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broke = |error: hyper::Error| format!("{path}: {error}");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(broke)?;
    let mut request = request(format!("http://{}{path}", endpoint.authority()), endpoint)?;
    // The authority says it; a Host field beside it is what some servers stumble over.
    request.headers_mut().remove(http::header::HOST);
    let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(request).await;
    drop(driver);
    judge(response.map_err(broke)?.status().as_u16(), path)
}

/// What moves a connection's bytes; ended with the probe, also when that is given up.
///
/// A task of its own: a server that closes at once after its answer ends the connection in the same moment in which the
/// answer arrives, and the answer counts.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    async fn server(status: &'static str) -> EndpointUrl {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        format!("http://127.0.0.1:{port}").parse().unwrap()
    }

    #[tokio::test]
    async fn an_endpoint_is_ready_when_its_path_answers_2xx() {
        let clients = Clients::default();
        let good = server("204 No Content").await;
        assert_eq!(probe(&clients, &good, Some("/healthz")).await, Ok(()));
        let bad = server("503 Service Unavailable").await;
        let error = probe(&clients, &bad, Some("/healthz")).await.unwrap_err();
        assert_eq!(error, "/healthz answered 503");
        assert_eq!(
            probe(&clients, &bad, None).await,
            Ok(()),
            "it does accept connections"
        );
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url: EndpointUrl = format!("http://127.0.0.1:{port}").parse().unwrap();
        assert!(probe(&Clients::default(), &url, None).await.is_err());
    }
}
