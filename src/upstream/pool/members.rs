//! The endpoints of one version as a worker sees them: a list that is looked at for each request and changes rarely.

use super::{
    super::{Endpoint, Version, balance::Candidate, version::FollowedEndpoints},
    Connections, Pools,
};
use http_body::Body;
use std::{error::Error, fmt, rc::Rc, sync::Arc};

type List = Arc<Vec<Arc<Endpoint>>>;

/// The endpoints of a version, followed, and the worker's connections to them: to choose one of a thousand services' endpoints
/// shall not take a search among all of them, each step of which waits for memory.
pub struct Members<B> {
    followed: FollowedEndpoints,
    /// In the order of the list that they were made for; none: nobody has asked since it changed.
    connections: Option<(List, Vec<Rc<Connections<B>>>)>,
}

impl<B> fmt::Debug for Members<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").finish_non_exhaustive()
    }
}

impl<B> Members<B> {
    /// Touches nothing that workers share as long as the endpoints stay.
    pub fn follow(version: &Version) -> Members<B> {
        Members {
            followed: version.follow_endpoints(),
            connections: None,
        }
    }

    /// The endpoints in force.
    pub fn endpoints(&mut self) -> &[Arc<Endpoint>] {
        self.latest()
    }

    /// Lets go of endpoints that are no longer in force.
    pub fn refresh(&mut self) {
        self.latest();
    }

    /// The list in force; connections for another one are not held.
    fn latest(&mut self) -> &List {
        let latest = self.followed.load();
        if !(self.connections.as_ref()).is_some_and(|(list, _)| Arc::ptr_eq(list, latest)) {
            self.connections = None;
        }
        latest
    }
}

impl<B> Members<B>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// The worker's connections to each endpoint in force, in their order.
    pub fn connections(&mut self, pools: &Pools<B>) -> &[Rc<Connections<B>>] {
        self.refresh();
        let followed = &mut self.followed;
        let (_, connections) = self.connections.get_or_insert_with(|| {
            let list = followed.load();
            let connections = list.iter().map(|endpoint| pools.of(endpoint));
            (Arc::clone(list), connections.collect())
        });
        connections
    }
}

impl<B> Candidate for Rc<Connections<B>> {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn active(&self) -> u32 {
        self.active.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointUrl, ServiceName, VersionName};
    use bytes::Bytes;
    use http_body_util::Empty;
    use tokio::time::Instant;

    fn urls(ports: &[u16]) -> Vec<EndpointUrl> {
        let url = |port| format!("http://127.0.0.1:{port}").parse().unwrap();
        ports.iter().map(url).collect()
    }

    #[test]
    fn connections_are_those_of_the_endpoints_in_force_and_none_is_held_longer() {
        let service = ServiceName::new("s").unwrap();
        let version = Version::new(service, VersionName::new("v").unwrap(), &urls(&[1, 2]));
        let pools = Pools::<Empty<Bytes>>::default();
        let mut members = Members::follow(&version);
        let before = members.connections(&pools).to_vec();
        let same = members.connections(&pools);
        assert!(before.len() == 2 && before.iter().zip(same).all(|(a, b)| Rc::ptr_eq(a, b)));

        version.set_endpoints(&urls(&[2, 3]));
        let after = members.connections(&pools).to_vec();
        let ports = after.iter().map(|one| one.endpoint().url.port());
        assert_eq!(ports.collect::<Vec<_>>(), [2, 3]);
        assert!(
            Rc::ptr_eq(&before[1], &after[0]),
            "one that stays keeps what it has"
        );

        // A worker that nobody asks for anything lets go of the others all the same.
        drop((before, after));
        version.set_endpoints(&urls(&[3]));
        members.refresh();
        pools.sweep(Instant::now());
        assert_eq!(pools.by_id.borrow().len(), 1);
        assert_eq!(members.connections(&pools).len(), 1);
        version.set_endpoints(&[]);
        assert!(members.endpoints().is_empty());
        pools.sweep(Instant::now());
        assert_eq!(pools.by_id.borrow().len(), 0);
        assert!(members.connections(&pools).is_empty());
    }

    #[test]
    fn workers_do_not_keep_an_endpoint_for_each_other() {
        let service = ServiceName::new("s").unwrap();
        let version = Version::new(service, VersionName::new("v").unwrap(), &urls(&[1, 2]));
        let mut workers = [(); 3].map(|()| (Pools::<Empty<Bytes>>::default(), Members::follow(&version)));
        for (pools, members) in &mut workers {
            assert_eq!(members.connections(pools).len(), 2);
        }
        version.set_endpoints(&urls(&[2]));
        let mut sweep = |refreshed: usize| {
            for (_, members) in workers.iter_mut().take(refreshed) {
                members.refresh();
            }
            let kept = workers.iter().map(|(pools, _)| {
                pools.sweep(Instant::now());
                pools.by_id.borrow().len()
            });
            kept.collect::<Vec<_>>()
        };
        assert_eq!(
            sweep(2),
            [2, 2, 2],
            "the third worker may still send it a request"
        );
        assert_eq!(sweep(3), [1, 1, 1]);
    }
}
