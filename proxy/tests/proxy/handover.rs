//! A keeper and the processes that serve for it: one follows another, and nobody notices.

use crate::protocols::tls;
use crate::support::*;
use crate::websocket::{echoes, upgraded};
use beanpole_daemon::http::CallError;
use beanpole_protocol::proxy::{TargetMode, TargetReport};
use beanpole_proxy::{KeeperConfig, Program, ProxyConfig, Reloaded, Successor};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DIRECTORY: &str = "directory=";

/// Where a process of these tests is told to keep what it keeps.
fn told_directory() -> PathBuf {
    let told = std::env::args().find_map(|word| Some(word.strip_prefix(DIRECTORY)?.to_owned()));
    told.expect("it is started by a test").into()
}

fn config(directory: &Path) -> ProxyConfig {
    let mut config = ProxyConfig::new(directory, directory.join("proxy.sock"));
    config.threads = 2;
    config.drain = Duration::from_secs(5);
    config
}

/// A process that serves, where the file `fails-at-take` does not say otherwise.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the keepers of other tests"]
async fn a_process_that_serves() {
    let directory = told_directory();
    beanpole_daemon::logs::init("warn");
    if !directory.join("fails-at-take").exists() {
        let served = beanpole_proxy::serve_kept(config(&directory), CancellationToken::new());
        return served.await.expect("it serves");
    }
    let input = std::io::stdin();
    let fd = std::os::fd::AsFd::as_fd(&input).try_clone_to_owned();
    let mut keeper = std::os::unix::net::UnixStream::from(fd.expect("a socket"));
    keeper.write_all(b"\"prepared\"\n").expect("said");
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("\"take\"") {
        let mut piece = [0; 4096];
        let count = keeper.read(&mut piece).expect("heard");
        heard.extend_from_slice(&piece[..count]);
    }
    panic!("as the test wants it");
}

/// A keeper in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by other tests"]
async fn a_keeper() {
    let directory = told_directory();
    beanpole_daemon::logs::init("info");
    let mut config = keeper(&directory);
    config.successor = Some(Successor {
        path: config.program.path.clone(),
        arguments: arguments("a_keeper", &directory),
    });
    let kept = beanpole_proxy::keep(config, CancellationToken::new());
    kept.await.expect("it keeps");
}

/// What has this executable be one of those.
fn arguments(name: &str, directory: &Path) -> Vec<OsString> {
    let test = format!("handover::{name}");
    let directory = format!("{DIRECTORY}{}", directory.display());
    let words = ["--exact", &test, "--ignored", "--nocapture", &directory];
    words.map(OsString::from).to_vec()
}

fn keeper(directory: &Path) -> KeeperConfig {
    let any = "127.0.0.1:0".parse().expect("address");
    KeeperConfig {
        socket: directory.join("proxy.sock"),
        http: vec![any],
        https: vec![any],
        program: Program {
            path: directory.join("executable"),
            arguments: arguments("a_process_that_serves", directory),
        },
        successor: None,
        drain: Duration::from_secs(5),
        patience: Duration::from_secs(10),
        table_wait: None,
    }
}

/// Puts something in the place of the executable, as an upgrade does it.
fn install(directory: &Path, make: impl FnOnce(&Path)) {
    let new = directory.join("executable.new");
    make(&new);
    fs::rename(new, directory.join("executable")).expect("renamed");
}

fn install_this(directory: &Path) {
    let own = std::env::current_exe().expect("this executable");
    install(directory, |new| {
        std::os::unix::fs::symlink(own, new).expect("a link");
    });
}

fn install_script(directory: &Path, script: &str) {
    install(directory, |new| {
        fs::write(new, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(new, fs::Permissions::from_mode(0o755)).expect("its mode");
    });
}

/// A proxy with a keeper in this process.
pub async fn kept(change: impl FnOnce(&mut KeeperConfig)) -> Proxy {
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    install_this(directory.path());
    let mut config = keeper(directory.path());
    change(&mut config);
    let stop = CancellationToken::new();
    let keeping = beanpole_proxy::keep(config, stop.clone());
    Proxy::found(directory, stop, async {
        keeping.await.map_err(|error| error.to_string())
    })
    .await
}

pub async fn reload(proxy: &Proxy) -> Result<Reloaded, CallError> {
    beanpole_proxy::reload(&proxy.directory.path().join("proxy.sock")).await
}

fn why(failed: Result<Reloaded, CallError>) -> String {
    match failed {
        Err(CallError::Refused(problem)) => problem.detail,
        other => panic!("not refused: {other:?}"),
    }
}

pub fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::KILL).expect("killed");
}

/// A keeper's process. It ends with its test.
struct Alone(std::process::Child);

impl Alone {
    fn start(directory: &Path) -> Self {
        let started = std::process::Command::new(directory.join("executable"))
            .args(arguments("a_keeper", directory))
            .stdin(std::process::Stdio::null())
            .spawn();
        Self(started.expect("started"))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients of one kind, which ask one request after the other until they are stopped.
struct Clients(CancellationToken, JoinHandle<(u64, Vec<String>)>);

impl Clients {
    fn start<F>(proxy: &Proxy, turn: impl Fn(Proxied) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<u64, String>> + Send,
    {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let proxied = Proxied::of(proxy);
        let task = tokio::spawn(async move {
            let (mut good, mut bad) = (0, Vec::new());
            while !stopped.is_cancelled() {
                match turn(proxied.clone()).await {
                    Ok(more) => good += more,
                    Err(why) => bad.push(why),
                }
            }
            (good, bad)
        });
        Self(stop, task)
    }

    /// How many requests were answered. None may have failed.
    async fn end(self) -> u64 {
        self.0.cancel();
        let (good, bad) = self.1.await.expect("no panic");
        assert!(bad.is_empty(), "{} failed: {:?}", bad.len(), bad.first());
        good
    }
}

/// What clients know of a proxy.
#[derive(Clone)]
struct Proxied(Arc<Proxy>);

impl Proxied {
    fn of(proxy: &Proxy) -> Self {
        Self(Arc::new(proxy.seen()))
    }
}

/// Asks over one connection until its other side ends it, at most 500 times.
async fn keeps_alive(proxy: Proxied) -> Result<u64, String> {
    let mut client = Client::connect(proxy.0.http).await;
    for asked in 1..=500 {
        let answer = client.get(HOST, "/").await.map_err(|e| e.to_string())?;
        if answer.status != 200 {
            return Err(answer.text());
        }
        if answer
            .headers
            .get("connection")
            .is_some_and(|value| value == "close")
        {
            return Ok(asked);
        }
    }
    Ok(500)
}

async fn connects_anew(proxy: Proxied) -> Result<u64, String> {
    let mut client = Client::connect(proxy.0.http).await;
    let answer = client.get(HOST, "/").await.map_err(|e| e.to_string())?;
    (answer.status == 200)
        .then_some(1)
        .ok_or_else(|| answer.text())
}

async fn greets_by_tls(proxy: Proxied) -> Result<u64, String> {
    let io = TokioIo::new(tls(&proxy.0, b"http/1.1").await);
    let made = hyper::client::conn::http1::handshake(io).await;
    let (mut sender, driver) = made.map_err(|e| e.to_string())?;
    tokio::spawn(driver);
    let wanted = request(http::Method::GET, HOST, "/", &[]);
    let answer = sender
        .send_request(wanted)
        .await
        .map_err(|e| e.to_string())?;
    let status = answer.status();
    answer
        .into_body()
        .collect()
        .await
        .map_err(|e| e.to_string())?;
    (status == 200)
        .then_some(1)
        .ok_or_else(|| status.to_string())
}

/// Asks over one connection of HTTP/2 until GOAWAY, at most 500 times.
async fn multiplexes(proxy: Proxied) -> Result<u64, String> {
    let io = TokioIo::new(tls(&proxy.0, b"h2").await);
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, driver) = made.map_err(|e| e.to_string())?;
    tokio::spawn(driver);
    let mut asked = 0;
    while asked < 500 && sender.ready().await.is_ok() {
        let wanted = Request::get("https://app.localhost/").body(Full::<Bytes>::default());
        let sent = sender.send_request(wanted.expect("a request")).await;
        let answer = match sent {
            // It was not sent: the connection ends.
            Err(error) if error.is_canceled() || error.is_closed() => break,
            sent => sent.map_err(|e| format!("{e:?}"))?,
        };
        if answer.status() != 200 {
            return Err(answer.status().to_string());
        }
        answer
            .into_body()
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        asked += 1;
    }
    Ok(asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_reloads_cost_no_request_no_websocket_and_no_count() {
    let (backend, sick) = (Backend::start().await, Backend::start().await);
    sick.health.store(503, std::sync::atomic::Ordering::SeqCst);
    let proxy = kept(|_| {}).await;
    let wanted = table(1, vec![serving(1, &backend), serving(2, &sick)]);
    proxy.put(&wanted).await.expect("put");
    proxy
        .until_target("it is well", 1, |target| target.healthy)
        .await;
    let run = proxy.report().await.run;
    let mut socket = upgraded(proxy.http).await;
    let clients = [
        Clients::start(&proxy, keeps_alive),
        Clients::start(&proxy, keeps_alive),
        Clients::start(&proxy, connects_anew),
        Clients::start(&proxy, greets_by_tls),
        Clients::start(&proxy, multiplexes),
    ];
    let mut pids = std::collections::BTreeSet::new();
    for _ in 0..10 {
        pids.insert(reload(&proxy).await.expect("reloaded").pid);
        echoes(&mut socket, b"still here").await;
        let target = proxy.target(1).await;
        assert!(target.healthy && target.in_flight >= 1, "{target:?}");
        assert!(
            !proxy.target(2).await.healthy,
            "what is sick is known to be"
        );
    }
    assert_eq!(pids.len(), 10);
    let mut answered = 1;
    for clients in clients {
        answered += clients.end().await;
    }
    assert_eq!(sick.hits(), 0);
    assert_eq!(
        proxy.report().await.run,
        run,
        "the controller sees no restart"
    );
    proxy
        .until_target("only the WebSocket is open", 1, |target| {
            target.in_flight == 1
        })
        .await;
    drop(socket);
    let counted = proxy
        .until_target("all is over and counted", 1, |target| {
            target.in_flight == 0 && target.traffic.requests == answered
        })
        .await;
    assert_eq!(counted.traffic.failed, 0);
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_takes_out_gets_nothing_from_an_earlier_process_either() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let proxy = kept(|_| {}).await;
    proxy.serve(&table(1, vec![serving(1, &old)])).await;
    let mut socket = upgraded(proxy.http).await;
    let mut idle = Client::connect(proxy.http).await;
    idle.get(HOST, "/").await.expect("an answer");
    reload(&proxy).await.expect("reloaded");
    assert_eq!(proxy.target(1).await.in_flight, 1, "it is open elsewhere");

    let mut wanted = table(2, vec![serving(1, &old), serving(2, &new)]);
    wanted.pools[0].targets[0].mode = TargetMode::Drain;
    proxy.serve(&wanted).await;
    assert_eq!(proxy.target(1).await.in_flight, 1);
    let (before, after) = (old.hits(), new.hits());
    until(
        "the other one serves in the earlier process, too",
        || async { (get(proxy.http, HOST, "/").await.status == 200).then_some(()) },
    )
    .await;
    let answer = idle.get(HOST, "/").await.expect("an answer");
    assert_eq!(old.hits(), before, "nothing goes to what drains");
    assert!(new.hits() > after);
    assert_eq!(answer.headers["connection"], "close");

    proxy
        .put(&table(3, vec![serving(2, &new)]))
        .await
        .expect("put");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest));
    let _ = closed.await.expect("it ends with its target");
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_makes_clients_wait_and_refuses_nobody() {
    let backend = Backend::start().await;
    let proxy = kept(|_| {}).await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut socket = upgraded(proxy.http).await;
    for _ in 0..3 {
        let serving = reload(&proxy).await.expect("reloaded").pid;
        kill(serving);
        let killed = Instant::now();
        // Connections that are made while nobody serves, among them.
        let asked = (0..20).map(|_| tokio::spawn(get(proxy.http, HOST, "/")));
        for asked in asked.collect::<Vec<_>>() {
            assert_eq!(asked.await.expect("nobody is refused").status, 200);
        }
        let gap = killed.elapsed();
        assert!(gap < Duration::from_secs(1), "{gap:?}");
        echoes(&mut socket, b"of an earlier process").await;
        // Clients may be served before the controller's way in is open again.
        until("it is open", || async {
            let report = proxy.try_report().await?;
            let target = report.targets.into_iter().next()?;
            (target.in_flight == 1).then_some(())
        })
        .await;
    }
    drop(socket);
    proxy
        .until_target("it is over", 1, |target| target.in_flight == 0)
        .await;
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_that_cannot_serve_changes_nothing_and_is_told() {
    let backend = Backend::start().await;
    let proxy = kept(|config| config.patience = Duration::from_secs(3)).await;
    let directory = proxy.directory.path();
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let run = proxy.report().await.run;
    let clients = [
        Clients::start(&proxy, keeps_alive),
        Clients::start(&proxy, connects_anew),
    ];

    install_script(directory, "exit 3");
    let told = why(reload(&proxy).await);
    assert!(told.contains("exit code 3"), "{told}");
    install_script(directory, "exec sleep 100");
    let told = why(reload(&proxy).await);
    assert!(told.contains("not ready within 3 s"), "{told}");
    fs::remove_file(directory.join("executable")).expect("removed");
    let told = why(reload(&proxy).await);
    assert!(told.contains("cannot be started"), "{told}");

    // It ends after the one that serves has handed over: that one takes from the controller again.
    install_this(directory);
    fs::write(directory.join("fails-at-take"), "").expect("written");
    let told = why(reload(&proxy).await);
    assert!(told.contains("exit code 101"), "{told}");
    until("the controller is heard again", || async {
        proxy.try_put(&table(2, vec![serving(1, &backend)])).await
    })
    .await;
    assert_eq!(proxy.report().await.run, run);

    fs::remove_file(directory.join("fails-at-take")).expect("removed");
    reload(&proxy).await.expect("reloaded");
    assert_eq!(proxy.report().await.generation.0, 2);
    for clients in clients {
        clients.end().await;
    }
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_a_reload_hangs_is_over_within_a_second() {
    let backend = Backend::start().await;
    let proxy = kept(|_| {}).await;
    let directory = proxy.directory.path();
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let serving = reload(&proxy).await.expect("reloaded").pid;
    install_script(directory, r#"touch "$0.hangs"; exec sleep 100"#);
    let socket = directory.join("proxy.sock");
    let hangs = tokio::spawn(async move { beanpole_proxy::reload(&socket).await });
    until("it hangs", || async {
        directory.join("executable.hangs").exists().then_some(())
    })
    .await;
    install_this(directory);
    kill(serving);
    let killed = Instant::now();
    assert_eq!(get(proxy.http, HOST, "/").await.status, 200);
    let gap = killed.elapsed();
    assert!(gap < Duration::from_secs(1), "{gap:?}");
    let told = why(hangs.await.expect("no panic"));
    assert!(
        told.contains("when the process that served ended"),
        "{told}"
    );
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_becomes_the_executable_on_disk_and_stays_the_same_process() {
    let backend = Backend::start().await;
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let own = std::env::current_exe().expect("this executable");
    let upgrade = || {
        let copy = |new: &Path| {
            fs::copy(&own, new).expect("copied");
        };
        install(directory.path(), copy);
    };
    upgrade();
    let child = Alone::start(directory.path());
    let proxy = Proxy::found(
        directory.clone(),
        CancellationToken::new(),
        std::future::pending(),
    )
    .await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let run = proxy.report().await.run;
    let mut socket = upgraded(proxy.http).await;
    let clients = Clients::start(&proxy, connects_anew);
    // While one of its threads becomes another executable, the process has none for a moment.
    let is_deleted = || {
        let image = fs::read_link(format!("/proc/{}/exe", child.0.id()));
        image.map(|image| image.to_string_lossy().contains("deleted"))
    };
    for _ in 0..2 {
        upgrade();
        assert!(is_deleted().expect("a process"));
        reload(&proxy).await.expect("reloaded");
        until("the keeper is the new executable", || async {
            is_deleted().is_ok_and(|deleted| !deleted).then_some(())
        })
        .await;
        echoes(&mut socket, b"still here").await;
    }
    reload(&proxy).await.expect("it can be reached");
    clients.end().await;
    assert_eq!(proxy.report().await.run, run);
    // A request counts until its answer is out, a moment after its client has it.
    let left = |target: &TargetReport| target.in_flight == 1;
    proxy
        .until_target("the WebSocket alone is left", 1, left)
        .await;

    // Whoever it leaves behind ends, and what comes next can listen.
    drop(child);
    let _next = Alone::start(directory.path());
    until("it serves again", || async {
        let stream = TcpStream::connect(proxy.http).await;
        drop(stream);
        (proxy.try_report().await?.run != run).then_some(())
    })
    .await;
    drop(socket);
}
