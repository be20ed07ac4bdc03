//! Every application of `examples/`, deployed as its README says.

use crate::changes::assert_live;
use beanpole_tests::bed::Bed;
use std::path::Path;

#[track_caller]
fn deploys(name: &str, answer: &str) {
    let bed = Bed::up();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    bed.run_in(&source, &["create", "hello-prod", "--instances", "2"])
        .ok();
    bed.run_in(&source, &["deploy", "hello-prod", "--label", "one"])
        .ok();
    assert_live(&bed, "hello-prod", "one", 2);
    let text = bed.get("hello-prod", "/").text();
    assert!(
        text.contains(answer) && text.contains("version one"),
        "{text}"
    );
}

#[test]
fn procfile_hello() {
    deploys("procfile-hello", "Hello");
}

#[test]
fn node_hello() {
    deploys("node-hello", "Hello from Node.js");
}

#[test]
fn python_hello() {
    deploys("python-hello", "Hello from Python");
}
