//! The shim as a program of its own, for tests: `shim shim SPEC_FILE`, as `beanpole shim SPEC_FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let spec = std::env::args_os().next_back().map(PathBuf::from);
    beanpole_agent::shim::run(&spec.unwrap_or_default())
}
