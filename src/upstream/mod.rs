//! Reaching a version: endpoints, balancing, pooled connections.
