//! Ports for daemons that have to be told one before they listen, and have to find it again after a restart.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

/// Below those of instances, and below those that the kernel gives to whoever asks for any: one of these may go
/// to an outgoing connection between two looks at it (`ip_local_port_range` of ip(7)).
const PORTS: Range<u16> = 10_000..20_000;

/// A TCP address that no other test gets as long as this lives.
pub struct Reserved {
    /// The address.
    pub address: SocketAddr,
    /// The same port for UDP, which nothing here serves: holding it is the reservation.
    _held: UdpSocket,
}

/// Reserves an address of this machine on which nobody listens.
///
/// # Panics
/// When there is none.
pub fn reserve() -> Reserved {
    let count = PORTS.end - PORTS.start;
    let first = u16::try_from(RandomState::new().hash_one(()) % u64::from(count)).unwrap_or(0);
    let mut tried = (0..count).map(|step| PORTS.start + (first + step) % count);
    tried
        .find_map(|port| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let held = UdpSocket::bind(address).ok()?;
            TcpListener::bind(address).ok()?;
            Some(Reserved {
                address,
                _held: held,
            })
        })
        .expect("this machine has a free port")
}
