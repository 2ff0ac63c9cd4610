//! Places for the futures of requests, apart from the connections that wait for requests.
//!
//! hyper keeps room for the future of a request, about 3 KiB, for as long as a connection lives. The connections of a worker
//! share places instead: there are as many as requests at once, and a few are kept for the next ones.

use std::{
    any::Any,
    cell::{OnceCell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

/// Empty places that a worker keeps at hand.
const MOST_KEPT: usize = 64;

type Place<F> = Pin<Box<Option<F>>>;

/// The places of one worker for one kind of future.
#[derive(Debug)]
pub(super) struct Places<F>(RefCell<Vec<Place<F>>>);

impl<F> Default for Places<F> {
    fn default() -> Self {
        Places(RefCell::default())
    }
}

impl<F> Places<F> {
    /// A future that is made where it stays: `Box::pin` would make it elsewhere and copy all of its room.
    pub(super) fn make(self: &Rc<Self>, make: impl FnOnce() -> F) -> Apart<F> {
        let kept = self.0.borrow_mut().pop();
        let mut place = kept.unwrap_or_else(|| Box::pin(None));
        place.as_mut().set(Some(make()));
        Apart {
            place: Some(place),
            places: Rc::clone(self),
        }
    }
}

/// A future in a place of its own, which it gives back in the end.
pub(super) struct Apart<F> {
    place: Option<Place<F>>,
    places: Rc<Places<F>>,
}

impl<F: Future> Future for Apart<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let place = self.place.as_mut().and_then(|place| place.as_mut().as_pin_mut());
        // There is one until the drop.
        place.map_or(Poll::Pending, |future| future.poll(cx))
    }
}

impl<F> Drop for Apart<F> {
    fn drop(&mut self) {
        let Some(mut place) = self.place.take() else {
            return;
        };
        place.as_mut().set(None);
        let mut kept = self.places.0.borrow_mut();
        if kept.len() < MOST_KEPT {
            kept.push(place);
        }
    }
}

/// Where a worker finds its places. Their type has no name; it is asked for once for each connection.
#[derive(Debug, Default)]
pub(super) struct Shelf(OnceCell<Rc<dyn Any>>);

impl Shelf {
    /// The places for what `make` makes; it is not called.
    pub(super) fn places<A, F: 'static>(&self, _make: &impl Fn(A) -> F) -> Rc<Places<F>> {
        let any = self.0.get_or_init(|| Rc::<Places<F>>::default());
        // A second kind has places of its own for each connection.
        Rc::clone(any).downcast().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_place_is_used_again_and_only_so_many_are_kept() {
        let make = |number: usize| async move { number };
        let shelf = Shelf::default();
        let (places, others) = (shelf.places(&make), shelf.places(&make));
        assert!(Rc::ptr_eq(&places, &others), "of one worker");
        for number in 0..3 {
            assert_eq!(places.make(|| make(number)).now_or_never(), Some(number));
            assert_eq!(places.0.borrow().len(), 1);
        }
        let many: Vec<_> = (0..MOST_KEPT + 9)
            .map(|number| places.make(|| make(number)))
            .collect();
        assert_eq!(places.0.borrow().len(), 0);
        drop(many);
        assert_eq!(places.0.borrow().len(), MOST_KEPT);
    }
}
