//! REST API, events and what the CLI speaks.

mod schema;
