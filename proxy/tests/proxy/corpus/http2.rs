//! Requests over HTTP/2 that would be others in HTTP/1.1, which is what apps get.

use super::*;
use crate::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Talk};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// No app gets it: it is answered with an error, or its stream or its connection ends.
    Refused,
    /// The app gets it, and its body is this.
    Goes(&'static str),
}

use Then::{Goes, Refused};

const USUAL: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "app.localhost"),
    (":path", "/it"),
];

struct Case {
    headers: Vec<(String, String)>,
    /// What each frame of it has.
    body: Vec<&'static str>,
    trailers: Vec<(String, String)>,
    then: Then,
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A request with more headers than it needs.
fn with(more: &[(&str, &str)], body: &'static str, then: Then) -> Case {
    Case {
        headers: owned(&[&USUAL[..], more].concat()),
        body: vec![body],
        trailers: Vec::new(),
        then,
    }
}

/// One whose body comes in these frames.
fn in_frames(more: &[(&str, &str)], body: &[&'static str], then: Then) -> Case {
    let mut case = with(more, "", then);
    case.body = body.to_vec();
    case
}

/// One of which a header is another one, or has another name.
fn changed(name: &str, to: (&str, &str), then: Then) -> Case {
    let mut case = with(&[], "", then);
    for header in case.headers.iter_mut().filter(|header| header.0 == name) {
        *header = (to.0.to_owned(), to.1.to_owned());
    }
    case
}

const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

fn cases() -> Vec<Case> {
    let mut all = vec![
        with(&[], "hello", Goes("hello")),
        with(&[("content-length", "5")], "hello", Goes("hello")),
        with(
            &[("x_y", "1"), ("proxy", "http://evil")],
            "hello",
            Goes("hello"),
        ),
        with(
            &[("te", "trailers"), ("expect", "100-continue")],
            "hello",
            Goes("hello"),
        ),
        with(&[("cookie", "a=b"), ("cookie", "c=d")], "", Goes("")),
        with(&[("x", "\u{e9}")], "", Goes("")),
        with(&[("host", "app.localhost")], "", Goes("")),
        // H2.CL: the length is of the frames, whatever is said.
        with(&[("content-length", "3")], SMUGGLED, Refused),
        with(&[("content-length", "999")], "hello", Refused),
        with(
            &[("content-length", "5"), ("content-length", "6")],
            "hello",
            Refused,
        ),
        with(&[("content-length", "5, 5")], "hello", Refused),
        with(&[("content-length", "+5")], "hello", Refused),
        with(&[("content-length", "")], "hello", Refused),
        with(
            &[("content-length", "18446744073709551621")],
            "hello",
            Refused,
        ),
    ];
    all.push(with(&[("content-length", "0")], SMUGGLED, Refused));
    // Frames without content, where they would be the last chunk.
    all.push(in_frames(&[], &["hello", ""], Goes("hello")));
    all.push(in_frames(&[], &["", "hello", "", ""], Goes("hello")));
    all.push(in_frames(&[], &["", "", ""], Goes("")));
    all.push(in_frames(&[], &["", SMUGGLED], Goes(SMUGGLED)));
    all.push(in_frames(
        &[("content-length", "5")],
        &["hel", "", "lo", ""],
        Goes("hello"),
    ));
    all.push(in_frames(&[("content-length", "0")], &["", ""], Goes("")));
    all.push(in_frames(
        &[("content-length", "5")],
        &["hello", "", SMUGGLED],
        Refused,
    ));
    // H2.TE, and what else belongs to one hop of HTTP/1.1.
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", ""),
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "transfer-encoding"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("te", "chunked"),
        ("te", "trailers, chunked"),
    ] {
        all.push(with(&[(name, value)], SMUGGLED, Refused));
    }
    // Line ends and what else is no part of a header, wherever.
    for odd in [
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\r\n ",
        "\r\nTransfer-Encoding: chunked",
        "\r\n\r\nGET /smuggled HTTP/1.1\r\nX: y",
        "\nHost: other",
    ] {
        let value = format!("a{odd}");
        all.push(with(&[("x", &value)], SMUGGLED, Refused));
        all.push(with(&[(&format!("x{odd}"), "y")], SMUGGLED, Refused));
        all.push(with(&[(&format!("x: y{odd}"), "y")], SMUGGLED, Refused));
        for (name, value) in USUAL {
            all.push(changed(name, (name, &format!("{value}{odd}")), Refused));
        }
    }
    for name in [
        "X",
        "Transfer-Encoding",
        "Content-Length",
        "Host",
        "x y",
        "x:",
        "x: y",
        "transfer-encoding: chunked\r\nx",
        "",
        ":",
        "x\u{e9}",
        "transfer-encoding ",
        " transfer-encoding",
        "transfer-encoding\t",
        "x(",
        "\u{1}x",
    ] {
        all.push(with(&[(name, "chunked")], SMUGGLED, Refused));
    }
    for value in ["a\u{1}b", "a\u{b}b", "a\u{7f}b", "a\u{8}b"] {
        all.push(with(&[("x", value)], "", Refused));
    }
    // Parts of a request that are there twice, are none, come late or are missing.
    for (name, value) in [
        (":path", "/smuggled"),
        (":method", "GET"),
        (":authority", "other.localhost"),
        (":authority", "app.localhost"),
        (":scheme", "http"),
        (":status", "200"),
        (":x", "y"),
        (":protocol", "websocket"),
    ] {
        all.push(with(&[(name, value)], "", Refused));
    }
    for (name, _) in USUAL {
        let mut missing = with(&[("x", "y")], "", Refused);
        missing.headers.retain(|header| header.0 != name);
        all.push(missing);
        let mut late = with(&[], "", Refused);
        let at = late.headers.iter().position(|header| header.0 == name);
        let header = late.headers.remove(at.expect("it is there"));
        late.headers
            .extend([("x".to_owned(), "y".to_owned()), header]);
        all.push(late);
    }
    for method in [
        "",
        "GET /smuggled HTTP/1.1",
        "GET\u{b}",
        "GET ",
        " GET",
        "G:T",
        "G\u{e9}T",
        "GET\t/smuggled",
    ] {
        all.push(changed(":method", (":method", method), Refused));
    }
    for path in [
        "",
        "it",
        "*",
        "/a b",
        "/it HTTP/1.1",
        "/it HTTP/1.1\r\nX: y",
        "/\tit",
        "/\u{0}",
        "/\u{7f}",
        "/it\u{b}",
        "/a\u{1}",
        "http://other.localhost/it",
        "http:/it",
        "//\u{0}",
        " /it",
        "/it ",
        "/?a b",
    ] {
        all.push(changed(":path", (":path", path), Refused));
    }
    for path in ["//other/it", "/it?a=%0d%0ab", "/%00", "/it#x"] {
        all.push(changed(":path", (":path", path), Goes("")));
    }
    for authority in [
        "",
        "a b",
        "other.localhost",
        "u@app.localhost",
        "app.localhost@other",
        "app.localhost/it",
        "app.localhost:x",
        "app.localhost:80:90",
        "[::1",
        "app.localhost, other",
        "app.localhost\u{0}",
        "app.localhost?x",
        "app.localhost#x",
        "http://app.localhost",
    ] {
        all.push(changed(":authority", (":authority", authority), Refused));
    }
    for scheme in [
        "",
        "http://evil/",
        "http ",
        "javascript",
        "ht tp",
        "http:\r\n",
    ] {
        all.push(changed(":scheme", (":scheme", scheme), Refused));
    }
    for more in [
        &[("host", "other.localhost")][..],
        &[("host", "app.localhost"), ("host", "app.localhost")],
        &[("host", "app.localhost, other")],
        &[("host", "")],
    ] {
        all.push(with(more, "", Refused));
    }
    // Trailers frame nothing, and do not go on.
    for (name, value) in [
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("host", "other"),
        ("x", "y"),
        ("trailer", "x"),
        (":path", "/smuggled"),
    ] {
        let mut case = with(&[], "hello", Goes("hello"));
        case.trailers = owned(&[(name, value)]);
        if name == "transfer-encoding" {
            case.then = Refused;
        }
        all.push(case);
    }
    for (name, value) in [
        ("X", "y"),
        ("x", "y\r\nTransfer-Encoding: chunked"),
        ("x\n", "y"),
    ] {
        let mut case = with(&[], "hello", Refused);
        case.trailers = owned(&[(name, value)]);
        all.push(case);
    }
    all
}

fn encoded(headers: &[(String, String)]) -> Vec<u8> {
    let bytes: Vec<(Vec<u8>, Vec<u8>)> = headers
        .iter()
        .map(|(name, value)| (latin(name), latin(value)))
        .collect();
    let pairs: Vec<(&[u8], &[u8])> = bytes
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .collect();
    frames::block(&pairs)
}

/// Sends a case on the first stream and a plain request on the third; the statuses of both, where there are any.
async fn ask(io: impl AsyncRead + AsyncWrite + Unpin, case: &Case) -> [Option<u16>; 2] {
    let mut talk = Talk::begin(io, &[]).await;
    let mut sent = frames::frame(HEADERS, END_HEADERS, 1, &encoded(&case.headers));
    let trailers = encoded(&case.trailers);
    let ends = if trailers.is_empty() { END_STREAM } else { 0 };
    for (at, content) in case.body.iter().enumerate() {
        let ends = if at + 1 == case.body.len() { ends } else { 0 };
        sent.extend(frames::frame(DATA, ends, 1, content.as_bytes()));
    }
    if !trailers.is_empty() {
        sent.extend(frames::frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &trailers,
        ));
    }
    sent.extend(frames::frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &frames::get("/next"),
    ));
    talk.send(&sent).await;
    let mut statuses = [None; 2];
    let mut over = [false; 2];
    while over != [true; 2] {
        let Some(frame) = talk.next().await else {
            break;
        };
        let at = match frame.stream {
            1 => 0,
            3 => 1,
            _ if frame.goes_away().is_some() => break,
            _ => continue,
        };
        if frame.kind == HEADERS {
            statuses[at] = frame.status();
        }
        over[at] |= frame.kind == RST_STREAM
            || frame.kind != frames::WINDOW_UPDATE && frame.flags & END_STREAM != 0;
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_http2_is_the_same_in_http_1_1_or_goes_nowhere() {
    let witness = Witness::start().await;
    let proxy = witness.behind_a_proxy(&[HOST]).await;
    let mut faults = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        witness.take();
        let [status, next] = if number % 2 == 0 {
            ask(connect(&proxy).await, case).await
        } else {
            ask(tls(&proxy, b"h2").await, case).await
        };
        let mut came = Vec::new();
        let mut odd = Vec::new();
        for one in witness.take() {
            match one {
                Ok(request) => came.push(request),
                Err(why) => odd.push(why),
            }
        }
        came.sort_by_key(|one| one.target == "/next");
        let targets: Vec<&str> = came.iter().map(|one| one.target.as_str()).collect();
        let next_right = matches!(next, None | Some(200));
        let right = match case.then {
            // It is whole before the rest of its body is seen to be too much.
            Refused
                if case
                    .headers
                    .last()
                    .is_some_and(|last| last.0 == "content-length") =>
            {
                let said = case.headers.last().map(|last| last.1.as_str());
                let whole = came.iter().filter(|one| one.target == "/it");
                status.is_none_or(|status| status != 200 || said == Some("5"))
                    && whole
                        .clone()
                        .all(|one| said == Some(one.body.len().to_string().as_str()))
                    && came.len() <= 2
            }
            Refused => {
                status.is_none_or(|status| (400..500).contains(&status))
                    && targets.iter().all(|target| *target == "/next")
                    && targets.len() <= 1
            }
            Goes(body) => {
                status == Some(200)
                    && targets.len() == 2
                    && targets[1] == "/next"
                    && came[0].body == body.as_bytes()
                    && !came[0].has("te")
                    && !came[0].has("trailer")
            }
        };
        if !right || !next_right || !odd.is_empty() {
            let headers = &case.headers;
            let trailers = &case.trailers;
            faults.push(format!(
                "{headers:?} {trailers:?} ({:?}): {status:?} and {next:?}, requests {targets:?}, odd {odd:?}, {:?}",
                case.then,
                came.first()
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
