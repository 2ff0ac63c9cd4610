//! Logs: what Serin says about itself, and in which form.
