//! Connections of network environments: carried as bytes, by port and by the name that a client of TLS asks for.

use crate::handover::{kept, kill, reload};
use crate::support::*;
use crate::tls::{Visitor, certificate, set};
use beanpole_protocol::proxy::{
    Capacity, Hold, Probe, ProxyProtocol, ProxyReport, RoutingTable, Stream, StreamMode, Target,
    TargetMode, WeightedPool,
};
use beanpole_protocol::{EnvironmentId, EnvironmentName, Generation};
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address").port()
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// An application that says its name and then what it hears; and `bye` to whoever has nothing more to say.
struct App {
    address: SocketAddr,
    stop: CancellationToken,
}

impl App {
    async fn start(name: &str) -> Self {
        Self::over(name, None).await
    }

    /// One that speaks TLS itself, with a certificate for its name.
    async fn with_tls(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("made");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a certificate");
        Self::over(name, Some(Arc::new(config).into())).await
    }

    async fn over(name: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let (stopped, name) = (stop.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Some(Ok((socket, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let (stopped, name, tls) = (stopped.clone(), name.clone(), tls.clone());
                tokio::spawn(async move {
                    let talk = async {
                        match tls {
                            None => talk(&name, socket).await,
                            Some(tls) => match tls.accept(socket).await {
                                Ok(io) => talk(&name, io).await,
                                Err(error) => Err(error),
                            },
                        }
                    };
                    let _ = stopped.run_until_cancelled(talk).await;
                });
            }
        });
        Self { address, stop }
    }

    fn kill(&self) {
        self.stop.cancel();
    }
}

async fn talk(name: &str, io: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let (mut from, mut to) = tokio::io::split(io);
    to.write_all(format!("{name}\n").as_bytes()).await?;
    tokio::io::copy(&mut from, &mut to).await?;
    to.write_all(b"bye\n").await?;
    to.shutdown().await
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

fn checked(number: u8, app: &App, mode: TargetMode) -> Target {
    let mut target = target(number, app.address, mode);
    target.check.probe = Probe::Tcp;
    target
}

fn stream(port: u16, hosts: &[&str], mode: StreamMode, pools: &[(&str, u32)]) -> Stream {
    Stream {
        port,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        mode,
        pools: pools
            .iter()
            .map(|(pool, weight)| WeightedPool {
                pool: (*pool).to_owned(),
                weight: *weight,
            })
            .collect(),
    }
}

/// A table of one environment that takes whatever comes to a port.
fn plain(generation: u64, port: u16, targets: Vec<Target>) -> RoutingTable {
    RoutingTable {
        generation: Generation(generation),
        pools: vec![pool("main", targets)],
        streams: vec![stream(port, &[], StreamMode::Pass, &[("main", 1)])],
        ..RoutingTable::default()
    }
}

/// A client's connection, line by line.
type Talk<S> = BufReader<S>;

async fn dial(port: u16) -> Talk<TcpStream> {
    let socket = until("the port is open", || async {
        match TcpStream::connect(at(port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => None,
            made => Some(made.expect("connected")),
        }
    });
    BufReader::new(socket.await)
}

/// The first line that a new connection hears; one that is refused may be reset before its client has it.
async fn first_word(port: u16) -> String {
    match TcpStream::connect(at(port)).await {
        Ok(socket) => hear(&mut BufReader::new(socket)).await,
        Err(error) => format!("{:?}", error.kind()),
    }
}

async fn hear<S: AsyncRead + Unpin>(talk: &mut Talk<S>) -> String {
    let mut line = String::new();
    let heard = tokio::time::timeout(LIMIT, talk.read_line(&mut line)).await;
    match heard.expect("in time") {
        Ok(_) => line.trim_end().to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Says something and hears it again.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(talk: &mut Talk<S>, word: &str) {
    talk.write_all(format!("{word}\n").as_bytes())
        .await
        .expect("said");
    assert_eq!(hear(talk).await, word);
}

/// Who answers at a port.
async fn who(port: u16) -> String {
    hear(&mut dial(port).await).await
}

/// Who answers a client of TLS that asks for a name; how that failed where nobody does.
async fn who_by_name(port: u16, name: &str) -> String {
    let socket = dial(port).await.into_inner();
    let connector = TlsConnector::from(Visitor::usual().0);
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    match connector.connect(name, socket).await {
        Ok(io) => hear(&mut BufReader::new(io)).await,
        Err(error) => error.to_string(),
    }
}

fn failed(report: &ProxyReport, port: u16) -> Option<String> {
    let one = report.streams.iter().find(|one| one.port == port);
    one.expect("it is reported").failed.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_the_end_of_one_is_passed_on() {
    let app = App::start("a").await;
    let proxy = Proxy::start().await;
    let port = free_port();
    proxy
        .serve(&plain(1, port, vec![checked(1, &app, TargetMode::Serve)]))
        .await;
    let mut client = dial(port).await;
    assert_eq!(hear(&mut client).await, "a", "the server speaks first");
    echo(&mut client, "hello").await;
    assert_eq!(proxy.target(1).await.in_flight, 1);
    client.get_mut().shutdown().await.expect("its end");
    assert_eq!(
        hear(&mut client).await,
        "bye",
        "said after the client's end"
    );
    assert_eq!(hear(&mut client).await, "", "and then its own end");
    let target = proxy
        .until_target("it is over", 1, |target| target.in_flight == 0)
        .await;
    let traffic = target.traffic;
    assert_eq!((traffic.requests, traffic.failed), (1, 0));
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (6, 2 + 6 + 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_is_carried_whole_and_slow_readers_hold_it_up_without_filling_memory() {
    let app = App::start("a").await;
    let proxy = Proxy::start().await;
    let port = free_port();
    proxy
        .serve(&plain(1, port, vec![checked(1, &app, TargetMode::Serve)]))
        .await;
    let before = resident_mib();
    let mut client = dial(port).await.into_inner();
    let (mut from, mut to) = client.split();
    let size = 64 << 20;
    let sent = async {
        let piece: Vec<u8> = (0..=255).cycle().take(1 << 16).collect();
        for _ in 0..size / piece.len() {
            to.write_all(&piece).await.expect("sent");
        }
        to.shutdown().await.expect("its end");
    };
    let heard = async {
        // All buffers between are full by then, and nothing more is taken.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(resident_mib() < before + 32, "it waits where it is");
        let mut heard = Vec::with_capacity(size + 16);
        from.read_to_end(&mut heard).await.expect("all of it");
        heard
    };
    let ((), heard) = tokio::join!(sent, heard);
    assert_eq!(heard.len(), size + "a\n".len() + "bye\n".len());
    assert!(
        (0..=255)
            .cycle()
            .zip(&heard[2..size])
            .all(|(a, b): (u8, &u8)| a == *b)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_exact_over_a_thousand_connections() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let proxy = Proxy::start().await;
    let port = free_port();
    let mut wanted = plain(1, port, vec![checked(1, &old, TargetMode::Serve)]);
    wanted
        .pools
        .push(pool("new", vec![checked(2, &new, TargetMode::Serve)]));
    wanted.streams = vec![stream(
        port,
        &[],
        StreamMode::Pass,
        &[("main", 93), ("new", 7)],
    )];
    proxy.serve(&wanted).await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..10 {
        let some: Vec<_> = (0..100).map(|_| tokio::spawn(who(port))).collect();
        for one in some {
            *counts.entry(one.await.expect("no panic")).or_default() += 1;
        }
    }
    assert_eq!(
        counts,
        [("new".to_owned(), 70), ("old".to_owned(), 930)].into()
    );
}

/// Two environments that speak TLS themselves and one that takes whatever else comes.
async fn by_names(port: u16) -> (RoutingTable, Vec<App>) {
    let apps = vec![
        App::with_tls("a.example").await,
        App::with_tls("x.b.example").await,
        App::start("plain").await,
    ];
    let mut wanted = RoutingTable {
        generation: Generation(1),
        ..RoutingTable::default()
    };
    for (number, app) in (1u8..).zip(&apps) {
        let name = format!("p{number}");
        let mut made = pool(&name, vec![checked(number, app, TargetMode::Serve)]);
        made.environment = EnvironmentId::from_bits(u128::from(number));
        made.environment_name = EnvironmentName::new(format!("env{number}")).expect("a name");
        wanted.pools.push(made);
    }
    wanted.streams = vec![
        stream(port, &["a.example"], StreamMode::Pass, &[("p1", 1)]),
        stream(port, &["*.b.example"], StreamMode::Pass, &[("p2", 1)]),
    ];
    (wanted, apps)
}

#[tokio::test(flavor = "multi_thread")]
async fn several_share_a_port_by_the_names_that_clients_ask_for() {
    let proxy = Proxy::start().await;
    let port = free_port();
    let (mut wanted, _apps) = by_names(port).await;
    proxy.serve(&wanted).await;
    assert_eq!(who_by_name(port, "a.example").await, "a.example");
    assert_eq!(who_by_name(port, "A.Example").await, "a.example");
    assert_eq!(who_by_name(port, "any.b.example").await, "x.b.example");
    let told = who_by_name(port, "nobody.example").await;
    assert!(told.contains("UnrecognisedName"), "{told}");
    let mut client = dial(port).await;
    client.write_all(b"no TLS at all\n").await.expect("said");
    assert_ne!(hear(&mut client).await, "plain");
    let report = proxy.report().await;
    assert_eq!(report.streams[0].refused, 1, "{:?}", report.streams);

    wanted.generation = Generation(2);
    wanted
        .streams
        .push(stream(port, &[], StreamMode::Pass, &[("p3", 1)]));
    proxy.serve(&wanted).await;
    assert_eq!(who_by_name(port, "a.example").await, "a.example");
    let mut client = dial(port).await;
    client.write_all(b"hi\n").await.expect("said");
    assert_eq!(hear(&mut client).await, "plain");
    assert_eq!(hear(&mut client).await, "hi");
    // Of a protocol in which the server speaks first.
    assert_eq!(who(port).await, "plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_https_is_shared_by_names_and_everything_else_ends_there_as_before() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let port = proxy.https.port();
    let (mut wanted, _apps) = by_names(port).await;
    wanted.routes = vec![route(HOST, &[("http", 1)])];
    wanted.pools.push(pool("http", vec![serving(9, &backend)]));
    proxy.serve(&wanted).await;
    assert_eq!(who_by_name(port, "a.example").await, "a.example");
    assert_eq!(failed(&proxy.report().await, port), None);
    let io = crate::protocols::tls(&proxy, b"http/1.1").await;
    let mut talk = BufReader::new(io);
    let asked = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    talk.write_all(asked.as_bytes()).await.expect("asked");
    assert_eq!(hear(&mut talk).await, "HTTP/1.1 200 OK");

    wanted.generation = Generation(2);
    wanted.streams = vec![
        stream(port, &[], StreamMode::Pass, &[("p3", 1)]),
        stream(proxy.http.port(), &[], StreamMode::Pass, &[("p3", 1)]),
    ];
    proxy.put(&wanted).await.expect("a table all the same");
    let why = until("it is told", || async {
        failed(&proxy.report().await, port)
    })
    .await;
    assert!(why.contains("RouteBySNI"), "{why}");
    let why = failed(&proxy.report().await, proxy.http.port()).expect("told");
    assert!(why.contains("for HTTP"), "{why}");
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_may_end_here_with_the_certificate_of_the_name_asked_for() {
    let app = App::start("a").await;
    let proxy = Proxy::start().await;
    let port = free_port();
    let mut wanted = plain(1, port, vec![checked(1, &app, TargetMode::Serve)]);
    wanted.streams[0].mode = StreamMode::Terminate;
    proxy.serve(&wanted).await;
    let mine = certificate("mine", &["db.example"]);
    proxy
        .put_certificates(&set(1, vec![mine.clone()]))
        .await
        .expect("put");
    let socket = dial(port).await.into_inner();
    let connector = TlsConnector::from(Visitor::usual().0);
    let name = ServerName::try_from("db.example").expect("a name");
    let io = connector.connect(name, socket).await.expect("a handshake");
    let (_, session) = io.get_ref();
    assert_eq!(
        session.alpn_protocol(),
        None,
        "what is spoken is not ours to say"
    );
    let shown = session.peer_certificates().expect("shown")[0].to_vec();
    let mine = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(mine.chain.as_bytes());
    assert_eq!(shown, mine.expect("PEM").to_vec());
    let mut talk = BufReader::new(io);
    assert_eq!(hear(&mut talk).await, "a");
    echo(&mut talk, "hello").await;
    talk.get_mut().shutdown().await.expect("its end");
    assert_eq!(hear(&mut talk).await, "bye");
    let told = who_by_name(port, "other.example").await;
    assert!(told.contains("UnrecognisedName"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drains_gets_nothing_new_and_what_is_open_goes_on_until_it_leaves() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    let proxy = Proxy::start().await;
    let port = free_port();
    proxy
        .serve(&plain(1, port, vec![checked(1, &one, TargetMode::Serve)]))
        .await;
    let mut client = dial(port).await;
    assert_eq!(hear(&mut client).await, "one");
    let both = vec![
        checked(1, &one, TargetMode::Drain),
        checked(2, &two, TargetMode::Serve),
    ];
    proxy.serve(&plain(2, port, both)).await;
    for _ in 0..5 {
        assert_eq!(who(port).await, "two");
    }
    echo(&mut client, "still here").await;
    assert_eq!(proxy.target(1).await.in_flight, 1);
    proxy
        .serve(&plain(3, port, vec![checked(2, &two, TargetMode::Serve)]))
        .await;
    assert_eq!(
        hear(&mut client).await,
        "ConnectionReset",
        "it broke off, and did not end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_refuses_is_gone_around_before_a_byte_is_sent() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    let proxy = Proxy::start().await;
    let port = free_port();
    let mut wanted = plain(
        1,
        port,
        vec![
            checked(1, &one, TargetMode::Serve),
            checked(2, &two, TargetMode::Serve),
        ],
    );
    check_all(&mut wanted, |check| check.interval_ms = 60_000);
    proxy.serve(&wanted).await;
    one.kill();
    until("it refuses", || async {
        TcpStream::connect(one.address).await.is_err().then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(who(port).await, "two");
    }
    assert!(!proxy.target(1).await.healthy);
    assert_eq!(proxy.report().await.environments[0].traffic.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_for_an_instance_and_for_room_as_requests_do() {
    let app = App::start("a").await;
    let proxy = Proxy::start().await;
    let port = free_port();
    let mut wanted = plain(1, port, Vec::new());
    let hold = Hold {
        for_ms: 20_000,
        most: 10,
    };
    wanted.pools[0].hold = Some(hold);
    proxy.put(&wanted).await.expect("put");
    let mut client = dial(port).await;
    let waiting = || async {
        let report = proxy.report().await;
        (report.environments[0].traffic.waiting == 1).then_some(())
    };
    until("it waits", waiting).await;
    let mut wanted = plain(2, port, vec![checked(1, &app, TargetMode::Serve)]);
    wanted.pools[0].hold = Some(hold);
    wanted.pools[0].limits.capacity = Capacity {
        each: 1,
        pending: 1,
        wait_ms: 20_000,
        ..Capacity::default()
    };
    proxy.put(&wanted).await.expect("put");
    assert_eq!(hear(&mut client).await, "a");
    let (second, third) = (
        tokio::spawn(first_word(port)),
        tokio::spawn(first_word(port)),
    );
    let refused = || async {
        let report = proxy.report().await;
        (report.environments[0].traffic.over_capacity == 1).then_some(())
    };
    until("one finds no place to wait", refused).await;
    drop(client);
    let heard = [second.await.expect("heard"), third.await.expect("heard")];
    assert!(heard.contains(&"a".to_owned()), "{heard:?}");
    assert!(heard.contains(&"ConnectionReset".to_owned()), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_silent_for_too_long_is_cut_off() {
    let app = App::start("a").await;
    let proxy = Proxy::start().await;
    let port = free_port();
    let mut wanted = plain(1, port, vec![checked(1, &app, TargetMode::Serve)]);
    wanted.pools[0].limits.idle_ms = 200;
    proxy.serve(&wanted).await;
    let mut client = dial(port).await;
    assert_eq!(hear(&mut client).await, "a");
    assert_eq!(hear(&mut client).await, "ConnectionReset");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_announced_in_and_out_by_the_proxy_protocol() {
    let app = App::start("a").await;
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let proxy = Proxy::start_in(directory, |config| config.proxy_protocol = true).await;
    let port = free_port();
    let mut only = checked(1, &app, TargetMode::Serve);
    only.upstream.announce = Some(ProxyProtocol::V1);
    proxy.serve(&plain(1, port, vec![only])).await;
    let mut client = dial(port).await;
    client
        .write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\nhello\n")
        .await
        .expect("said");
    assert_eq!(hear(&mut client).await, "a");
    assert_eq!(
        hear(&mut client).await,
        format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 {port}")
    );
    assert_eq!(hear(&mut client).await, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_and_opened_when_it_is_free() {
    let (app, backend) = (App::start("a").await, Backend::start().await);
    let proxy = Proxy::start().await;
    let other = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = other.local_addr().expect("an address").port();
    let mut wanted = plain(1, port, vec![checked(1, &app, TargetMode::Serve)]);
    wanted.routes = vec![route(HOST, &[("http", 1)])];
    wanted.pools.push(pool("http", vec![serving(2, &backend)]));
    proxy.serve(&wanted).await;
    let why = until("it is told", || async {
        failed(&proxy.report().await, port)
    })
    .await;
    assert!(why.contains("already listens on port"), "{why}");
    assert_eq!(proxy.get("/").await.status, 200, "all else goes on");
    drop(other);
    let open = || async { failed(&proxy.report().await, port).is_none().then_some(()) };
    until("it is open", open).await;
    assert_eq!(who(port).await, "a");
    wanted.generation = Generation(2);
    wanted.streams.clear();
    proxy.put(&wanted).await.expect("put");
    until("it is closed", || async {
        TcpStream::connect(at(port)).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_crashes_lose_no_port_and_a_reload_no_connection() {
    let app = App::start("a").await;
    let proxy = kept(|_| {}).await;
    let port = free_port();
    let wanted = plain(1, port, vec![checked(1, &app, TargetMode::Serve)]);
    proxy.serve(&wanted).await;
    let mut client = dial(port).await;
    assert_eq!(hear(&mut client).await, "a");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let knocking = tokio::spawn(async move {
        let mut answered = 0;
        while !stopped.load(Ordering::SeqCst) {
            let socket = TcpStream::connect(at(port)).await.expect("never refused");
            assert_eq!(hear(&mut BufReader::new(socket)).await, "a");
            answered += 1;
        }
        answered
    });
    let mut last = 0;
    for _ in 0..3 {
        last = reload(&proxy).await.expect("reloaded").pid;
        echo(&mut client, "still here").await;
        assert!(proxy.target(1).await.in_flight >= 1);
    }
    stop.store(true, Ordering::SeqCst);
    assert!(knocking.await.expect("no panic") > 0);

    kill(last);
    // Nobody accepts for a moment, and nobody is refused.
    let socket = TcpStream::connect(at(port))
        .await
        .expect("it waits in the backlog");
    assert_eq!(hear(&mut BufReader::new(socket)).await, "a");
    echo(&mut client, "carried by an earlier process").await;
}
