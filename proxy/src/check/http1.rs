//! A check over HTTP/1.1, and its answer as far as it is looked at.

use super::{Asks, Came};
use beanpole_protocol::proxy::{MATCHED_BODY, NOT_HTTP};
use std::fmt::Write;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
/// Most headers of an answer.
const MOST_HEADERS: usize = 256;
/// How much of an answer's body is read, so that the app sees its answer taken and no reset.
const TAKEN_BODY: usize = 64 * 1024;
/// How long that may take.
const TAKING_TIME: Duration = Duration::from_millis(250);
/// How many bytes the chunks may take of a body that is looked at: no more are read.
const LONGEST_CHUNKED: usize = 4 * MATCHED_BODY;

/// The head of an answer.
struct Head {
    status: u16,
    ends: Ends,
}

/// Where a body ends (RFC 9112, section 6.3).
enum Ends {
    After(usize),
    Chunked,
    WithTheConnection,
}

/// Asks, and reads the answer.
pub async fn ask<F: Fn(u16) -> bool>(
    mut stream: TcpStream,
    asks: &Asks<'_, F>,
) -> io::Result<Came> {
    stream.write_all(request(asks).as_bytes()).await?;
    let mut bytes = Vec::with_capacity(1024);
    let Head { status, ends } = loop {
        if let Some(head) = head_of(&mut bytes)? {
            break head;
        }
        if bytes.len() > LONGEST_HEAD {
            return Err(io::Error::other(NOT_HTTP));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let body = if (asks.body_of)(status) {
        body_of(&mut stream, bytes, &ends).await?
    } else {
        Vec::new()
    };
    // The answer is known; one that goes on, or keeps the connection open, holds nobody up.
    let rest = async move {
        let mut sink = [0u8; 4096];
        let mut taken = 0;
        while taken < TAKEN_BODY {
            match stream.read(&mut sink).await {
                Ok(count) if count > 0 => taken += count,
                _ => break,
            }
        }
    };
    tokio::spawn(timeout(TAKING_TIME, rest));
    Ok(Came::Http { status, body })
}

fn request<F>(asks: &Asks<'_, F>) -> String {
    let mut request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", asks.path, asks.host());
    for (name, value) in asks.all_headers() {
        // Writing to memory does not fail.
        let _ = write!(request, "{}: {value}\r\n", spelled(name));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

/// A name as it is commonly spelled: `User-Agent`. Small apps may know no other.
fn spelled(name: &str) -> String {
    let mut begins = true;
    let spell = |letter: char| {
        let spelled = if begins {
            letter.to_ascii_uppercase()
        } else {
            letter
        };
        begins = letter == '-';
        spelled
    };
    name.chars().map(spell).collect()
}

/// The first final answer in `bytes`, once its head is whole: one that never ends answers no request either.
/// Heads are dropped from `bytes`, interim ones (1xx) too.
fn head_of(bytes: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        // As lenient as with the answers to requests.
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        parser.allow_obsolete_multiline_headers_in_responses(true);
        let end = match parser.parse_response(&mut answer, bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(io::Error::other(NOT_HTTP)),
        };
        let head = answer.code.map(|status| Head {
            status,
            ends: ends(&answer),
        });
        drop(bytes.drain(..end));
        match head {
            Some(head) if (100..200).contains(&head.status) => {}
            head => return Ok(head),
        }
    }
}

fn ends(answer: &httparse::Response<'_, '_>) -> Ends {
    let value = |name: &str| {
        let mut headers = answer.headers.iter();
        let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    if value("transfer-encoding").is_some() {
        return Ends::Chunked;
    }
    let length = value("content-length").and_then(|length| length.trim().parse().ok());
    length.map_or(Ends::WithTheConnection, Ends::After)
}

/// The body that begins with `bytes`, as far as [`MATCHED_BODY`].
async fn body_of(stream: &mut TcpStream, mut bytes: Vec<u8>, ends: &Ends) -> io::Result<Vec<u8>> {
    loop {
        let over = match ends {
            Ends::After(length) => bytes.len() >= (*length).min(MATCHED_BODY),
            Ends::WithTheConnection => bytes.len() >= MATCHED_BODY,
            Ends::Chunked => {
                let (body, over) = unchunked(&bytes)?;
                if over || body.len() >= MATCHED_BODY || bytes.len() > LONGEST_CHUNKED {
                    return Ok(body);
                }
                false
            }
        };
        if over || (stream.read_buf(&mut bytes).await? == 0 && ended(ends)?) {
            let most = match ends {
                Ends::After(length) => (*length).min(MATCHED_BODY),
                _ => MATCHED_BODY,
            };
            bytes.truncate(most);
            return Ok(bytes);
        }
    }
}

/// Whether a body that ends with its connection is whole.
fn ended(ends: &Ends) -> io::Result<bool> {
    match ends {
        Ends::WithTheConnection => Ok(true),
        Ends::After(_) | Ends::Chunked => Err(io::Error::other(
            "connection closed in the middle of the answer",
        )),
    }
}

/// What is in the chunks that have come, and whether the last one has.
fn unchunked(mut bytes: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(bytes);
        let (start, size) = match size {
            Ok(httparse::Status::Complete((start, size))) => (start, size),
            Ok(httparse::Status::Partial) => return Ok((body, false)),
            Err(_) => return Err(io::Error::other(NOT_HTTP)),
        };
        if size == 0 {
            return Ok((body, true));
        }
        let rest = &bytes[start..];
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        body.extend_from_slice(&rest[..rest.len().min(size)]);
        match rest.get(size..) {
            Some([b'\r', b'\n', next @ ..]) => bytes = next,
            Some(after) if after.len() >= 2 => return Err(io::Error::other(NOT_HTTP)),
            _ => return Ok((body, false)),
        }
    }
}
