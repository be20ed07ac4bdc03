//! One look at all headers of a request finds what is ambiguous, what is meant for this hop alone
//! (RFC 9110, section 7.6.1) and what would mislead an app. pingora can do the second part, at more
//! than twice the cost of this, and refuses requests with it that others serve.

use crate::cookies;
use http::header::HeaderName;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use pingora_http::{RequestHeader, ResponseHeader};

/// Most names in the `Connection` headers of a request.
const MOST_NAMED: usize = 10;

/// What the headers of a request say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Headers that do not go on to the app.
    pub ends_here: Vec<HeaderName>,
    /// Whether its body has a `Transfer-Encoding`.
    pub encoded: bool,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
    /// Whether it brings a request id.
    pub has_id: bool,
    /// Its cookies without ours, where it has such.
    pub cookies: Option<Vec<HeaderValue>>,
}

impl Seen {
    /// Looks at `headers`; else what is wrong with them, as a sentence for people. The claims of
    /// `trusted` proxies go on.
    pub fn look(
        headers: &HeaderMap,
        version: Version,
        trusted: bool,
    ) -> Result<Self, &'static str> {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "content-length" => one_number(headers)?,
                // It is for this hop, but pingora reads the body by it.
                "transfer-encoding" => {
                    one_coding(headers)?;
                    seen.encoded = true;
                }
                "x-request-id" => seen.has_id = true,
                "cookie" => seen.cookies = cookies_for_apps(headers, version),
                "upgrade" => {
                    seen.ends_here.push(name.clone());
                    seen.websocket = version == Version::HTTP_11
                        && headers.get(name).is_some_and(|value| {
                            value.as_bytes().eq_ignore_ascii_case(b"websocket")
                        });
                }
                "connection" => {
                    seen.ends_here.push(name.clone());
                    named(headers, &mut seen.ends_here)?;
                }
                text => {
                    if stays_here(text) || (!trusted && claims(text)) {
                        seen.ends_here.push(name.clone());
                    }
                }
            }
        }
        Ok(seen)
    }

    /// Takes out of `headers` what does not go on.
    pub fn clean(&self, headers: &mut HeaderMap) {
        for name in &self.ends_here {
            headers.remove(name);
        }
        if let Some(cookies) = &self.cookies {
            headers.remove(header::COOKIE);
            for cookie in cookies {
                headers.append(header::COOKIE, cookie.clone());
            }
        }
        if self.encoded {
            // The length of each piece is pingora's; it says so where there is a body.
            headers.remove(header::TRANSFER_ENCODING);
        }
        if self.websocket {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
    }
}

/// The cookies of a client as the app gets them, where that is not as they came: without ours; and in one header,
/// where they came one by one, which only HTTP/2 allows (RFC 9113, section 8.2.3).
fn cookies_for_apps(headers: &HeaderMap, version: Version) -> Option<Vec<HeaderValue>> {
    let mut changes = false;
    let mut left = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        match cookies::without_ours(value.as_bytes()) {
            None => left.push(value.clone()),
            Some(rest) => {
                changes = true;
                let rest = HeaderValue::from_bytes(&rest).ok();
                left.extend(rest.filter(|rest| !rest.is_empty()));
            }
        }
    }
    if version == Version::HTTP_2 && left.len() > 1 {
        changes = true;
        let all: Vec<&[u8]> = left.iter().map(HeaderValue::as_bytes).collect();
        let one = HeaderValue::from_bytes(&all.join(&b"; "[..])).ok();
        left = one.into_iter().collect();
    }
    changes.then_some(left)
}

/// Takes out of an answer what is between the app and the proxy alone (RFC 9110, section 7.6.1), and says
/// its length in one way (sections 8.6 and 6.4.1), which clients of HTTP/2 insist on; else what is wrong
/// with it. `Connection` itself is pingora's, but for informational answers.
pub fn clean_answer(answer: &mut ResponseHeader) -> Result<(), &'static str> {
    const HOPS: [&str; 2] = ["keep-alive", "proxy-connection"];
    for name in HOPS {
        if answer.headers.contains_key(name) {
            answer.remove_header(name);
        }
    }
    if answer.status != StatusCode::SWITCHING_PROTOCOLS {
        for name in named_by(answer) {
            answer.remove_header(&name);
        }
        if answer.status.is_informational() {
            answer.remove_header(&header::CONNECTION);
        }
    }
    if answer.status == StatusCode::NO_CONTENT {
        answer.remove_header(&header::CONTENT_LENGTH);
        return Ok(());
    }
    let lengths = answer.headers.get_all(header::CONTENT_LENGTH).iter();
    let mut each = lengths.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    if let (Some(first), Some(second)) = (each.next(), each.next()) {
        let first = first.trim_ascii();
        if second.trim_ascii() != first || each.any(|other| other.trim_ascii() != first) {
            return Err("the app gave different lengths");
        }
        let one = HeaderValue::from_bytes(first).map_err(|_| "the app gave no length")?;
        answer
            .insert_header(header::CONTENT_LENGTH, one)
            .map_err(|_| "the app gave no length")?;
    }
    let codings = answer.headers.get_all(header::TRANSFER_ENCODING);
    if let Some(last) = codings.iter().next_back() {
        let last = last.as_bytes().rsplit(|byte| *byte == b',').next();
        let chunked = last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        if !chunked {
            return Err("the app gave a transfer coding that does not say where its answer ends");
        }
    }
    Ok(())
}

/// The headers that an answer names as ones for its next hop alone; what frames it is not among them.
fn named_by(answer: &ResponseHeader) -> Vec<HeaderName> {
    let values = answer.headers.get_all(header::CONNECTION).iter();
    let words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = words.filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok());
    let frames = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    names.filter(|name| !frames.contains(name)).collect()
}

/// A target is a path, an `http` address, or `*` of OPTIONS (RFC 9112, section 3.2).
pub fn has_a_target(head: &RequestHeader) -> Result<(), &'static str> {
    let raw = head.raw_path();
    let begins = |scheme: &str| {
        let there = raw.get(..scheme.len());
        there.is_some_and(|there| there.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    let sane = match raw.first() {
        Some(b'/') => true,
        Some(b'*') => raw == b"*" && head.method == Method::OPTIONS,
        _ => begins("http://") || begins("https://"),
    };
    if sane {
        Ok(())
    } else {
        Err("Its target is neither a path nor an http address.")
    }
}

/// What HTTP/2 asks of a head beyond what `h2` sees to (RFC 9113, sections 8.1.1 and 8.3.1); else what is wrong with it,
/// as a sentence for people. Over HTTP/1.1, which apps get, it would be another one.
pub fn is_of_http2(head: &RequestHeader) -> Result<(), &'static str> {
    let raw = head.raw_path();
    let rooted = raw.first() == Some(&b'/') || (raw == b"*" && head.method == Method::OPTIONS);
    if !rooted || raw.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err("Its :path is no path.");
    }
    // Without an authority `h2` does not tell it.
    let scheme = head.uri.scheme();
    if scheme.is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err("Its :scheme is neither http nor https.");
    }
    let authority = head.uri.authority().map(Authority::as_str);
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err("It has more than one Host header.");
    }
    let asked = [authority.map(str::as_bytes), host];
    if asked.iter().flatten().any(|host| host.contains(&b'@')) {
        return Err("Its authority names a user.");
    }
    match asked {
        [None | Some(b""), None | Some(b"")] => return Err("It has no :authority and no Host."),
        [Some(authority), Some(host)] if !authority.eq_ignore_ascii_case(host) => {
            return Err("Its :authority and its Host header differ.");
        }
        _ => {}
    }
    if head.headers.contains_key(header::CONTENT_LENGTH) {
        one_number(&head.headers)?;
    }
    Ok(())
}

/// Two servers that understand a head differently can be made to see different requests.
fn one_number(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let digits = lengths.next().is_some_and(|length| {
        !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
    });
    if !digits || lengths.next().is_some() {
        return Err("Its Content-Length has to be one number, sent once.");
    }
    Ok(())
}

/// Two servers may part at any other coding: one that is taken for `chunked` or not, or undone or not.
fn one_coding(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || codings.next().is_some() {
        return Err("Its Transfer-Encoding has to be `chunked`, sent once.");
    }
    Ok(())
}

/// Adds what the `Connection` headers name. What a proxy sets anew or needs itself may be named
/// without effect; words that are no names have none either.
fn named(headers: &HeaderMap, ends_here: &mut Vec<HeaderName>) -> Result<(), &'static str> {
    let words = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|word| word.trim_ascii())
        .filter(|word| !word.is_empty());
    for (count, word) in words.enumerate() {
        if count == MOST_NAMED {
            return Err("Its Connection header names more than ten others.");
        }
        if let Ok(name) = HeaderName::from_bytes(word)
            && !matches!(
                name,
                header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING
            )
            && headers.contains_key(&name)
        {
            ends_here.push(name);
        }
    }
    Ok(())
}

/// Whether a header of a request does not go on to the app.
pub fn stays_here(name: &str) -> bool {
    is_for_one_hop(name) || misleads(name)
}

/// Whether a header tells of the client, as a proxy on the way may.
pub fn is_told_of_clients(name: &str) -> bool {
    name == "forwarded" || name.starts_with("x-forwarded-") || claims(name)
}

fn is_for_one_hop(name: &str) -> bool {
    matches!(
        name,
        "te" | "trailer"
            | "keep-alive"
            | "http2-settings"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// Headers that no client has a use for. CGI and its heirs (WSGI, PHP) make `HTTP_X_Y` of both
/// `X-Y` and `X_Y`, so that the latter could stand in for a header that was checked; and of `Proxy`
/// they make `HTTP_PROXY`, which many libraries send their own requests through (httpoxy).
fn misleads(name: &str) -> bool {
    name == "proxy" || name.as_bytes().contains(&b'_')
}

/// Headers by which proxies tell of the client, or of the URL that it asked for, which some frameworks take for the
/// path. The ones that are set anyway are not among them.
fn claims(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            matches!(
                name,
                "x-real-ip"
                    | "x-client-ip"
                    | "x-cluster-client-ip"
                    | "x-remote-ip"
                    | "x-remote-addr"
                    | "x-proxyuser-ip"
                    | "x-azure-clientip"
                    | "x-envoy-external-address"
                    | "x-original-forwarded-for"
                    | "x-original-host"
                    | "x-original-url"
                    | "x-rewrite-url"
            ) || (name.starts_with("x-forwarded-")
                && !matches!(&name[12..], "for" | "proto" | "host" | "port"))
        }
        Some(b't') => name == "true-client-ip",
        Some(b'c') => name == "cf-connecting-ip",
        Some(b'f') => matches!(
            name,
            "fastly-client-ip" | "fly-client-ip" | "front-end-https"
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(lines: &[(&'static str, &'static str)]) -> Result<HeaderMap, &'static str> {
        let mut headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            })
            .collect();
        Seen::look(&headers, Version::HTTP_11, false)?.clean(&mut headers);
        Ok(headers)
    }

    #[test]
    fn headers_for_one_hop_end_here() {
        for name in [
            "connection",
            "http2-settings",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
        ] {
            let left = cleaned(&[(name, "h2c"), ("accept", "*/*")]);
            let left = left.unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(left.len(), 1, "{name}: {left:?}");
        }
    }

    #[test]
    fn what_proxies_say_is_believed_of_trusted_ones_alone() {
        for name in [
            "cf-connecting-ip",
            "fastly-client-ip",
            "fly-client-ip",
            "front-end-https",
            "true-client-ip",
            "x-azure-clientip",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-envoy-external-address",
            "x-forwarded-scheme",
            "x-original-forwarded-for",
            "x-original-host",
            "x-original-url",
            "x-proxyuser-ip",
            "x-real-ip",
            "x-remote-addr",
            "x-remote-ip",
            "x-rewrite-url",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static("127.0.0.1"));
            for (trusted, left) in [(true, 1), (false, 0)] {
                let seen = Seen::look(&headers, Version::HTTP_11, trusted);
                let mut headers = headers.clone();
                seen.unwrap_or_else(|why| panic!("{why}"))
                    .clean(&mut headers);
                assert_eq!(headers.len(), left, "{name} {trusted}");
            }
        }
    }

    #[test]
    fn only_websockets_are_upgraded() {
        let lines = [
            ("upgrade", "WebSocket"),
            ("connection", "x, upgrade"),
            ("x", "1"),
        ];
        let left = cleaned(&lines).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(left["connection"], "Upgrade");
        assert_eq!(left["upgrade"], "websocket");
        let mut old = HeaderMap::new();
        old.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let seen = Seen::look(&old, Version::HTTP_10, false);
        assert!(!seen.unwrap_or_else(|why| panic!("{why}")).websocket);
    }

    #[test]
    fn what_routes_and_frames_a_request_stays_whoever_names_it() {
        let lines = [
            ("connection", "host, content-length, close, (odd), cookie"),
            ("host", "a"),
            ("content-length", "1"),
            ("cookie", "a=b"),
        ];
        let left = cleaned(&lines).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.contains_key("host") && left.contains_key("content-length"));
    }

    #[test]
    fn ten_names_are_enough() {
        assert!(cleaned(&[("connection", "a,b,c,d,e,f,g,h,i,j")]).is_ok());
        assert!(cleaned(&[("connection", "a,b,c,d,e,f,g,h,i,j,k")]).is_err());
    }
}
