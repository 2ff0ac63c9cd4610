//! Where a request stands in its trace: W3C Trace Context in, and on to the version.
//!
//! Without a collector the fields pass as they came. With one, Serin's span becomes the version's parent, the caller's decision
//! to sample is followed, and a `traceparent` that is malformed is replaced, as the specification asks.

use super::share::Share;
use crate::{
    config::Otlp,
    model::Clock,
    telemetry::otlp::{Spans, hex},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The caller may have recorded the trace (W3C Trace Context Level 2, "Sampled flag").
const SAMPLED: u8 = 1;
/// At least the last seven bytes of the trace's id are random ("Random Trace ID Flag").
const RANDOM: u8 = 2;

/// Who traces, and how much.
#[derive(Debug)]
pub struct Tracer {
    pub(super) spans: Spans,
    sample: Share,
    clock: Arc<dyn Clock>,
}

impl Tracer {
    /// A tracer that hands its spans over.
    pub fn new(config: &Otlp, spans: Spans, clock: Arc<dyn Clock>) -> Tracer {
        Tracer {
            spans,
            sample: Share::of(config.sample),
            clock,
        }
    }

    /// The wall clock in nanoseconds.
    pub(super) fn now_nanos(&self) -> u64 {
        self.clock.wall().as_millis().saturating_mul(1_000_000)
    }
}

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    /// [`SAMPLED`] and [`RANDOM`]; what others mean is not known, so they do not go on ("Other Flags").
    pub(super) flags: u8,
}

impl TraceParent {
    /// Reads the field, if there is exactly one and it is well-formed.
    pub(super) fn read(headers: &HeaderMap) -> Option<TraceParent> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return None;
        };
        TraceParent::parse(line.as_bytes())
    }

    /// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may have more after another dash.
    fn parse(text: &[u8]) -> Option<TraceParent> {
        let (version, rest) = field::<1>(text)?;
        let (trace, rest) = field::<16>(dash(rest)?)?;
        let (span, rest) = field::<8>(dash(rest)?)?;
        let ([flags], rest) = field::<1>(dash(rest)?)?;
        let ends = match version {
            [0] => rest.is_empty(),
            [255] => false,
            [_] => rest.is_empty() || rest.starts_with(b"-"),
        };
        let holds = ends && trace != [0; 16] && span != [0; 8];
        holds.then_some(TraceParent {
            trace,
            span,
            flags: flags & (SAMPLED | RANDOM),
        })
    }

    /// Whether the trace is told of.
    pub(super) const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    fn value(&self) -> Option<HeaderValue> {
        let (trace, span, flags) = (hex(&self.trace), hex(&self.span), self.flags);
        HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}")).ok()
    }
}

fn dash(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"-")
}

/// `N` bytes in lower-case hexadecimal, and what follows.
fn field<const N: usize>(text: &[u8]) -> Option<([u8; N], &[u8])> {
    let (digits, rest) = (text.get(..2 * N)?, text.get(2 * N..)?);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some((bytes, rest))
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

/// Serin's own place in a trace.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) own: TraceParent,
    pub(super) parent: Option<[u8; 8]>,
    pub(super) state: String,
}

impl Place {
    /// Continues the caller's trace, or begins one. `dice` are random bits.
    pub(super) fn take(tracer: &Tracer, headers: &HeaderMap, dice: impl Fn() -> u64) -> Place {
        let span = loop {
            let id = dice();
            if id != 0 {
                break id.to_be_bytes();
            }
        };
        if let Some(parent) = TraceParent::read(headers) {
            return Place {
                own: TraceParent { span, ..parent },
                parent: Some(parent.span),
                state: state(headers),
            };
        }
        let (high, low) = (dice(), dice().max(1));
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&high.to_be_bytes());
        trace[8..].copy_from_slice(&low.to_be_bytes());
        let own = TraceParent {
            trace,
            span,
            // By the trace's id, so that everybody who asks with the same share decides alike.
            flags: RANDOM | if tracer.sample.takes(low) { SAMPLED } else { 0 },
        };
        Place {
            own,
            parent: None,
            state: String::new(),
        }
    }

    /// Makes this place the parent of what the version does.
    pub(super) fn stamp(&self, headers: &mut HeaderMap) {
        if self.parent.is_none() {
            // State without a readable parent belongs to no trace.
            headers.remove(TRACESTATE);
        }
        if let Some(value) = self.own.value() {
            headers.insert(TRACEPARENT, value);
        }
    }
}

fn state(headers: &HeaderMap) -> String {
    let lines = headers.get_all(TRACESTATE).iter();
    let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ManualClock, Timestamp, Weight};

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_or_refused_as_the_specification_says() {
        let parent = TraceParent::parse(GOOD.as_bytes()).unwrap();
        assert!(parent.is_sampled() && parent.value().unwrap() == GOOD);
        let later = format!("01{}-more", &GOOD[2..]);
        assert!(
            TraceParent::parse(later.as_bytes()).is_some(),
            "a later version is read as far as we know it"
        );
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-x"),
            &format!("ff{}", &GOOD[2..]),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(
            TraceParent::read(&twice),
            None,
            "two of them contradict each other"
        );
    }

    #[test]
    fn of_a_callers_flags_those_that_are_known_go_on() {
        for (came, goes) in [
            ("00", "00"),
            ("01", "01"),
            ("02", "02"),
            ("03", "03"),
            ("fe", "02"),
            ("ff", "03"),
        ] {
            let text = format!("{}{came}", &GOOD[..53]);
            let parent = TraceParent::parse(text.as_bytes()).unwrap();
            let value = parent.value().unwrap();
            assert_eq!(value, format!("{}{goes}", &GOOD[..53]), "{came}");
            assert_eq!(parent.is_sampled(), goes.ends_with(['1', '3']), "{came}");
        }
    }

    #[tokio::test]
    async fn the_callers_decision_is_followed_and_serin_becomes_the_parent() {
        let config = Otlp {
            endpoint: "http://127.0.0.1:1/v1/traces".to_owned(),
            ca: None,
            headers: Vec::new(),
            sample: Weight::percent(0),
            service_name: "serin".to_owned(),
        };
        let collector = crate::telemetry::otlp::Collector {
            endpoint: config.endpoint.clone(),
            roots: None,
            headers: Vec::new(),
            service_name: String::new(),
        };
        let dropped = prometheus::IntCounter::new("a", "b").unwrap();
        let (spans, _) = crate::telemetry::otlp::start(collector, dropped).unwrap();
        let tracer = Tracer::new(&config, spans, Arc::new(ManualClock::at(Timestamp::from_secs(1))));
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        let place = Place::take(&tracer, &headers, || 0xab);
        place.stamp(&mut headers);
        assert_eq!(
            headers["traceparent"],
            "00-0af7651916cd43dd8448eb211c80319c-00000000000000ab-01"
        );
        assert_eq!(
            (headers["tracestate"].as_bytes(), place.state.as_str()),
            (&b"a=1"[..], "a=1")
        );
        headers.insert(TRACEPARENT, HeaderValue::from_static("nonsense"));
        let root = Place::take(&tracer, &headers, || 0xab);
        assert!(
            root.parent.is_none() && !root.own.is_sampled(),
            "a share of nothing takes no root"
        );
        root.stamp(&mut headers);
        assert!(!headers.contains_key(TRACESTATE));
        assert_eq!(
            headers["traceparent"], "00-00000000000000ab00000000000000ab-00000000000000ab-02",
            "an id of our own is random"
        );
    }
}
