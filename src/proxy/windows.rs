//! How much a client has said that it takes, as far as it can be known from here (RFC 9113 5.2).
//!
//! The HTTP/2 library takes a whole piece of an answer as soon as one byte of it has room in the client's windows, and when the
//! piece is the last, nobody but the library knows of the stream any more. A client that opens its windows no further would
//! hold it for ever. So the last byte of a piece follows by itself when the piece may not fit: the stream's task waits with it
//! until all before it has room, and has the write stall like any other (`streams`).

use std::cell::Cell;

/// What each window holds until something else is said.
const INITIAL: u64 = 65_535;

/// The windows of one client's connection, towards it.
#[derive(Debug)]
pub(super) struct Windows {
    /// What each stream may be sent before the client says more.
    each: Cell<u64>,
    /// What all of them together may be sent, since the connection's beginning.
    granted: Cell<u64>,
    /// What bodies have handed to the library.
    handed: Cell<u64>,
    /// What the library has written.
    written: Cell<u64>,
    /// Something was handed over after the last write: it is still to come.
    fresh: Cell<bool>,
}

impl Default for Windows {
    fn default() -> Self {
        Windows {
            each: Cell::new(INITIAL),
            granted: Cell::new(INITIAL),
            handed: Cell::new(0),
            written: Cell::new(0),
            fresh: Cell::new(false),
        }
    }
}

impl Windows {
    /// The client's settings give each stream so much.
    pub(super) fn gives_each(&self, window: u32) {
        self.each.set(window.into());
    }

    /// The client takes so much more on all its streams: a field whose first bit is reserved, and ignored by whoever receives it
    /// (RFC 9113 6.9).
    pub(super) fn grants(&self, more: u32) {
        let more = more & (u32::MAX >> 1);
        self.granted.set(self.granted.get().saturating_add(more.into()));
    }

    /// A piece of so many bytes has been written.
    pub(super) fn written(&self, length: usize) {
        add(&self.written, length);
        self.fresh.set(false);
    }

    /// A piece of so many bytes goes to the library, on a stream that has been handed `before`. Whether it fits for certain: what
    /// the client has granted one stream alone is not known.
    pub(super) fn take(&self, length: usize, before: &Cell<u64>) -> bool {
        add(before, length);
        add(&self.handed, length);
        self.fresh.set(true);
        before.get() <= self.each.get() && self.handed.get() <= self.granted.get()
    }

    /// Nothing waits to be written: what was handed over before the last write and not written was for streams that have been
    /// given up.
    pub(super) fn settle(&self) {
        if !self.fresh.get() {
            self.handed.set(self.written.get());
        }
    }
}

fn add(to: &Cell<u64>, length: usize) {
    to.set(to.get().saturating_add(u64::try_from(length).unwrap_or(u64::MAX)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_fits_when_both_windows_hold_all_that_went_before() {
        let windows = Windows::default();
        let [one, two] = [(); 2].map(|()| Cell::new(0));
        assert!(windows.take(65_535, &one));
        assert!(!windows.take(1, &two), "the connection's is full");
        windows.grants(100_000);
        assert!(
            windows.take(1, &two) && !windows.take(1, &one),
            "the stream's is full"
        );
        windows.gives_each(10);
        assert!(windows.take(8, &two) && !windows.take(1, &two));
    }

    #[test]
    fn the_reserved_bit_of_a_grant_grants_nothing() {
        let windows = Windows::default();
        windows.grants(1 << 31 | 1);
        windows.gives_each(u32::MAX >> 1);
        assert!(windows.take(65_536, &Cell::new(0)) && !windows.take(1, &Cell::new(0)));
    }

    #[test]
    fn what_was_given_up_takes_no_room_once_nothing_waits() {
        let windows = Windows::default();
        let of = |stream: &Cell<u64>| windows.take(60_000, stream);
        assert!(of(&Cell::new(0)) && !of(&Cell::new(0)));
        windows.settle();
        assert!(!of(&Cell::new(0)), "all of it may still come");
        windows.written(5_000);
        windows.settle();
        assert!(of(&Cell::new(0)), "5,000 and 60,000");
    }
}
