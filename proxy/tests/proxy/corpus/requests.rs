//! Requests whose end or whose meaning two servers may see differently.

use super::*;

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// It is refused with this status, the connection ends, and no app got it as a whole one.
    Refused(u16),
    /// It is answered by the proxy with this status, and the connection goes on.
    Answered(u16),
    /// The app gets it with this body, and what comes behind it is the next request.
    Goes(&'static str),
    /// The app gets it with this body, and the connection ends with it.
    Ends(&'static str),
}

use Then::{Answered, Ends, Goes, Refused};

struct Case {
    name: String,
    bytes: Vec<u8>,
    then: Then,
}

/// What an attack would like to have taken for a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

fn case(name: &str, text: &str, then: Then) -> Case {
    Case {
        name: name.to_owned(),
        bytes: latin(text),
        then,
    }
}

/// A POST with these lines and this body.
fn post(lines: &str, body: &str, then: Then) -> Case {
    let text = format!("POST /it HTTP/1.1\r\nHost: app.localhost\r\n{lines}\r\n\r\n{body}");
    case(lines, &text, then)
}

/// A chunked POST.
fn chunks(body: &str, then: Then) -> Case {
    let mut case = post("Transfer-Encoding: chunked", body, then);
    body.clone_into(&mut case.name);
    case
}

/// A GET with this first line.
fn line(line: &str, then: Then) -> Case {
    let text = format!("{line}\r\nHost: app.localhost\r\n\r\n");
    case(line, &text, then)
}

/// A GET with these lines, its host among them.
fn get(lines: &str, then: Then) -> Case {
    case(lines, &format!("GET /it HTTP/1.1\r\n{lines}\r\n\r\n"), then)
}

/// Lengths: said twice, said oddly, beside a coding. What is read as one by one server and as none, or as another
/// one, by the next is never passed on.
fn lengths() -> Vec<Case> {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    let mut all = Vec::new();
    for lengths in [
        "5, 5",
        "5,5",
        "5,",
        ",5",
        "5 5",
        "+5",
        "-5",
        "-0",
        "0x5",
        "5.0",
        "5e0",
        "5_0",
        "\"5\"",
        "5;a",
        "5\t5",
        "",
        "five",
        "\u{b2}",
        "99999999999999999999999999",
        "18446744073709551616",
        "18446744073709551621",
        "4294967301a",
        "0 5",
        "\u{a0}5",
        "5\u{a0}",
        "5\u{b}",
        "\u{c}5",
    ] {
        all.push(post(
            &format!("Content-Length: {lengths}"),
            "hello",
            Refused(400),
        ));
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: 0\r\ncontent-length: 5",
        "Content-Length: 5\r\nX: y\r\nContent-Length: 6",
    ] {
        all.push(post(lines, "hello", Refused(400)));
    }
    // CL.TE and TE.CL, in either order.
    for (length, body) in [
        ("5", chunked.to_owned()),
        ("4", chunked.to_owned()),
        ("0", chunked.to_owned()),
        ("60", format!("0\r\n\r\n{SMUGGLED}")),
        (
            "4",
            format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len()),
        ),
    ] {
        for lines in [
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
            format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
            format!("tRANSFER-eNCODING: Chunked\r\nX: y\r\ncONTENT-lENGTH: {length}"),
        ] {
            all.push(post(&lines, &body, Refused(400)));
        }
    }
    // TE.TE.
    for coding in [
        "chunked, identity",
        "identity, chunked",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "xchunked",
        "chunkedx",
        "chunk",
        "\"chunked\"",
        "'chunked'",
        "chunked;a=b",
        "chunked;",
        "chunked chunked",
        "x chunked",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "chunked\u{0}",
        "\u{a0}chunked",
        "\u{85}chunked",
        "ch\u{fc}nked",
        "c\thunked",
        "[chunked]",
        "",
        "cow",
        "chunked\r\n , identity",
    ] {
        for lines in [
            format!("Transfer-Encoding: {coding}"),
            format!("Transfer-Encoding: {coding}\r\nContent-Length: 15"),
        ] {
            all.push(post(&lines, chunked, Refused(400)));
        }
    }
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding\u{b}: chunked",
        "Transfer-Encoding\u{0}: chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\r\n\rTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding\r\n: chunked",
        "Transfer\u{ad}-Encoding: chunked",
        "Content-Length : 15",
        "Content-Length\u{a0}: 15",
        ": 15",
        "Content-Length",
        "Content-Length:\r\n 15",
        "Content-Length: 1\r\n 5",
    ] {
        all.push(post(lines, chunked, Refused(400)));
    }
    all.extend([
        post("Content-Length: 5", "hello", Goes("hello")),
        post("Content-Length: 0005", "hello", Goes("hello")),
        post("Content-Length:5", "hello", Goes("hello")),
        post("Content-Length: \t5 \t ", "hello", Goes("hello")),
        post("Transfer-Encoding:\tCHUNKED\t", chunked, Goes("hello")),
        // Names of which CGI would make the same do not reach an app.
        post("Transfer_Encoding: chunked\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Content_Length: 99\r\nContent-Length: 5", "hello", Goes("hello")),
        // CL.0: a body is a body, whatever it looks like and whatever the method is.
        post(&format!("Content-Length: {}", SMUGGLED.len()), SMUGGLED, Goes(SMUGGLED)),
        case(
            "GET with a body",
            &format!("GET /it HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()),
            Goes(SMUGGLED),
        ),
        case(
            "HEAD with a body",
            &format!("HEAD /it HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()),
            Goes(SMUGGLED),
        ),
        case(
            "OPTIONS with chunks",
            "OPTIONS /it HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Goes("hello"),
        ),
        // No header of one hop takes what frames the request with it.
        post("Connection: Content-Length\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked", chunked, Goes("hello")),
        post("Connection: Host\r\nContent-Length: 5", "hello", Goes("hello")),
        // Leave to send is asked for, in whatever way.
        post("Expect: 100-continue\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Expect: 100-continue\r\nTransfer-Encoding: chunked", chunked, Goes("hello")),
        post("Expect: x 100-continue\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Expect:\r\nContent-Length: 5", "hello", Goes("hello")),
        // A change of protocols that does not come about leaves the rest what it was.
        post("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Upgrade: h2c\r\nTransfer-Encoding: chunked", chunked, Goes("hello")),
        post("Upgrade: TLS/1.0\r\nConnection: Upgrade\r\nContent-Length: 5", "hello", Goes("hello")),
        post("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 777\r\nContent-Length: 5", "hello", Ends("hello")),
        post("Upgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked", chunked, Ends("hello")),
    ]);
    all
}

fn chunked() -> Vec<Case> {
    let mut all = Vec::new();
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        ";a=b\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;\n\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\nb\"\r\nhello\r\n0\r\n\r\n",
        "5;\u{0}\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nX\u{0}: y\r\n\r\n",
    ] {
        all.push(chunks(body, Refused(400)));
    }
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(70_000));
    all.push(chunks(&long, Refused(400)));
    let many = format!("5\r\nhello\r\n0\r\n{}\r\n", "X: y\r\n".repeat(20_000));
    all.push(chunks(&many, Refused(400)));
    for body in [
        "5\r\nhello\r\n0\r\n\r\n",
        "005\r\nhello\r\n000\r\n\r\n",
        "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "5;a\r\nhello\r\n0;b\r\n\r\n",
        "5 ; a = \"b;c\"\r\nhello\r\n0\r\n\r\n",
        // Trailers, which frame nothing whatever they are called, do not go on.
        "5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\nHost: other\r\n\r\n",
    ] {
        all.push(chunks(body, Goes("hello")));
    }
    all
}

fn first_lines() -> Vec<Case> {
    let mut all = Vec::new();
    for text in [
        "GET /it",
        "GET /it HTTP/0.9",
        "GET /it HTTP/2.0",
        "GET /it HTTP/1.2",
        "GET /it HTTP/3",
        "GET /it HTTP/1",
        "GET /it HTTP/11",
        "GET /it HTTP/1.10",
        "GET /it HTTP/01.1",
        "GET /it http/1.1",
        "GET /it HTTP /1.1",
        "GET /it HTTP/1.1 ",
        "GET /it  HTTP/1.1",
        "GET  /it HTTP/1.1",
        " GET /it HTTP/1.1",
        "\tGET /it HTTP/1.1",
        "GET\t/it HTTP/1.1",
        "GET /it\tHTTP/1.1",
        "GET\u{b}/it HTTP/1.1",
        "GET /it HTTP/1.1\u{b}",
        "GET /a b HTTP/1.1",
        "GET /it HTTP/1.1 HTTP/1.1",
        "GET /\u{0} HTTP/1.1",
        "GET /\u{1f}it HTTP/1.1",
        "GET /it\u{7f} HTTP/1.1",
        "GET /it\rHTTP/1.1",
        "GET /it\nHTTP/1.1",
        "GET it HTTP/1.1",
        "GET ?it HTTP/1.1",
        "GET \\it HTTP/1.1",
        "GET * HTTP/1.1",
        "GET app.localhost:80 HTTP/1.1",
        "GET ftp://app.localhost/ HTTP/1.1",
        "GET javascript:1 HTTP/1.1",
        "GET http:/it HTTP/1.1",
        "GET http:///it HTTP/1.1",
        "GET http:\\\\app.localhost/it HTTP/1.1",
        "GET http://other.localhost/it HTTP/1.1",
        "GET http://app.localhost:81/it HTTP/1.1",
        "GET http://u:p@app.localhost/it HTTP/1.1",
        "GET http://app.localhost@other/it HTTP/1.1",
        "GET http://app.localhost\\@other/it HTTP/1.1",
        "G\u{e9}T /it HTTP/1.1",
        "G(T /it HTTP/1.1",
        "GET: /it HTTP/1.1",
        "G\u{0}T /it HTTP/1.1",
        "\u{0}GET /it HTTP/1.1",
        "\"GET\" /it HTTP/1.1",
        "\u{feff}GET /it HTTP/1.1",
    ] {
        if text.starts_with('\u{feff}') {
            let mut case = line("GET /it HTTP/1.1", Refused(400));
            case.bytes.splice(0..0, [0xef, 0xbb, 0xbf]);
            all.push(case);
            continue;
        }
        all.push(line(text, Refused(400)));
    }
    for text in [
        "CONNECT app.localhost:443 HTTP/1.1",
        "CONNECT /it HTTP/1.1",
        "CONNECT app.localhost HTTP/1.1",
    ] {
        all.push(case(
            text,
            &format!("{text}\r\nHost: app.localhost\r\n\r\n{SMUGGLED}"),
            Refused(405),
        ));
    }
    let connect = "CONNECT app.localhost:443 HTTP/1.1\r\nHost: app.localhost:443\r\n\r\n";
    all.push(case(
        "CONNECT",
        &format!("{connect}{SMUGGLED}"),
        Refused(405),
    ));
    all.extend([
        line("GET http://app.localhost/it HTTP/1.1", Goes("")),
        line("GET HTTP://app.localhost/it HTTP/1.1", Goes("")),
        line("GET https://app.localhost/it HTTP/1.1", Goes("")),
        line("OPTIONS * HTTP/1.1", Goes("")),
        line("TRACE /it HTTP/1.1\r\nMax-Forwards: 0", Goes("")),
        line("get /it HTTP/1.1", Goes("")),
        line("GPOST /it HTTP/1.1", Goes("")),
        line("PRI /it HTTP/1.1", Goes("")),
        line("GET //other.localhost/it HTTP/1.1", Goes("")),
        line("GET /\\other.localhost/it HTTP/1.1", Goes("")),
        line("GET /it#fragment HTTP/1.1", Goes("")),
        line("GET /it?a=%0d%0aHost:%20other HTTP/1.1", Goes("")),
        line("GET /%00%2e%2e/..;/it HTTP/1.1", Goes("")),
        line("GET /it HTTP/1.1\r\nX-HTTP-Method-Override: DELETE", Goes("")),
        // An empty line before a request is forgiven (RFC 9112, section 2.2).
        case("an empty line", "\r\nGET /it HTTP/1.1\r\nHost: app.localhost\r\n\r\n", Goes("")),
        case("HTTP/1.0", "GET /it HTTP/1.0\r\nHost: app.localhost\r\n\r\n", Ends("")),
        case(
            "HTTP/1.0 with a body",
            "POST /it HTTP/1.0\r\nHost: app.localhost\r\nContent-Length: 5\r\n\r\nhello",
            Ends("hello"),
        ),
        case(
            "HTTP/1.0 with chunks",
            &format!("POST /it HTTP/1.0\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            Refused(400),
        ),
        case(
            "HTTP/1.0 that stays, with chunks and a length",
            "POST /it HTTP/1.0\r\nHost: app.localhost\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        case(
            "what comes behind a last request",
            &format!("GET /it HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n{SMUGGLED}"),
            Ends(""),
        ),
        case("no HTTP", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\r\n\r\n", Refused(400)),
        case("the beginning of HTTP/2 that does not go on", "PRI * HTTP/2.0\r\n\r\nXM\r\n\r\n", Refused(400)),
    ]);
    all
}

fn hosts() -> Vec<Case> {
    let mut all = Vec::new();
    for lines in [
        "X: y",
        "Host:",
        "Host: \t",
        "Host: a b",
        "Host: app.localhost, other.localhost",
        "Host: app.localhost other",
        "Host: app.localhost/it",
        "Host: app.localhost?it",
        "Host: app.localhost#it",
        "Host: u@app.localhost",
        "Host: other@app.localhost",
        "Host: app.localhost\\it",
        "Host: app.localhost:x",
        "Host: app.localhost:80:90",
        "Host: app.localhost:-1",
        "Host: app.localhost:99999999",
        "Host: app.localhost:80@other",
        "Host: http://app.localhost",
        "Host: [::1",
        "Host: [::1]x",
        "Host: ::1]",
        "Host: [app.localhost]",
        "Host: <app.localhost>",
        "Host: app.localhost%00",
        "Host: app\u{e9}.localhost",
        "Host: 'app.localhost'",
        "Host: app.localhost\u{0}",
        "Host: app.localhost\u{b}",
        "Host: app.localhost\r\nHost: app.localhost",
        "Host: app.localhost\r\nhost: other.localhost",
        "Host: app.localhost\r\n Host: other",
        "Host : app.localhost",
        " Host: app.localhost",
        "Host\u{0}: app.localhost",
        "Host:\r\n app.localhost",
        "Host: app.localhost\nX: y",
    ] {
        all.push(get(lines, Refused(400)));
    }
    all.extend([
        get("Host: nobody.localhost", Answered(404)),
        get("Host: nobody.localhost\r\nX-Forwarded-Host: app.localhost\r\nX-Host: app.localhost\r\nForwarded: host=app.localhost", Answered(404)),
        get("Host: 127.0.0.1\r\nX-Original-URL: /smuggled", Answered(404)),
        get("Host: [::1]:80", Answered(404)),
        get("Host: app.localhost.evil.example", Answered(404)),
        get("Host: APP.localhost:8080", Goes("")),
        get("Host: app.localhost:", Goes("")),
        get("Host: app.localhost.", Goes("")),
        get("Host: app.localhost\r\nX_Host: other\r\nX-Forwarded-Host: other", Goes("")),
    ]);
    all
}

/// Headers that are none, line ends that are not everybody's, and what else is odd about lines.
fn headers() -> Vec<Case> {
    let mut all = Vec::new();
    for lines in [
        "no header",
        "X Y: z",
        "X\u{0}: y",
        "X: \u{0}",
        "X: a\u{0}b",
        "X: a\u{1}b",
        "X: a\u{7}b",
        "X: a\u{8}b",
        "X: a\u{7f}b",
        "X: a\u{b}b",
        "X: a\u{1b}[31m",
        "X: a\rb",
        "X: a\r\rb",
        "X: a\nY: b",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X(: y",
        "X,Y: z",
        "X@: y",
        "X\u{e9}: y",
        "\u{a0}X: y",
        "X: a\r\n\u{b}b",
        ": y",
        "=: y\r\n x",
    ] {
        if lines.contains('=') {
            continue;
        }
        all.push(get(
            &format!("Host: app.localhost\r\n{lines}"),
            Refused(400),
        ));
    }
    all.push(case(
        "bare line ends",
        "GET /it HTTP/1.1\nHost: app.localhost\n\n",
        Refused(400),
    ));
    all.push(case(
        "a bare last line end",
        "GET /it HTTP/1.1\r\nHost: app.localhost\r\n\n",
        Refused(400),
    ));
    all.push(case(
        "bare returns",
        "GET /it HTTP/1.1\rHost: app.localhost\r\r",
        Refused(400),
    ));
    let connection = format!("Connection: {}", "x, ".repeat(11));
    all.push(get(
        &format!("Host: app.localhost\r\n{connection}"),
        Refused(400),
    ));
    all.extend([
        get("Host: app.localhost\r\nX: \u{e9}", Goes("")),
        get("Host: app.localhost\r\nX:", Goes("")),
        get("Host: app.localhost\r\nX: a\tb", Goes("")),
        get("Host: app.localhost\r\nX-Y.z|~!#$&'*+^`: a", Goes("")),
        get("Host: app.localhost\r\nConnection: keep-alive, X-Forwarded-For, Cookie, Authorization", Goes("")),
        get("Host: app.localhost\r\nProxy: http://evil\r\nProxy-Connection: close\r\nKeep-Alive: 300", Goes("")),
    ]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_and_codings_mean_one_thing_or_the_request_goes_nowhere() {
    hold(lengths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_read_strictly_and_sent_on_anew() {
    hold(chunked()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_lines_mean_one_thing_or_the_request_goes_nowhere() {
    hold(first_lines()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_for_one_host_or_goes_nowhere() {
    hold(hosts()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_lines_or_the_request_goes_nowhere() {
    hold(headers()).await;
}

/// Sends each case by each way, and has the next request behind it.
async fn hold(cases: Vec<Case>) {
    let witness = Witness::start().await;
    let proxy = witness.behind_a_proxy(&[HOST]).await;
    let mut faults = Vec::new();
    for case in &cases {
        let mut bytes = case.bytes.clone();
        bytes.extend_from_slice(NEXT.as_bytes());
        for way in WAYS {
            witness.take();
            let answer = way.send(&proxy, &bytes).await;
            if let Some(fault) = fault(case, &answer, &witness.take()) {
                let name: String = case.name.chars().take(80).collect();
                faults.push(format!("{way:?} {name:?} ({:?}): {fault}", case.then));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is wrong with what became of a case.
fn fault(case: &Case, answer: &[u8], seen: &[Result<Came, String>]) -> Option<String> {
    let mut came = Vec::new();
    for one in seen {
        match one {
            Ok(request) => came.push(request),
            Err(odd) => return Some(format!("the app got {odd}")),
        }
    }
    let targets: Vec<&str> = came.iter().map(|one| one.target.as_str()).collect();
    let method = case.bytes.split(|byte| *byte == b' ').next();
    let method = String::from_utf8_lossy(method.unwrap_or_default()).into_owned();
    let got = answers(answer, &[&method]);
    let statuses: Vec<u16> = got.iter().map(|one| one.0).collect();
    let told = || Some(format!("answers {got:?}, requests {targets:?}"));
    if targets.iter().any(|target| target.contains("smuggled")) {
        return told();
    }
    match case.then {
        Refused(status) => (statuses != [status] || !targets.is_empty()).then(told)?,
        Answered(status) => (statuses != [status, 200] || targets != ["/next"]).then(told)?,
        Goes(body) => {
            let right = statuses == [200, 200]
                && targets.len() == 2
                && targets[1] == "/next"
                && came[0].body == body.as_bytes()
                && (method == "HEAD" || got[0].1 == targets[0])
                && got[1].1 == "/next";
            (!right).then(told)?
        }
        Ends(body) => {
            let right = statuses == [200] && targets.len() == 1 && came[0].body == body.as_bytes();
            (!right).then(told)?
        }
    }
}
