//! What of an answer comes before its head and behind its body, on every way.

use crate::exchange::{App, Does};
use crate::support::*;
use bytes::Bytes;
use futures::FutureExt;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use std::future::poll_fn;
use std::task::Poll;
use tokio::net::TcpStream;

const WHOLE: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nX: y\r\n\r\n\
                     HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n\
                     HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4;a=b\r\nfine\r\n0\r\n\
                     X-Sum: 7\r\nContent-Length: 99\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n";

/// All that a client gets as an answer.
struct Got {
    hints: Vec<Response<()>>,
    head: http::response::Parts,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Got {
    fn hints(&self) -> Vec<(u16, &str)> {
        let told = self.hints.iter().map(|hint| {
            let link = hint.headers().get("link");
            let link = link.map_or("", |link| link.to_str().expect("text"));
            (hint.status().as_u16(), link)
        });
        told.collect()
    }
}

async fn connect(proxy: &Proxy) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let (sender, connection) = h2::client::handshake(socket).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

async fn ask(client: &mut SendRequest<Bytes>, headers: &[(&str, &str)]) -> Got {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(format!("http://{HOST}/"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    poll_fn(|cx| client.poll_ready(cx)).await.expect("ready");
    let (mut answering, _) = client.send_request(request, true).expect("sent");
    let mut hints = Vec::new();
    let answer = poll_fn(|cx| {
        while let Poll::Ready(Some(hint)) = answering.poll_informational(cx) {
            hints.push(hint.expect("a hint"));
        }
        answering.poll_unpin(cx)
    });
    let (head, mut stream) = answer.await.expect("an answer").into_parts();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        body.extend_from_slice(&piece.expect("a piece"));
    }
    Got {
        hints,
        head,
        body,
        trailers: stream.trailers().await.expect("whole"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_and_trailers_reach_clients_of_http2_and_what_frames_a_message_does_not() {
    let app = App::start(|_| Does::Says(WHOLE)).await;
    let proxy = app.behind_a_proxy().await;
    let mut client = connect(&proxy).await;
    for headers in [&[][..], &[("te", "trailers")], &[("x_odd", "1")]] {
        let got = ask(&mut client, headers).await;
        assert_eq!(
            got.hints(),
            [(103, "</a.css>"), (103, "</b.css>")],
            "{headers:?}"
        );
        assert!(!got.hints[0].headers().contains_key("connection"));
        assert_eq!(got.head.status, StatusCode::OK);
        assert_eq!(got.body, b"fine");
        // pingora, which has the odd one, reads the chunks of apps without their trailers.
        let sums = got.trailers.map(|trailers| {
            assert_eq!(trailers.len(), 1, "{headers:?} {trailers:?}");
            trailers["x-sum"].clone()
        });
        let wanted = (headers != [("x_odd", "1")]).then_some("7");
        assert_eq!(sums.as_ref().map(|sum| sum.to_str().expect("text")), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_clients_of_http_1_1_and_what_frames_a_message_does_not() {
    let app = App::start(|_| Does::Says(WHOLE)).await;
    let proxy = app.behind_a_proxy().await;
    for headers in ["", "TE: trailers\r\n", "X_Odd: 1\r\n"] {
        let head =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{headers}Connection: TE, close\r\n\r\n");
        let answer = raw(proxy.http, head.as_bytes()).await;
        assert!(answer.contains("</a.css>"), "{headers}: {answer}");
        assert!(answer.contains("</b.css>"), "{headers}: {answer}");
        assert!(!answer.contains("X: y"), "{headers}: {answer}");
        // As over HTTP/2.
        let end = if headers.starts_with("X_Odd") {
            "\r\n0\r\n\r\n"
        } else {
            "\r\n0\r\nX-Sum: 7\r\n\r\n"
        };
        assert!(answer.ends_with(end), "{headers}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_that_come_late_or_without_content_end_an_answer_as_well() {
    for (first, late) in [
        ("4\r\nfine\r\n0\r\n", "X-Sum: 7\r\n\r\n"),
        ("4\r\nfine\r\n0\r\nX-S", "um: 7\r\n\r\n"),
        ("4\r\nfi", "ne\r\n0\r\nX-Sum: 7\r\n\r\n"),
        ("0\r\nX-Sum: 7\r\n\r", "\n"),
    ] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let first: &'static str = format!("{head}{first}").leak();
        let app = App::start(move |_| Does::SaysLate(first, late)).await;
        let proxy = app.behind_a_proxy().await;
        let mut client = connect(&proxy).await;
        for _ in 0..2 {
            let got = ask(&mut client, &[]).await;
            assert!(matches!(&got.body[..], b"fine" | b""), "{first}");
            assert_eq!(got.trailers.expect("trailers")["x-sum"], "7", "{first}");
        }
        let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let answer = raw(proxy.http, head.as_bytes()).await;
        assert!(
            answer.ends_with("0\r\nX-Sum: 7\r\n\r\n"),
            "{first}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_trailers_do_not_go_on_ends_with_its_content() {
    let app = App::start(|_| {
        Does::Says(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\nContent-Length: 5\r\n\r\n",
        )
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let mut client = connect(&proxy).await;
    for headers in [&[][..], &[("x_odd", "1")]] {
        let got = ask(&mut client, headers).await;
        assert_eq!((&got.body[..], got.trailers), (&b"fine"[..], None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_without_end_do_not_wait_in_memory_for_a_client_of_http2() {
    let hint = format!(
        "HTTP/1.1 103 Early Hints\r\nX: {}\r\n\r\n",
        "a".repeat(1_000)
    );
    let many: &'static str =
        (hint.repeat(20_000) + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine").leak();
    let app = App::start(move |_| Does::Says(many)).await;
    let proxy = app.behind_a_proxy().await;
    let mut client = connect(&proxy).await;
    for headers in [&[][..], &[("x_odd", "1")]] {
        let got = ask(&mut client, headers).await;
        assert_eq!(got.body, b"fine");
        assert!((1..=32).contains(&got.hints.len()), "{}", got.hints.len());
    }
}
