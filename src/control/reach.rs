//! Which endpoints a deploy may name. A CI token must not make Serin send the users' requests, and with them their
//! credentials, to wherever it likes: not into the cloud's metadata, not to Serin itself, nowhere the operator did not allow.

use super::{Refusal, RefusalKind, managed::Managed};
use crate::{
    config::Config,
    model::{EndpointUrl, VersionName},
};
use std::net::IpAddr;

impl Managed {
    /// Whether a deploy may name these endpoints; those already known are never refused.
    pub(super) fn allow(
        &self,
        config: &Config,
        version: &VersionName,
        endpoints: &[EndpointUrl],
    ) -> Result<(), Refusal> {
        let known = self
            .saved
            .version(version)
            .map(|version| version.endpoints.as_slice());
        for endpoint in endpoints {
            if known.is_some_and(|known| known.contains(endpoint)) {
                continue;
            }
            let forbidden = |message: String, hint: &str| {
                Err(Refusal::new(RefusalKind::Forbidden, "endpointNotAllowed", message).hint(hint))
            };
            if is_link_local(endpoint) {
                return forbidden(
                    format!("{endpoint} is a link-local address, where clouds keep their credentials"),
                    "name the address that the instance serves at",
                );
            }
            if let Some(what) = config.own_address(endpoint) {
                return forbidden(
                    format!("{endpoint} is Serin's own {what}: its requests would come back to it"),
                    "name the address that the instance serves at",
                );
            }
            if !self.config.deploy.allows(endpoint) {
                return forbidden(
                    format!("{endpoint} is not among the endpoints that a deploy may name"),
                    "add its network, host or socket to deploy.allowedEndpoints of the service",
                );
            }
        }
        Ok(())
    }
}

fn is_link_local(endpoint: &EndpointUrl) -> bool {
    match endpoint.ip().map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        None => false,
    }
}
