//! How one line of the access log looks, as JSON and in the combined log format.
//!
//! Whatever a client sent is escaped, so that one request is one line and cannot pass for another. What is not known is left
//! out (JSON) or is `-`. Seconds and bytes are the units.

use crate::{
    config::{self, LogFormat},
    model::{EndpointUrl, Role, ServiceName, Timestamp, VersionName},
    telemetry::otlp::hex,
};
use http::{HeaderName, HeaderValue, Method, Version};
use std::{fmt::Display, io::Write, net::IpAddr, time::Duration};

/// What is told of one request.
#[derive(Debug)]
pub(in crate::proxy) struct Line<'a> {
    pub(in crate::proxy) time: Timestamp,
    pub(in crate::proxy) listener: &'a str,
    pub(in crate::proxy) client: IpAddr,
    /// None: what came was no request.
    pub(in crate::proxy) asked: Option<Asked<'a>>,
    pub(in crate::proxy) status: u16,
    /// None: no version was chosen.
    pub(in crate::proxy) served: Option<Served<'a>>,
    pub(in crate::proxy) bytes_in: u64,
    pub(in crate::proxy) bytes_out: u64,
    pub(in crate::proxy) first_byte: Option<Duration>,
    pub(in crate::proxy) total: Option<Duration>,
    pub(in crate::proxy) request_id: Option<&'a HeaderValue>,
    pub(in crate::proxy) trace: Option<[u8; 16]>,
    /// Whose fault it is that it did not go well, and what happened.
    pub(in crate::proxy) fault: Option<(&'static str, &'static str)>,
}

/// What a client asked for.
#[derive(Debug)]
pub(in crate::proxy) struct Asked<'a> {
    pub(in crate::proxy) method: &'a Method,
    pub(in crate::proxy) host: &'a [u8],
    pub(in crate::proxy) path: &'a str,
    pub(in crate::proxy) query: Option<&'a str>,
    pub(in crate::proxy) protocol: Version,
    pub(in crate::proxy) fields: &'a [(HeaderName, HeaderValue)],
}

/// Who answered.
#[derive(Debug)]
pub(in crate::proxy) struct Served<'a> {
    pub(in crate::proxy) service: &'a ServiceName,
    pub(in crate::proxy) role: Role,
    pub(in crate::proxy) version: &'a VersionName,
    /// Why the version was chosen.
    pub(in crate::proxy) reason: &'static str,
    pub(in crate::proxy) endpoint: Option<&'a EndpointUrl>,
    pub(in crate::proxy) attempts: u32,
    /// The version it was assigned to and that could not be reached.
    pub(in crate::proxy) rescued_from: Option<&'a VersionName>,
}

impl Line<'_> {
    /// Appends the line with its newline.
    pub(super) fn write(&self, config: &config::AccessLog, out: &mut Vec<u8>) {
        match config.format {
            LogFormat::Json => self.json(config.query, out),
            LogFormat::Clf => self.clf(config.query, out),
        }
        out.push(b'\n');
    }

    fn json(&self, query: bool, out: &mut Vec<u8>) {
        let mut object = Object { out, separator: b'{' };
        object.text("time", self.time);
        object.text("listener", self.listener);
        object.text("client", self.client);
        if let Some(asked) = &self.asked {
            object.text("method", asked.method);
            object.bytes("host", asked.host);
            object.text("path", asked.path);
            if let Some(query) = asked.query.filter(|_| query) {
                object.text("query", query);
            }
            object.text("protocol", protocol(asked.protocol));
        }
        object.plain("status", self.status);
        if let Some(served) = &self.served {
            object.text("service", served.service);
            object.text("role", served.role.as_str());
            object.text("version", served.version);
            object.text("reason", served.reason);
            if let Some(endpoint) = served.endpoint {
                object.text("endpoint", endpoint);
            }
            object.plain("attempts", served.attempts);
            object.plain("rescued", served.rescued_from.is_some());
            if let Some(version) = served.rescued_from {
                object.text("rescuedFrom", version);
            }
        }
        object.plain("bytesIn", self.bytes_in);
        object.plain("bytesOut", self.bytes_out);
        if let Some(time) = self.first_byte {
            object.plain("firstByteSeconds", seconds(time));
        }
        if let Some(time) = self.total {
            object.plain("totalSeconds", seconds(time));
        }
        if let Some(id) = self.request_id {
            object.bytes("requestId", id.as_bytes());
        }
        if let Some(trace) = &self.trace {
            object.text("traceId", hex(trace));
        }
        if let Some((fault, flag)) = self.fault {
            object.text("fault", fault);
            object.text("flag", flag);
        }
        let fields = self.asked.as_ref().map_or(&[][..], |asked| asked.fields);
        if !fields.is_empty() {
            object.key("headers");
            let mut inner = Object {
                out: object.out,
                separator: b'{',
            };
            for (name, value) in fields {
                inner.bytes(name.as_str(), value.as_bytes());
            }
            inner.out.push(b'}');
        }
        out.push(b'}');
    }

    /// `client - - [time] "request" status bytes "referer" "user agent"`, then what that format has no place for.
    fn clf(&self, query: bool, out: &mut Vec<u8>) {
        put(
            out,
            format_args!("{} - - [{}] \"", self.client, clf_time(self.time)),
        );
        match &self.asked {
            None => out.push(b'-'),
            Some(asked) => {
                escape(out, asked.method.as_str().as_bytes());
                out.push(b' ');
                escape(out, asked.path.as_bytes());
                if let Some(query) = asked.query.filter(|_| query) {
                    out.push(b'?');
                    escape(out, query.as_bytes());
                }
                put(out, format_args!(" {}", protocol(asked.protocol)));
            }
        }
        put(out, format_args!("\" {} {}", self.status, self.bytes_out));
        let fields = self.asked.as_ref().map_or(&[][..], |asked| asked.fields);
        let field = |name: &str| {
            let found = fields.iter().find(|(known, _)| known == name);
            found.map_or(&b"-"[..], |(_, value)| value.as_bytes())
        };
        let quoted = |out: &mut Vec<u8>, key: &str, value: &[u8]| {
            put(out, format_args!(" {key}\""));
            escape(out, value);
            out.push(b'"');
        };
        quoted(out, "", field("referer"));
        quoted(out, "", field("user-agent"));
        put(out, format_args!(" listener={}", self.listener));
        quoted(out, "host=", self.asked.as_ref().map_or(b"-", |asked| asked.host));
        match &self.served {
            None => put(
                out,
                " service=- role=- version=- reason=- endpoint=- attempts=0 rescued=-",
            ),
            Some(served) => {
                let (service, role, version) = (served.service, served.role.as_str(), served.version);
                put(
                    out,
                    format_args!(
                        " service={service} role={role} version={version} reason={}",
                        served.reason
                    ),
                );
                match served.endpoint {
                    Some(endpoint) => put(out, format_args!(" endpoint={endpoint}")),
                    None => put(out, " endpoint=-"),
                }
                put(out, format_args!(" attempts={}", served.attempts));
                match served.rescued_from {
                    Some(version) => put(out, format_args!(" rescued={version}")),
                    None => put(out, " rescued=-"),
                }
            }
        }
        put(out, format_args!(" in={}", self.bytes_in));
        for (key, time) in [("ttfb", self.first_byte), ("total", self.total)] {
            match time {
                Some(time) => put(out, format_args!(" {key}={}", seconds(time))),
                None => put(out, format_args!(" {key}=-")),
            }
        }
        let (fault, flag) = self.fault.unwrap_or(("-", "-"));
        put(out, format_args!(" fault={fault} flag={flag}"));
        quoted(out, "id=", self.request_id.map_or(b"-", HeaderValue::as_bytes));
        put(
            out,
            format_args!(
                " trace={}",
                self.trace.map_or("-".to_owned(), |trace| hex(&trace))
            ),
        );
        for (name, value) in fields {
            if name != "referer" && name != "user-agent" {
                quoted(out, &format!("{name}="), value.as_bytes());
            }
        }
    }
}

fn put(out: &mut Vec<u8>, text: impl Display) {
    // Memory takes everything.
    let _ = write!(out, "{text}");
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Microseconds are as fine as it makes sense.
fn seconds(time: Duration) -> impl Display {
    let micros = time.as_micros();
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// `24/Nov/2026:00:00:00 +0000`, from `2026-11-24T00:00:00.123Z`.
fn clf_time(time: Timestamp) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = time.to_string();
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    let month = part(5..7)
        .parse::<usize>()
        .ok()
        .and_then(|month| month.checked_sub(1));
    let month = month.and_then(|month| MONTHS.get(month)).unwrap_or(&"-");
    format!("{}/{month}/{}:{} +0000", part(8..10), part(0..4), part(11..19))
}

/// Printable ASCII as it is, everything else, quotes and backslashes as `\xHH`.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f..=0xff => put(out, format_args!("\\x{byte:02X}")),
            printable => out.push(*printable),
        }
    }
}

/// A JSON object being written.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    separator: u8,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        self.out.push(self.separator);
        self.separator = b',';
        put(self.out, format_args!("\"{key}\":"));
    }

    /// A number or a truth value.
    fn plain(&mut self, key: &str, value: impl Display) {
        self.key(key);
        put(self.out, value);
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.key(key);
        self.out.push(b'"');
        let from = self.out.len();
        put(self.out, value);
        let clean = |byte: &u8| !matches!(byte, b'"' | b'\\' | 0..=0x1f);
        if self
            .out
            .get(from..)
            .is_some_and(|written| written.iter().all(clean))
        {
            self.out.push(b'"');
            return;
        }
        // Rare: written again, escaped.
        let written = self.out.split_off(from);
        self.out.pop();
        self.string(&String::from_utf8_lossy(&written));
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.string(&String::from_utf8_lossy(value));
    }

    fn string(&mut self, value: &str) {
        // Writing a string to memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(format: LogFormat, query: bool) -> config::AccessLog {
        config::AccessLog {
            format,
            path: config::LogPath::Stdout,
            sample: crate::model::Weight::percent(100),
            query,
            headers: Vec::new(),
        }
    }

    fn written(line: &Line<'_>, format: LogFormat, query: bool) -> String {
        let mut out = Vec::new();
        line.write(&config(format, query), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn with_line(test: impl FnOnce(&Line<'_>)) {
        let (service, version) = (ServiceName::new("shop").unwrap(), VersionName::new("v2").unwrap());
        let endpoint: EndpointUrl = "http://127.0.0.1:9002".parse().unwrap();
        let fields = [(http::header::USER_AGENT, HeaderValue::from_static("a \"b\" c"))];
        test(&Line {
            time: Timestamp::from_millis(1_795_478_400_123),
            listener: "web",
            client: IpAddr::from([192, 0, 2, 7]),
            asked: Some(Asked {
                method: &Method::GET,
                host: b"shop\xff.test",
                path: "/a\"b",
                query: Some("key=1"),
                protocol: Version::HTTP_11,
                fields: &fields,
            }),
            status: 200,
            served: Some(Served {
                service: &service,
                role: Role::Canary,
                version: &version,
                reason: "weight",
                endpoint: Some(&endpoint),
                attempts: 1,
                rescued_from: None,
            }),
            bytes_in: 0,
            bytes_out: 12,
            first_byte: Some(Duration::from_micros(1500)),
            total: Some(Duration::from_millis(2001)),
            request_id: None,
            trace: None,
            fault: Some(("upstream", "broke_off")),
        });
    }

    #[test]
    fn a_json_line_is_one_object_and_has_no_query_unless_asked() {
        with_line(|line| {
            let text = written(line, LogFormat::Json, false);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(text.ends_with("}\n") && text.lines().count() == 1);
            assert_eq!(json["path"], "/a\"b");
            assert_eq!(json["host"], "shop\u{fffd}.test");
            assert_eq!(
                (&json["role"], &json["version"]),
                (&"canary".into(), &"v2".into())
            );
            assert_eq!(json["totalSeconds"], 2.001);
            assert_eq!(json["headers"]["user-agent"], "a \"b\" c");
            assert!(json.get("query").is_none());
            assert!(written(line, LogFormat::Json, true).contains("\"query\":\"key=1\""));
        });
    }

    #[test]
    fn a_clf_line_starts_as_every_parser_expects() {
        with_line(|line| {
            assert_eq!(
                written(line, LogFormat::Clf, false),
                "192.0.2.7 - - [24/Nov/2026:00:00:00 +0000] \"GET /a\\x22b HTTP/1.1\" 200 12 \"-\" \"a \\x22b\\x22 c\" \
                 listener=web host=\"shop\\xFF.test\" service=shop role=canary version=v2 reason=weight \
                 endpoint=http://127.0.0.1:9002 attempts=1 rescued=- in=0 ttfb=0.001500 total=2.001000 fault=upstream \
                 flag=broke_off id=\"-\" trace=-\n"
            );
        });
    }
}
