//! What is remembered: through restarts, a second start, backup and restore.

use crate::changes::{assert_live, assert_none_failed};
use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until_true};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_restart_finds_everything_as_it_was() {
    let mut bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    bed.deploy(&app, "shop-prod", "v2").ok();
    let token = bed.token();
    bed.stop();
    for part in ["controller", "agent", "proxy"] {
        assert!(bed.daemons(part).is_empty(), "{part} ended with up");
    }
    bed.start();
    assert_eq!(bed.token(), token);
    assert_live(&bed, "shop-prod", "v2", 2);
    assert!(bed.get("shop-prod", "/").text().starts_with("v2 "));
    bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 2);
}

#[test]
fn a_second_controller_says_who_holds_the_data() {
    let bed = Bed::up();
    let data = bed.data();
    let data = data.to_str().expect("plain text");
    let second = bed.run(&[
        "up",
        "--data",
        data,
        "--api",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--https",
        "127.0.0.1:0",
    ]);
    assert_ne!(second.code, 0);
    second.says("pid");
    assert!(bed.is_healthy(), "the first one goes on");
}

#[test]
fn a_data_directory_that_others_can_change_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let bed = Bed::up();
    let open = bed.home().join("open");
    std::fs::create_dir(&open).expect("a directory");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("its mode");
    bed.run(&["up", "--data", open.to_str().expect("plain text")])
        .exits(1)
        .says("other users can change it")
        .says("mode 777");
    assert!(std::fs::read_dir(&open).expect("readable").next().is_none());
}

#[test]
fn a_backup_taken_while_running_brings_everything_back_elsewhere() {
    let mut bed = Bed::up();
    bed.serving("shop-prod", 2);
    let file = bed.home().join("backup");
    let file = file.to_str().expect("plain text");
    bed.run(&["backup", file]).ok();
    // What came after the backup is not in it.
    bed.run(&["scale", "shop-prod", "1"]).ok();
    bed.run(&["terminate", "shop-prod", "--yes"]).ok();
    let data = bed.data();
    let data = data.to_str().expect("plain text").to_owned();
    bed.run(&["restore", file, "--data", &data]).exits(1);
    bed.stop();
    bed.run(&["restore", file, "--data", &data, "--yes"]).ok();
    bed.start();
    until_true("the environment is back", seconds(60), || {
        bed.run(&["status", "shop-prod", "--json"]).code == 0
            && bed.status("shop-prod")["health"] == "Green"
    });
    assert_live(&bed, "shop-prod", "v1", 2);
}

#[test]
fn after_a_restore_what_was_deployed_since_goes_back_without_losing_a_request() {
    let mut bed = Bed::up();
    let app = bed.serving("shop-prod", 3).version("v2");
    let file = bed.home().join("backup");
    let file = file.to_str().expect("plain text");
    bed.run(&["backup", file]).ok();
    bed.deploy(&app, "shop-prod", "v2").ok();
    bed.stop();
    let data = bed.data();
    let data = data.to_str().expect("plain text").to_owned();
    bed.run(&["restore", file, "--data", &data, "--yes"]).ok();
    bed.start();
    let load = bed.load("shop-prod");
    until_true("every instance runs what is recorded", seconds(90), || {
        let first = |_| bed.get("shop-prod", "/").text().starts_with("v1 ");
        (0..12).all(first) && bed.status("shop-prod")["operation"].is_null()
    });
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert!(
        outcome.versions["v2"] > 0,
        "v2 went on at first: {outcome:?}"
    );
    assert_live(&bed, "shop-prod", "v1", 3);
    // No number is given twice: hosts may still hold what has it.
    bed.deploy(&app, "shop-prod", "v2-again").ok();
    let release = bed.status("shop-prod")["release"].as_u64();
    assert!(release > Some(1_000), "{release:?}");
}

#[test]
fn a_damaged_backup_is_refused() {
    let mut bed = Bed::up();
    bed.serving("shop-prod", 1);
    let path = bed.home().join("backup");
    let file = path.to_str().expect("plain text");
    bed.run(&["backup", file]).ok();
    bed.stop();
    let mut bytes = fs::read(&path).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("it can be written");
    let data = bed.data();
    let data = data.to_str().expect("plain text");
    bed.run(&["restore", file, "--data", data, "--yes"])
        .exits(1);
    bed.start();
    assert_live(&bed, "shop-prod", "v1", 1);
}

#[test]
fn the_token_is_private_and_needed() {
    let bed = Bed::up();
    let mode = fs::metadata(bed.data().join("token"))
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = beanpole_tests::http::get(bed.api, "localhost", "/v1/environments")
        .expect("the API answers");
    assert_eq!(answer.status, 401);
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert!(answer.json()["code"].is_string() && answer.json()["hint"].is_string());
    let open =
        beanpole_tests::http::get(bed.api, "localhost", "/openapi.json").expect("the API answers");
    assert!(open.json()["paths"]["/v1/environments"].is_object());
}
