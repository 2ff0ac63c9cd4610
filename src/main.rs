//! Arguments -> command -> exit code.

use serin::cli::{self, Out};
use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os(), &mut Out::standard()))
}
