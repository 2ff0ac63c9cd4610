//! Arguments -> command -> exit code.

use serin::cli::{self, Out};
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os(), &mut Out::standard()))
}
