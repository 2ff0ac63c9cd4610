//! The six milestones of a canary lab, driven from outside as a user would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

#[path = "../support/mod.rs"]
mod support;

use support::{Serin, get, upstream::Upstream};

#[test]
fn a_stable_service_is_taken_over() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    assert_eq!(get(serin.admin, "/readyz").0, 200);
    let (code, out, _) = serin.run("get shop");
    assert!(code == 0 && out.contains("Healthy"), "{code} {out}");
    assert!(
        serin.metric(
            "serin_http_requests_total",
            &[("status", "200"), ("role", "stable")]
        ) >= 1.0
    );
}
