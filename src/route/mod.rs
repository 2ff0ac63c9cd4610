//! Which service a request is for: predicates and Gateway API precedence.
//!
//! Pure: a request is a [`RequestView`], an answer is a reference. `config` compiles what the operator wrote into
//! [`RouteMatch`]es, `proxy` asks a [`Router`] once per request. The readers of cookies, query parameters and the force
//! header live here too, because routing, stickiness and force must agree on what a request says.

mod fields;
mod matching;
mod path;
mod router;

pub use fields::{cookie_value, cookie_values, force_value, query_value};
pub use matching::{FieldMatch, HostMatch, PathMatch, RequestView, RouteMatch, ValueMatch};
pub use path::plain_path;
pub use router::{Router, Rule};
