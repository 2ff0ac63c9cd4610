//! Which version a request is assigned to, and why.
//!
//! Order: tripped > force > sticky > exact weight. Only what neither force nor stickiness has taken draws a ticket, and
//! only what chance has decided is evidence.

use crate::{
    config::{MissingKey, Service, StickyCookie, StickySource},
    metrics::{AssignReason, Unit},
    model::Role,
    route,
    split::{Split, is_canary},
    upstream::Target,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use std::{net::IpAddr, sync::Arc};

/// A decision, and what follows from it.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) role: Role,
    pub(super) reason: AssignReason,
    /// What says something about the version by the outcome, when chance chose it.
    pub(super) unit: Option<Unit>,
    /// The id to hand to a client that had none.
    pub(super) cookie: Option<HeaderValue>,
}

impl Choice {
    const fn of(role: Role, reason: AssignReason, unit: Option<Unit>) -> Choice {
        Choice {
            role,
            reason,
            unit,
            cookie: None,
        }
    }
}

/// Decides. `client` is who asks (for `force`), `secure` whether the client's connection is encrypted, `dice` 128 random bits
/// for a new sticky id.
pub(super) fn choose(
    split: &Split<Arc<Target>>,
    tripped: bool,
    service: &Service,
    parts: &Parts,
    client: IpAddr,
    secure: bool,
    dice: impl FnOnce() -> u128,
) -> Choice {
    if tripped {
        return Choice::of(Role::Stable, AssignReason::Weight, None);
    }
    if split.canary.is_none() {
        return Choice::of(Role::Stable, AssignReason::Weight, Some(Unit::Request));
    }
    if let Some(role) = forced(service, &parts.headers, client) {
        return Choice::of(role, AssignReason::Force, None);
    }
    let Some(sticky) = &service.sticky else {
        return drawn(split);
    };
    let by_key = |key: &[u8]| {
        let bucket = split.sticky.bucket(key);
        let role = if is_canary(bucket, split.weight) {
            Role::Canary
        } else {
            Role::Stable
        };
        Choice::of(role, AssignReason::Sticky, Some(Unit::Key(bucket)))
    };
    let found = match &sticky.source {
        StickySource::Header(name) => parts
            .headers
            .get(name)
            .filter(|v| !v.is_empty())
            .map(|v| by_key(v.as_bytes())),
        StickySource::Query(name) => parts
            .uri
            .query()
            .and_then(|query| route::query_value(query, name))
            .filter(|value| !value.is_empty())
            .map(|value| by_key(value.as_bytes())),
        StickySource::Cookie(cookie) => Some(match known_id(&parts.headers, cookie) {
            Some(id) => by_key(id.as_bytes()),
            None => {
                let id = format!("{:032x}", dice());
                let set = set_cookie(cookie, &id, secure);
                Choice {
                    cookie: set,
                    ..by_key(id.as_bytes())
                }
            }
        }),
    };
    found.unwrap_or_else(|| match sticky.missing {
        MissingKey::Weight => drawn(split),
        // Not chance: whoever sends no key is always on stable.
        MissingKey::Stable => Choice::of(Role::Stable, AssignReason::Sticky, None),
    })
}

fn drawn(split: &Split<Arc<Target>>) -> Choice {
    Choice::of(split.draw().role, AssignReason::Weight, Some(Unit::Request))
}

fn forced(service: &Service, headers: &HeaderMap, client: IpAddr) -> Option<Role> {
    let force = service.force.as_ref()?;
    let role = route::force_value(headers, &force.header)?;
    force.allows(client).then_some(role)
}

/// The first id that we may have given out: 32 hexadecimal digits. What somebody else has put beside it under the same name is
/// passed over, or its owner would get another id with each answer; anything else alone is replaced.
fn known_id<'a>(headers: &'a HeaderMap, cookie: &StickyCookie) -> Option<&'a str> {
    route::cookie_values(headers, &cookie.name).find(|id| {
        id.len() == 32
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn set_cookie(cookie: &StickyCookie, id: &str, secure: bool) -> Option<HeaderValue> {
    let age = cookie.max_age.as_duration().as_secs();
    let secure = if secure { "; Secure" } else { "" };
    let text = format!(
        "{}={id}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}",
        cookie.name
    );
    HeaderValue::try_from(text).ok()
}

/// Whether a cache shared by several users may store a response: then it must not carry one user's id.
pub(super) fn is_shared_cacheable(method: &Method, status: StatusCode, headers: &HeaderMap) -> bool {
    let cacheable_status = matches!(
        status.as_u16(),
        200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    );
    if !(*method == Method::GET || *method == Method::HEAD) || !cacheable_status {
        return false;
    }
    let mut explicit = headers.contains_key(header::EXPIRES) || headers.contains_key(header::LAST_MODIFIED);
    for line in headers.get_all(header::CACHE_CONTROL) {
        for directive in line.as_bytes().split(|b| *b == b',') {
            let name = directive
                .split(|b| *b == b'=')
                .next()
                .unwrap_or_default()
                .trim_ascii()
                .to_ascii_lowercase();
            match name.as_slice() {
                b"no-store" | b"private" => return false,
                b"public" | b"s-maxage" | b"max-age" => explicit = true,
                _ => {}
            }
        }
    }
    explicit
}
