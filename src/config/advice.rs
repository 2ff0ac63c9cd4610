//! What is legal and probably not meant.

use super::compiled::Service;
use super::cx::Cx;

/// Warns about a service's plan; `path` is where the service stands.
pub(super) fn advise(service: &Service, path: &str, cx: &mut Cx) {
    let _ = (service, path, cx);
}
