//! Adding, reaching, upgrading and removing hosts over SSH.

use beanpole_tests::bed::{Bed, Ran};
use beanpole_tests::hosts::{self, Hosts};
use beanpole_tests::wait::{seconds, until_true};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Hosts for a test, or none with the reason said.
pub fn hosts(test: &str, names: &[&'static str]) -> Option<Hosts> {
    match hosts::obstacle() {
        Some(reason) => {
            beanpole_tests::skip(test, &reason);
            None
        }
        None => Some(Hosts::up(names)),
    }
}

/// `beanpole host add` with the right fingerprint.
#[track_caller]
pub fn add(bed: &Bed, user: &str, name: &str, more: &[&str]) -> Ran {
    let address = format!("{user}@{}", Hosts::address(name));
    let key = Hosts::key();
    let fingerprint = Hosts::fingerprint(name);
    let mut arguments = vec![
        "host",
        "add",
        &address,
        "--name",
        name,
        "--identity",
        key.to_str().expect("plain text"),
        "--host-key",
        &fingerprint,
    ];
    arguments.extend(more);
    bed.run(&arguments)
}

/// A host as `beanpole host show NAME --json` tells it.
#[track_caller]
pub fn show(bed: &Bed, name: &str) -> Value {
    bed.run(&["host", "show", name, "--json"]).ok().json()
}

/// Waits until a host has a status.
#[track_caller]
pub fn until_host_is(bed: &Bed, name: &str, status: &str, bound: u64) {
    until_true(&format!("{name} is {status}"), seconds(bound), || {
        show(bed, name)["status"] == status
    });
}

#[test]
fn a_host_is_added_as_root_and_tells_its_facts() {
    let Some(_hosts) = hosts("added_as_root", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    let host = show(&bed, "h1");
    assert_eq!(
        host["facts"]["os"], "Debian GNU/Linux 12 (bookworm)",
        "{host:#}"
    );
    assert_eq!(host["facts"]["systemd"], true, "{host:#}");
    assert!(host["facts"]["memory_total_bytes"].as_u64() > Some(1 << 28));
    until_true("its clock was compared", seconds(10), || {
        show(&bed, "h1")["clock_skew_ms"].is_i64()
    });
    Hosts::on("h1", "systemctl is-active beanpole-agent.service");
    let listening = Hosts::on(
        "h1",
        "ss -Hltn | grep -v ':22 ' | grep -v '127.0.0.' || true",
    );
    assert_eq!(listening, "", "the agent opens no port");
    // Adding it again repairs it.
    Hosts::on("h1", "systemctl stop beanpole-agent.service");
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
}

/// Everything on a host that belongs to one controller.
const WHOSE: &str = r"cat /var/lib/beanpole-ssh/.ssh/authorized_keys /var/lib/beanpole/installed.json \
    /var/lib/beanpole/agent/o*.json; readlink /usr/local/lib/beanpole/current; \
    ls /usr/local/lib/beanpole; pgrep -l 'beanpole|web'";

#[test]
fn a_host_of_another_controller_is_left_alone_until_it_is_taken_over() {
    let Some(_hosts) = hosts("take_over", &["h1"]) else {
        return;
    };
    let first = Bed::up();
    add(&first, "root", "h1", &[]).ok();
    until_host_is(&first, "h1", "Ready", 20);
    first.run(&["host", "drain", "local"]).ok();
    first.serving("shop-prod", 1);
    let owner = || {
        let text = Hosts::on("h1", "cat /var/lib/beanpole/agent/owner.json");
        let owner: Value = serde_json::from_str(&text).expect("an owner");
        owner["controller"]["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    };
    let id = owner();
    let before = Hosts::on("h1", WHOSE);
    let load = first.load("shop-prod");

    // The same machine by a second address.
    Hosts::on(
        "h1",
        "printf 'Port 22\nPort 2222\n' >/etc/ssh/sshd_config.d/port.conf && systemctl restart ssh",
    );
    let second_address = format!("root@{}:2222", Hosts::address("h1"));
    let (key, fingerprint) = (Hosts::key(), Hosts::fingerprint("h1"));
    let key = key.to_str().expect("plain text");
    let by_second_address = |bed: &Bed, name: &str| {
        bed.run(&[
            "host",
            "add",
            &second_address,
            "--name",
            name,
            "--identity",
            key,
            "--host-key",
            &fingerprint,
        ])
    };
    by_second_address(&first, "again")
        .exits(1)
        .says("is the host `h1` already")
        .says("--name h1");

    let second = Bed::up();
    add(&second, "root", "h1", &[])
        .exits(1)
        .says(&id)
        .says("1 instance of shop-prod")
        .says("--take-over");
    assert_eq!(Hosts::on("h1", WHOSE), before, "nothing was changed");
    crate::changes::assert_none_failed(&load.stop());
    // Under its own name the second address is a change of address.
    by_second_address(&first, "h1").ok();
    assert_eq!(show(&first, "h1")["address"], second_address.as_str());

    add(&second, "root", "h1", &["--take-over"])
        .ok()
        .says("taken over from")
        .says("shop-prod");
    until_host_is(&second, "h1", "Ready", 20);
    assert_ne!(owner(), id);
    until_host_is(&first, "h1", "TakenOver", 30);
    first
        .run(&["host", "show", "h1"])
        .ok()
        .says(&owner())
        .says("host remove h1 --force");
    until_true("an event tells it", seconds(10), || {
        first
            .run(&["events", "--all"])
            .ok()
            .out
            .contains("belongs to the controller")
    });
    // What it held is served elsewhere, and the second one's work stays as it is.
    second.run(&["host", "drain", "local"]).ok();
    second.serving("blog-prod", 1);
    let orders = || Hosts::on("h1", "cat /var/lib/beanpole/agent/orders.json");
    let held = orders();
    first.run(&["host", "resume", "local"]).ok();
    until_true("shop-prod is well again", seconds(60), || {
        first.status("shop-prod")["health"] == "Green"
    });
    first.get("shop-prod", "/").text();
    first.run(&["restart", "shop-prod"]).ok();
    first
        .run(&["host", "remove", "h1", "--force", "--yes"])
        .ok();
    assert_eq!(orders(), held, "nobody fights over it");
    second.get("blog-prod", "/").text();
}

#[test]
fn a_user_with_sudo_is_enough_and_one_without_is_told() {
    let Some(_hosts) = hosts("sudo", &["h1", "h2"]) else {
        return;
    };
    let bed = Bed::up();
    add(&bed, "deploy", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    add(&bed, "nosudo", "h2", &[])
        .exits(1)
        .says("sudo")
        .says("hint:");
    let left = Hosts::on(
        "h2",
        "find / -xdev -name '*beanpole*' -not -path '/proc/*' 2>/dev/null || true",
    );
    assert_eq!(left, "", "a refused host keeps nothing");
}

#[test]
fn the_login_shell_of_the_admin_may_be_a_c_shell() {
    let Some(_hosts) = hosts("c_shell", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    for user in ["root", "deploy"] {
        Hosts::on("h1", &format!("usermod --shell /bin/tcsh {user}"));
        add(&bed, user, "h1", &[]).ok();
        until_host_is(&bed, "h1", "Ready", 20);
        // The next one repairs it.
        Hosts::on(
            "h1",
            "systemctl disable --now beanpole-agent.service && rm -r /usr/local/lib/beanpole",
        );
    }
}

#[test]
fn a_wrong_fingerprint_is_refused_before_anything_is_sent() {
    let Some(_hosts) = hosts("wrong_fingerprint", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    let key = Hosts::key();
    let logins = "journalctl -u ssh --no-pager | grep -c Accepted || true";
    let before = Hosts::on("h1", logins);
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let address = format!("root@{}", Hosts::address("h1"));
    bed.run(&[
        "host",
        "add",
        &address,
        "--identity",
        key.to_str().expect("plain text"),
        "--host-key",
        wrong,
    ])
    .exits(1)
    .says(wrong)
    .says(&Hosts::fingerprint("h1"));
    assert_eq!(Hosts::on("h1", logins), before, "nobody logged in");
    // Without a terminal to ask on, no key is trusted.
    let unasked = bed.run(&[
        "host",
        "add",
        &address,
        "--identity",
        key.to_str().expect("plain text"),
    ]);
    assert_ne!(unasked.code, 0);
    unasked.says("--host-key").says(&Hosts::fingerprint("h1"));
}

#[test]
fn a_changed_host_key_is_refused_until_it_is_accepted() {
    let Some(_hosts) = hosts("changed_key", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    let old = Hosts::fingerprint("h1");
    Hosts::on(
        "h1",
        "rm /etc/ssh/ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && systemctl restart ssh && pkill -f 'sshd: [b]eanpole' || true",
    );
    let new = Hosts::fingerprint("h1");
    until_host_is(&bed, "h1", "KeyChanged", 60);
    bed.run(&["host", "show", "h1"])
        .ok()
        .says(&old)
        .says(&new)
        .says("beanpole host");
    bed.run(&["host", "accept-key", "h1", "--host-key", &new])
        .ok();
    until_host_is(&bed, "h1", "Ready", 60);
}

#[test]
fn a_host_behind_a_bastion_is_reached_through_it() {
    let Some(_hosts) = hosts("bastion", &["h1", "bastion"]) else {
        return;
    };
    let bed = Bed::up();
    // This machine gets no answer from h1's sshd; the bastion does.
    Hosts::firewall("h1", "-I INPUT -p tcp --dport 22 -s 10.89.0.1 -j DROP");
    let jump = format!("deploy@{}", Hosts::address("bastion"));
    let jump_key = Hosts::fingerprint("bastion");
    add(
        &bed,
        "root",
        "h1",
        &["--jump", &jump, "--jump-host-key", &jump_key],
    )
    .ok();
    until_host_is(&bed, "h1", "Ready", 20);
}

/// The controller's own key, in the hands of a thief with OpenSSH's client.
struct ControllersKey {
    file: PathBuf,
    to: String,
}

impl ControllersKey {
    fn of(bed: &Bed, host: &str) -> Self {
        Self {
            file: bed.data().join("controller/ssh_ed25519_key"),
            to: format!("beanpole@{}", Hosts::address(host)),
        }
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        let mut ssh = Command::new("timeout");
        ssh.args(["10", "ssh", "-F", "none", "-o", "BatchMode=yes"])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args([
                "-o",
                "ExitOnForwardFailure=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-i",
            ])
            .arg(&self.file)
            .arg(&self.to)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        ssh
    }

    #[track_caller]
    fn is_refused(&self, arguments: &[&str]) {
        let status = self.ssh(arguments).status().expect("ssh runs");
        assert!(!status.success(), "{arguments:?}");
        // `timeout` ends with 124: what it ends was not refused.
        assert_ne!(status.code(), Some(124), "{arguments:?}");
    }

    /// What a Unix socket on the host answers first.
    fn through(&self, socket: &str, request: &str) -> String {
        let here = tempfile::tempdir().expect("temporary directory");
        let end = here.path().join("end");
        let forward = format!("{}:{socket}", end.display());
        let mut ssh = self.ssh(&["-N", "-L", &forward]).spawn().expect("ssh runs");
        until_true("ssh listens", seconds(10), || end.exists());
        let mut stream = UnixStream::connect(&end).expect("connect");
        let mut answer = [0; 64];
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("bound");
        let _ = stream.write_all(request.as_bytes());
        let length = stream.read(&mut answer).unwrap_or(0);
        beanpole_tests::bed::signal(ssh.id(), rustix::process::Signal::TERM);
        ssh.wait().expect("it ends");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

#[test]
fn an_sshd_that_keeps_the_controllers_key_out_is_told_of() {
    let Some(_hosts) = hosts("forwarding_off", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    let setting = "/etc/ssh/sshd_config.d/forwarding.conf";
    Hosts::on(
        "h1",
        &format!("echo AllowTcpForwarding no >{setting} && systemctl restart ssh"),
    );
    add(&bed, "root", "h1", &[])
        .exits(1)
        .says("`AllowTcpForwarding no`")
        .says("`AllowTcpForwarding local`");
    Hosts::on("h1", &format!("rm {setting} && systemctl restart ssh"));
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
}

#[test]
fn the_controllers_key_opens_the_agents_socket_and_nothing_else() {
    let Some(_hosts) = hosts("restricted_key", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    let user = Hosts::on("h1", "getent passwd beanpole");
    assert!(
        user.ends_with("nologin") || user.ends_with("false"),
        "{user}"
    );
    let keys = Hosts::on(
        "h1",
        "cat $(getent passwd beanpole | cut -d: -f6)/.ssh/authorized_keys",
    );
    assert!(
        keys.starts_with(r#"restrict,port-forwarding,permitopen="[/run/beanpole/agent.sock]:*","#),
        "{keys}"
    );
    let key = ControllersKey::of(&bed, "h1");
    let report = key.through(
        "/run/beanpole/agent.sock",
        "GET /v1/report HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert!(report.starts_with("HTTP/1.1 200"), "{report}");
    let bus = key.through("/run/dbus/system_bus_socket", "\0AUTH EXTERNAL\r\n");
    assert_eq!(bus, "", "another socket");
    for refused in [
        &["-W", "127.0.0.1:22"][..],
        &["echo in"],
        &["-T"],
        &["-s", "sftp"],
        &["-N", "-R", "0:127.0.0.1:22"],
    ] {
        key.is_refused(refused);
    }
    // What `authorized_keys` has no word for; the security model has this one.
    Hosts::on(
        "h1",
        "printf 'Match User beanpole\n  AllowStreamLocalForwarding local\n' >>/etc/ssh/sshd_config && systemctl restart ssh",
    );
    key.is_refused(&["-N", "-R", "/tmp/listener:127.0.0.1:22"]);
    // The admin's own key was for the bootstrap only: the link does not use it.
    Hosts::on(
        "h1",
        "rm /root/.ssh/authorized_keys && pkill -f 'sshd: [b]eanpole' || true",
    );
    until_true("it is connected again", seconds(30), || {
        let host = show(&bed, "h1");
        host["status"] == "Ready" && host["warnings"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn a_removed_host_keeps_nothing() {
    let Some(_hosts) = hosts("host_remove", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    let before = Hosts::on("h1", SNAPSHOT);
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    bed.serving("shop-prod", 1);
    // A host that serves is not removed by accident.
    let refused = bed.run(&["host", "remove", "h1", "--yes"]);
    assert_ne!(refused.code, 0);
    refused.says("drain");
    bed.run(&["host", "resume", "local"]).ok();
    bed.run(&["host", "drain", "h1"]).ok();
    until_true("its instances are elsewhere", seconds(60), || {
        show(&bed, "h1")["instances"] == 0
    });
    bed.run(&["host", "remove", "h1", "--yes"])
        .ok()
        .says("/var/lib/beanpole");
    // The agent ends once its answer is out.
    until_true("the agent is gone", seconds(10), || {
        Hosts::try_on("h1", "pgrep -x beanpole").is_err()
    });
    let after = Hosts::on("h1", SNAPSHOT);
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), after.lines().collect());
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(
        differ.is_empty(),
        "files, users, units or processes differ: {differ:#?}"
    );
}

/// What a host holds outside of what changes by itself.
pub const SNAPSHOT: &str = r"find /etc /usr /var/lib /opt /root /home /run /var/log -xdev \( \
    -path /var/log/journal -o -path /run/systemd -o -path /run/user -o -path /run/udev \
    -o -path /var/lib/systemd -o -path /run/log -o -path /run/sudo -o -path /var/lib/sudo \
    -o -path /run/utmp -o -path '/var/log/*tmp' -o -path '/etc/*-' -o -path /etc/.pwd.lock \
    -o -path /run/motd.dynamic -o -path /var/log/lastlog -o -path /var/log/faillog \
    -o -path '/etc/sub?id' \) -prune -o -print | sort
    cut -d: -f1 /etc/passwd /etc/group
    systemctl list-unit-files --no-legend | grep -i bean; pgrep -l beanpole; true";

#[test]
fn an_upgraded_agent_leaves_its_applications_alone() {
    let Some(_hosts) = hosts("upgrade", &["h1"]) else {
        return;
    };
    let mut bed = Bed::up();
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    bed.serving("shop-prod", 1);
    let before = bed.get("shop-prod", "/").text();
    // The controller comes back as another build.
    bed.stop();
    bed.become_another_build();
    bed.start();
    until_host_is(&bed, "h1", "Ready", 30);
    // The process id may stay: an agent can replace itself.
    let running = "readlink /proc/$(systemctl show -p MainPID --value beanpole-agent)/exe";
    let agent = Hosts::on("h1", running);
    let load = bed.load("shop-prod");
    bed.run(&["host", "upgrade", "h1"]).ok();
    until_true("another agent runs", seconds(30), || {
        Hosts::try_on("h1", running).is_ok_and(|now| now != agent)
    });
    until_host_is(&bed, "h1", "Ready", 30);
    crate::changes::assert_none_failed(&load.stop());
    assert_eq!(bed.get("shop-prod", "/").text(), before, "the same process");
}
