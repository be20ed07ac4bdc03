//! Supervision with real processes. As root every test runs with the fences that this machine
//! allows; `without_root` then runs them all again as `nobody`.

mod families;
mod fences;
mod gate;
mod kills;
mod lifecycle;
mod logs;
mod ports;
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use world::{is_root, shim_program};

/// Everything again as `nobody`, with copies that it can reach.
#[test]
fn without_root() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().expect("directory");
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    open(place.path(), 0o777);
    let (test, shim) = (place.path().join("test"), place.path().join("shim"));
    fs::copy(std::env::current_exe().expect("this test"), &test).expect("copied");
    fs::copy(shim_program(), &shim).expect("copied");
    open(&test, 0o755);
    open(&shim, 0o755);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&test)
        .args(["--test-threads=2"])
        .env("BEANPOLE_TEST_SHIM", &shim)
        .env("TMPDIR", place.path())
        .output()
        .expect("setpriv (util-linux)");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
