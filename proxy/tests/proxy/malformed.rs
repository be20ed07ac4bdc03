//! Requests over HTTP/2 that are none, by their heads (RFC 9113, section 8.1.1): each ends by itself.

use crate::frames::*;
use crate::support::*;
use std::sync::Arc;
use tokio::net::TcpStream;

const USUAL: [(&[u8], &[u8]); 4] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"app.localhost"),
    (b":path", b"/it"),
];

type Header = (&'static [u8], &'static [u8]);

fn with(more: &[Header]) -> Vec<Header> {
    [&USUAL[..], more].concat()
}

fn instead(name: &[u8], value: &'static [u8]) -> Vec<Header> {
    let all = USUAL.iter().copied();
    all.map(|(its, before)| (its, if its == name { value } else { before }))
        .collect()
}

fn without(name: &[u8]) -> Vec<Header> {
    let all = USUAL.iter().copied();
    all.filter(|(its, _)| *its != name).collect()
}

fn shown(headers: &[Header]) -> String {
    let lines = headers.iter();
    let lines = lines.map(|(name, value)| [*name, b": ", *value].concat());
    lines
        .collect::<Vec<_>>()
        .join(&b"; "[..])
        .escape_ascii()
        .to_string()
}

/// Of one stream: its status and its page, or why it was reset.
async fn outcome(talk: &mut Talk<TcpStream>, stream: u32) -> (Option<u16>, String) {
    let (mut status, mut page) = (None, String::new());
    loop {
        let frame = talk.next_of(stream).await.expect("the connection goes on");
        match frame.kind {
            HEADERS => status = frame.status(),
            DATA => page.push_str(&String::from_utf8_lossy(&frame.payload)),
            RST_STREAM => return (status, format!("reset {}", frame.number(0).expect("why"))),
            _ => panic!("{frame:?}"),
        }
        if frame.flags & END_STREAM != 0 {
            return (status, page);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_none_ends_by_itself_and_is_told_and_logged_where_it_is_seen() {
    let backend = Backend::start().await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(Arc::new(directory), |config| config.access_log = Some(log)).await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    // Whatever happens to the others, this one goes on.
    let held = block(&instead(b":path", b"/hold"));
    assert!(
        talk.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &held))
            .await
    );
    until("it is at the app", || async {
        (backend.hits() == 1).then_some(())
    })
    .await;
    let told = [
        instead(b":scheme", b"ftp"),
        instead(b":path", b"*"),
        instead(b":authority", b"u@app.localhost"),
        with(&[(b"host", b"other.localhost")]),
        with(&[(b"host", b"app.localhost"), (b"host", b"app.localhost")]),
        without(b":authority"),
        with(&[(b"content-length", b"4"), (b"content-length", b"4")]),
    ];
    let reset = [
        with(&[(b"content-length", b"4"), (b"content-length", b"5")]),
        with(&[(b"content-length", b"4, 4")]),
        with(&[(b"content-length", b"5")]),
        with(&[(b"content-length", b"3")]),
        with(&[(b"connection", b"close")]),
        with(&[(b"transfer-encoding", b"chunked")]),
        with(&[(b"te", b"gzip")]),
        with(&[(b":path", b"/other")]),
        without(b":method"),
        without(b":path"),
        without(b":scheme"),
        instead(b":path", b""),
        instead(b":path", b"it"),
        instead(b":path", b"http://other.localhost/it"),
    ];
    let mut stream = 1;
    let mut ask = async |headers: &[Header]| {
        stream += 2;
        let mut request = frame(HEADERS, END_HEADERS, stream, &block(headers));
        request.extend(frame(DATA, END_STREAM, stream, b"fine"));
        assert!(talk.send(&request).await);
        outcome(&mut talk, stream).await
    };
    for headers in &told {
        let shown = shown(headers);
        let (status, page) = ask(headers).await;
        assert_eq!(status, Some(400), "{shown} {page}");
        assert!(page.contains("Request "), "{shown} {page}");
    }
    for headers in &reset {
        let shown = shown(headers);
        let (status, page) = ask(headers).await;
        assert!(
            status.is_none() && page == "reset 1",
            "{shown} {status:?} {page}"
        );
    }
    let (status, _) = ask(&USUAL).await;
    assert_eq!(status, Some(200));
    backend.release.notify_waiters();
    assert_eq!(outcome(&mut talk, 1).await, (Some(200), "held".to_owned()));
    assert_eq!(backend.hits(), 2, "no other reached it");
    let directory = proxy.stopped().await;
    let log = std::fs::read_to_string(directory.path().join("access.log")).expect("the log");
    assert_eq!(
        log.matches(r#""why":"bad-request""#).count(),
        told.len(),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_ends_the_connection() {
    let proxy = Proxy::start().await;
    for name in [&b"Upper"[..], b"x y", b""] {
        let socket = TcpStream::connect(proxy.http).await.expect("connect");
        let mut talk = Talk::begin(socket, &[]).await;
        let odd = block(&[&USUAL[..], &[(name, b"x")]].concat());
        let ends = END_HEADERS | END_STREAM;
        assert!(talk.send(&frame(HEADERS, ends, 1, &odd)).await);
        // `h2` takes it for a fault of HPACK (RFC 9113, section 4.3).
        assert!(talk.end().await.is_some(), "{}", name.escape_ascii());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_takes_no_more_after_many_requests_that_are_none_and_answers_what_is_under_way()
 {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    let ends = END_HEADERS | END_STREAM;
    let held = block(&instead(b":path", b"/hold"));
    assert!(talk.send(&frame(HEADERS, ends, 1, &held)).await);
    until("it is at the app", || async {
        (backend.hits() == 1).then_some(())
    })
    .await;
    let odd = block(&instead(b":scheme", b"ftp"));
    for number in 1..=32 {
        assert!(talk.send(&frame(HEADERS, ends, 1 + 2 * number, &odd)).await);
    }
    let told = talk.next_of(1).await.expect("the connection goes on");
    assert_eq!(told.kind, GOAWAY, "{told:?}");
    backend.release.notify_waiters();
    assert_eq!(outcome(&mut talk, 1).await, (Some(200), "held".to_owned()));
    for number in 33..=64 {
        if !talk.send(&frame(HEADERS, ends, 1 + 2 * number, &odd)).await {
            break;
        }
    }
    // It ends, whatever is said before.
    talk.end().await;
}
