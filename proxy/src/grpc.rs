//! What calls of gRPC are answered with where no app answers them, and how those ended that one answered
//! (grpc/grpc, doc/PROTOCOL-HTTP2.md): a client of gRPC has no use for a page.

use crate::pages::Page;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use std::fmt::Write;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How every call's type begins.
const TYPE: &[u8] = b"application/grpc";

/// Whether a message with these headers is of gRPC. Calls from browsers (`application/grpc-web`) are not: their
/// clients understand statuses of HTTP.
pub fn is_of_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let rest = value.and_then(|value| value.as_bytes().strip_prefix(TYPE));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status that says what a page says.
fn status_of(page: &Page<'_>) -> u16 {
    match page {
        // Nobody has that method.
        Page::UnknownHost { .. } | Page::NoTunnel => 12,
        Page::NoTarget { .. } | Page::Broken { .. } | Page::Maintenance { .. } | Page::Crowded => {
            14
        }
        Page::Late { .. } | Page::HeadTooLate | Page::BodyTooLate => 4,
        Page::HeadTooLarge
        | Page::TargetTooLong
        | Page::BodyTooLarge
        | Page::Full { .. }
        | Page::TooManyRequests { .. } => 8,
        Page::NoClientCertificate => 7,
        Page::Failed | Page::Replaced { .. } | Page::BadRequest { .. } => 13,
    }
}

/// The page as an answer that is a head alone.
pub fn head(page: &Page<'_>, id: HeaderValue) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(4))?;
    head.insert_header(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    )?;
    for (name, value) in &trailers(page) {
        head.insert_header(name.clone(), value.clone())?;
    }
    head.insert_header("X-Request-Id", id)?;
    Ok(head)
}

/// The page as the end of an answer that has begun.
pub fn trailers(page: &Page<'_>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(STATUS, HeaderValue::from(status_of(page)));
    if let Ok(message) = HeaderValue::from_str(&escaped(&page.detail())) {
        trailers.insert(MESSAGE, message);
    }
    trailers
}

/// As messages are sent: what is not plain ASCII in per cents.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to memory does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The status of HTTP for a call that failed for want of the app, by the headers or the trailers that end it:
/// what counts as an error, as a page would. What the client did wrong does not.
pub fn failure(headers: &HeaderMap) -> Option<u16> {
    match headers.get(STATUS)?.as_bytes() {
        b"2" | b"13" | b"15" => Some(500),
        b"14" => Some(503),
        b"4" => Some(504),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(value: &'static str) -> HeaderMap {
        let value = HeaderValue::from_static(value);
        [(header::CONTENT_TYPE, value)].into_iter().collect()
    }

    #[test]
    fn calls_are_known_by_their_type() {
        for grpc in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            assert!(is_of_grpc(&typed(grpc)), "{grpc}");
        }
        for other in ["application/grpc-web", "application/json", "text/html"] {
            assert!(!is_of_grpc(&typed(other)), "{other}");
        }
    }

    #[test]
    fn a_page_becomes_a_status_and_a_message_without_odd_bytes() {
        let page = Page::UnknownHost { host: "a%\u{e9}" };
        let trailers = trailers(&page);
        assert_eq!(trailers["grpc-status"], "12");
        assert_eq!(
            trailers["grpc-message"],
            "Nothing has the hostname `a%25%C3%A9`."
        );
    }

    #[test]
    fn what_an_app_could_not_do_is_an_error_and_what_its_client_did_is_none() {
        let ended = |status: &'static str| {
            let status = HeaderValue::from_static(status);
            failure(&[(STATUS, status)].into_iter().collect())
        };
        assert_eq!(ended("14"), Some(503));
        assert_eq!(ended("13"), Some(500));
        assert_eq!(ended("0"), None);
        assert_eq!(ended("5"), None);
    }
}
