//! What a stranger sees first.

use beanpole_tests::wait::seconds;
use beanpole_tests::{apps, ports};
use std::process::Command;
use std::time::Instant;

#[test]
fn the_demo_rolls_out_version_2_without_a_failed_request_and_leaves_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let port = ports::reserve();
    let begun = Instant::now();
    let output = Command::new(apps::executable("beanpole"))
        .args(["demo", "--exit", "--http", &port.address.to_string()])
        .current_dir(home.path())
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .output()
        .expect("it runs");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    assert!(text.contains("0 failed"), "{text}");
    assert!(
        begun.elapsed() < seconds(90),
        "it took {:?}",
        begun.elapsed()
    );
    let left: Vec<_> = std::fs::read_dir(home.path())
        .expect("it is there")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "the demo left {left:?}");
}
