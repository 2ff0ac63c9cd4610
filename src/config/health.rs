//! `health` and `ejection`: how Serin finds out which endpoints of a version work, and what it does with the others.
//!
//! Only what is asked for; `upstream::health` is the machine that does it.

use super::compiled::Ready;
use super::cx::Cx;
use super::service::{at_least_one, check_path};
use crate::model::{Span, Weight};
use serde::Deserialize;

/// Active health checks of every endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// Between two checks of one endpoint; 5s, spread by a tenth.
    pub interval: Span,
    /// How long one check may take; 1s.
    pub timeout: Span,
    /// Good checks in a row until an endpoint is back; 2.
    pub rise: u32,
    /// Bad checks in a row until it is out; 3.
    pub fall: u32,
}

/// What one active check asks of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// To accept a connection (and a TLS handshake, where the endpoint speaks it).
    Tcp,
    /// To answer this path with 2xx.
    Http(String),
    /// To answer `grpc.health.v1.Health/Check` for this service with SERVING; empty: the server as a whole.
    Grpc(String),
}

/// How an endpoint that fails is left out for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row (refused, reset, timed out); 3.
    pub failures: u32,
    /// Responses in a row that count as failures by the service's `failure`; none: responses never eject.
    pub bad_responses: Option<u32>,
    /// How long at first; doubles each time up to ten times this; 5s.
    pub base: Span,
    /// The most endpoints of a version that may be ejected at once; 50%, and one in any case. With one endpoint none is.
    pub max: Weight,
    /// When a smaller share of the endpoints than this is healthy, health is not believed and all are used; 30%.
    pub panic: Weight,
    /// Ejection of what does worse than others; none: only failures in a row eject.
    pub success_rate: Option<SuccessRate>,
}

/// An endpoint is ejected when too few of its requests in a window succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// How long is counted; 10s.
    pub window: Span,
    /// Fewer requests than this in a window say nothing; 100.
    pub requests: u64,
    /// Below this; none: no absolute bound.
    pub minimum: Option<Weight>,
    /// By this much below the mean of the version's endpoints; none: no comparison.
    pub below_mean: Option<Weight>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            check: Check::Tcp,
            interval: Span::secs(5),
            timeout: Span::secs(1),
            rise: 2,
            fall: 3,
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Ejection {
            failures: 3,
            bad_responses: None,
            base: Span::secs(5),
            max: Weight::percent(50),
            panic: Weight::percent(30),
            success_rate: None,
        }
    }
}

/// At most one of http, tcp, grpc.
#[derive(Debug, Deserialize)]
pub(super) struct HealthConfig {
    /// Absent: `ready.http`; without that, accepting a connection is enough.
    http: Option<String>,
    /// `true`: accepting a connection is enough, whatever `ready` says.
    tcp: Option<bool>,
    /// The gRPC health protocol, for this service; `""` asks for the server as a whole.
    grpc: Option<String>,
    /// Absent: 5s.
    interval: Option<Span>,
    /// Absent: 1s.
    timeout: Option<Span>,
    /// Absent: 2.
    rise: Option<u32>,
    /// Absent: 3.
    fall: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EjectionConfig {
    /// Absent: 3.
    failures: Option<u32>,
    /// Absent: responses never eject.
    bad_responses: Option<u32>,
    /// Absent: 5s.
    base: Option<Span>,
    /// Absent: 50%.
    max: Option<Weight>,
    /// Absent: 30%.
    panic: Option<Weight>,
    /// Absent: only failures in a row eject.
    success_rate: Option<SuccessRateConfig>,
}

/// At least one of minimum and belowMean.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SuccessRateConfig {
    /// Absent: 10s.
    window: Option<Span>,
    /// Absent: 100.
    requests: Option<u32>,
    minimum: Option<Weight>,
    below_mean: Option<Weight>,
}

impl HealthConfig {
    pub(super) fn compile(&self, ready: &Ready, path: &str, cx: &mut Cx) -> Health {
        let default = Health::default();
        check_path(self.http.as_ref(), &format!("{path}.http"), cx);
        let (interval, timeout) = (
            self.interval.unwrap_or(default.interval),
            self.timeout.unwrap_or(default.timeout),
        );
        if interval < Span::millis(100) {
            cx.error(
                &format!("{path}.interval"),
                "an interval below 100ms is a load, not a check",
                "write 100ms or more",
            );
        }
        if timeout.is_zero() {
            cx.error(
                &format!("{path}.timeout"),
                "no time at all would fail every check",
                "write for example 1s",
            );
        }
        Health {
            check: self.check(ready, path, cx),
            interval,
            timeout,
            rise: at_least_one(self.rise, default.rise, &format!("{path}.rise"), cx),
            fall: at_least_one(self.fall, default.fall, &format!("{path}.fall"), cx),
        }
    }

    fn check(&self, ready: &Ready, path: &str, cx: &mut Cx) -> Check {
        match (&self.http, self.tcp.unwrap_or(false), &self.grpc) {
            (Some(http), false, None) => Check::Http(http.clone()),
            (None, true, None) => Check::Tcp,
            (None, false, Some(service)) => {
                let named = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
                if !service.bytes().all(named) || service.len() > 200 {
                    let what = format!("`{service}` is not a gRPC service's name");
                    cx.error(
                        &format!("{path}.grpc"),
                        what,
                        "write for example shop.Orders, or \"\" for the whole server",
                    );
                }
                Check::Grpc(service.clone())
            }
            (None, false, None) => ready.http.clone().map_or(Check::Tcp, Check::Http),
            (Some(_), _, _) | (None, true, Some(_)) => {
                cx.error(path, "only one of http, tcp and grpc can be asked", "keep one");
                Check::Tcp
            }
        }
    }
}

impl EjectionConfig {
    pub(super) fn compile(&self, path: &str, cx: &mut Cx) -> Ejection {
        let default = Ejection::default();
        if self.base.is_some_and(Span::is_zero) {
            cx.error(
                &format!("{path}.base"),
                "no time at all would eject nothing",
                "write for example 5s",
            );
        }
        Ejection {
            failures: at_least_one(self.failures, default.failures, &format!("{path}.failures"), cx),
            bad_responses: self
                .bad_responses
                .map(|bad| at_least_one(Some(bad), 1, &format!("{path}.badResponses"), cx)),
            base: self.base.unwrap_or(default.base),
            max: self.max.unwrap_or(default.max),
            panic: self.panic.unwrap_or(default.panic),
            success_rate: self
                .success_rate
                .as_ref()
                .map(|rate| rate.compile(&format!("{path}.successRate"), cx)),
        }
    }
}

impl SuccessRateConfig {
    fn compile(&self, path: &str, cx: &mut Cx) -> SuccessRate {
        if self.minimum.is_none() && self.below_mean.is_none() {
            cx.error(
                path,
                "nothing says which rate is too low",
                "add minimum: 50%, belowMean: 30% or both",
            );
        }
        let window = self.window.unwrap_or(Span::secs(10));
        if window < Span::secs(2) {
            cx.error(
                &format!("{path}.window"),
                "workers report once a second: a shorter window than 2s says nothing",
                "write for example 10s",
            );
        }
        SuccessRate {
            window,
            requests: at_least_one(self.requests, 100, &format!("{path}.requests"), cx).into(),
            minimum: self.minimum,
            below_mean: self.below_mean,
        }
    }
}
