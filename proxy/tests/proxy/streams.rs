//! Requests over HTTP/2, on the short way and on the long one.

use crate::exchange::{App, Does};
use crate::frames::{self, *};
use crate::support::*;
use beanpole_protocol::proxy::{Probe, Rate, TargetMode};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::atomic::Ordering;
use tokio::net::TcpStream;

/// Has a request take the long way.
const ODD: (&str, &str) = ("x_odd", "1");
const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

/// A client of HTTP/2 with prior knowledge.
struct Client2(SendRequest<Full<Bytes>>);

impl Client2 {
    async fn connect(proxy: &Proxy) -> Self {
        let socket = TcpStream::connect(proxy.http).await.expect("connect");
        let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("handshake");
        tokio::spawn(driver);
        Self(sender)
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, hyper::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{HOST}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        let (head, body) = self.0.send_request(request).await?.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    async fn get(&mut self, path: &str) -> Result<Answer, hyper::Error> {
        self.ask(Method::GET, path, &[], Bytes::new()).await
    }
}

/// What an app is told, without the request's id.
fn told(answer: &Answer) -> Vec<(String, String)> {
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let headers = told["headers"].as_array().expect("headers").iter();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let mut all: Vec<_> = headers
        .map(|header| (text(&header[0]), text(&header[1])))
        .filter(|(name, _)| name != "x-request-id")
        .chain([("path".to_owned(), text(&told["path"]))])
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_told_the_same_whichever_way_a_request_takes() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut client = Client2::connect(&proxy).await;
    let headers = [
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("x-forwarded-for", "6.6.6.6"),
        ("user-agent", "a test"),
        ("x-twice", "1"),
        ("x-twice", "2"),
    ];
    for path in ["/", "/a%20b?c=d&e"] {
        let short = client.ask(Method::GET, path, &headers, Bytes::new()).await;
        let odd = [&headers[..], &[ODD]].concat();
        let long = client.ask(Method::GET, path, &odd, Bytes::new()).await;
        let (short, long) = (short.expect("an answer"), long.expect("an answer"));
        assert_eq!(told(&short), told(&long));
        assert_eq!(short.told("cookie").as_deref(), Some("a=b; c=d"));
        assert_eq!(short.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(short.told("host").as_deref(), Some(HOST));
    }
    let target = proxy.until_target("all are counted", 1, |target| target.traffic.requests == 4);
    assert_eq!(target.await.in_flight, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_length_go_there_and_back_at_once() {
    let backend = Backend::start().await;
    let directory = tempfile::tempdir().expect("temporary directory");
    // A single worker, which accepts for itself.
    let proxy = Proxy::start_in(directory.into(), |config| config.threads = 1).await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let client = Client2::connect(&proxy).await.0;
    let asked = [0, 1, 1_000, 32 * 1024, 32 * 1024 + 1, 2_000_000].map(|length| {
        let mut client = Client2(client.clone());
        tokio::spawn(async move {
            let body: Bytes = (0..length).map(|n: u32| (n % 251) as u8).collect();
            let answer = client.ask(Method::POST, "/echo", &[], body.clone()).await;
            assert!(answer.expect("an answer").body == body, "{length}");
        })
    });
    for one in asked {
        one.await.expect("it came back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_in_pieces_is_waited_for() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    let head = block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", HOST.as_bytes()),
        (b":path", b"/echo"),
        (b"content-length", b"4"),
    ]);
    for (stream, pieces) in [(1, ["fi", "ne"]), (3, ["", "fine"]), (5, ["fine", ""])] {
        let mut first = frame(HEADERS, END_HEADERS, stream, &head);
        first.extend(frame(DATA, 0, stream, pieces[0].as_bytes()));
        assert!(talk.send(&first).await);
        // Its answer says that the first piece has come. That to the request may come before.
        assert!(talk.send(&frame(PING, 0, 0, &[0; 8])).await);
        let mut came = Vec::new();
        while came.last().is_none_or(|frame: &Frame| frame.kind != PING) {
            came.push(talk.next().await.expect("a frame"));
        }
        let rest = frame(DATA, END_STREAM, stream, pieces[1].as_bytes());
        assert!(talk.send(&rest).await);
        while !came.iter().any(|frame| frame.kind == DATA) {
            came.push(talk.next_of(stream).await.expect("an answer"));
        }
        let of = |kind| came.iter().find(|frame| frame.kind == kind);
        assert_eq!(of(HEADERS).and_then(Frame::status), Some(200), "{stream}");
        let body = of(DATA).map(|frame| &frame.payload[..]);
        assert_eq!(body, Some(&b"fine"[..]), "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_all_forms_reach_the_client_whole() {
    let many = "x".repeat(300_000);
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{many}");
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{many}");
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n493e0\r\n{many}\r\n0\r\n\r\n"
    );
    for (method, says, closes, body) in [
        (Method::GET, FINE, false, "fine"),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nfine\r\n2\r\n!!\r\n0\r\nX-Sum: 7\r\n\r\n",
            false,
            "fine!!",
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            false,
            "",
        ),
        (Method::GET, "HTTP/1.1 200 OK\r\n\r\nfine", true, "fine"),
        (Method::GET, "HTTP/1.0 200 OK\r\n\r\n", true, ""),
        (
            Method::GET,
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine",
            false,
            "fine",
        ),
        (
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            false,
            "",
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
            "",
        ),
        (Method::GET, long.leak(), false, &many),
        (Method::GET, endless.leak(), true, &many),
        (Method::GET, chunks.leak(), false, &many),
    ] {
        let app = App::start(move |_| {
            if closes {
                Does::SaysAndCloses(says)
            } else {
                Does::Says(says)
            }
        });
        let app = app.await;
        let proxy = app.behind_a_proxy().await;
        let mut client = Client2::connect(&proxy).await;
        for _ in 0..2 {
            let answer = client.ask(method.clone(), "/", &[], Bytes::new()).await;
            let answer = answer.unwrap_or_else(|error| panic!("{says:.200}: {error}"));
            assert_eq!(answer.status, 200);
            assert!(answer.text() == body, "{says:.200}: {:.200}", answer.text());
            assert!(answer.headers.contains_key("date"));
        }
        let kept = usize::from(closes || method == Method::HEAD) + 1;
        assert_eq!(app.connections.load(Ordering::SeqCst), kept, "{says:.200}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_between_the_app_and_the_proxy_stays_there_over_http2() {
    let app = App::start(|_| {
        Does::Says(
            "HTTP/1.1 204 Nothing\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n\
             TE: x\r\nHTTP2-Settings: a\r\nContent-Length: 4\r\nX-Far: a\r\n b\r\n\r\n",
        )
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let mut client = Client2::connect(&proxy).await;
    let answer = client.get("/").await.expect("an answer");
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["x-far"], "a   b");
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "upgrade",
        "te",
        "http2-settings",
        "content-length",
    ] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_can_be_read_in_two_ways_or_in_none_is_a_502_over_http2_too() {
    for says in [
        "no HTTP at all\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfine!",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nfine",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Not-Over: ",
        "",
    ] {
        let app = App::start(move |_| Does::SaysAndCloses(says)).await;
        let proxy = app.behind_a_proxy().await;
        let mut client = Client2::connect(&proxy).await;
        let answer = client.get("/").await.expect("an answer");
        assert_eq!(answer.status, 502, "{says}");
        assert!(answer.headers.contains_key("x-request-id"));
        proxy
            .until_target("nothing is under way", 1, |target| target.in_flight == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_does_not_end_as_if_all_had_come() {
    for says in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnone\r\n",
    ] {
        let app = App::start(move |_| Does::SaysAndCloses(says)).await;
        let proxy = app.behind_a_proxy().await;
        let mut client = Client2::connect(&proxy).await;
        // Nothing of it has been sent, where all of it came at once.
        let answer = client.get("/").await;
        assert!(!answer.is_ok_and(|answer| answer.status == 200), "{says}");
        let failed = |target: &beanpole_protocol::proxy::TargetReport| target.traffic.failed == 1;
        proxy.until_target("it is counted", 1, failed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_kept_connection_the_app_closes_is_asked_again_over_http2_with_its_body() {
    let app = App::start(|request| match request {
        2 | 4 => Does::SaysAndCloses(""),
        _ => Does::Says(FINE),
    })
    .await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, app.address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits.rates.by_client = Rate {
        per_second: 1,
        burst: 3,
    };
    proxy.serve(&wanted).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    // What needed two attempts counts once for the rate.
    let asked = [("GET", 200), ("PUT", 200), ("POST", 502), ("GET", 429)];
    for (stream, (method, status)) in (1..).step_by(2).zip(asked) {
        let mut head = vec![
            (&b":method"[..], method.as_bytes()),
            (b":scheme", b"http"),
            (b":authority", HOST.as_bytes()),
            (b":path", b"/"),
        ];
        let sends = method != "GET";
        if sends {
            head.push((b"content-length", b"4"));
        }
        let ends = END_HEADERS | if sends { 0 } else { END_STREAM };
        let mut whole = frame(HEADERS, ends, stream, &block(&head));
        if sends {
            whole.extend(frame(DATA, END_STREAM, stream, b"body"));
        }
        assert!(talk.send(&whole).await);
        let head = talk.next_of(stream).await.expect("a head");
        assert_eq!(head.status(), Some(status), "{method}");
        assert_eq!(
            talk.next_of(stream).await.expect("a body").flags,
            END_STREAM
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_is_asked_over_http2_where_one_cannot_answer() {
    for says in ["HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", ""] {
        let busy = App::start(move |_| Does::SaysAndCloses(says)).await;
        let backend = Backend::start().await;
        let proxy = Proxy::start().await;
        let mut wanted = table(
            1,
            vec![
                target(1, busy.address, TargetMode::Serve),
                serving(2, &backend),
            ],
        );
        check_all(&mut wanted, |check| check.probe = Probe::Tcp);
        wanted.pools[0].limits.retries.failed = true;
        proxy.serve(&wanted).await;
        let mut client = Client2::connect(&proxy).await;
        for _ in 0..4 {
            assert_eq!(client.get("/").await.expect("an answer").status, 200);
        }
        assert_eq!(backend.hits(), 4);
        assert_eq!(busy.requests.load(Ordering::SeqCst), 2);
        let counts = proxy.report().await.environments.remove(0).traffic;
        assert_eq!((counts.retried, counts.requests, counts.failed), (2, 4, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_little_gets_little_at_a_time() {
    let app = App::start(|_| Does::Says(FINE)).await;
    let proxy = app.behind_a_proxy().await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    // The window of a stream (RFC 9113, section 6.5.2).
    let mut talk = Talk::begin(socket, &[(4, 3)]).await;
    let asking = frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/"));
    assert!(talk.send(&asking).await);
    let head = talk.next_of(1).await.expect("a head");
    assert_eq!(head.status(), Some(200));
    assert_eq!(talk.next_of(1).await.expect("a part").payload, b"fin");
    let more = frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
    assert!(talk.send(&more).await);
    let last = talk.next_of(1).await.expect("the rest");
    assert_eq!((last.payload, last.flags), (b"e".to_vec(), END_STREAM));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_a_request_is_seen_by_clients_that_still_send() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.pools[0].limits.body_bytes = 10;
    proxy.serve(&wanted).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    for (stream, host, status) in [(1, HOST, 413), (3, "nobody.localhost", 404)] {
        let head = block(&[
            (b":method", b"PUT"),
            (b":scheme", b"http"),
            (b":authority", host.as_bytes()),
            (b":path", b"/"),
            (b"content-length", b"200000"),
        ]);
        assert!(talk.send(&frame(HEADERS, END_HEADERS, stream, &head)).await);
        let head = talk.next_of(stream).await.expect("a head");
        assert_eq!(head.status(), Some(status));
        assert_eq!(
            talk.next_of(stream).await.expect("a page").flags,
            END_STREAM
        );
        // More than the window of a stream: its room comes back.
        let mut room = 65_535;
        for part in 0..20 {
            while room < 10_000 {
                let frame = talk.next().await.expect("it goes on");
                assert!(frame.kind != RST_STREAM, "{frame:?}");
                if frame.kind == WINDOW_UPDATE && frame.stream == stream {
                    room += frame.number(0).expect("a number");
                }
            }
            room -= 10_000;
            let ends = if part == 19 { END_STREAM } else { 0 };
            let data = frame(DATA, ends, stream, &[b'x'; 10_000]);
            assert!(talk.send(&data).await);
        }
        assert!(talk.send(&frame(PING, 0, 0, b"answered")).await);
        loop {
            let frame = talk.next().await.expect("it goes on");
            assert!(
                frame.kind != RST_STREAM && frame.kind != GOAWAY,
                "{frame:?}"
            );
            if frame.kind == PING {
                break;
            }
        }
    }
}
