//! Asking an endpoint once whether it works: a connection, a path, or the gRPC health protocol.
//!
//! Used by active health checks and by control's readiness gate. Runs on the control runtime, over a connection of its own
//! each time: what is asked is whether a new connection works as well. The caller bounds the time.

use super::{
    ClientTls,
    connect::{is_local, unix},
};
use crate::{
    config::Check,
    model::{EndpointUrl, Scheme},
};
use bytes::{Buf, Bytes};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A gRPC health answer is a few bytes.
const LARGEST_ANSWER: usize = 4 * 1024;
/// `ServingStatus.SERVING` of grpc.health.v1.
const SERVING: u64 = 1;

/// Why a check did not hold; for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The endpoint does not work.
    #[error("{0}")]
    Bad(String),
    /// Our own machine is out of descriptors, ports or memory: says nothing about the endpoint.
    #[error("this machine is out of resources: {0}")]
    Local(String),
}

/// Asks `endpoint`, which is at `address` unless it is a Unix socket, within `timeout`.
pub async fn check(
    endpoint: &EndpointUrl,
    address: Option<SocketAddr>,
    tls: &ClientTls,
    check: &Check,
    timeout: Duration,
) -> Result<(), CheckError> {
    match tokio::time::timeout(timeout, ask(endpoint, address, tls, check)).await {
        Ok(result) => result,
        Err(_) => Err(CheckError::Bad(format!(
            "{endpoint}: no answer within {timeout:?}"
        ))),
    }
}

async fn ask(
    endpoint: &EndpointUrl,
    address: Option<SocketAddr>,
    tls: &ClientTls,
    check: &Check,
) -> Result<(), CheckError> {
    let refused = |error: io::Error| {
        let why = format!("connect to {endpoint}: {error}");
        if is_local(&error) {
            CheckError::Local(why)
        } else {
            CheckError::Bad(why)
        }
    };
    let http2 = endpoint.scheme().is_h2c();
    let said = if endpoint.scheme().is_unix() {
        let stream = unix(endpoint.host()).await.map_err(refused)?;
        speak(stream, http2, endpoint, check).await
    } else {
        // Names are resolved elsewhere, and their addresses judged there: never by the system on the way.
        let unresolved = || CheckError::Bad(format!("`{}` has no address", endpoint.host()));
        let stream = TcpStream::connect(address.ok_or_else(unresolved)?)
            .await
            .map_err(refused)?;
        if endpoint.scheme() == Scheme::Https {
            match tls.connect(endpoint, stream, false).await {
                Ok((stream, http2)) => speak(stream, http2, endpoint, check).await,
                Err(error) => Err(format!("TLS with {endpoint}: {error}")),
            }
        } else {
            speak(stream, http2, endpoint, check).await
        }
    };
    said.map_err(CheckError::Bad)
}

async fn speak<S>(stream: S, http2: bool, endpoint: &EndpointUrl, check: &Check) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (check, http2) {
        (Check::Tcp, _) => Ok(()),
        (Check::Http(path), true) => {
            let response = over_http2(stream, get(endpoint, path, true)?).await;
            judge(
                response
                    .map_err(|error| format!("{path}: {error}"))?
                    .status()
                    .as_u16(),
                path,
            )
        }
        (Check::Http(path), false) => {
            let response = over_http1(stream, get(endpoint, path, false)?).await;
            judge(
                response
                    .map_err(|error| format!("{path}: {error}"))?
                    .status()
                    .as_u16(),
                path,
            )
        }
        // The protocol needs HTTP/2, whatever requests are sent over.
        (Check::Grpc(service), _) => grpc(stream, endpoint, service).await,
    }
}

fn scheme(endpoint: &EndpointUrl) -> &'static str {
    if endpoint.scheme() == Scheme::Https {
        "https"
    } else {
        "http"
    }
}

fn judge(status: u16, path: &str) -> Result<(), String> {
    if (200..300).contains(&status) {
        Ok(())
    } else {
        Err(format!("{path} answered {status}"))
    }
}

fn get(endpoint: &EndpointUrl, path: &str, http2: bool) -> Result<Request<Full<Bytes>>, String> {
    let request = if http2 {
        // The authority says it; a Host field beside it is what some servers stumble over.
        Request::get(format!("{}://{}{path}", scheme(endpoint), endpoint.authority()))
    } else {
        Request::get(path).header(header::HOST, endpoint.authority())
    };
    request
        .header(
            header::USER_AGENT,
            concat!("serin-probe/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::default())
        .map_err(|error| format!("the probe cannot be made: {error}"))
}

async fn over_http1<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    sender.send_request(request).await
}

async fn over_http2<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    sender.send_request(request).await
}

/// `grpc.health.v1.Health/Check`: good is OK with SERVING.
async fn grpc<S>(stream: S, endpoint: &EndpointUrl, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broke = |error: hyper::Error| format!("gRPC health: {error}");
    let request = Request::post(format!(
        "{}://{}/grpc.health.v1.Health/Check",
        scheme(endpoint),
        endpoint.authority()
    ))
    .header(header::CONTENT_TYPE, "application/grpc")
    .header(header::TE, "trailers")
    .header(
        header::USER_AGENT,
        concat!("serin-probe/", env!("CARGO_PKG_VERSION")),
    )
    .body(Full::new(question(service)))
    .map_err(|error| format!("the probe cannot be made: {error}"))?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(broke)?;
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(request).await.map_err(broke)?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("gRPC health answered {}", response.status().as_u16()));
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LARGEST_ANSWER)
        .collect()
        .await
        .map_err(|error| format!("gRPC health: {error}"))?;
    let code = body
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"))
        .or(head.headers.get("grpc-status"))
        .map(|code| String::from_utf8_lossy(code.as_bytes()).into_owned());
    match (code.as_deref(), serving_status(&body.to_bytes())) {
        (Some("0"), Some(SERVING)) => Ok(()),
        (Some("0"), Some(0)) => Err(format!("gRPC health of `{service}`: UNKNOWN")),
        (Some("0"), Some(2)) => Err(format!("gRPC health of `{service}`: NOT_SERVING")),
        (Some("0"), Some(3)) => Err(format!("gRPC health of `{service}`: SERVICE_UNKNOWN")),
        (Some("0"), _) => Err("gRPC health: the answer is not a HealthCheckResponse".to_owned()),
        (code, _) => Err(format!("gRPC health: status {}", code.unwrap_or("missing"))),
    }
}

/// A length-prefixed `HealthCheckRequest {service = 1}`. Names are at most 200 bytes long, which the configuration holds.
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        // Field 1, length-delimited; the length as a varint of one or two bytes.
        message.push(0x0a);
        let length = service.len();
        let low = u8::try_from(length & 0x7f).unwrap_or(0);
        match u8::try_from(length >> 7).unwrap_or(0) {
            0 => message.push(low),
            high => message.extend([low | 0x80, high]),
        }
        message.extend(service.as_bytes());
    }
    let mut framed = vec![0u8];
    framed.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// `status` (field 1) of a length-prefixed `HealthCheckResponse`; 0 when it is not written, none when it is no such message.
fn serving_status(mut frame: &[u8]) -> Option<u64> {
    if frame.len() < 5 || frame.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(frame.get_u32()).ok()?;
    let mut message = frame.get(..length)?;
    let mut status = 0;
    while message.has_remaining() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
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

    const SOON: Duration = Duration::from_secs(10);

    async fn asked(endpoint: &EndpointUrl, what: &Check, timeout: Duration) -> Result<(), String> {
        let address = endpoint.ip().map(|ip| SocketAddr::new(ip, endpoint.port()));
        let said = check(endpoint, address, &ClientTls::default(), what, timeout).await;
        said.map_err(|error| error.to_string())
    }

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
    async fn an_endpoint_works_when_its_path_answers_2xx() {
        let path = Check::Http("/healthz".to_owned());
        let good = server("204 No Content").await;
        assert_eq!(asked(&good, &path, SOON).await, Ok(()));
        let bad = server("503 Service Unavailable").await;
        assert_eq!(
            asked(&bad, &path, SOON).await.unwrap_err(),
            "/healthz answered 503"
        );
        assert_eq!(
            asked(&bad, &Check::Tcp, SOON).await,
            Ok(()),
            "it does accept connections"
        );
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_does_not_work() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url: EndpointUrl = format!("http://127.0.0.1:{port}").parse().unwrap();
        assert!(asked(&url, &Check::Tcp, SOON).await.is_err());
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_not_looked_up_on_the_way() {
        let url: EndpointUrl = "http://localhost:1".parse().unwrap();
        let error = asked(&url, &Check::Tcp, SOON).await.unwrap_err();
        assert_eq!(error, "`localhost` has no address");
    }

    #[tokio::test]
    async fn an_endpoint_that_accepts_and_says_nothing_does_not_work() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: EndpointUrl = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let path = Check::Http("/".to_owned());
        let error = asked(&url, &path, Duration::from_millis(50)).await;
        assert!(error.unwrap_err().contains("no answer within 50ms"));
    }

    /// A gRPC server that answers every call with these bytes and this status.
    async fn grpc_server(message: &'static [u8], status: &'static str) -> EndpointUrl {
        use http_body::Frame;
        use hyper::{server::conn::http2, service::service_fn};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await?.to_bytes();
                    assert_eq!(asked.as_ref(), b"\0\0\0\0\x06\x0a\x04shop");
                    let trailers = [("grpc-status", status)].into_iter().map(|(name, value)| {
                        (
                            http::HeaderName::from_static(name),
                            http::HeaderValue::from_static(value),
                        )
                    });
                    let frames = [
                        Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(message))),
                        Ok(Frame::trailers(trailers.collect())),
                    ];
                    let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
                    Ok::<_, hyper::Error>(Response::new(body))
                });
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        format!("h2c://127.0.0.1:{port}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_grpc_server_works_when_it_says_serving() {
        let ask = Check::Grpc("shop".to_owned());
        for (message, status, expected) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], "0", None),
            (b"\0\0\0\0\x02\x08\x02", "0", Some("NOT_SERVING")),
            (b"\0\0\0\0\0", "0", Some("UNKNOWN")),
            (b"\0\0\0\0\x02\x08\x01", "12", Some("status 12")),
            (b"\0\0\0\0\x09\x08", "0", Some("not a HealthCheckResponse")),
        ] {
            let server = grpc_server(message, status).await;
            let said = asked(&server, &ask, SOON).await;
            match expected {
                None => assert_eq!(said, Ok(())),
                Some(text) => assert!(said.clone().unwrap_err().contains(text), "{said:?}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_can_do_harm(frame: Vec<u8>) {
            let _ = serving_status(&frame);
        }
    }
}
