//! Which version serves a request: the exact decision, sticky keys, and the live table.
