//! What has to hold for whatever bytes come: the bodies of the fuzz targets in `fuzz/`, which tests run here as well,
//! with bytes made up of what such bytes are made of. Each reads with an eye of its own, too, and compares.

use crate::announced;
use crate::calm::Calm;
use crate::cookies;
use crate::exchange::{self, Chunked, Known, Look};
use crate::forwarded::Client;
use crate::head::Seen;
use crate::host::Asked;
use crate::trace_context::Tracing;
use beanpole_protocol::router::normal_host;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Version};
use std::net::{IpAddr, SocketAddr};

/// Reads a chunked body whole: how many bytes it has, and its content; none where it is broken or not over.
fn whole_chunks(body: &[u8]) -> Option<(usize, u64)> {
    let mut chunked = Chunked::default();
    let (taken, content) = chunked.take(body).ok()?;
    chunked.is_over().then_some((taken, content))
}

/// A body in chunks: the same in whatever pieces, and where it is read at all, another reader sees the same.
pub fn chunked(bytes: &[u8]) {
    let Some((piece, body)) = bytes.split_first() else {
        return;
    };
    let whole = whole_chunks(body);
    let mut chunked = Chunked::default();
    let (mut taken, mut content, mut broken) = (0, 0, false);
    for part in body.chunks(usize::from(*piece).max(1)) {
        match chunked.take(part) {
            Ok((here, found)) => {
                taken += here;
                content += found;
            }
            Err(_) => broken = true,
        }
        if broken || chunked.is_over() {
            break;
        }
    }
    let pieces = (!broken && chunked.is_over()).then_some((taken, content));
    assert_eq!(pieces, whole);
    let Some((taken, content)) = whole else {
        return;
    };
    let (mut at, mut found) = (0, 0);
    loop {
        let parsed = httparse::parse_chunk_size(&body[at..taken]).expect("a size");
        let httparse::Status::Complete((line, size)) = parsed else {
            panic!("no whole size");
        };
        at += line;
        found += size;
        if size == 0 {
            break;
        }
        at += usize::try_from(size).expect("it is there");
        assert_eq!(&body[at..at + 2], b"\r\n");
        at += 2;
    }
    assert_eq!(found, content);
    let mut trailers = [httparse::EMPTY_HEADER; 256];
    if let Ok(parsed) = httparse::parse_headers(&body[at..], &mut trailers) {
        let httparse::Status::Complete((length, _)) = parsed else {
            panic!("no whole trailers");
        };
        assert_eq!(at + length, taken);
    }
}

/// The lines of a head, which all end in CR and LF and have no other ones in them.
fn lines(head: &[u8]) -> Vec<&[u8]> {
    let text = head.strip_suffix(b"\r\n\r\n").expect("an end");
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    for line in &lines {
        let sane = line.iter().all(|byte| !matches!(byte, b'\r' | b'\n' | 0));
        assert!(sane && !line.is_empty(), "{}", head.escape_ascii());
        assert!(!matches!(line[0], b' ' | b'\t'), "{}", head.escape_ascii());
    }
    lines
}

/// How often a header is among lines.
fn count(lines: &[&[u8]], name: &str) -> usize {
    let named = |line: &&&[u8]| {
        let start = line.get(..name.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
            && line.get(name.len()) == Some(&b':')
    };
    lines.iter().filter(named).count()
}

/// A request on the short way: what the app gets of it is one request, in one reading, and the long way would not
/// refuse it, nor end it elsewhere.
pub fn request(bytes: &[u8]) {
    let client = Client::new(IpAddr::from([192, 0, 2, 7]), 80, false, false);
    let mut out = Vec::new();
    let look = exchange::look(bytes, &client, Tracing::default(), &mut out);
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut read = httparse::Request::new(&mut headers);
    let parsed = read.parse(bytes);
    let Ok(httparse::Status::Complete(head)) = parsed else {
        match look {
            Look::Partial => assert!(matches!(parsed, Ok(httparse::Status::Partial))),
            Look::Other(known) => assert_eq!(known, Known::Nothing),
            Look::Plain(_) => panic!("it has no head"),
        }
        return;
    };
    let mut map = HeaderMap::new();
    for header in read.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).expect("a name");
        let value = HeaderValue::from_bytes(header.value).expect("a value");
        map.append(name, value);
    }
    let version = if read.version == Some(1) {
        Version::HTTP_11
    } else {
        Version::HTTP_10
    };
    let seen = Seen::look(&map, version, false);
    let length = map.get(http::header::CONTENT_LENGTH);
    let length: Option<usize> = length.and_then(|value| value.to_str().ok()?.parse().ok());
    match look {
        Look::Partial => panic!("its head is whole"),
        Look::Other(Known::Nothing) => {}
        Look::Other(Known::Chunked(at)) => {
            assert_eq!(at, head);
            assert!(length.is_none() && map.contains_key(http::header::TRANSFER_ENCODING));
            assert_eq!(
                map["transfer-encoding"].as_bytes().to_ascii_lowercase(),
                b"chunked"
            );
        }
        Look::Other(Known::Length(whole)) => {
            assert!(!map.contains_key(http::header::TRANSFER_ENCODING));
            assert_eq!(whole, head + length.unwrap_or(0));
        }
        Look::Plain(plain) => {
            let seen = seen.expect("the long way takes it");
            assert!(!seen.encoded && !seen.websocket);
            assert_eq!(plain.length, head + length.unwrap_or(0));
            assert!(plain.length <= bytes.len());
            let body = &bytes[head..plain.length];
            let (told, sent) = out.split_at(out.len() - body.len());
            assert_eq!(sent, body);
            let lines = lines(told);
            let first = format!(
                "{} {} HTTP/1.1",
                read.method.expect("a method"),
                read.path.expect("a target")
            );
            assert_eq!(lines[0], first.as_bytes());
            assert_eq!(count(&lines, "host"), 1);
            assert_eq!(
                count(&lines, "content-length"),
                usize::from(length.is_some())
            );
            for none in [
                "transfer-encoding",
                "connection",
                "upgrade",
                "te",
                "proxy",
                "expect",
                "x-real-ip",
            ] {
                assert_eq!(count(&lines, none), 0, "{none}");
            }
            for once in [
                "x-request-id",
                "x-forwarded-for",
                "x-forwarded-host",
                "forwarded",
            ] {
                assert_eq!(count(&lines, once), 1, "{once}");
            }
            // It is known before its end, and not before that of its head.
            let mut part = Vec::new();
            assert!(!matches!(
                exchange::look(&bytes[..head - 1], &client, Tracing::default(), &mut part),
                Look::Plain(_)
            ));
        }
    }
}

/// An answer on the short way: what the client gets is one head, in one reading, and says once where it ends.
pub fn answer(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let (only_head, closes) = (how & 1 != 0, how & 2 != 0);
    let mut out = Vec::new();
    let Ok(Some(answer)) = exchange::read_answer(bytes, only_head, closes, b"", &mut out) else {
        return;
    };
    assert!(answer.head <= bytes.len());
    let lines = lines(&out);
    let mut headers = [httparse::EMPTY_HEADER; 300];
    let mut read = httparse::Response::new(&mut headers);
    let parsed = read.parse(&out).expect("a head");
    assert_eq!(parsed, httparse::Status::Complete(out.len()));
    assert_eq!(read.code, Some(answer.status));
    let lengths = count(&lines, "content-length");
    let codings = count(&lines, "transfer-encoding");
    assert!(
        lengths <= 1 && (lengths == 0 || codings == 0),
        "{}",
        out.escape_ascii()
    );
    match answer.body {
        exchange::Body::None => {}
        exchange::Body::Length(length) => {
            let said = read
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let said = std::str::from_utf8(said.expect("a length").value).expect("text");
            assert_eq!(said.parse(), Ok(length));
        }
        exchange::Body::Chunked(_) | exchange::Body::UntilClose => assert!(codings > 0),
    }
    if closes && answer.status >= 200 {
        assert_eq!(count(&lines, "connection"), 1);
    }
}

/// A host: what is taken for one names one, to whoever reads it.
pub fn host(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let forwarded = |_: &str| HeaderValue::from_static("f");
    let Ok(asked) = Asked::of(text, forwarded) else {
        return;
    };
    assert_eq!(asked.host.as_bytes(), bytes);
    let name = asked.name.as_str();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    assert!(name.bytes().all(allowed), "{name}");
    assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
    if !name.contains(':') {
        assert_eq!(
            normal_host(name).trim_end_matches('.'),
            name.trim_end_matches('.')
        );
        assert!(
            text.to_ascii_lowercase()
                .trim_start_matches('[')
                .starts_with(name)
        );
    }
}

/// The value of a `Cookie` header: none of ours is left, and the others all are.
pub fn cookie(bytes: &[u8]) {
    let Some(rest) = cookies::without_ours(bytes) else {
        return;
    };
    assert!(rest.len() < bytes.len());
    assert_eq!(
        cookies::without_ours(&rest),
        None,
        "{}",
        bytes.escape_ascii()
    );
}

/// The announcement of a client: the same in whatever pieces, and what is behind it stays whole.
pub fn announced(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let read = |piece: usize| -> Option<(Option<SocketAddr>, Vec<u8>)> {
        runtime.block_on(async {
            let mut left = bytes;
            let mut io = Pieces {
                left: &mut left,
                piece,
            };
            let found = announced::read(&mut io).await.ok()?;
            let rest = [found.rest.as_slice(), left].concat();
            assert!(bytes.ends_with(&rest));
            Some((found.client, rest))
        })
    };
    let whole = read(usize::MAX);
    // A head that is longer than is read at once may be refused for its length.
    if bytes.len() < 512 {
        assert_eq!(read(usize::from(*piece).max(1)), whole);
    }
}

/// Bytes that come in pieces.
struct Pieces<'a, 'b> {
    left: &'a mut &'b [u8],
    piece: usize,
}

impl tokio::io::AsyncRead for Pieces<'_, '_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let here = self.left.len().min(self.piece).min(buf.remaining());
        buf.put_slice(&self.left[..here]);
        *self.left = &self.left[here..];
        std::task::Poll::Ready(Ok(()))
    }
}

/// Frames of HTTP/2: too many are too many in whatever pieces.
pub fn frames(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let mut whole = Calm::new();
    let fine = whole.takes(bytes);
    let mut pieces = Calm::new();
    let all = bytes
        .chunks(usize::from(*piece).max(1))
        .all(|part| pieces.takes(part));
    assert_eq!(fine, all);
    assert_eq!(whole.goodbye(), pieces.goodbye());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// What requests, answers and bodies are made of, and what attacks on them are.
    const WORDS: [&[u8]; 74] = [
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\0",
        b":",
        b": ",
        b",",
        b";",
        b"=",
        b"\"",
        b"/",
        b"*",
        b"?",
        b"#",
        b"@",
        b"\\",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b"\xc3\xa9",
        b"GET /a HTTP/1.1\r\n",
        b"POST /b?c=d HTTP/1.1\r\n",
        b"HEAD / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"GET http://a.localhost/ HTTP/1.1\r\n",
        b"GET ",
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 204 No\r\n",
        b"HTTP/1.1 304 N\r\n",
        b"HTTP/1.1 103 E\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 ",
        b"Host: a.localhost\r\n",
        b"Host: a.localhost\r\n",
        b"Host: ",
        b"Content-Length: 5\r\n",
        b"Content-Length: ",
        b"content-length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: ",
        b"chunked",
        b"identity",
        b"Connection: close\r\n",
        b"Connection: x-y\r\n",
        b"Connection: ",
        b"X-Y: z\r\n",
        b"X_Y: z\r\n",
        b"Upgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"TE: trailers\r\n",
        b"X-Request-Id: abc\r\n",
        b"X-Forwarded-For: 1.1.1.1\r\n",
        b"Cookie: a=b; beanpole_client=7\r\n",
        b"beanpole_session=0f",
        b"Date: d\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"5;a=b\r\n",
        b"hello",
        b"0",
        b"1",
        b"ffffffffffffffff",
        b"127.0.0.1",
        b"[::1]",
        b":80",
        b"a.localhost",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    ];

    /// So many times as often as usual, which is 256 or `PROPTEST_CASES`.
    fn often(times: u32) -> ProptestConfig {
        let usual = ProptestConfig::default();
        ProptestConfig {
            cases: usual.cases.saturating_mul(times),
            ..usual
        }
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            8 => select(&WORDS[..]).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
    }

    /// One that begins as it should, so that what follows is looked at.
    fn begun(begin: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        bytes().prop_map(move |bytes| [begin, &bytes].concat())
    }

    proptest! {
        #![proptest_config(often(16))]

        #[test]
        fn chunked_bodies_hold(bytes in prop_oneof![bytes(), begun(b"\x035\r\nhello\r\n")]) {
            chunked(&bytes);
        }

        #[test]
        fn requests_hold(bytes in prop_oneof![bytes(), begun(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n")]) {
            request(&bytes);
        }

        #[test]
        fn answers_hold(bytes in prop_oneof![begun(b"\0HTTP/1.1 200 OK\r\n"), begun(b"\x03HTTP/1.1 200 OK\r\n"), bytes()]) {
            answer(&bytes);
        }

        #[test]
        fn hosts_hold(bytes in prop_oneof![bytes(), "[a-zA-Z0-9.:\\[\\]~@-]{0,24}".prop_map(String::into_bytes)]) {
            host(&bytes);
        }

        #[test]
        fn cookies_hold(bytes in bytes()) {
            cookie(&bytes);
        }

        #[test]
        fn frames_hold(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            frames(&bytes);
        }
    }

    proptest! {
        #![proptest_config(often(4))]

        #[test]
        fn announcements_hold(bytes in prop_oneof![bytes(), begun(b"\x03PROXY "), begun(b"\x07\r\n\r\n\0\r\nQUIT\n")]) {
            announced(&bytes);
        }
    }
}
