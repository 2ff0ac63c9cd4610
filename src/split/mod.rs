//! Which version serves a request: the exact decision, sticky keys, and the live table.
//!
//! Pure: the draw is a keyed hash of the ticket number, so any choice can be replayed from its key.
//! `proxy::service` spends tickets, `control::perform` swaps the table.

mod cell;
mod pick;
mod sticky;

pub use cell::{Assigned, Followed, Split, SplitCell, Trip};
pub use pick::{Ticket, pick};
pub use sticky::{StickyHash, is_canary};
