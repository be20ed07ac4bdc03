//! Clients that a load balancer in front announces before it passes their bytes on, by the PROXY protocol, versions 1
//! and 2 (haproxy.org, proxy-protocol.txt).

use ppp::{HeaderResult, PartialResult, v1, v2};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest announcement that is read: an address with room for what else may stand in it.
const LONGEST: usize = 1_024;
/// How version 1 begins, and how long it is at most.
const BEGIN: &[u8] = b"PROXY ";
const LONGEST_LINE: usize = 107;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What was read of a connection's beginning.
pub struct Announced {
    /// The client; absent where the one in front speaks for itself, or does not say.
    pub client: Option<SocketAddr>,
    /// What came behind the announcement.
    pub rest: Vec<u8>,
}

/// Reads the announcement.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Announced> {
    let reading = async {
        let mut bytes = Vec::with_capacity(LONGEST);
        loop {
            if io.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if is_half_a_line(&bytes) {
                continue;
            }
            let found = HeaderResult::parse(&bytes);
            if found.is_complete() {
                let (length, client) = understood(&found)?;
                return Ok(Announced {
                    client,
                    rest: bytes.split_off(length),
                });
            }
            if bytes.len() >= LONGEST {
                return Err(bad("it has no end"));
            }
        }
    };
    let read = tokio::time::timeout(LIMIT, reading).await;
    read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether the line of version 1 has begun and is not over: half an address would be read as none.
fn is_half_a_line(bytes: &[u8]) -> bool {
    let begun = bytes.len().min(BEGIN.len());
    bytes[..begun] == BEGIN[..begun] && bytes.len() < LONGEST_LINE && !bytes.contains(&b'\n')
}

/// How long an announcement is, and of whom it is.
fn understood(found: &HeaderResult<'_>) -> io::Result<(usize, Option<SocketAddr>)> {
    match found {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(of) => Some((of.source_address, of.source_port).into()),
                v1::Addresses::Tcp6(of) => Some((of.source_address, of.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            Ok((header.header.len(), client))
        }
        HeaderResult::V2(Ok(header)) => {
            let client = match header.addresses {
                // Checks of its own.
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(of) => Some((of.source_address, of.source_port).into()),
                v2::Addresses::IPv6(of) => Some((of.source_address, of.source_port).into()),
                v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
            };
            Ok((header.len(), client))
        }
        HeaderResult::V1(Err(error)) => Err(bad(error)),
        HeaderResult::V2(Err(error)) => Err(bad(error)),
    }
}

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("no PROXY protocol: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(bytes: &[u8]) -> io::Result<(Option<String>, Vec<u8>)> {
        let mut bytes = bytes;
        let announced = read(&mut bytes).await?;
        let client = announced.client.map(|client| client.to_string());
        Ok((client, [announced.rest, bytes.to_vec()].concat()))
    }

    #[tokio::test]
    async fn a_client_is_announced_in_either_version() {
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\nGET / HTTP/1.1\r\n";
        let (client, rest) = heard(v1).await.expect("an announcement");
        assert_eq!(client.as_deref(), Some("192.0.2.7:4711"));
        assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        let v2 =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\0\x50rest";
        let (client, rest) = heard(v2).await.expect("an announcement");
        assert_eq!(client.as_deref(), Some("192.0.2.7:4711"));
        assert_eq!(rest, b"rest");
    }

    #[tokio::test]
    async fn an_announcement_may_come_in_pieces() {
        for whole in [
            &b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\nrest"[..],
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\nrest",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\0\x50rest",
        ] {
            for at in 1..whole.len() - 4 {
                let (first, second) = whole.split_at(at);
                let announced = read(&mut first.chain(second)).await;
                let announced = announced.unwrap_or_else(|why| panic!("{at}: {why}"));
                assert_eq!(announced.client.map(|client| client.port()), Some(4711));
                assert_eq!(announced.rest, b"rest", "{at}");
            }
        }
    }

    #[tokio::test]
    async fn who_speaks_for_itself_announces_nobody() {
        for own in [
            b"PROXY UNKNOWN\r\n".as_slice(),
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        ] {
            assert_eq!(
                heard(own).await.expect("an announcement"),
                (None, Vec::new())
            );
        }
    }

    #[tokio::test]
    async fn what_announces_nothing_is_refused() {
        for odd in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.7",
            b"PROXY TCP4 a b c d\r\n",
            &[b'\r'; 2_000],
        ] {
            assert!(heard(odd).await.is_err(), "{odd:?}");
        }
    }
}
