//! Words for humans: the verbs of the command line.
