//! A service with a canary, each of one copy, behind a Serin of their own.

use super::{HEAD, Serin, upstream::Upstream};

/// `shop`: stable is v1, and the canary v2 waits at 1 % for whatever a test does.
pub struct Pair {
    pub stable: Upstream,
    pub canary: Upstream,
    pub serin: Serin,
}

impl Pair {
    /// With [`HEAD`], and `more` keys of the service.
    pub fn start(more: &str) -> Pair {
        Pair::start_with(HEAD, more)
    }

    /// With this before the services.
    pub fn start_with(head: &str, more: &str) -> Pair {
        let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
        let serin = Pair::in_front(&stable, &canary, head, more);
        Pair {
            stable,
            canary,
            serin,
        }
    }

    /// One more Serin in front of these copies.
    pub fn in_front(stable: &Upstream, canary: &Upstream, head: &str, more: &str) -> Serin {
        let serin = Serin::start_with(&format!(
            "{head}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    canary: {{version: v2, endpoints: [\"{}\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 1}}, {{pause: {{}}}}]}}}}
    {more}
",
            stable.url(),
            canary.url()
        ));
        serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
        serin
    }
}
