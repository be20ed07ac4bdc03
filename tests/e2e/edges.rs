//! Load balancers on hosts: several for every environment, and an address that two of them share.

use crate::changes::assert_none_failed;
use crate::over_ssh::{add, hosts, until_host_is};
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use beanpole_tests::http::{Answer, Connection};
use beanpole_tests::load::Load;
use beanpole_tests::wait::{pause, seconds, until, until_true};
use serde_json::Value;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BOTH: [&str; 2] = ["h1", "h2"];
/// Requests a second at each load balancer that a swap may not cost one of.
const RATE: u32 = 300;
/// An address of no host.
const SHARED: &str = "10.89.1.100";

/// Two hosts with a load balancer each, and instances on them only.
fn two_edges(test: &str) -> Option<(Hosts, Bed)> {
    let hosts = hosts(test, &BOTH)?;
    let bed = Bed::up();
    for name in BOTH {
        add(&bed, "root", name, &[]).ok();
    }
    bed.run(&["host", "drain", "local"]).ok();
    for name in BOTH {
        until_host_is(&bed, name, "Ready", 20);
        bed.run(&["edge", "add", name])
            .ok()
            .says("http://0.0.0.0:80");
    }
    Some((hosts, bed))
}

fn at(address: &str) -> SocketAddr {
    format!("{address}:80").parse().expect("an address")
}

fn edge(name: &str) -> SocketAddr {
    at(&Hosts::address(name))
}

/// An answer of shop-blue over a new connection; none while there is no good one.
fn asked(proxy: SocketAddr, headers: &[(&str, &str)]) -> Option<Answer> {
    let mut connection = Connection::open(proxy, seconds(2)).ok()?;
    let answer = connection.send("GET", "shop-blue.localhost", "/", headers, b"");
    answer.ok().filter(|answer| answer.status == 200)
}

/// When a load balancer answers shop-blue by `version` for the first time.
fn first_answer_by(proxy: SocketAddr, version: &'static str) -> JoinHandle<Instant> {
    std::thread::spawn(move || {
        let mut open = Connection::open(proxy, seconds(30)).expect("connect");
        loop {
            let asked = open.send("GET", "shop-blue.localhost", "/", &[], b"");
            if asked.expect("it answers").text().starts_with(version) {
                return Instant::now();
            }
        }
    })
}

/// What `beanpole edge list` says of one.
fn seen(bed: &Bed, name: &str) -> Value {
    let all = bed.run(&["edge", "list", "--json"]).ok().json();
    let mut all = all.as_array().expect("a list").iter();
    all.find(|one| one["name"] == name)
        .expect("it is listed")
        .clone()
}

/// The process of a host's load balancer, once it serves by the newest table.
fn process(bed: &Bed, name: &str) -> u64 {
    until(
        &format!("the load balancer of {name} serves"),
        seconds(30),
        || {
            let edge = seen(bed, name);
            edge["pid"].as_u64().filter(|_| edge["status"] == "Serving")
        },
    )
}

/// The process of a host's load balancer that keeps the listeners, and the one that serves.
fn both_of(name: &str, keeper: u64) -> String {
    Hosts::on(name, &format!("echo {keeper} $(pgrep -P {keeper})"))
}

#[test]
fn two_load_balancers_on_hosts_change_as_one_whatever_ends() {
    let Some((_hosts, bed)) = two_edges("two_edges") else {
        return;
    };
    let app = bed.serving("shop-blue", 2).version("v2");
    let options = ["--option", "beanpole:instance:MinUptime=1"];
    let create = ["create", "shop-green", "--instances", "1"];
    bed.run_in(&app.dir, &[&create[..], &options].concat()).ok();
    bed.deploy(&app, "shop-green", "v2").ok();

    // A client stays at its instance at either of them, and at the one on this machine.
    let wanted = "aws:elasticbeanstalk:environment:process:default:StickinessEnabled=true";
    bed.run(&["config", "shop-blue", "--set", wanted]).ok();
    let word = |answer: &Answer| answer.text().split(' ').nth(1).map(str::to_owned);
    let (pair, home) = until("a cookie is given", seconds(20), || {
        let first = asked(edge("h1"), &[])?;
        let pair = first.header("set-cookie")?.split(';').next()?.to_owned();
        Some((pair, word(&first)))
    });
    for proxy in [edge("h2"), edge("h1"), bed.http, edge("h2")] {
        let again = asked(proxy, &[("Cookie", &pair)]).expect("an answer");
        assert_eq!(word(&again), home);
        assert_eq!(again.header("set-cookie"), None);
    }

    // A swap reaches both at once, and costs nobody a request.
    let loads = BOTH.map(|name| Load::start(edge(name), "shop-blue.localhost", RATE, 10));
    let told = BOTH.map(|name| first_answer_by(edge(name), "v2"));
    pause(Duration::from_millis(300));
    bed.run(&["swap", "shop-blue", "shop-green"]).ok();
    let [one, other] = told.map(|told| told.join().expect("no panic"));
    let apart = one.max(other) - one.min(other);
    assert!(apart < Duration::from_millis(100), "{apart:?}");
    pause(Duration::from_millis(300));
    for load in loads {
        assert_none_failed(&load.stop());
    }

    // A restart costs nobody a request: another process takes over from the one that keeps the listeners.
    let load = Load::start(edge("h1"), "shop-blue.localhost", RATE, 10);
    let before = both_of("h1", process(&bed, "h1"));
    bed.run(&["edge", "restart", "h1"]).ok();
    let after = both_of("h1", process(&bed, "h1"));
    assert_ne!(
        after, before,
        "another process serves as soon as it is said"
    );

    // Nor do other terms.
    bed.run(&["edge", "add", "h1", "--access-log", "--trust", "192.0.2.1"])
        .ok();
    assert_ne!(both_of("h1", process(&bed, "h1")), after);
    until_true("requests are logged", seconds(10), || {
        let log = bed.run(&["edge", "logs", "h1", "--access"]).ok();
        log.out.contains("\"status\":200")
    });
    pause(Duration::from_millis(500));
    assert_none_failed(&load.stop());

    // One that is killed comes back; one whose agent is killed goes on.
    let [first, second] = BOTH.map(|name| process(&bed, name));
    Hosts::on("h1", &format!("kill -9 {first}"));
    until_true("it is another one", seconds(20), || {
        process(&bed, "h1") != first
    });
    asked(edge("h1"), &[]).expect("an answer");
    let main = "systemctl show -p MainPID --value beanpole-agent.service";
    let agent = Hosts::on("h2", main);
    Hosts::on("h2", &format!("kill -9 {agent}"));
    asked(edge("h2"), &[]).expect("an answer");
    until_true("systemd starts another agent", seconds(20), || {
        let now = Hosts::on("h2", main);
        now != agent && now != "0"
    });
    let before = seen(&bed, "h2")["last_seen"].clone();
    until_true("it is heard of by the new one", seconds(30), || {
        seen(&bed, "h2")["last_seen"] != before
    });
    assert_eq!(process(&bed, "h2"), second);

    // One that hangs during a swap, and is started again, gives no answer by the table of before.
    let hanging = both_of("h2", second);
    Hosts::on("h2", &format!("kill -STOP {hanging}"));
    let swap = ["swap", "shop-blue", "shop-green", "--quiet"];
    let mut swapping = bed.command(bed.home(), &swap).spawn().expect("it starts");
    let told = first_answer_by(edge("h1"), "v1");
    told.join().expect("no panic");
    Hosts::on("h2", &format!("kill -9 {hanging}"));
    let first = until("it answers again", seconds(20), || asked(edge("h2"), &[]));
    assert!(first.text().starts_with("v1"), "{}", first.text());
    assert!(swapping.wait().expect("it ends").success());

    // What is removed leaves nothing, its keys least of all.
    bed.run(&["edge", "remove", "h1", "--yes"])
        .ok()
        .says("is removed, with its table");
    assert_eq!(Hosts::on("h1", "ls -A /var/lib/beanpole/agent/edge"), "");
    assert!(asked(edge("h1"), &[]).is_none());
    // A port that is taken is told.
    Hosts::on("h1", "systemd-run -q python3 -m http.server 80");
    until_true("the port is taken", seconds(10), || {
        Connection::open(edge("h1"), seconds(1)).is_ok()
    });
    bed.run(&["edge", "add", "h1"])
        .exits(1)
        .says("Failing")
        .says("0.0.0.0:80");
    bed.run(&["host", "show", "h1"])
        .ok()
        .says("cannot listen on");
}

#[test]
fn an_address_that_two_load_balancers_share_moves_when_one_hangs() {
    let Some((_hosts, bed)) = two_edges("keepalived") else {
        return;
    };
    bed.serving("shop-blue", 2);
    for (name, priority) in [("h1", 100), ("h2", 90)] {
        let peer = Hosts::address(if name == "h1" { "h2" } else { "h1" });
        let own = Hosts::address(name);
        // As in docs/guides/load-balancers.md, but that nothing tells of a peer by multicast here.
        let text = format!(
            "global_defs {{\n script_user root\n enable_script_security\n}}\n\
             vrrp_script beanpole {{\n script \"/usr/local/lib/beanpole/current/beanpole proxy check 127.0.0.1:80\"\n \
             interval 1\n timeout 2\n fall 2\n rise 2\n}}\n\
             vrrp_instance web {{\n state BACKUP\n nopreempt\n interface eth0\n virtual_router_id 51\n \
             priority {priority}\n advert_int 1\n unicast_src_ip {own}\n unicast_peer {{\n  {peer}\n }}\n \
             virtual_ipaddress {{\n  {SHARED}/16\n }}\n track_script {{\n  beanpole\n }}\n}}\n"
        );
        let write = format!(
            "mkdir -p /etc/keepalived && printf '%s' '{text}' >/etc/keepalived/keepalived.conf"
        );
        Hosts::on(
            name,
            &format!("{write} && systemctl start keepalived.service"),
        );
        if name == "h1" {
            until_true("h1 has the address", seconds(15), || has_shared("h1"));
        }
    }
    asked(at(SHARED), &[]).expect("an answer at the shared address");
    let first = both_of("h1", process(&bed, "h1"));
    Hosts::on("h1", &format!("kill -STOP {first}"));
    let hangs = Instant::now();
    until("the shared address answers", seconds(15), || {
        asked(at(SHARED), &[])
    });
    let took = hangs.elapsed();
    assert!(has_shared("h2") && !has_shared("h1"));
    assert!(took < Duration::from_secs(8), "{took:?}");
    // A client that goes on meets nobody else, though the first is well again.
    let load = Load::start(at(SHARED), "shop-blue.localhost", RATE, 10);
    Hosts::on("h1", &format!("kill -CONT {first}"));
    process(&bed, "h1");
    pause(Duration::from_millis(500));
    assert_none_failed(&load.stop());
    assert!(has_shared("h2"));
}

fn has_shared(name: &str) -> bool {
    Hosts::on(name, "ip -4 -o addr show dev eth0").contains(SHARED)
}
