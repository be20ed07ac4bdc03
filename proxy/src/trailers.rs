//! Trailers of answers, as far as they go on: not those by which anybody frames, routes or keeps a message, nor those
//! that decide how its content is read (RFC 9110, section 6.5.1), since some clients take trailers for headers.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Those that may.
pub fn cleaned(mut trailers: HeaderMap) -> HeaderMap {
    let names = trailers.keys().filter(|name| stays(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        trailers.remove(name);
    }
    trailers
}

/// Those of `section`, which is what follows the last chunk of a body that was read to its end (`exchange`).
pub fn read(section: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for (name, value) in fields(section) {
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            // More than a map has room for are nobody's.
            let _ = trailers.try_append(name, value);
        }
    }
    trailers
}

/// The same section as a client of HTTP/1.1 gets it.
pub fn write(section: &[u8], out: &mut Vec<u8>) {
    for (name, value) in fields(section) {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn fields(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    section.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        let lower = name.to_ascii_lowercase();
        let goes_on = std::str::from_utf8(&lower).is_ok_and(|name| !stays(name));
        goes_on.then_some((name, value))
    })
}

/// Whether one does not go on; `name` in lower case.
fn stays(name: &str) -> bool {
    matches!(
        name,
        // Where a message ends, and where it goes.
        "content-length" | "transfer-encoding" | "host" | "trailer"
        // Of one hop.
        | "connection" | "keep-alive" | "proxy-connection" | "upgrade" | "te" | "http2-settings"
        // How its content is read.
        | "content-encoding" | "content-type" | "content-range"
        // Who asks.
        | "authorization" | "set-cookie" | "www-authenticate" | "proxy-authenticate"
        | "proxy-authorization" | "proxy-authentication-info"
        // What is done with an answer, and about it.
        | "cache-control" | "expires" | "age" | "date" | "location" | "retry-after" | "vary" | "warning"
        | "pragma" | "range" | "expect" | "max-forwards" | "strict-transport-security"
    ) || name.starts_with("if-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: &[u8] =
        b"X-Sum:7\r\nContent-Length: 9\r\nhost: evil\r\nX-Sum: 8 \r\nSet-Cookie: a=b\r\n\
                             If-Match: x\r\nTRAILER: x\r\ngrpc-status: 0\r\n\r\n";

    #[test]
    fn what_frames_or_routes_a_message_does_not_go_on() {
        let mut out = Vec::new();
        write(SECTION, &mut out);
        assert_eq!(out, b"X-Sum: 7\r\nX-Sum: 8\r\ngrpc-status: 0\r\n\r\n");
        let trailers = read(SECTION);
        assert_eq!(trailers.len(), 3);
        assert_eq!(cleaned(trailers.clone()), trailers);
        let mut more = trailers.clone();
        more.append("transfer-encoding", HeaderValue::from_static("chunked"));
        assert_eq!(cleaned(more), trailers);
    }

    #[test]
    fn no_trailers_are_an_empty_line() {
        let mut out = Vec::new();
        write(b"\r\n", &mut out);
        assert_eq!(out, b"\r\n");
        assert!(read(b"\r\n").is_empty());
    }
}
