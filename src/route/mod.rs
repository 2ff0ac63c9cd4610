//! Which service a request is for: predicates and Gateway API precedence.
