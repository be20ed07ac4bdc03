//! Announcing clients to applications that expect it, by the PROXY protocol, versions 1 and 2 (haproxy.org,
//! proxy-protocol.txt). What a proxy in front announces to us is read in `announced`.

use crate::fault;
use async_trait::async_trait;
use beanpole_protocol::proxy::ProxyProtocol;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, Result};
use ppp::{v1, v2};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Where a client's connection begins and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// Here.
    pub destination: SocketAddr,
}

/// What a connection begins with; without a client, that it is our own.
pub fn preface(version: ProxyProtocol, ends: Option<Ends>) -> io::Result<Vec<u8>> {
    let ends = ends.map(|ends| alike(ends.source, ends.destination));
    match (version, ends) {
        (ProxyProtocol::V1, None) => Ok(v1::Addresses::Unknown.to_string().into_bytes()),
        (ProxyProtocol::V1, Some(ends)) => Ok(v1::Addresses::from(ends).to_string().into_bytes()),
        (ProxyProtocol::V2, None) => {
            let family = v2::AddressFamily::Unspecified | v2::Protocol::Unspecified;
            v2::Builder::new(v2::Version::Two | v2::Command::Local, family).build()
        }
        (ProxyProtocol::V2, Some(ends)) => {
            let command = v2::Version::Two | v2::Command::Proxy;
            v2::Builder::with_addresses(command, v2::Protocol::Stream, ends).build()
        }
    }
}

/// Both of one family: an announcement has no room for two.
fn alike(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (plain(source), plain(destination));
    let mapped = |address: SocketAddr| match address {
        SocketAddr::V4(address) => {
            SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port())
        }
        SocketAddr::V6(_) => address,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (mapped(source), mapped(destination))
    }
}

/// Has connections to a target begin with the announcement of one client, and used for nobody else.
pub fn announce(
    peer: &mut HttpPeer,
    target: u64,
    version: ProxyProtocol,
    ends: Option<Ends>,
) -> io::Result<()> {
    // Nobody can choose an address so that its connections are taken for another client's.
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    peer.group_key = KEYS.hash_one((target, ends));
    peer.options.custom_l4 = Some(Arc::new(Announcing(preface(version, ends)?)));
    Ok(())
}

#[derive(Debug)]
struct Announcing(Vec<u8>);

#[async_trait]
impl L4Connect for Announcing {
    async fn connect(&self, address: &PeerAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "targets have addresses");
        };
        let made = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&self.0).await?;
            Ok::<_, io::Error>(stream)
        };
        made.await.map(Stream::from).map_err(|error| {
            let kind = match error.kind() {
                _ if fault::is_ours(&error) => ErrorType::InternalError,
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    ErrorType::ConnectNoRoute
                }
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "while a client was announced", error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announced;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    #[tokio::test]
    async fn what_is_announced_is_what_is_read() {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            for (source, destination, heard) in [
                ("192.0.2.7:4711", "198.51.100.1:80", "192.0.2.7:4711"),
                (
                    "[2001:db8::7]:4711",
                    "[2001:db8::1]:80",
                    "[2001:db8::7]:4711",
                ),
                (
                    "[::ffff:192.0.2.7]:4711",
                    "[::ffff:198.51.100.1]:80",
                    "192.0.2.7:4711",
                ),
                (
                    "192.0.2.7:4711",
                    "[2001:db8::1]:80",
                    "[::ffff:192.0.2.7]:4711",
                ),
            ] {
                let preface = preface(version, Some(ends(source, destination))).expect("one");
                let read = announced::read(&mut &*preface)
                    .await
                    .expect("an announcement");
                assert_eq!(read.client, Some(heard.parse().expect("an address")));
                assert!(read.rest.is_empty());
            }
            let own = preface(version, None).expect("one");
            let read = announced::read(&mut &*own).await.expect("an announcement");
            assert_eq!(read.client, None);
        }
        let line = preface(ProxyProtocol::V1, None).expect("one");
        assert_eq!(line, b"PROXY UNKNOWN\r\n");
    }
}
