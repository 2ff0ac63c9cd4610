//! The table and the splits as one worker sees them: its own copies of what all share, looked up when that changes.
//!
//! A request would otherwise count references of the table, the split, two targets and a list of endpoints up and down, in
//! cache lines that every worker writes. Here each worker has counts of its own; what is shared is only read.

use super::{
    body::RequestBody,
    table::{Entry, Table},
    withdrawn::Withdrawal,
};
use crate::{
    model::Role,
    route::RequestView,
    split::{Followed, Split},
    upstream::{Connections, Endpoint, LiveService, Members, Pools, Target},
};
use arc_swap::{ArcSwap, Cache};
use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// One generation of a service's split, which a request keeps to its end.
#[derive(Debug)]
pub(super) struct LiveSplit {
    live: Arc<LiveService>,
    split: Arc<Split<Arc<Target>>>,
    stable: RefCell<Members<RequestBody>>,
    canary: Option<RefCell<Members<RequestBody>>>,
    /// Whose turn it is on this worker among the endpoints of stable and of the canary; none: nobody has had one.
    turns: [Cell<Option<u64>>; 2],
}

impl LiveSplit {
    fn of(live: &Arc<LiveService>, split: &Arc<Split<Arc<Target>>>) -> LiveSplit {
        let follow = |target: &Arc<Target>| RefCell::new(Members::follow(&target.version));
        LiveSplit {
            live: Arc::clone(live),
            split: Arc::clone(split),
            stable: follow(&split.stable),
            canary: split.canary.as_ref().map(follow),
            turns: Default::default(),
        }
    }

    /// Lets `take` have a turn of a role. Workers begin at different places, and at another one in each generation.
    pub(super) fn in_turn<T>(&self, role: Role, worker: usize, take: impl FnOnce(&mut u64) -> T) -> T {
        let turns = &self.turns[usize::from(role == Role::Canary)];
        let first = || {
            u64::try_from(worker)
                .unwrap_or_default()
                .wrapping_add(self.split.generation)
        };
        let mut turn = turns.get().unwrap_or_else(first);
        let taken = take(&mut turn);
        turns.set(Some(turn));
        taken
    }

    fn members(&self, role: Role) -> &RefCell<Members<RequestBody>> {
        match (role, &self.canary) {
            (Role::Canary, Some(canary)) => canary,
            (Role::Canary, None) | (Role::Stable, _) => &self.stable,
        }
    }

    /// What `look` makes of the endpoints that a role has now.
    pub(super) fn with_endpoints<T>(&self, role: Role, look: impl FnOnce(&[Arc<Endpoint>]) -> T) -> T {
        look(self.members(role).borrow_mut().endpoints())
    }

    /// What `look` makes of this worker's connections to them.
    pub(super) fn with_connections<T>(
        &self,
        role: Role,
        pools: &Pools<RequestBody>,
        look: impl FnOnce(&[Rc<Connections<RequestBody>>]) -> T,
    ) -> T {
        look(self.members(role).borrow_mut().connections(pools))
    }

    /// What tells a response of this generation's canary that it has been withdrawn; stable is not.
    pub(super) fn withdrawal(&self, role: Role, drain: Duration) -> Option<Withdrawal> {
        (role == Role::Canary).then(|| Withdrawal::new(&self.live, self.split.target(role), drain))
    }

    fn refresh(&self) {
        for role in [Role::Stable, Role::Canary] {
            self.members(role).borrow_mut().refresh();
        }
    }
}

impl Deref for LiveSplit {
    type Target = Split<Arc<Target>>;

    fn deref(&self) -> &Self::Target {
        &self.split
    }
}

/// One route's split, followed.
#[derive(Debug)]
struct Live {
    followed: Followed<Arc<Target>>,
    split: Rc<LiveSplit>,
}

impl Live {
    fn of(entry: &Entry) -> Live {
        let mut followed = entry.live.cell.follow();
        let split = Rc::new(LiveSplit::of(&entry.live, followed.load()));
        Live { followed, split }
    }

    fn latest(&mut self) -> &Rc<LiveSplit> {
        let latest = self.followed.load();
        if !Arc::ptr_eq(latest, &self.split.split) {
            self.split = Rc::new(LiveSplit::of(&self.split.live, latest));
        }
        &self.split
    }
}

/// One table's routes, which a request keeps to its end.
#[derive(Debug)]
pub(super) struct Routes {
    table: Arc<Table>,
    /// By the target's place in the table's router.
    live: Box<[RefCell<Live>]>,
}

/// A request's route.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) entry: &'a Arc<Entry>,
    live: &'a RefCell<Live>,
}

impl Found<'_> {
    /// The split in force.
    pub(super) fn split(&self) -> Rc<LiveSplit> {
        Rc::clone(self.live.borrow_mut().latest())
    }
}

impl Routes {
    fn of(table: &Arc<Table>) -> Routes {
        let targets = table.router.targets().iter();
        Routes {
            table: Arc::clone(table),
            live: targets.map(|entry| RefCell::new(Live::of(entry))).collect(),
        }
    }

    /// The route of a request.
    pub(super) fn find(&self, request: &RequestView<'_>) -> Option<Found<'_>> {
        let place = self.table.router.position(request)?;
        Some(Found {
            entry: self.table.router.targets().get(place)?,
            live: self.live.get(place)?,
        })
    }
}

/// The table in force, followed.
#[derive(Debug)]
pub(super) struct Following {
    table: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    routes: Rc<Routes>,
}

impl Following {
    pub(super) fn new(table: &Arc<ArcSwap<Table>>) -> Following {
        let mut table = Cache::new(Arc::clone(table));
        let routes = Rc::new(Routes::of(table.load()));
        Following { table, routes }
    }

    /// The routes in force.
    pub(super) fn latest(&mut self) -> &Rc<Routes> {
        let latest = self.table.load();
        if !Arc::ptr_eq(latest, &self.routes.table) {
            self.routes = Rc::new(Routes::of(latest));
        }
        &self.routes
    }

    /// Lets go of what is no longer in force. Called once a second: a worker without requests would hold it for ever.
    pub(super) fn refresh(&mut self) {
        for live in &self.latest().live {
            live.borrow_mut().latest().refresh();
        }
    }
}
