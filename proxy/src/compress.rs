//! Answers that are compressed on their way, where their environment wants that and their client takes it.
//!
//! What comes of an answer at a time is compressed and sent at once: nothing is held up for the sake of a better
//! ratio, and no more of an answer is in memory than came at a time, with what its encoding has to remember.

use crate::asker::Headers;
use beanpole_protocol::content::{Compression, Encoding};
use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderValue, Method, Version, header};
use pingora_http::{RequestHeader, ResponseHeader};
use std::io::{self, Write};

/// Levels at which a core compresses 50 MB of text a second or more.
const GZIP_LEVEL: u32 = 5;
const BROTLI_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 3;
/// How far back brotli and zstd look for what was there before, as a power of two of bytes. It is memory for each
/// answer that is under way.
const WINDOW: u32 = 18;
/// How much brotli gives at a time, in bytes.
const BROTLI_PIECE: usize = 4096;

/// What text is besides `text/*`, `*+json` and `*+xml`, and what shrinks like it.
const TYPES: [&str; 19] = [
    "application/ecmascript",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/jsonl",
    "application/toml",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-javascript",
    "application/x-ndjson",
    "application/x-yaml",
    "application/xml",
    "application/yaml",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "image/x-icon",
    "application/x-font-ttf",
];

/// Headers of an answer that speak of its very bytes, or have it stay as it is.
const BYTES_TOLD: [&str; 6] = [
    "content-encoding",
    "content-range",
    "content-digest",
    "repr-digest",
    "digest",
    "content-md5",
];

/// How a client likes something, in thousandths (RFC 9110, section 12.4.2).
type Weight = u32;

/// The encoding that a request asks for among `known`; none where it had better get the answer as it is.
pub fn asked_for(headers: Headers<'_>, known: &[Encoding]) -> Option<Encoding> {
    let mut of: [Option<Weight>; Encoding::ALL.len()] = [None; Encoding::ALL.len()];
    let (mut any, mut as_it_is) = (0, 0);
    headers.each(header::ACCEPT_ENCODING.as_str(), |value| {
        for word in value.split(|byte| *byte == b',') {
            let Ok(word) = std::str::from_utf8(word) else {
                continue;
            };
            let mut parts = word.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(weight_in).unwrap_or(1000);
            // The older name (RFC 9110, section 8.4.1.3).
            let name = name.strip_prefix("x-").unwrap_or(name);
            match (name, Encoding::named(name)) {
                ("*", _) => any = weight,
                (_, Some(encoding)) => of[encoding as usize] = Some(weight),
                (name, None) if name.eq_ignore_ascii_case("identity") => as_it_is = weight,
                _ => {}
            }
        }
    });
    let mut best: Option<(Encoding, Weight)> = None;
    for encoding in known {
        let weight = of[*encoding as usize].unwrap_or(any);
        if weight > best.map_or(0, |(_, best)| best) {
            best = Some((*encoding, weight));
        }
    }
    best.filter(|(_, weight)| *weight >= as_it_is)
        .map(|(encoding, _)| encoding)
}

/// What `q=0.5` says, where a parameter is one; 0 where it says nothing that can be read.
fn weight_in(parameter: &str) -> Option<Weight> {
    let value = parameter.strip_prefix(['q', 'Q'])?.trim_start();
    let value = value.strip_prefix('=')?.trim_start();
    let weight: f32 = value.parse().unwrap_or(0.0);
    Some((weight.clamp(0.0, 1.0) * 1000.0) as Weight)
}

/// Whether an answer is one that is compressed for those who take it.
fn may_be(status: u16, headers: Headers<'_>, wanted: &Compression) -> bool {
    if status < 200 || matches!(status, 204 | 205 | 206 | 304) {
        return false;
    }
    if BYTES_TOLD.iter().any(|name| headers.get(name).is_some()) {
        return false;
    }
    let length = headers.get(header::CONTENT_LENGTH.as_str());
    let length = length.and_then(|text| std::str::from_utf8(text).ok()?.trim().parse::<u64>().ok());
    if length.is_some_and(|length| length < wanted.min_bytes.max(1)) {
        return false;
    }
    let mut stays = false;
    headers.each(header::CACHE_CONTROL.as_str(), |value| {
        stays |= names(value, "no-transform");
    });
    let kind = headers.get(header::CONTENT_TYPE.as_str());
    !stays && kind.is_some_and(shrinks)
}

/// Whether what has this `Content-Type` is compressed. Events are not: each is for itself, and small.
fn shrinks(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next();
    let kind = kind.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let Ok(kind) = std::str::from_utf8(&kind) else {
        return false;
    };
    if kind == "text/event-stream" || kind.starts_with("application/grpc") {
        return false;
    }
    kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || TYPES.contains(&kind)
}

/// Whether a list of words has one, in any case.
fn names(list: &[u8], wanted: &str) -> bool {
    let mut words = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    words.any(|word| word.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Whether an answer says already that it depends on what encodings its client takes.
fn varies(headers: Headers<'_>) -> bool {
    let mut told = false;
    headers.each(header::VARY.as_str(), |value| {
        told |= names(value, header::ACCEPT_ENCODING.as_str()) || names(value, "*");
    });
    told
}

/// Whether an answer with these headers, that goes as it is, has to say that it would have been another for another
/// client (`Vary: Accept-Encoding`), and does not: caches would give it to everybody.
pub fn depends(headers: Headers<'_>, status: u16, wanted: &Compression) -> bool {
    may_be(status, headers, wanted) && !varies(headers)
}

/// Changes the head of an answer that is to be compressed, and gives what does it; none where it goes as it is.
pub fn begin(
    request: &RequestHeader,
    answer: &mut ResponseHeader,
    wanted: &Compression,
) -> Result<Option<Encoder>, Box<pingora_error::Error>> {
    let told = Headers::Map(&answer.headers);
    if !may_be(answer.status.as_u16(), told, wanted) {
        return Ok(None);
    }
    if !varies(told) {
        answer.append_header(header::VARY, "Accept-Encoding")?;
    }
    // Without chunks, only the end of the connection would tell the answer's.
    if request.method == Method::HEAD || request.version < Version::HTTP_11 {
        return Ok(None);
    }
    let Some(encoding) = asked_for(Headers::Map(&request.headers), &wanted.encodings) else {
        return Ok(None);
    };
    let Ok(encoder) = Encoder::new(encoding) else {
        return Ok(None);
    };
    answer.remove_header(&header::CONTENT_LENGTH);
    answer.remove_header(&header::ACCEPT_RANGES);
    answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    answer.insert_header(header::CONTENT_ENCODING, encoding.name())?;
    // The same content, and other bytes (RFC 9110, section 8.8.1).
    let strong = answer.headers.get(header::ETAG).map(HeaderValue::as_bytes);
    match strong {
        Some(tag) if tag.starts_with(b"\"") => {
            let weak = [b"W/", tag].concat();
            answer.insert_header(header::ETAG, weak)?;
        }
        Some(tag) if !tag.starts_with(b"W/") => {
            answer.remove_header(&header::ETAG);
        }
        _ => {}
    }
    Ok(Some(encoder))
}

/// An answer that is being compressed.
pub enum Encoder {
    /// As gzip.
    Gzip(GzEncoder<Vec<u8>>),
    /// As br; nothing once it is over.
    Br(Option<Box<CompressorWriter<Vec<u8>>>>),
    /// As zstd.
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        let out = Vec::new();
        Ok(match encoding {
            Encoding::Gzip => Self::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Encoding::Br => {
                let writer = CompressorWriter::new(out, BROTLI_PIECE, BROTLI_LEVEL, WINDOW);
                Self::Br(Some(Box::new(writer)))
            }
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.window_log(WINDOW)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    /// Takes the next piece of the answer, and gives what the client gets for it: all that it needs to know the
    /// piece, and at the `end` what ends it.
    pub fn take(&mut self, piece: &[u8], end: bool) -> io::Result<Bytes> {
        let out = match self {
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                if end {
                    encoder.try_finish()?;
                } else if !piece.is_empty() {
                    encoder.flush()?;
                }
                std::mem::take(encoder.get_mut())
            }
            Self::Br(over @ Some(_)) if end => {
                let mut encoder = over.take().ok_or(io::ErrorKind::BrokenPipe)?;
                encoder.write_all(piece)?;
                encoder.into_inner()
            }
            Self::Br(Some(encoder)) => {
                encoder.write_all(piece)?;
                if !piece.is_empty() {
                    encoder.flush()?;
                }
                std::mem::take(encoder.get_mut())
            }
            Self::Br(None) => Vec::new(),
            Self::Zstd(encoder) => {
                encoder.write_all(piece)?;
                if end {
                    encoder.do_finish()?;
                } else if !piece.is_empty() {
                    encoder.flush()?;
                }
                std::mem::take(encoder.get_mut())
            }
        };
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const ALL: [Encoding; 3] = Encoding::ALL;

    fn asked(accepts: &str, known: &[Encoding]) -> Option<&'static str> {
        let head = format!("GET / HTTP/1.1\r\n{accepts}\r\n\r\n");
        asked_for(Headers::Raw(head.as_bytes()), known).map(Encoding::name)
    }

    #[test]
    fn a_client_gets_what_it_likes_best_of_what_there_is() {
        for (accepts, wanted) in [
            ("X: y", None),
            ("Accept-Encoding:", None),
            ("Accept-Encoding: gzip, deflate, br, zstd", Some("zstd")),
            ("Accept-Encoding: GZIP", Some("gzip")),
            ("Accept-Encoding: x-gzip", Some("gzip")),
            ("Accept-Encoding: gzip;q=0.9, br; q=1.0", Some("br")),
            ("Accept-Encoding: gzip;q=0", None),
            ("Accept-Encoding: *", Some("zstd")),
            ("Accept-Encoding: zstd;q=0, *;q=0.1", Some("br")),
            ("Accept-Encoding: identity, gzip;q=0.5", None),
            ("Accept-Encoding: identity;q=0.5, gzip", Some("gzip")),
            ("Accept-Encoding: identity;q=0, gzip;q=0.1", Some("gzip")),
            ("Accept-Encoding: gzip;q=much", None),
            (
                "Accept-Encoding: deflate\r\nAccept-Encoding: br",
                Some("br"),
            ),
            ("Accept-Encoding: compress", None),
        ] {
            assert_eq!(asked(accepts, &ALL), wanted, "{accepts}");
        }
        let all = "Accept-Encoding: gzip, br, zstd";
        assert_eq!(asked(all, &[Encoding::Gzip, Encoding::Br]), Some("gzip"));
        assert_eq!(asked("Accept-Encoding: zstd", &[Encoding::Br]), None);
    }

    #[test]
    fn only_text_that_may_be_changed_is() {
        let wanted = Compression {
            encodings: ALL.to_vec(),
            min_bytes: 100,
        };
        let may = |status, head: &str| {
            let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            may_be(status, Headers::Raw(head.as_bytes()), &wanted)
        };
        for kind in [
            "text/html; charset=utf-8",
            "application/JSON",
            "application/problem+json",
            "image/svg+xml",
            "application/wasm",
        ] {
            assert!(may(200, &format!("Content-Type: {kind}")), "{kind}");
        }
        let html = "Content-Type: text/html";
        assert!(may(404, html) && may(500, html));
        for status in [101, 204, 206, 304] {
            assert!(!may(status, html), "{status}");
        }
        assert!(may(200, &format!("{html}\r\nContent-Length: 100")));
        for stays in [
            "X: y".to_owned(),
            "Content-Type: image/png".to_owned(),
            "Content-Type: text/event-stream".to_owned(),
            "Content-Type: application/grpc-web+json".to_owned(),
            format!("{html}\r\nContent-Length: 99"),
            format!("{html}\r\nContent-Length: 0"),
            format!("{html}\r\nContent-Encoding: gzip"),
            format!("{html}\r\nContent-Range: bytes 0-1/2"),
            format!("{html}\r\nCache-Control: public, No-Transform"),
            format!("{html}\r\nRepr-Digest: sha-256=:x:"),
        ] {
            assert!(!may(200, &stays), "{stays}");
        }
    }

    #[test]
    fn caches_are_warned_once() {
        let wanted = Compression {
            encodings: ALL.to_vec(),
            min_bytes: 0,
        };
        let head = |more: &str| format!("HTTP/1.1 200 OK\r\n{more}\r\n\r\n");
        let warned = |more: &str| depends(Headers::Raw(head(more).as_bytes()), 200, &wanted);
        assert!(warned("Content-Type: text/css"));
        assert!(warned("Content-Type: text/css\r\nVary: Cookie"));
        assert!(!warned("Content-Type: image/png"));
        assert!(!warned(
            "Content-Type: text/css\r\nVary: Cookie, Accept-Encoding"
        ));
        assert!(!warned("Content-Type: text/css\r\nVary: *"));
    }

    fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // What is not over yet ends in an error, after all that was there.
        let _ = match encoding {
            Encoding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
            Encoding::Br => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
            Encoding::Zstd => zstd::stream::read::Decoder::new(bytes)
                .and_then(|mut decoder| decoder.read_to_end(&mut out)),
        };
        out
    }

    #[test]
    fn each_piece_can_be_read_before_the_next_one_comes() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding).expect("an encoder");
            let (mut sent, mut read) = (Vec::new(), Vec::new());
            for number in 0..50 {
                let piece = format!("piece {number} of them all, ").repeat(number);
                sent.extend_from_slice(piece.as_bytes());
                read.extend_from_slice(&encoder.take(piece.as_bytes(), false).expect("taken"));
                assert_eq!(decoded(encoding, &read), sent, "{encoding:?} {number}");
            }
            assert!(encoder.take(b"", false).expect("nothing").is_empty());
            read.extend_from_slice(&encoder.take(b"the end", true).expect("taken"));
            sent.extend_from_slice(b"the end");
            assert_eq!(decoded(encoding, &read), sent);
            assert!(read.len() < sent.len() / 5, "{encoding:?}");
        }
    }
}
