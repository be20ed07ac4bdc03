//! HTTP/2 clients that cost more than they send: none takes the app, the memory or the time of others.

use crate::frames::{self, *};
use crate::support::*;
use beanpole_protocol::proxy::{PoolLimits, Probe, TargetMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As much more memory as a flood may take, in MiB. The tests of this file run in processes of their own.
const SOME_MIB: usize = 48;

async fn proxy() -> (Backend, Proxy) {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    (backend, proxy)
}

async fn talk(proxy: &Proxy) -> Talk<TcpStream> {
    talk_with(proxy, &[]).await
}

async fn talk_with(proxy: &Proxy, settings: &[(u16, u32)]) -> Talk<TcpStream> {
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    socket.set_nodelay(true).expect("nodelay");
    Talk::begin(socket, settings).await
}

/// A request on a stream, whole.
fn ask(stream: u32, path: &str) -> Vec<u8> {
    let ends = END_HEADERS | END_STREAM;
    frame(HEADERS, ends, stream, &frames::get(path))
}

/// Sends all of it, if it is taken, and tells why the connection ends. It is read from meanwhile, as floods do.
async fn flood(proxy: &Proxy, frames: &[u8]) -> Option<u32> {
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let talk = Talk::begin(socket, &[]).await;
    let (reads, mut writes) = tokio::io::split(talk.io);
    let mut reads = Talk::of(tokio::io::join(reads, tokio::io::sink()));
    let ((), why) = tokio::join!(
        async {
            let _ = writes.write_all(frames).await;
        },
        reads.end()
    );
    why
}

/// How many requests may have been taken back since then, and some that are under way.
fn most_since(begun: Instant) -> usize {
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("not long");
    200 + 20 * (seconds + 1) + 100
}

async fn still_serves(proxy: &Proxy) {
    let answer = tokio::time::timeout(Duration::from_secs(5), proxy.get("/")).await;
    assert_eq!(answer.expect("at once").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let (backend, proxy) = proxy().await;
    let cancel = 8u32.to_be_bytes();
    let mut all = Vec::new();
    for stream in (1..6_000).step_by(2) {
        all.extend(ask(stream, "/hold"));
        all.extend(frame(RST_STREAM, 0, stream, &cancel));
    }
    let begun = Instant::now();
    assert_eq!(flood(&proxy, &all).await, Some(ENHANCE_YOUR_CALM));
    assert!(backend.hits() <= most_since(begun), "{}", backend.hits());
    proxy
        .until_target("nothing is under way", 1, |target| target.in_flight == 0)
        .await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_once_they_are_at_the_app_end_the_connection_too() {
    let (backend, proxy) = proxy().await;
    let mut talk = talk(&proxy).await;
    let cancel = 8u32.to_be_bytes();
    let mut stream = 1;
    let begun = Instant::now();
    loop {
        assert!(backend.hits() <= most_since(begun), "it goes on for ever");
        let before = backend.hits();
        if !talk.send(&ask(stream, "/hold")).await {
            break;
        }
        let came = async {
            while backend.hits() == before {
                tokio::task::yield_now().await;
            }
        };
        // The connection may have ended with the one before.
        if tokio::time::timeout(Duration::from_secs(2), came)
            .await
            .is_err()
            || !talk.send(&frame(RST_STREAM, 0, stream, &cancel)).await
        {
            break;
        }
        stream += 2;
    }
    assert_eq!(talk.end().await, Some(ENHANCE_YOUR_CALM));
    assert!(backend.hits() >= 100, "some are fine: {}", backend.hits());
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_ask_for_nothing_end_the_connection_when_there_are_many() {
    let (_backend, proxy) = proxy().await;
    let open = frame(HEADERS, END_HEADERS, 1, &frames::get("/echo"));
    for (name, begin, one) in [
        ("ping", Vec::new(), frame(PING, 0, 0, &[0; 8])),
        ("pong", Vec::new(), frame(PING, ACK, 0, &[0; 8])),
        ("settings", Vec::new(), settings(&[(4, 65_535)])),
        ("empty settings", Vec::new(), settings(&[])),
        (
            "priority",
            Vec::new(),
            frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 15]),
        ),
        ("empty data", open.clone(), frame(DATA, 0, 1, &[])),
        (
            "padding alone",
            open.clone(),
            frame(DATA, 8, 1, &[3, 0, 0, 0]),
        ),
        ("unknown frames", Vec::new(), frame(0x77, 0, 0, b"x")),
    ] {
        let all = [begin, one.repeat(30_000)].concat();
        let before = resident_mib();
        assert_eq!(flood(&proxy, &all).await, Some(ENHANCE_YOUR_CALM), "{name}");
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < SOME_MIB, "{name}: {grown} MiB");
    }
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_an_end_ends_the_connection() {
    let (backend, proxy) = proxy().await;
    let header = frames::block(&[(b"x", &[b'x'; 1_000])]);
    for piece in [&header[..], &[]] {
        let mut all = frame(HEADERS, END_STREAM, 1, &frames::get("/"));
        all.extend(frame(CONTINUATION, 0, 1, piece).repeat(50_000));
        let before = resident_mib();
        assert!(flood(&proxy, &all).await.is_some(), "{}", piece.len());
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < SOME_MIB, "{grown} MiB");
    }
    assert_eq!(backend.hits(), 0);
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_grow_when_they_are_unpacked_are_refused() {
    let (backend, proxy) = proxy().await;
    // A large header goes into the table, and then is said again and again in a byte each (RFC 7541, section 6.1).
    let mut bomb = frames::get("/");
    bomb.extend([0x40, 1, b'x', 127]);
    bomb.extend([0x81, 0x1e]); // 127 + 1 + 30 * 128
    bomb.extend([b'y'; 3_968]);
    bomb.extend([0xbe; 12_000]);
    let before = resident_mib();
    let mut all = Vec::new();
    for stream in (1..101).step_by(2) {
        all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb));
    }
    assert!(flood(&proxy, &all).await.is_some());
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < SOME_MIB, "{grown} MiB");
    assert_eq!(backend.hits(), 0);
    // As many headers as HTTP/1.1 may have, and more.
    let mut talk = talk(&proxy).await;
    let many = vec![(&b"x"[..], &b"y"[..]); 3_000];
    let block = [frames::get("/"), frames::block(&many)].concat();
    talk.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
        .await;
    let answer = talk.next_of(1).await.expect("an answer");
    assert!(
        answer.kind != HEADERS || answer.status() == Some(431),
        "{answer:?}"
    );
    assert_eq!(backend.hits(), 0);
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_a_hundred_requests_of_a_connection_are_under_way() {
    let (backend, proxy) = proxy().await;
    let mut talk = talk(&proxy).await;
    let all: Vec<u8> = (1..300)
        .step_by(2)
        .flat_map(|stream| ask(stream, "/hold"))
        .collect();
    assert!(talk.send(&all).await);
    let mut refused = 0;
    while refused < 50 {
        let frame = talk.next().await.expect("more");
        assert_eq!(frame.goes_away(), None);
        if frame.kind == RST_STREAM {
            const REFUSED_STREAM: u32 = 7;
            assert_eq!(frame.number(0), Some(REFUSED_STREAM));
            refused += 1;
        }
    }
    proxy
        .until_target("all are there", 1, |target| target.in_flight == 100)
        .await;
    until("the app has them", || async {
        (backend.hits() == 100).then_some(())
    })
    .await;
    drop(talk);
    proxy
        .until_target("nothing is under way", 1, |target| target.in_flight == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_make_the_proxy_reset_streams_end_the_connection() {
    let (backend, proxy) = proxy().await;
    let head = frame(HEADERS, END_HEADERS, 0, &frames::get("/hold"));
    for odd in [
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 15]),
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            0,
            &frames::block(&[(b"X", b"y")]),
        ),
    ] {
        let before = backend.hits();
        let mut all = Vec::new();
        for stream in (1u32..4_000).step_by(2) {
            for one in [&head, &odd] {
                let mut one = one.clone();
                one[5..9].copy_from_slice(&stream.to_be_bytes());
                if one[3] == PRIORITY {
                    one[9..13].copy_from_slice(&stream.to_be_bytes());
                }
                all.extend(one);
            }
        }
        assert!(flood(&proxy, &all).await.is_some(), "{odd:?}");
        let came = backend.hits() - before;
        assert!(came <= 250, "{odd:?}: {came}");
    }
    still_serves(&proxy).await;
}

/// What an app was asked for, and how much it could write of it, in bytes.
#[derive(Default)]
struct Told {
    asked: AtomicUsize,
    written: AtomicUsize,
}

/// An app whose answers are long.
async fn long_answers(each: usize) -> (std::net::SocketAddr, Arc<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let told = Arc::new(Told::default());
    let count = told.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if !matches!(socket.read(&mut head).await, Ok(1..)) {
                    return;
                }
                count.asked.fetch_add(1, Ordering::SeqCst);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {each}\r\n\r\n");
                if socket.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                let piece = vec![b'x'; 64 * 1024];
                for _ in 0..each / piece.len() {
                    if socket.write_all(&piece).await.is_err() {
                        return;
                    }
                    count.written.fetch_add(piece.len(), Ordering::SeqCst);
                }
            });
        }
    });
    (address, told)
}

async fn proxy_of_long_answers(each: usize) -> (Proxy, Arc<Told>) {
    let (app, told) = long_answers(each).await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, app, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits = PoolLimits {
        idle_ms: 400,
        ..PoolLimits::default()
    };
    proxy.serve(&wanted).await;
    (proxy, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken_wait_at_the_app_and_are_given_up() {
    const EACH: usize = 64 * 1024 * 1024;
    let (proxy, told) = proxy_of_long_answers(EACH).await;
    let mut asked = 0;
    let all_asked = async |asked: usize| {
        until("all have begun", || async {
            (told.asked.load(Ordering::SeqCst) >= asked).then_some(())
        })
        .await;
    };
    let most = 0x7fff_ffff;
    // By HTTP/2: no room for any answer; and room enough, but nobody who reads.
    for window in [0, most] {
        let before = resident_mib();
        let mut talk = talk_with(&proxy, &[(4, window)]).await;
        let widened = frame(WINDOW_UPDATE, 0, 0, &(most - 65_535).to_be_bytes());
        let all: Vec<u8> = (1..80)
            .step_by(2)
            .flat_map(|stream| ask(stream, "/long"))
            .collect();
        assert!(talk.send(&[widened, all].concat()).await);
        asked += 40;
        all_asked(asked).await;
        proxy
            .until_target("all are given up", 1, |target| target.in_flight == 0)
            .await;
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < SOME_MIB, "{window}: {grown} MiB");
    }
    // By HTTP/1.1, on both ways.
    for odd in ["", "X_Odd: 1\r\n"] {
        let before = resident_mib();
        let mut slow = Vec::new();
        for _ in 0..20 {
            let mut socket = TcpStream::connect(proxy.http).await.expect("connect");
            let head = format!("GET /long HTTP/1.1\r\nHost: {HOST}\r\n{odd}\r\n");
            socket.write_all(head.as_bytes()).await.expect("write");
            slow.push(socket);
        }
        asked += 20;
        all_asked(asked).await;
        proxy
            .until_target("all are given up", 1, |target| target.in_flight == 0)
            .await;
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < SOME_MIB, "{odd}: {grown} MiB");
    }
    let most = 120 * EACH;
    assert!(
        told.written.load(Ordering::SeqCst) < most / 2,
        "it waits at the app"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stays_away_over_http2_is_no_fault_of_the_app() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.pools[0].limits = PoolLimits {
        idle_ms: 300,
        ..PoolLimits::default()
    };
    proxy.serve(&wanted).await;
    let mut talk = talk(&proxy).await;
    let mut post = frames::block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/echo"),
    ]);
    post.extend(frames::block(&[
        (b":authority", HOST.as_bytes()),
        (b"content-length", b"10"),
    ]));
    talk.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
    talk.send(&frame(DATA, 0, 1, b"half")).await;
    let answer = talk.next_of(1).await.expect("an answer");
    assert_eq!(answer.status(), Some(408), "{answer:?}");
    let traffic = proxy.target(1).await.traffic;
    assert_eq!(traffic.failed, 0, "{traffic:?}");
    // One that takes its time is heard to its end.
    talk.send(&frame(HEADERS, END_HEADERS, 3, &post)).await;
    for piece in 0u8..10 {
        // The point is that it takes its time.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let ends = if piece == 9 { END_STREAM } else { 0 };
        talk.send(&frame(DATA, ends, 3, b"x")).await;
    }
    let answer = talk.next_of(3).await.expect("an answer");
    assert_eq!(answer.status(), Some(200), "{answer:?}");
}
