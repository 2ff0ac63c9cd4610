//! Requests that Serin refused: at the door, or on their way when their body turned out to be bad; by reason.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! rejections {
    ($($(#[$doc:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a request was refused. The label `reason` of `serin_http_rejected_total`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rejection {
            $($(#[$doc])* $variant,)*
        }

        impl Rejection {
            /// All reasons, in index order.
            pub const ALL: &'static [Rejection] = &[$(Rejection::$variant,)*];

            /// The label value.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Rejection::$variant => $label,)*
                }
            }
        }
    };
}

rejections! {
    /// No PROXY header where one is needed, or from somebody who may not send one.
    ProxyProtocol = "proxy_protocol",
    /// The TLS handshake failed.
    Tls = "tls",
    /// What arrived is not HTTP.
    Malformed = "malformed",
    /// The body ended before its end: the client went away.
    Incomplete = "incomplete",
    /// Framing fields that contradict each other or are not understood.
    Framing = "framing",
    /// Host missing, repeated, malformed or contradicting the target.
    Host = "host",
    /// A request target that cannot be routed safely.
    Target = "target",
    /// A method that is not served: CONNECT, TRACE.
    Method = "method",
    /// An expectation other than 100-continue.
    Expectation = "expectation",
    /// Too many or too large header fields, or too long a target.
    HeaderLimit = "header_limit",
    /// More frames, resets or tiny pieces than anybody needs.
    Flood = "flood",
    /// The body is larger than allowed.
    BodyLimit = "body_limit",
    /// The client was too slow with its head or body.
    Timeout = "timeout",
    /// The route sends clients elsewhere.
    Redirect = "redirect",
    /// No route matches.
    NoRoute = "no_route",
    /// The service has no version that could answer.
    NoVersion = "no_version",
    /// More requests than the limit allows at once.
    Overload = "overload",
    /// More connections than the limit allows at once.
    Connections = "connections",
    /// Serin is stopping.
    Draining = "draining",
    /// Our own fault.
    Internal = "internal",
}

/// One listener's counters. Rare events: shared between workers.
#[derive(Debug)]
pub struct ListenerMetrics {
    /// The listener's name.
    pub name: String,
    /// Client connections open right now.
    pub connections: AtomicU64,
    rejected: Box<[AtomicU64]>,
}

impl ListenerMetrics {
    /// Zeroed counters.
    pub fn new(name: &str) -> ListenerMetrics {
        ListenerMetrics {
            name: name.to_owned(),
            connections: AtomicU64::new(0),
            rejected: Rejection::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts one refusal.
    pub fn reject(&self, reason: Rejection) {
        self.rejected[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals so far for that reason.
    pub fn rejected(&self, reason: Rejection) -> u64 {
        self.rejected[reason as usize].load(Ordering::Relaxed)
    }
}
