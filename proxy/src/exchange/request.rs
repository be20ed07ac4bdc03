//! Whether a request may go the short way, and its head as the app gets it.

use crate::cookies;
use crate::forwarded::{self, Client, REQUEST_ID};
use crate::head::{is_told_of_clients, stays_here};
use crate::host::Asked;
use crate::tls::CHALLENGES;
use crate::trace_context::{Made, TRACEPARENT, TRACESTATE, TraceId, Tracing, trace_of};
use http::HeaderValue;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

/// Most headers of a request or an answer, as pingora has it.
pub const MOST_HEADERS: usize = 256;
/// Longest body that is waited for before the request is sent: what comes in one segment with the head, and
/// fits into the buffers of a socket, so that the app may answer before it has read it.
pub const LONGEST_BODY: usize = 32 * 1024;
/// Longest name of a header that any rule speaks of.
const LONGEST_NAME: usize = 32;

/// What the bytes of a request are so far.
pub enum Look {
    /// Its head is not over.
    Partial,
    /// It is not for here.
    Other(Known),
    /// It goes the short way.
    Plain(Box<Plain>),
}

/// What is known of a request that goes the long way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its length, from its first byte to the last of its body.
    Length(usize),
    /// The length of its head; its body ends where its chunks do.
    Chunked(usize),
    /// Nothing: where it ends, only who reads it can say.
    Nothing,
}

/// A request that goes the short way, whole.
pub struct Plain {
    /// How long it is, its body included.
    pub length: usize,
    /// How much of that is its body.
    pub body: usize,
    /// Where its method is.
    pub method: Range<usize>,
    /// Where its path is, without the query.
    pub path: Range<usize>,
    /// Of whom it was asked.
    pub asked: Arc<Asked>,
    /// Its id.
    pub id: HeaderValue,
    /// The id of the trace that it belongs to.
    pub trace: Option<TraceId>,
    /// The answer has no body: the method is HEAD.
    pub only_head: bool,
    /// Asking twice does what asking once does (RFC 9110, section 9.2.2).
    pub idempotent: bool,
    /// It only asks, and brings no body: GET, HEAD, OPTIONS.
    pub asks_only: bool,
    /// The client ends the connection after it.
    pub closes: bool,
}

impl Plain {
    /// Its query, in the bytes that it was read from.
    pub fn query<'a>(&self, bytes: &'a [u8]) -> Option<&'a str> {
        let rest = bytes.get(self.path.end..)?.strip_prefix(b"?")?;
        let end = rest.iter().position(|byte| *byte == b' ')?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

/// Looks at what has come of a request, and writes its head as the app gets it to `out`, where it is plain.
pub fn look(bytes: &[u8], client: &Client, tracing: Tracing, out: &mut Vec<u8>) -> Look {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Look::Partial,
        Err(_) => return Look::Other(Known::Nothing),
    };
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Look::Other(Known::Nothing);
    };
    // Refused there.
    if method == "CONNECT" || has_bare_line_ends(&bytes[..head]) {
        return Look::Other(Known::Nothing);
    }
    let mut plain = request.version == Some(1);
    plain &= target.starts_with('/') && target.bytes().all(is_plain);
    // It may be for the proxy itself.
    plain &= !target.starts_with(CHALLENGES);
    let mut host = None;
    let mut length: Option<usize> = None;
    let mut chunked = false;
    let mut id = None;
    let mut closes = false;
    let mut parents = 0;
    let mut states = false;
    let mut trace = None;
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for header in request.headers.iter() {
        let mut lower = [0; LONGEST_NAME];
        let name = lower_case(header.name, &mut lower);
        match name {
            "host" => plain &= host.replace(header.value).is_none(),
            "content-length" => match number(header.value) {
                Some(number) if length.is_none() => length = Some(number),
                _ => return Look::Other(Known::Nothing),
            },
            "transfer-encoding" => {
                if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Look::Other(Known::Nothing);
                }
                chunked = true;
            }
            "upgrade" => {
                plain = false;
                // What comes behind it may be no HTTP.
                if header.value.eq_ignore_ascii_case(b"websocket") {
                    return Look::Other(Known::Nothing);
                }
            }
            "connection" => {
                for word in header.value.split(|byte| *byte == b',') {
                    let word = word.trim_ascii();
                    if word.eq_ignore_ascii_case(b"close") {
                        closes = true;
                    } else {
                        let usual = [&b"keep-alive"[..], b"te", b""];
                        plain &= usual.iter().any(|usual| word.eq_ignore_ascii_case(usual));
                    }
                }
                continue;
            }
            // The client takes trailers, which it gets in any case; the app sends them to us.
            "te" if header.value.eq_ignore_ascii_case(b"trailers") => continue,
            "x-request-id" => {
                plain &= id.is_none() && forwarded::is_sane(header.value);
                id = HeaderValue::from_bytes(header.value).ok();
                continue;
            }
            // What is done about them is known when all have been seen.
            TRACEPARENT => {
                parents += 1;
                trace = trace_of(header.value).filter(|_| parents == 1);
                plain &= tracing == Tracing::Pass || trace.is_some();
            }
            TRACESTATE => states = true,
            "cookie" => match cookies::without_ours(header.value) {
                None => {}
                Some(rest) => {
                    if !rest.is_empty() {
                        for part in [header.name.as_bytes(), b": ", &rest, b"\r\n"] {
                            out.extend_from_slice(part);
                        }
                    }
                    continue;
                }
            },
            // The client waits for leave to send its body.
            "expect" => plain = false,
            name => {
                plain &= !stays_here(name) && !is_told_of_clients(name);
                plain &= header.name.len() <= LONGEST_NAME || !header.name.contains('_');
            }
        }
        out.extend_from_slice(header.name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(header.value);
        out.extend_from_slice(b"\r\n");
    }
    if chunked {
        return Look::Other(match length {
            None => Known::Chunked(head),
            Some(_) => Known::Nothing,
        });
    }
    let body = length.unwrap_or(0);
    let Some(length) = head.checked_add(body) else {
        return Look::Other(Known::Nothing);
    };
    let other = Look::Other(Known::Length(length));
    // A state without a valid parent goes nowhere.
    plain &= tracing == Tracing::Pass || trace.is_some() || !states;
    // What of a body has not come yet may be long in coming.
    if !plain || body > LONGEST_BODY || bytes.len() < length {
        return other;
    }
    let Some(Ok(asked)) = host.map(|host| client.asks_for(host)) else {
        return other;
    };
    let id = id.unwrap_or_else(forwarded::new_id);
    if tracing == Tracing::Create && trace.is_none() {
        let made = Made::new();
        for part in [TRACEPARENT.as_bytes(), b": ", made.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
        trace = Some(made.trace());
    }
    out.extend_from_slice(&asked.lines);
    for part in [
        REQUEST_ID.as_str().as_bytes(),
        b": ",
        id.as_bytes(),
        b"\r\n\r\n",
    ] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&bytes[head..length]);
    let path = target.split('?').next().unwrap_or(target);
    Look::Plain(Box::new(Plain {
        length,
        body,
        method: within(bytes, method),
        path: within(bytes, path),
        asked,
        id,
        trace,
        only_head: method == "HEAD",
        idempotent: is_idempotent(method),
        asks_only: body == 0 && matches!(method, "GET" | "HEAD" | "OPTIONS"),
        closes,
    }))
}

/// `name` in lower case, as far as any rule is about names that long.
pub fn lower_case<'a>(name: &str, into: &'a mut [u8; LONGEST_NAME]) -> &'a str {
    let length = name.len().min(LONGEST_NAME);
    let lower = &mut into[..length];
    lower.copy_from_slice(&name.as_bytes()[..length]);
    lower.make_ascii_lowercase();
    // Names are ASCII.
    std::str::from_utf8(lower).unwrap_or_default()
}

/// A length: digits alone, and not so many that they are none.
pub fn number(value: &[u8]) -> Option<usize> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0usize, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        Some(number * 10 + digit)
    })
}

/// Whether a line of a head ends in less than CR and LF. Some servers take such a line's end for a part of it, so
/// that they see other headers (RFC 9112, section 2.2, leaves it open).
pub fn has_bare_line_ends(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.get(1..).unwrap_or_default());
    // To the end without a branch: many bytes are looked at at once.
    let bare = pairs.fold(0, |bare, (before, byte)| {
        bare | (u8::from(*byte == b'\n') & u8::from(*before != b'\r'))
    });
    bare != 0 || head.first() == Some(&b'\n')
}

/// Whether a byte stands for itself in a target (RFC 3986, section 3.3 and 3.4).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE"
    )
}

/// Where `part` is in `whole`, of which it is a part.
fn within(whole: &[u8], part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    let end = start.saturating_add(part.len());
    if end <= whole.len() { start..end } else { 0..0 }
}
