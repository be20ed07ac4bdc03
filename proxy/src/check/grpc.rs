//! A check by gRPC: `grpc.health.v1.Health/Check` (grpc/grpc, doc/health-checking.md), over HTTP/2 without TLS.
//! Its two messages have one field each, which is read and written by hand.

use super::http2::{Connection, in_words, read};
use super::{Came, USER_AGENT};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a service says that is well.
pub const SERVING: u64 = 1;
/// How much of an answer is read, in bytes: it has seven.
const LONGEST_ANSWER: usize = 1024;

/// What a service says, by its number in `HealthCheckResponse.ServingStatus`.
pub fn serving(number: u64) -> &'static str {
    match number {
        0 => "UNKNOWN",
        SERVING => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "SOMETHING_ELSE",
    }
}

/// Asks for the health of `service`, or of the server as a whole where that is empty.
pub async fn ask(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
    limit: Duration,
) -> io::Result<Came> {
    let mut connection = Connection::open(stream, limit).await?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", format!("{}m", limit.as_millis()))
        .header("user-agent", USER_AGENT)
        .body(())
        .map_err(io::Error::other)?;
    let answer = connection.send(request, Some(question(service))).await?;
    let (head, mut body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Ok(Came::Http {
            status: head.status.as_u16(),
            body: Vec::new(),
        });
    }
    // An answer without a message says its status at once.
    if let Some(code) = status_of(&head.headers) {
        return Ok(Came::Grpc {
            code,
            serving: None,
        });
    }
    let message = read(&mut body, LONGEST_ANSWER).await?;
    let trailers = body.trailers().await.map_err(in_words)?;
    let Some(code) = trailers.as_ref().and_then(status_of) else {
        return Err(io::Error::other("an answer without a grpc-status"));
    };
    Ok(Came::Grpc {
        code,
        serving: said(&message),
    })
}

fn status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// `HealthCheckRequest { service }` behind its length.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.append(&mut message);
    framed.into()
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The first field of a `HealthCheckResponse`. One that is left out is 0.
fn said(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    // Nobody said that it may be compressed.
    if head[0] != 0 {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, number @ ..] => {
            let mut value = 0u64;
            for (at, byte) in number.iter().take(9).enumerate() {
                value |= u64::from(byte & 0x7f) << (7 * at);
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_its_service_and_an_answer_its_state() {
        assert_eq!(&*question(""), [0, 0, 0, 0, 0]);
        assert_eq!(
            &*question("a.B"),
            [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']
        );
        let long = "x".repeat(200);
        assert_eq!(question(&long)[5..8], [0x0a, 0xc8, 0x01]);
        assert_eq!(said(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(said(&[0, 0, 0, 0, 2, 8, 2]), Some(2));
        assert_eq!(said(&[0, 0, 0, 0, 0]), Some(0));
        for odd in [
            &[][..],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 1, 0x12],
        ] {
            assert_eq!(said(odd), None, "{odd:?}");
        }
    }
}
