//! Apps that are spoken to by HTTP/2, and calls of gRPC from end to end.

use crate::h2app::{H2App, framed, unframed};
use crate::protocols::tls;
use crate::support::*;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::{Probe, Rate, RoutingTable, TargetMode, UpstreamProtocol};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Messages = BoxBody<Bytes, Infallible>;

fn over_h2(generation: u64, addresses: &[SocketAddr]) -> RoutingTable {
    let targets = (1..).zip(addresses).map(|(number, address)| {
        let mut made = target(number, *address, TargetMode::Serve);
        made.upstream.protocol = UpstreamProtocol::Http2;
        made.check.probe = Probe::Grpc {
            service: String::new(),
            codes: vec![(0, 0)],
        };
        made
    });
    table(generation, targets.collect())
}

async fn client(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Messages> {
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (sender, driver) = made.expect("handshake");
    tokio::spawn(driver);
    sender
}

async fn plain(proxy: &Proxy) -> SendRequest<Messages> {
    client(TcpStream::connect(proxy.http).await.expect("connect")).await
}

fn call(method: &str, body: Messages) -> Request<Messages> {
    Request::post(format!("http://{HOST}/test/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(body)
        .expect("a call")
}

fn message(text: &str) -> Messages {
    Full::new(framed(text.as_bytes())).boxed()
}

/// The messages of an answer, and its trailers.
async fn heard(answer: Response<Incoming>) -> (Vec<Bytes>, HeaderMap) {
    let collected = answer.into_body().collect().await.expect("a body");
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let mut bytes = BytesMut::from(&*collected.to_bytes());
    (unframed(&mut bytes), trailers)
}

/// The status of a call that is answered with a head alone.
fn refused(answer: &Response<Incoming>) -> &str {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert!(answer.headers().contains_key("grpc-message"), "{answer:?}");
    answer.headers()["grpc-status"].to_str().expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_through_with_its_deadline_and_comes_back_with_its_trailers() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&over_h2(1, &[app.address])).await;
    let over_tls = client(tls(&proxy, b"h2").await).await;
    for mut sender in [plain(&proxy).await, over_tls] {
        let answer = sender.send_request(call("Echo", message("hello"))).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        let (messages, trailers) = heard(answer).await;
        assert_eq!(messages, [&b"hello"[..]]);
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["grpc-message"], "as asked");
        assert_eq!(app.told("grpc-timeout").as_deref(), Some("5S"));
        assert_eq!(app.told("te").as_deref(), Some("trailers"));
        assert_eq!(app.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        let status = call("Status", message(""));
        let (messages, trailers) =
            heard(sender.send_request(status).await.expect("an answer")).await;
        assert!(messages.is_empty());
        assert_eq!(trailers["grpc-status"], "12");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_both_ways_as_they_come() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&over_h2(1, &[app.address])).await;
    let mut sender = plain(&proxy).await;
    let (send, sent) = mpsc::unbounded_channel::<Bytes>();
    let sent = futures::stream::unfold(sent, |mut sent| async move {
        let piece = sent.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(piece)), sent))
    });
    let body = BodyExt::boxed(StreamBody::new(Box::pin(sync(sent))));
    let answer = tokio::spawn(async move { sender.send_request(call("Echo", body)).await });
    send.send(framed(b"first")).expect("sent");
    let answer = answer.await.expect("no panic").expect("an answer");
    let mut pieces = answer.into_body().into_data_stream();
    let mut bytes = BytesMut::new();
    for (heard, next) in [
        ("first", Some("second")),
        ("second", Some("third")),
        ("third", None),
    ] {
        let mut messages = Vec::new();
        while messages.is_empty() {
            let piece = pieces.next().await.expect("more").expect("a piece");
            bytes.extend_from_slice(&piece);
            messages = unframed(&mut bytes);
        }
        assert_eq!(messages, [heard.as_bytes()]);
        if let Some(next) = next {
            send.send(framed(next.as_bytes())).expect("sent");
        }
    }
    drop(send);
    assert!(pieces.next().await.is_none());
}

/// A stream that hyper may share, though nobody does.
fn sync<T: Send + 'static>(
    stream: impl futures::Stream<Item = T> + Send + 'static,
) -> impl futures::Stream<Item = T> + Send + Sync {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.next().await {
            if send.send(item).await.is_err() {
                break;
            }
        }
    });
    futures::stream::unfold(receive, |mut receive| async move {
        let item = receive.recv().await?;
        Some((item, receive))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_no_app_answers_ends_with_a_status_and_no_page() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = over_h2(1, &[app.address]);
    wanted.pools[0].limits.idle_ms = 300;
    proxy.serve(&wanted).await;
    let mut sender = plain(&proxy).await;
    let answer = sender.send_request(call("Silent", message("x"))).await;
    assert_eq!(refused(&answer.expect("an answer")), "4");
    let answer = sender.send_request(call("Break", message("x"))).await;
    assert_eq!(refused(&answer.expect("an answer")), "14");
    let mut elsewhere = call("Echo", message("x"));
    *elsewhere.uri_mut() = "http://nobody.example/test/Echo".parse().expect("a URI");
    let answer = sender.send_request(elsewhere).await;
    assert_eq!(refused(&answer.expect("an answer")), "12");

    wanted.generation = Generation(2);
    wanted.pools[0].limits.rates.all = Rate {
        per_second: 1,
        burst: 1,
    };
    proxy.put(&wanted).await.expect("put");
    let answer = sender.send_request(call("Echo", message("x"))).await;
    heard(answer.expect("an answer")).await;
    let answer = sender.send_request(call("Echo", message("x"))).await;
    assert_eq!(refused(&answer.expect("an answer")), "8");

    wanted.generation = Generation(3);
    wanted.pools[0].targets[0].mode = TargetMode::Probe;
    proxy.put(&wanted).await.expect("put");
    let answer = sender.send_request(call("Echo", message("x"))).await;
    assert_eq!(refused(&answer.expect("an answer")), "14");
    let counts = proxy.report().await.environments[0].traffic;
    // Two without an answer, one without a target.
    assert_eq!((counts.failed, counts.by_class[4]), (3, 3), "{counts:?}");
    assert_eq!(counts.by_class[3], 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_breaks_off_in_the_middle_ends_with_a_status() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&over_h2(1, &[app.address])).await;
    let mut sender = plain(&proxy).await;
    let answer = sender.send_request(call("Half", message("x"))).await;
    let (messages, trailers) = heard(answer.expect("an answer")).await;
    assert_eq!(messages, [&b"half"[..]]);
    assert_eq!(trailers["grpc-status"], "14");
    let counts = until("it is counted", || async {
        let counts = proxy.report().await.environments[0].traffic;
        (counts.requests == 1).then_some(counts)
    })
    .await;
    assert_eq!((counts.failed, counts.by_class[4]), (1, 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_an_app_fails_count_as_errors_and_others_do_not() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&over_h2(1, &[app.address])).await;
    let mut sender = plain(&proxy).await;
    for status in ["13", "5", "14", "0"] {
        let mut failing = call("Status", message("x"));
        failing
            .headers_mut()
            .insert("wanted", status.parse().expect("a value"));
        let answer = sender.send_request(failing).await.expect("an answer");
        assert_eq!(heard(answer).await.1["grpc-status"], status);
    }
    let counts = until("all are counted", || async {
        let counts = proxy.report().await.environments[0].traffic;
        (counts.requests == 4).then_some(counts)
    })
    .await;
    assert_eq!((counts.errors, counts.failed), (2, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_share_connections_and_outlast_an_app_that_leaves() {
    let (one, other) = (H2App::start().await, H2App::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = over_h2(1, &[one.address, other.address]);
    // What is seen here is what requests find out, not checks.
    check_all(&mut wanted, |check| check.interval_ms = 60_000);
    proxy.serve(&wanted).await;
    let mut sender = plain(&proxy).await;
    // One connection each: as long as there is none, everybody who comes opens one.
    for _ in 0..2 {
        let answer = sender.send_request(call("Echo", message("x"))).await;
        heard(answer.expect("an answer")).await;
    }
    let before = one.connections.load(Ordering::SeqCst);
    let calls = (0..40).map(|_| {
        let mut sender = sender.clone();
        async move { sender.send_request(call("Echo", message("x"))).await }
    });
    for answer in futures::future::join_all(calls).await {
        assert_eq!(
            heard(answer.expect("an answer")).await.1["grpc-status"],
            "0"
        );
    }
    assert_eq!(one.hits.load(Ordering::SeqCst), 21);
    let opened = one.connections.load(Ordering::SeqCst) - before;
    assert!(opened < 5, "{opened} connections for 20 calls");

    one.leave();
    for _ in 0..40 {
        let answer = sender.send_request(call("Echo", message("x"))).await;
        assert_eq!(
            heard(answer.expect("an answer")).await.1["grpc-status"],
            "0"
        );
    }
    assert_eq!(proxy.report().await.environments[0].traffic.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http1_reach_an_app_that_speaks_http2() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&over_h2(1, &[app.address])).await;
    let answer = proxy.get("/up").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ready"));
    let upgrade = format!(
        "GET /up HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    );
    let answer = raw(proxy.http, upgrade.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let post = format!(
        "POST /test/Echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nExpect: 100-continue\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    let answer = raw(proxy.http, post.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
    assert!(
        answer.contains("HTTP/1.1 200 ") && answer.contains("hello"),
        "{answer}"
    );
}
