//! What the operator writes: load, check, compile, watch.
