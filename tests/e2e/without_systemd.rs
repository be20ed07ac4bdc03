//! A host that systemd does not run: process 1 starts sshd and cron, and that is all.

use crate::changes::assert_none_failed;
use crate::over_ssh::{SNAPSHOT, add, hosts, show, until_host_is};
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use beanpole_tests::wait::{seconds, until, until_true};
use std::collections::BTreeSet;

const HOST: &str = "plain";

/// The agent's process id, as it wrote it; none while none runs.
fn agent() -> Option<String> {
    let line = "pid=$(cat /var/lib/beanpole/agent/agent.lock) && kill -0 $pid && echo $pid";
    Hosts::try_on(HOST, line).ok()
}

fn supervisor() -> Option<String> {
    let line = "pid=$(cat /run/beanpole/supervisor.pid) && kill -0 $pid && echo $pid";
    Hosts::try_on(HOST, line).ok()
}

/// Kills the agent; returns its successor.
#[track_caller]
fn kill_agent() -> String {
    let old = agent().expect("the agent runs");
    Hosts::on(HOST, &format!("kill -9 {old}"));
    until("another agent runs", seconds(20), || {
        agent().filter(|new| *new != old)
    })
}

#[track_caller]
fn until_served(bed: &Bed) -> String {
    until("the application answers", seconds(30), || {
        let answer = bed.get("shop-prod", "/");
        (answer.status == 200).then(|| answer.text())
    })
}

#[test]
fn a_host_without_systemd_is_a_host_like_any_other() {
    let Some(_hosts) = hosts("without_systemd", &[HOST]) else {
        return;
    };
    let before = Hosts::on(HOST, SNAPSHOT);
    let mut bed = Bed::up();
    add(&bed, "deploy", HOST, &[])
        .ok()
        .says("cron starts that one at boot");
    until_host_is(&bed, HOST, "Ready", 20);
    let host = show(&bed, HOST);
    assert_eq!(host["facts"]["systemd"], false, "{host:#}");
    assert_eq!(host["facts"]["started_at_boot_by"], "cron", "{host:#}");
    assert_eq!(host["warnings"].as_array().map(Vec::len), Some(0));
    bed.run(&["host", "drain", "local"]).ok();
    bed.serving("shop-prod", 1);
    let served = bed.get("shop-prod", "/").text();

    // A killed agent is started again; so is one whose parent was killed, with a new parent.
    let load = bed.load("shop-prod");
    kill_agent();
    Hosts::on(HOST, &format!("kill -9 {}", supervisor().expect("it runs")));
    assert!(agent().is_some(), "the agent goes on without its parent");
    Hosts::on(HOST, "/usr/local/lib/beanpole/start-agent");
    until_true("there is a parent again", seconds(10), || {
        supervisor().is_some()
    });
    kill_agent();
    until_host_is(&bed, HOST, "Ready", 30);
    assert_none_failed(&load.stop());
    assert_eq!(bed.get("shop-prod", "/").text(), served, "the same process");

    // An upgrade.
    bed.stop();
    bed.become_another_build();
    bed.start();
    until_host_is(&bed, HOST, "Ready", 30);
    let digest = "sha256sum </proc/$(cat /var/lib/beanpole/agent/agent.lock)/exe";
    let old = Hosts::on(HOST, digest);
    let load = bed.load("shop-prod");
    bed.run(&["host", "upgrade", HOST]).ok();
    until_true("another executable runs", seconds(30), || {
        Hosts::try_on(HOST, digest).is_ok_and(|now| now != old)
    });
    // What the parent starts is the new one, too.
    kill_agent();
    assert_ne!(Hosts::on(HOST, digest), old);
    until_host_is(&bed, HOST, "Ready", 30);
    assert_none_failed(&load.stop());
    assert_eq!(bed.get("shop-prod", "/").text(), served, "the same process");

    // A reboot: cron starts the agent, the agent its instances.
    Hosts::docker("restart", HOST);
    assert_ne!(until_served(&bed), served, "another process");
    until_host_is(&bed, HOST, "Ready", 60);

    // Nothing is left of it.
    bed.run(&["host", "resume", "local"]).ok();
    bed.run(&["host", "drain", HOST]).ok();
    until_true("its instances are elsewhere", seconds(60), || {
        show(&bed, HOST)["instances"] == 0
    });
    bed.run(&["host", "remove", HOST, "--yes"])
        .ok()
        .says("/etc/cron.d/beanpole-agent");
    until_true("agent and parent are gone", seconds(10), || {
        Hosts::try_on(HOST, "pgrep -x beanpole").is_err()
    });
    let after = Hosts::on(HOST, SNAPSHOT);
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), after.lines().collect());
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(
        differ.is_empty(),
        "files, users or processes differ: {differ:#?}"
    );
}

#[test]
fn where_nothing_starts_the_agent_at_boot_the_user_is_told_and_adding_it_again_helps() {
    let Some(_hosts) = hosts("without_init", &[HOST]) else {
        return;
    };
    Hosts::on(HOST, "pkill -x cron");
    let bed = Bed::up();
    add(&bed, "root", HOST, &[])
        .ok()
        .says("after a reboot nothing starts it");
    until_host_is(&bed, HOST, "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    bed.serving("shop-prod", 1);
    bed.run(&["host", "show", HOST])
        .ok()
        .says("Nothing of ours starts its agent after a reboot")
        .says("/usr/local/lib/beanpole/start-agent");
    Hosts::docker("restart", HOST);
    until_true("the host says why it is away", seconds(60), || {
        let shown = bed.run(&["host", "show", HOST]).ok().out;
        shown.contains("adding the host again starts its agent")
    });
    add(&bed, "root", HOST, &[]).ok();
    until_host_is(&bed, HOST, "Ready", 20);
    until_served(&bed);
}
