//! The composition root: builds everything in floor order, stops it in reverse.
