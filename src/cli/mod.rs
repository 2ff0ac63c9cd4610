//! Words for humans: the verbs of the command line.

pub mod check;
pub mod rehearse;
