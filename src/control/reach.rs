//! Which endpoints a deploy may name. A CI token must not make Serin send the users' requests, and with them their
//! credentials, to wherever it likes: not into the cloud's metadata, not to Serin itself, nowhere the operator did not allow. Where a name leads is judged each time it is
//! resolved (`config::Reach`).

use super::{Refusal, RefusalKind, managed::Managed};
use crate::{
    config::{Config, forbidden},
    model::{EndpointUrl, VersionName},
};
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
            let refuse = |message: String, hint: &str| {
                Err(Refusal::new(RefusalKind::Forbidden, "endpointNotAllowed", message).hint(hint))
            };
            if let Some(why) = endpoint.ip().and_then(forbidden) {
                return refuse(
                    format!("{endpoint} is {why}"),
                    "name the address that the instance serves at",
                );
            }
            if let Some(what) = config.own_address(endpoint) {
                return refuse(
                    format!("{endpoint} is Serin's own {what}: its requests would come back to it"),
                    "name the address that the instance serves at",
                );
            }
            if !self.config.deploy.allows(endpoint) {
                return refuse(
                    format!("{endpoint} is not among the endpoints that a deploy may name"),
                    "add its network, host or socket to deploy.allowedEndpoints of the service",
                );
            }
        }
        Ok(())
    }
}
