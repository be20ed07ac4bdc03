//! The load balancer of a host: kept as ordered, whatever ends.

use super::world::{LIMIT, World};
use beanpole_daemon::http::{Connection, request};
use beanpole_protocol::agent::{HostReport, InstancePhase};
use beanpole_protocol::edge::{CONTROL_UPGRADE, EdgeOrders};
use http::Method;
use http_body_util::BodyExt;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use tokio::net::UnixStream;

/// Stands for `beanpole proxy`: answers on its control socket what it was told and who it is, and refuses port 1.
const EDGE: &str = r#"
case "$*" in *:1) echo "cannot listen on 0.0.0.0:1: address in use" >&2; exit 1 ;; esac
exec python3 -c '
import http.server, os, socketserver, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd"))]
        body = ("\"" + " ".join([str(os.getuid() != 0), *caps, *sys.argv[1:]]) + "\"").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self): return "peer"
    def log_message(self, *words): pass
class Keeper(Answer):
    def do_POST(self):
        terms = next(word[8:] for word in sys.argv if word.startswith("--terms="))
        refused = "192.0.2.1" in open(terms).read()
        body = ("{\"type\": \"about:blank\", \"title\": \"It did not reload\", \"status\": 409, \"code\": \"not-reloaded\", \"detail\": \"it cannot trust that.\"}" if refused else "{\"pid\": 7}").encode()
        self.send_response(409 if refused else 200)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): daemon_threads = True
for name in ("control.sock", "control.keep"):
    if os.path.exists(name): os.unlink(name)
threading.Thread(target=Server("control.keep", Keeper).serve_forever, daemon=True).start()
open("access.log", "w").write("{\"status\": 200}\n{\"status\": 404}\n")
open("table.json", "w").write("secret")
Server("control.sock", Answer).serve_forever()
' "$@"
"#;

fn orders(address: &str) -> EdgeOrders {
    EdgeOrders {
        http: vec![address.parse().expect("an address")],
        domain: "localhost".to_owned(),
        ..EdgeOrders::default()
    }
}

fn pid(report: &HostReport) -> Option<u32> {
    let edge = report.edge.as_ref()?;
    edge.pid.filter(|_| edge.phase == InstancePhase::Running)
}

/// What the load balancer answers through the agent's socket.
async fn said(world: &World) -> Option<String> {
    let stream = UnixStream::connect(world.socket()).await.ok()?;
    let open = Connection::open_upgradable(stream).await.ok()?;
    let through = open
        .through("/v1/edge/control", CONTROL_UPGRADE, LIMIT)
        .await
        .ok()?;
    let mut connection = Connection::open(through).await.ok()?;
    connection.get("/", LIMIT).await.ok()
}

async fn until_it_says(world: &World) -> String {
    let end = std::time::Instant::now() + LIMIT;
    loop {
        if let Some(said) = said(world).await {
            return said;
        }
        assert!(std::time::Instant::now() < end, "it says nothing");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_load_balancer_is_kept_as_ordered_whatever_ends() {
    let mut world = World::new();
    world.tool("edge", EDGE);
    assert!(said(&world).await.is_none(), "there is none yet");
    world.order_edge(Some(orders("0.0.0.0:80"))).await;
    let report = world.until("a load balancer", |r| pid(r).is_some()).await;
    let first = pid(&report);
    let words = until_it_says(&world).await;
    assert!(
        words.contains("proxy --data=. --socket=control.sock"),
        "{words}"
    );
    if world.fences().root() {
        // Another user than root, who may listen on low ports, and can never become more.
        let one = "0000000000000400";
        assert!(words.starts_with(&format!("True {one} {one}")), "{words}");
    }

    // It outlives its agent, and the next one starts no second.
    world.kill();
    assert!(Path::new(&format!("/proc/{}", first.expect("a process"))).exists());
    world.start(world.data());
    let report = world.until("the same one", |r| pid(r).is_some()).await;
    assert_eq!(pid(&report), first);
    assert_eq!(until_it_says(&world).await, words);

    // One that is killed is started again.
    let killed = Pid::from_raw(first.expect("a process").cast_signed()).expect("a number");
    kill_process(killed, Signal::KILL).expect("it is there");
    let report = world
        .until("another one", |r| {
            pid(r).is_some_and(|pid| Some(pid) != first)
        })
        .await;
    let edge = report.edge.expect("a load balancer");
    assert_eq!(edge.restarts, 1);
    assert_eq!(edge.last_exit.and_then(|exit| exit.signal), Some(9));

    // Other terms are taken over by what runs; where they cannot be, it goes on as it was and says so.
    let pid_now = edge.pid;
    let trusting = |network: &str| EdgeOrders {
        trust: vec![network.to_owned()],
        ..orders("0.0.0.0:80")
    };
    let has = |report: &HostReport, wanted: &EdgeOrders| {
        let edge = report.edge.as_ref();
        edge.is_some_and(|edge| edge.orders.as_ref() == Some(wanted))
    };
    until_it_says(&world).await;
    world.order_edge(Some(trusting("10.0.0.0/8"))).await;
    let report = world
        .until("other terms", |r| has(r, &trusting("10.0.0.0/8")))
        .await;
    assert_eq!(pid(&report), pid_now);
    world.order_edge(Some(trusting("192.0.2.1"))).await;
    let report = world
        .until("why they cannot be", |report| {
            let edge = report.edge.as_ref();
            edge.is_some_and(|edge| matches!(edge.phase, InstancePhase::Failed(_)))
        })
        .await;
    let edge = report.edge.clone().expect("a load balancer");
    let InstancePhase::Failed(failure) = edge.phase else {
        unreachable!("it was seen")
    };
    assert_eq!(
        failure.message,
        "it goes on as it was, for what was to take over could not: it cannot trust that"
    );
    assert_eq!(edge.pid, pid_now);
    assert!(has(&report, &trusting("10.0.0.0/8")));
    let stream = UnixStream::connect(world.socket())
        .await
        .expect("the agent");
    let mut agent = Connection::open(stream).await.expect("the agent");
    let path = "/v1/edge/logs?tail=1&access=true";
    let asked = request(Method::GET, path, None::<&()>).expect("a request");
    let log = agent.send(asked).await.expect("a log");
    let log = log.collect().await.expect("a log").to_bytes();
    assert_eq!(log, "{\"status\": 404}\n");

    // Other addresses have it started afresh; why it does not come up is told.
    world.order_edge(Some(orders("0.0.0.0:1"))).await;
    let report = world
        .until("why it cannot listen", |report| {
            let edge = report.edge.as_ref();
            edge.is_some_and(|edge| edge.log.iter().any(|line| line.contains("address in use")))
        })
        .await;
    let edge = report.edge.expect("a load balancer");
    assert_eq!(edge.phase, InstancePhase::Restarting, "{edge:?}");
    world.order_edge(Some(orders("0.0.0.0:81"))).await;
    world.until("the next one", |r| pid(r).is_some()).await;

    // What is not ordered goes, with all that it kept.
    world.order_edge(None).await;
    world.until("none", |report| report.edge.is_none()).await;
    let left: Vec<_> = std::fs::read_dir(world.data().join("agent/edge"))
        .expect("a directory")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
