//! The life of one rollout.
