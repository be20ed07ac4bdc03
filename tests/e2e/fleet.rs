//! Deployments on three real hosts, and hosts that go missing.

use crate::changes::{assert_live, assert_none_failed, items, until_green};
use crate::over_ssh::{add, hosts, show, until_host_is};
use beanpole_tests::bed::{Bed, signal};
use beanpole_tests::hosts::Hosts;
use beanpole_tests::wait::{seconds, until_true};
use rustix::process::Signal;
use serde_json::Value;

const ALL: [&str; 3] = ["h1", "h2", "h3"];

/// Three hosts, and instances on them only.
pub fn fleet(test: &str) -> Option<(Hosts, Bed)> {
    let hosts = hosts(test, &ALL)?;
    let bed = Bed::up();
    for name in ALL {
        add(&bed, "root", name, &[]).ok();
    }
    for name in ALL {
        until_host_is(&bed, name, "Ready", 20);
    }
    bed.run(&["host", "drain", "local"]).ok();
    Some((hosts, bed))
}

#[test]
fn three_hosts_roll_forward_and_back_without_a_lost_request() {
    let Some((_hosts, bed)) = fleet("three_hosts") else {
        return;
    };
    let app = bed.serving("shop-prod", 3).version("v2");
    let status = bed.status("shop-prod");
    let mut on: Vec<&str> = items(&status["instances"])
        .iter()
        .filter_map(|one| one["host"].as_str())
        .collect();
    on.sort_unstable();
    assert_eq!(on, ALL, "one instance per host");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--policy rolling --batch 1")
        .ok();
    assert_live(&bed, "shop-prod", "v2", 3);
    bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert!(outcome.versions["v2"] > 0, "{outcome:?}");
}

#[test]
fn a_failing_release_on_three_hosts_goes_back() {
    let Some((_hosts, bed)) = fleet("failing_release") else {
        return;
    };
    let app = bed
        .serving("shop-prod", 3)
        .procfile("web: ./testapp v2 --exit 7\n");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "broken", "--batch 1")
        .exits(1)
        .says("cannot find the database, giving up")
        .says("h");
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_none_failed(&load.stop());
}

#[test]
fn killed_agents_on_hosts_cost_no_request() {
    let Some((_hosts, bed)) = fleet("killed_agents") else {
        return;
    };
    bed.serving("shop-prod", 3);
    let load = bed.load("shop-prod");
    for name in ALL {
        let main = "systemctl show -p MainPID --value beanpole-agent.service";
        let old = Hosts::on(name, main);
        Hosts::on(name, &format!("kill -9 {old}"));
        until_true("systemd starts another", seconds(20), || {
            let now = Hosts::on(name, main);
            now != old && now != "0"
        });
    }
    signal(bed.daemon("controller"), Signal::KILL);
    bed.wait_healthy();
    until_green(&bed, "shop-prod");
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v1", 3);
}

#[test]
fn a_host_cut_off_is_unreachable_and_comes_back() {
    let Some((_hosts, bed)) = fleet("cut_off") else {
        return;
    };
    bed.serving("shop-prod", 3);
    let pid = Hosts::on("h3", "pgrep -x testapp");
    Hosts::cut("h3");
    until_host_is(&bed, "h3", "Unreachable", 60);
    let status = bed.status("shop-prod");
    let lost = items(&status["instances"])
        .iter()
        .find(|one| one["host"] == "h3")
        .expect("it is still listed");
    assert_eq!(lost["health"], "Unknown", "unseen is not dead: {status:#}");
    // The proxy has noticed by itself: users are served by the other two.
    let load = bed.load("shop-prod");
    until_true("requests were served meanwhile", seconds(20), || {
        let status = bed.status("shop-prod");
        status["health"] != "Red"
    });
    let outcome = load.stop();
    assert_eq!(outcome.failed, 0, "{outcome:?}");
    Hosts::heal("h3");
    until_host_is(&bed, "h3", "Ready", 60);
    until_green(&bed, "shop-prod");
    assert_eq!(
        Hosts::on("h3", "pgrep -x testapp"),
        pid,
        "the same process all along"
    );
}

#[test]
fn a_deployment_goes_on_around_a_host_that_is_lost_on_the_way() {
    let Some((_hosts, bed)) = fleet("deploy_around_lost") else {
        return;
    };
    let app = bed.serving("shop-prod", 3).version("v2");
    let load = bed.load("shop-prod");
    Hosts::cut("h2");
    bed.deploy(&app, "shop-prod", "v2")
        .ok()
        .says("Host h2 has not been heard of for ")
        .says("in the place of i-")
        .says("on h2 could not be reached");
    load.stop();
    assert_live(&bed, "shop-prod", "v2", 3);
    let status = bed.status("shop-prod");
    let on_h2 = |one: &&Value| one["host"] == "h2";
    assert_eq!(items(&status["instances"]).iter().filter(on_h2).count(), 0);
    Hosts::heal("h2");
    until_host_is(&bed, "h2", "Ready", 60);
    until_true("what was given up is stopped", seconds(30), || {
        Hosts::try_on("h2", "pgrep -x testapp").is_err()
    });
    assert_live(&bed, "shop-prod", "v2", 3);
}

#[test]
fn a_deployment_names_what_it_leaves_out_on_an_unreachable_host_which_follows_later() {
    let Some((_hosts, bed)) = fleet("left_out") else {
        return;
    };
    let app = bed.serving("shop-prod", 3).version("v2");
    Hosts::cut("h3");
    until_host_is(&bed, "h3", "Unreachable", 60);
    bed.deploy_with(&app, "shop-prod", "v2", "--quiet")
        .ok()
        .says("on h3 was left out: its host is unreachable");
    let status = bed.status("shop-prod");
    assert_eq!(status["health"], "Yellow", "{status:#}");
    let causes = status["causes"].to_string();
    assert!(
        causes.contains("on h3 is of release 1 (v1), not of 2."),
        "{causes}"
    );
    Hosts::heal("h3");
    until_true("it has followed", seconds(60), || {
        let status = bed.status("shop-prod");
        let all = items(&status["instances"]);
        status["status"] == "Ready" && all.iter().all(|one| one["version"] == "v2")
    });
    assert_live(&bed, "shop-prod", "v2", 3);
}

#[test]
fn a_rebooted_host_runs_its_instances_again() {
    let Some((_hosts, bed)) = fleet("reboot") else {
        return;
    };
    bed.serving("shop-prod", 3);
    Hosts::docker("restart", "h1");
    until_true("h1 is back with its instance", seconds(90), || {
        Hosts::try_on("h1", "pgrep -x testapp").is_ok()
    });
    until_host_is(&bed, "h1", "Ready", 90);
    until_green(&bed, "shop-prod");
    assert_live(&bed, "shop-prod", "v1", 3);
}

#[test]
fn a_full_disk_fails_the_deployment_and_names_the_host() {
    let Some((_hosts, bed)) = fleet("full_disk") else {
        return;
    };
    let app = bed.serving("shop-prod", 3);
    // 24 MiB that do not compress (xorshift).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(24 << 20);
    while noise.len() < 24 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    let app = app.version("v2").file("blob.bin", &noise);
    // The agent's data moves onto a disk with little room left, while its applications run.
    Hosts::on(
        "h2",
        "systemctl stop beanpole-agent && mkdir /mnt/small && mount -t tmpfs -o size=24m,mode=755 none /mnt/small \
         && cp -a /var/lib/beanpole/. /mnt/small/ && mount --bind /mnt/small /var/lib/beanpole \
         && systemctl start beanpole-agent",
    );
    until_host_is(&bed, "h2", "Ready", 60);
    let load = bed.load("shop-prod");
    bed.deploy(&app, "shop-prod", "v2")
        .exits(1)
        .says("h2")
        .says("does not fit")
        .says("free");
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_none_failed(&load.stop());
    // What did not fit left room again.
    until_true("the host has room again", seconds(30), || {
        show(&bed, "h2")["facts"]["disk_available_bytes"].as_u64() > Some(1 << 20)
    });
}

#[test]
fn a_drained_hosts_instances_move_without_a_lost_request() {
    let Some((_hosts, bed)) = fleet("drain") else {
        return;
    };
    bed.serving("shop-prod", 3);
    let load = bed.load("shop-prod");
    bed.run(&["host", "drain", "h1"]).ok();
    until_true("h1 is empty", seconds(90), || {
        show(&bed, "h1")["instances"] == 0
    });
    until_true("it is ready", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_none_failed(&load.stop());
    assert!(Hosts::try_on("h1", "pgrep -x testapp").is_err());
}
