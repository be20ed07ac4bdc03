//! Answers of apps whose end or whose meaning two servers may see differently: a client gets the one to its own
//! request, or is told that there is none.

use super::*;
use crate::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Talk};

/// What the client gets.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// A whole answer with this status and body.
    Is(u16, &'static str),
    /// A 502, or an answer that visibly breaks off.
    Breaks,
    /// Either: what apps that answer so mean is their own matter.
    Either(u16, &'static str),
    /// Whatever it is, it is nobody else's.
    Own,
}

use Then::{Breaks, Either, Is, Own};

struct Case {
    method: &'static str,
    /// What the app says, in pieces with a pause between them.
    says: Vec<String>,
    then: Then,
}

/// What somebody else would get if it were taken for the answer to a request of theirs.
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

fn one(says: &str, then: Then) -> Case {
    Case {
        method: "GET",
        says: vec![says.to_owned()],
        then,
    }
}

/// An answer with these lines and this body.
fn ok(lines: &str, body: &str, then: Then) -> Case {
    one(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{body}"), then)
}

fn head(says: &str, then: Then) -> Case {
    Case {
        method: "HEAD",
        ..one(says, then)
    }
}

fn late(says: &str, later: &str, then: Then) -> Case {
    let mut case = one(says, then);
    case.says.push(later.to_owned());
    case
}

fn cases() -> Vec<Case> {
    let chunks = "4\r\nfine\r\n0\r\n\r\n";
    let mut all = vec![
        ok("Content-Length: 4", "fine", Is(200, "fine")),
        ok(
            "Content-Length: 4\r\nContent-Length: 4",
            "fine",
            Is(200, "fine"),
        ),
        ok("Content-Length: 4, 4", "fine", Is(200, "fine")),
        ok("Transfer-Encoding: chunked", chunks, Is(200, "fine")),
        ok("Transfer-Encoding: Chunked", chunks, Is(200, "fine")),
        ok(
            "Transfer-Encoding: chunked\r\nContent-Length: 4",
            chunks,
            Is(200, "fine"),
        ),
        ok(
            "Content-Length: 99\r\nTransfer-Encoding: chunked",
            chunks,
            Is(200, "fine"),
        ),
        ok("X: a\r\n b\r\nContent-Length: 4", "fine", Is(200, "fine")),
        ok(
            "Connection: Content-Length\r\nContent-Length: 4",
            "fine",
            Is(200, "fine"),
        ),
        ok(
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
            chunks,
            Is(200, "fine"),
        ),
        ok(
            "Transfer-Encoding: chunked",
            "4;a=b\r\nfine\r\n0;c\r\nX: y\r\n\r\n",
            Either(200, "fine"),
        ),
        // Lengths and codings that can be read in two ways.
        ok("Content-Length: 4\r\nContent-Length: 5", "fine!", Breaks),
        ok("Content-Length: 4, 5", "fine!", Breaks),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: identity",
            "fine",
            Breaks,
        ),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: chunked, identity",
            chunks,
            Breaks,
        ),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            chunks,
            Breaks,
        ),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: xchunked",
            "fine",
            Breaks,
        ),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: \u{b}chunked",
            "fine",
            Breaks,
        ),
        ok("Content-Length: 4\r\nTransfer-Encoding:", "fine", Breaks),
        ok("Content-Length: 18446744073709551620", "fine", Breaks),
        // What comes behind an answer is nobody's.
        ok(
            "Content-Length: 4",
            &format!("fine{POISON}"),
            Is(200, "fine"),
        ),
        ok("Content-Length: 0", POISON, Is(200, "")),
        ok(
            "Transfer-Encoding: chunked",
            &format!("{chunks}{POISON}"),
            Is(200, "fine"),
        ),
        ok(
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            &format!("{chunks}{POISON}"),
            Is(200, "fine"),
        ),
        one(
            &format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"),
            Is(204, ""),
        ),
        one(
            &format!(
                "HTTP/1.1 204 No Content\r\nContent-Length: {}\r\n\r\n{POISON}",
                POISON.len()
            ),
            Is(204, ""),
        ),
        one(
            &format!(
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{POISON}"
            ),
            Is(204, ""),
        ),
        one(
            &format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n{POISON}"),
            Is(304, ""),
        ),
        head(
            &format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine{POISON}"),
            Is(200, ""),
        ),
        head(
            &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{POISON}"),
            Is(200, ""),
        ),
        head(&format!("HTTP/1.1 200 OK\r\n\r\n{POISON}"), Is(200, "")),
        late(
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
            POISON,
            Is(304, ""),
        ),
        late(
            "HTTP/1.1 204 No Content\r\nContent-Length: 44\r\n\r\n",
            POISON,
            Is(204, ""),
        ),
        late(
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            POISON,
            Is(204, ""),
        ),
        // Informational answers, and what is none.
        one(
            &format!(
                "{}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine",
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(300)
            ),
            Is(200, "fine"),
        ),
        one(
            &format!("HTTP/1.1 100 Continue\r\nContent-Length: 44\r\n\r\n{POISON}"),
            Is(200, "poison"),
        ),
        one(
            &format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{POISON}"
            ),
            Breaks,
        ),
        // First lines.
        one(
            &format!("HTTP/1.1 99 Odd\r\nContent-Length: 4\r\n\r\nfine{POISON}"),
            Breaks,
        ),
        one("HTTP/1.1 1000 Odd\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("HTTP/1.1 -20 Odd\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("HTTP/1.1 2e2 Odd\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("HTTP/2 200 OK\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("HTTP/1.2 200 OK\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("ICY 200 OK\r\nContent-Length: 4\r\n\r\nfine", Breaks),
        one("fine", Breaks),
        one("\0\0\0\0", Breaks),
        one("HTTP/1.1 200 O\0K\r\nContent-Length: 4\r\n\r\nfine", Breaks),
    ];
    for length in [
        "+4",
        "-4",
        "0x4",
        "4 4",
        "4.0",
        "",
        "four",
        "4,",
        ",4",
        "4;",
        "99999999999999999999999999",
    ] {
        all.push(ok(&format!("Content-Length: {length}"), "fine", Breaks));
    }
    for lines in [
        "no header",
        "X\0: y",
        "X: a\0b",
        "X: a\u{1}b",
        "X Y: z",
        "X: a\rb",
        "\u{b}X: y",
    ] {
        all.push(ok(&format!("{lines}\r\nContent-Length: 4"), "fine", Breaks));
    }
    for body in [
        "4\nfine\n0\n\n",
        "4\r\nfine\n0\r\n\r\n",
        "4\r\nfine!\r\n0\r\n\r\n",
        "4\r\nfi\r\n0\r\n\r\n",
        "x\r\nfine\r\n0\r\n\r\n",
        "-4\r\nfine\r\n0\r\n\r\n",
        "+4\r\nfine\r\n0\r\n\r\n",
        "0x4\r\nfine\r\n0\r\n\r\n",
        "10000000000000004\r\nfine\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nfine\r\n0\r\n\r\n",
        "4",
        "4\r\nfi",
        "4\r\nfine\r\n",
        "4\r\nfine\r\n0\r\n",
    ] {
        all.push(ok("Transfer-Encoding: chunked", body, Breaks));
    }
    for body in [
        // pingora takes these for chunks, on the long way: what it makes of them is whole again.
        "4;a\nb\r\nfine\r\n0\r\n\r\n",
        " 4\r\nfine\r\n0\r\n\r\n",
        "4\r\nfine\r\n0\r\nX: y\n\r\n",
    ] {
        all.push(ok("Transfer-Encoding: chunked", body, Either(200, "fine")));
    }
    all.push(ok(
        "Transfer-Encoding: chunked",
        "\r\n4\r\nfine\r\n0\r\n\r\n",
        Own,
    ));
    // Written in other ways, but meant in one.
    all.push(one(
        "HTTP/1.1 200 OK\nContent-Length: 4\n\nfine",
        Either(200, "fine"),
    ));
    all.push(ok("Content-Length : 4", "fine", Either(200, "fine")));
    all.push(ok(
        &format!("Transfer-Encoding : chunked\r\nX: {POISON}"),
        chunks,
        Either(200, "fine"),
    ));
    all
}

/// An app that answers `/attack` with what it is told to, and everything else with its path.
async fn app(says: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                loop {
                    while let Ok(Some((came, length))) = split(&bytes) {
                        bytes.drain(..length);
                        let told = if came.target == "/attack" {
                            says.lock().expect("no panic").clone()
                        } else {
                            let length = came.target.len();
                            vec![format!(
                                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
                                came.target
                            )]
                        };
                        for (at, piece) in told.iter().enumerate() {
                            if at > 0 {
                                // The point is that it comes after the answer was read.
                                tokio::time::sleep(Duration::from_millis(2)).await;
                            }
                            if socket.write_all(&latin(piece)).await.is_err() {
                                return;
                            }
                        }
                        if came.target == "/attack" && !told.concat().contains("poison") {
                            // What was begun is not gone on with.
                            return;
                        }
                    }
                    if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn proxy_for(app: SocketAddr) -> Proxy {
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, app, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits.idle_ms = IDLE_MS;
    proxy.serve(&wanted).await;
    proxy
}

/// Asks for the attack and, on the same connection, for something else: what came, as whole answers.
async fn ask(proxy: &Proxy, way: Way, method: &str) -> Vec<(u16, String)> {
    let both = format!("{method} /attack HTTP/1.1\r\nHost: {HOST}\r\n\r\n{NEXT}");
    answers(&way.send(proxy, both.as_bytes()).await, &[method])
}

/// The same over HTTP/2.
async fn ask_h2(proxy: &Proxy, method: &str) -> Vec<(u16, String)> {
    let mut talk = Talk::begin(connect(proxy).await, &[]).await;
    let mut found = Vec::new();
    for (stream, method, path) in [(1, method, "/attack"), (3, "GET", "/next")] {
        let block = frames::block(&[
            (b":method", method.as_bytes()),
            (b":scheme", b"http"),
            (b":authority", b"app.localhost"),
            (b":path", path.as_bytes()),
        ]);
        let ends = END_HEADERS | END_STREAM;
        talk.send(&frames::frame(HEADERS, ends, stream, &block))
            .await;
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let Some(frame) = talk.next_of(stream).await else {
                status = 0;
                break;
            };
            match frame.kind {
                // Those behind the body are trailers, and some before it informational.
                HEADERS if status < 200 => status = frame.status().unwrap_or(0),
                DATA => body.extend_from_slice(&frame.payload),
                RST_STREAM => status = 0,
                _ => {}
            }
            if frame.kind == RST_STREAM || frame.flags & END_STREAM != 0 {
                break;
            }
        }
        found.push((status, String::from_utf8_lossy(&body).into_owned()));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_read_in_one_way_and_reaches_who_asked_for_it() {
    let says = Arc::new(Mutex::new(Vec::new()));
    let proxy = proxy_for(app(says.clone()).await).await;
    let mut faults = Vec::new();
    for case in &cases() {
        says.lock().expect("no panic").clone_from(&case.says);
        let late = case.says.len() > 1;
        for way in [Some(Way::Plain), Some(Way::Long), Some(Way::Tls), None] {
            // On the long way the connection is kept, and what comes late may be taken for the next answer.
            if late && matches!(way, Some(Way::Long) | None) {
                continue;
            }
            let got = match way {
                Some(way) => ask(&proxy, way, case.method).await,
                None => ask_h2(&proxy, case.method).await,
            };
            let other = get(proxy.http, HOST, "/other").await.text();
            let first = got.first().map(|one| (one.0, one.1.as_str()));
            let broken = first.is_none_or(|one| matches!(one.0, 0 | 502));
            let right = match case.then {
                Is(status, body) => first == Some((status, body)),
                Breaks => broken,
                Own => true,
                Either(status, body) => broken || first == Some((status, body)),
            };
            let next = got.get(1).map(|one| (one.0, one.1.as_str()));
            if !right || !matches!(next, None | Some((200, "/next"))) || other != "/other" {
                let said: Vec<&str> = case
                    .says
                    .iter()
                    .map(|one| &one[..one.len().min(120)])
                    .collect();
                faults.push(format!(
                    "{way:?} {} {said:?} ({:?}): {got:?}, then {other:?}",
                    case.method, case.then
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// An app that answers as soon as it has a head, and reads on as it should.
async fn hasty(seen: Arc<Mutex<Vec<Result<Came, String>>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut bytes: Vec<u8> = Vec::new();
                let mut answered = false;
                loop {
                    if !answered && bytes.windows(4).any(|four| four == b"\r\n\r\n") {
                        let mut words = bytes.split(|byte| *byte == b' ');
                        let path =
                            String::from_utf8_lossy(words.nth(1).expect("a path")).into_owned();
                        let length = path.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}");
                        if socket.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                        answered = true;
                    }
                    match split(&bytes) {
                        Ok(Some((came, length))) => {
                            bytes.drain(..length);
                            answered = false;
                            seen.lock().expect("no panic").push(Ok(came));
                            continue;
                        }
                        Ok(None) => {}
                        Err(why) => {
                            let odd = format!("{why}: {}", bytes.escape_ascii());
                            seen.lock().expect("no panic").push(Err(odd));
                            return;
                        }
                    }
                    if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_answered_before_its_end_is_followed_by_no_other() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let proxy = proxy_for(hasty(seen.clone()).await).await;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for lines in [
        "Content-Length: 400\r\n\r\nhello",
        "Expect: 100-continue\r\nContent-Length: 400\r\n\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 400\r\n\r\n",
        chunked,
        "Transfer-Encoding: chunked\r\n\r\nffff\r\nhello",
    ] {
        for way in [Way::Plain, Way::Tls] {
            let early = format!("POST /early HTTP/1.1\r\nHost: {HOST}\r\n{lines}");
            // It stays for as long as the proxy lets it, and leaves with its body unsent.
            let first = answers(&way.send(&proxy, early.as_bytes()).await, &["POST"]);
            assert_eq!(
                first.first().map(|one| one.0),
                Some(200),
                "{lines}: {first:?}"
            );
            for _ in 0..3 {
                let other = get(proxy.http, HOST, "/other").await;
                assert_eq!(other.text(), "/other", "{lines}");
            }
        }
    }
    let mut talk = Talk::begin(connect(&proxy).await, &[]).await;
    let block = frames::block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"app.localhost"),
        (b":path", b"/early"),
    ]);
    for stream in [1u32, 3, 5] {
        talk.send(&frames::frame(HEADERS, END_HEADERS, stream, &block))
            .await;
        talk.send(&frames::frame(DATA, 0, stream, b"hello")).await;
        let answer = talk.next_of(stream).await.expect("an answer");
        assert_eq!(answer.status(), Some(200), "{answer:?}");
        let cancel = 8u32.to_be_bytes();
        talk.send(&frames::frame(RST_STREAM, 0, stream, &cancel))
            .await;
        assert_eq!(get(proxy.http, HOST, "/other").await.text(), "/other");
    }
    for one in seen.lock().expect("no panic").iter() {
        let came = one.as_ref().unwrap_or_else(|odd| panic!("{odd}"));
        assert_eq!(
            (came.target.as_str(), came.body.len()),
            ("/other", 0),
            "{came:?}"
        );
    }
}
