//! The API's certificate of the controller's own making, and by what names clients reach it.

use crate::{ControllerConfig, ControllerError};
use beanpole_daemon::files;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

/// Where the certificate of our own making is, in the controller's data directory.
const CERTIFICATE: &str = "api-cert.pem";
const KEY: &str = "api-key.pem";
/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so that the way there is that to
/// the world.
const ELSEWHERE_V4: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
const ELSEWHERE_V6: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9);

/// The certificate that clients have to trust where the controller makes its own, for a data directory.
pub fn self_signed_certificate(data: &Path) -> PathBuf {
    data.join("controller").join(CERTIFICATE)
}

/// Where other machines reach an API that listens at `api`: for one that listens everywhere, the address
/// by which this machine reaches others.
pub fn reached_at(api: SocketAddr) -> SocketAddr {
    let mut reached = api;
    if api.ip().is_unspecified()
        && let Some(ip) = outward(api.ip())
    {
        reached.set_ip(ip);
    }
    reached
}

/// This machine's address on the way to the world. Nothing is sent.
fn outward(kind: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((kind, 0)).ok()?;
    match kind {
        IpAddr::V4(_) => socket.connect(ELSEWHERE_V4),
        // One that listens everywhere takes IPv4 too.
        IpAddr::V6(_) => match socket.connect(ELSEWHERE_V6) {
            Err(_) => return outward(Ipv4Addr::UNSPECIFIED.into()),
            connected => connected,
        },
    }
    .ok()?;
    socket.local_addr().ok().map(|own| own.ip())
}

/// A certificate of our own making for this machine's names, made at the first start, and its key.
pub(crate) fn self_signed(
    config: &ControllerConfig,
) -> Result<(PathBuf, PathBuf), ControllerError> {
    let cert = config.directory().join(CERTIFICATE);
    let key = config.directory().join(KEY);
    let made = !(cert.exists() && key.exists());
    if made {
        make(&names(config.api.ip()), &cert, &key)?;
    }
    tracing::info!(
        made,
        "clients trust the API's own certificate by a copy of it: beanpole --url https://{} --ca {}",
        reached_at(config.api),
        cert.display()
    );
    Ok((cert, key))
}

fn make(names: &[String], cert: &Path, key: &Path) -> Result<(), ControllerError> {
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| ControllerError::Tls(error.to_string()))?;
    for (path, text, mode) in [
        (key, made.signing_key.serialize_pem(), 0o600),
        (cert, made.cert.pem(), 0o644),
    ] {
        files::write_atomically(path, text.as_bytes(), mode).map_err(|source| {
            ControllerError::File {
                path: path.to_owned(),
                source,
            }
        })?;
    }
    Ok(())
}

/// The names and addresses by which clients may call an API that listens at `api`.
fn names(api: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
    let mut add = |name: String| {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    };
    add(api.to_string());
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hostname = read("/proc/sys/kernel/hostname");
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    if hostname.trim().bytes().all(sane) {
        add(hostname.trim().to_owned());
    }
    if api.is_unspecified() {
        for ip in v4_addresses(&read("/proc/net/fib_trie")) {
            add(ip.to_string());
        }
        for ip in v6_addresses(&read("/proc/net/if_inet6")) {
            add(ip.to_string());
        }
    }
    names
}

/// This machine's own IPv4 addresses, by the kernel's table of routes.
fn v4_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found.sort();
    found.dedup();
    found
}

/// This machine's own IPv6 addresses that mean the same on every link, by the kernel's list.
fn v6_addresses(list: &str) -> Vec<Ipv6Addr> {
    list.lines()
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(Ipv6Addr::from_bits)
        .filter(|ip| !ip.is_unicast_link_local())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Local:
  +-- 10.99.0.0/16 2 0 2
     |-- 10.99.0.0
        /16 link UNICAST
     |-- 10.99.0.7
        /32 host LOCAL
     |-- 10.99.255.255
        /32 link BROADCAST
  +-- 127.0.0.0/8 2 0 2
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
";

    #[test]
    fn the_machines_own_addresses_are_found() {
        let own = [Ipv4Addr::new(10, 99, 0, 7), Ipv4Addr::LOCALHOST];
        assert_eq!(v4_addresses(TABLE), own);
        let list = "fe800000000000000000000000000001 04 40 20 80 eth0\n\
                    fd000000000000000000000000000002 04 40 00 82 eth0\n";
        assert_eq!(
            v6_addresses(list),
            [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)]
        );
    }

    #[test]
    fn a_certificate_has_every_name_by_which_the_machine_is_reached() {
        let one = names(Ipv4Addr::new(10, 1, 2, 3).into());
        assert!(one.contains(&"10.1.2.3".to_owned()), "{one:?}");
        let every = names(Ipv4Addr::UNSPECIFIED.into());
        let reached = reached_at((Ipv4Addr::UNSPECIFIED, 7700).into());
        assert_eq!(reached.port(), 7700);
        assert!(every.contains(&reached.ip().to_string()), "{every:?}");
    }
}
