//! Release commands and container commands: once for a deployment, before anything is touched, whatever is killed meanwhile.

use crate::changes::{assert_live, assert_none_failed};
use crate::fleet::fleet;
use beanpole_tests::apps::App;
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use beanpole_tests::wait::{seconds, until_true};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Where release commands leave their traces; every user may write there.
struct Traces(PathBuf);

impl Traces {
    fn of(bed: &Bed) -> Self {
        let traces = Self(bed.home().join("traces"));
        fs::create_dir(&traces.0).expect("make");
        fs::set_permissions(&traces.0, fs::Permissions::from_mode(0o1777)).expect("mode");
        // The user of the application has to get through.
        fs::set_permissions(bed.home(), fs::Permissions::from_mode(0o755)).expect("mode");
        traces
    }

    /// The application at a version with a release command, `$T` being this directory.
    fn app(&self, app: App, version: &str, command: &str) -> App {
        let directory = self.0.display();
        app.procfile(&format!(
            "release: T={directory}; echo {version} >>$T/runs; {command}\nweb: ./testapp {version}\n"
        ))
    }

    /// The versions whose commands were started, in order.
    fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn until_one_runs(&self) {
        until_true("the release command runs", seconds(60), || {
            !self.runs().is_empty()
        });
    }
}

#[test]
fn a_release_command_runs_once_and_not_on_the_way_back() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let app = traces.app(bed.serving("shop-prod", 2), "v2", "echo migrated");
    let load = bed.load("shop-prod");
    bed.deploy(&app, "shop-prod", "v2")
        .ok()
        .says("Run the release command")
        .says("Succeeded: the release command")
        .says("migrated");
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_eq!(traces.runs(), ["v2"], "once, for two instances");
    bed.run(&["rollback", "shop-prod"]).ok();
    bed.run(&["rollback", "shop-prod"]).ok();
    bed.run(&["restart", "shop-prod"]).ok();
    bed.run(&["setenv", "shop-prod", "A=b"]).ok();
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_eq!(traces.runs(), ["v2"]);
    bed.run(&["deploy", "shop-prod", "--version", "v2"]).ok();
    assert_eq!(traces.runs(), ["v2", "v2"], "deployed again");
}

#[test]
fn a_release_command_that_fails_touches_nothing() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let app = bed.serving("shop-prod", 2);
    let before = bed.daemons("shim");
    let app = traces.app(app, "v2", "echo no such table; exit 3");
    let load = bed.load("shop-prod");
    bed.deploy(&app, "shop-prod", "v2")
        .exits(1)
        .says("exit status: 3")
        .says("no such table");
    // It fails within half a second, in which few are sent.
    let outcome = load.stop();
    assert!(outcome.sent > 0 && outcome.failed == 0, "{outcome:?}");
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(bed.daemons("shim"), before, "the same processes");
    assert_eq!(traces.runs(), ["v2"]);
}

#[test]
fn a_release_command_whose_agent_is_killed_is_not_run_again() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let app = traces.app(
        bed.serving("shop-prod", 2),
        "v2",
        "sleep 1000; touch $T/end",
    );
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--detach").ok();
    traces.until_one_runs();
    bed.kill_and_await_successor("agent");
    until_true("the deployment ends", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    bed.run(&["events", "shop-prod"])
        .ok()
        .says("It is not known whether it ran to its end");
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(traces.runs(), ["v2"]);
    assert!(!traces.0.join("end").exists());
}

#[test]
fn a_controller_killed_during_a_release_command_takes_its_end() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let command = "while [ ! -e $T/go ]; do sleep 0.1; done";
    let app = traces.app(bed.serving("shop-prod", 2), "v2", command);
    bed.deploy_with(&app, "shop-prod", "v2", "--detach").ok();
    traces.until_one_runs();
    bed.kill_and_await_successor("controller");
    bed.run(&["status", "shop-prod"])
        .ok()
        .says("Waiting for the release command");
    fs::write(traces.0.join("go"), b"").expect("write");
    until_true("the deployment ends", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_eq!(traces.runs(), ["v2"]);
}

#[test]
fn an_abort_ends_a_release_command() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let app = traces.app(bed.serving("shop-prod", 1), "v2", "exec sleep 765432");
    bed.deploy_with(&app, "shop-prod", "v2", "--detach").ok();
    traces.until_one_runs();
    bed.run(&["abort", "shop-prod"]).ok();
    until_true("the deployment ends", seconds(30), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    until_true("the command ends", seconds(10), || {
        let found = std::process::Command::new("pgrep")
            .args(["-fc", "^sleep 765432"])
            .output()
            .expect("pgrep");
        found.stdout.trim_ascii() == b"0"
    });
    bed.run(&["events", "shop-prod"])
        .ok()
        .says("what it has done so far stays");
    assert_live(&bed, "shop-prod", "v1", 1);
}

#[test]
fn container_commands_for_the_leader_run_once_and_the_others_on_each_host() {
    let bed = Bed::up();
    let traces = Traces::of(&bed);
    let app = bed.serving("shop-prod", 2);
    let trace = |word: &str| format!("echo {word} >>{}/runs", traces.0.display());
    let config = format!(
        "Outputs: {{a: b}}\ncontainer_commands:\n  02_migrate: {{command: {}, leader_only: true}}\n  \
         01_assets: {{command: {}}}\n",
        trace("migrate"),
        trace("assets"),
    );
    let app = traces
        .app(app, "v2", "true")
        .file(".ebextensions/app.config", config.as_bytes());
    let load = bed.load("shop-prod");
    bed.deploy(&app, "shop-prod", "v2")
        .ok()
        .says(".ebextensions/app.config has keys that do nothing here: Outputs")
        .says("with the container command `01_assets`")
        .says("Run the container command `02_migrate` and the release command")
        .says("Succeeded: the container command `02_migrate`");
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_eq!(
        traces.runs(),
        ["assets", "migrate", "v2"],
        "once for two instances of one host"
    );
    let config = format!(
        "container_commands:\n  01_fails: {{command: {}; echo no table; exit 3, leader_only: true}}\n",
        trace("fails")
    );
    let app = traces
        .app(app, "v3", "true")
        .file(".ebextensions/app.config", config.as_bytes());
    bed.deploy(&app, "shop-prod", "v3")
        .exits(1)
        .says("`01_fails` failed: exit status: 3")
        .says("no table");
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_eq!(traces.runs(), ["assets", "migrate", "v2", "fails"]);
}

#[test]
fn of_three_hosts_one_runs_what_is_for_the_leader_and_each_the_other_container_commands() {
    let Some((_hosts, bed)) = fleet("container_commands") else {
        return;
    };
    let names = ["h1", "h2", "h3"];
    for name in names {
        Hosts::on(
            name,
            "rm -rf /srv/runs && install -m 666 /dev/null /srv/runs",
        );
    }
    let config = "container_commands:\n  01_assets: {command: echo assets >>/srv/runs}\n  \
                  02_migrate: {command: echo migrate >>/srv/runs, leader_only: true}\n";
    let app = bed
        .serving("shop-prod", 3)
        .version("v2")
        .file(".ebextensions/app.config", config.as_bytes());
    let load = bed.load("shop-prod");
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 3);
    let runs = |name| Hosts::on(name, "cat /srv/runs && rm /srv/runs");
    let mut ran = names.map(runs).map(|text| text.trim().replace('\n', " "));
    ran.sort();
    assert_eq!(ran, ["assets", "assets", "assets migrate"]);
}
