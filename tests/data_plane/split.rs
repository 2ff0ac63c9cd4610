//! The split as clients see it.

use crate::support::{Serin, get, upstream::Upstream};

#[test]
fn without_a_canary_everything_is_served_by_stable() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    for _ in 0..20 {
        assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    }
    assert_eq!(v1.requests(), 20);
}
