//! What an app is told about the client: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Request-Id`.
//! What clients claim about themselves is replaced, unless they are trusted proxies.

use beanpole_daemon::clock;
use http::{HeaderValue, header};
use pingora_error::Result;
use pingora_http::RequestHeader;
use std::fmt::{self, Write};
use std::net::IpAddr;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";
const PORT: &str = "x-forwarded-port";
const FORWARDED: &str = "forwarded";
/// Set by some proxies instead of `X-Forwarded-For`, and believed by some apps.
const REAL_IP: &str = "x-real-ip";
/// The header that names a request.
pub const REQUEST_ID: &str = "x-request-id";
/// Longest request id taken over from a client (as `protocol::RequestId`, plus `_`, `.` and `:`).
const LONGEST_ID: usize = 64;

/// A range of addresses: `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    pub address: IpAddr,
    /// How many leading bits count.
    pub bits: u8,
}

impl Network {
    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32u32.saturating_sub(u32::from(self.bits));
                let differing = u32::from(network) ^ u32::from(address);
                differing.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128u32.saturating_sub(u32::from(self.bits));
                let differing = u128::from(network) ^ u128::from(address);
                differing.checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A client, as the proxy sees it.
pub struct Client<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a proxy whose claims are believed.
    pub trusted: bool,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The port that it came to.
    pub port: u16,
    /// The host that it asked for, with the port as it was sent.
    pub host: &'a str,
}

/// Tells the app about the client.
pub fn apply(request: &mut RequestHeader, client: &Client<'_>) -> Result<()> {
    let proto = if client.tls { "https" } else { "http" };
    let mut text = Text::default();
    if client.trusted {
        for claim in request.headers.get_all(FOR) {
            if let Ok(claim) = claim.to_str() {
                let _ = write!(text, "{claim}, ");
            }
        }
    } else {
        request.remove_header(REAL_IP);
    }
    let _ = write!(text, "{}", client.address);
    if let Some(value) = text.value() {
        request.insert_header(FOR, value)?;
    }
    if !(client.trusted && request.headers.contains_key(PROTO)) {
        request.insert_header(PROTO, HeaderValue::from_static(proto))?;
    }
    if !(client.trusted && request.headers.contains_key(HOST))
        && let Ok(host) = HeaderValue::from_str(client.host)
    {
        request.insert_header(HOST, host)?;
    }
    if !(client.trusted && request.headers.contains_key(PORT)) {
        let port = match client.port {
            80 => HeaderValue::from_static("80"),
            443 => HeaderValue::from_static("443"),
            port => HeaderValue::from(port),
        };
        request.insert_header(PORT, port)?;
    }
    let mut text = Text::default();
    if client.trusted {
        for claim in request.headers.get_all(header::FORWARDED) {
            if let Ok(claim) = claim.to_str() {
                let _ = write!(text, "{claim}, ");
            }
        }
    }
    let _ = match client.address {
        IpAddr::V4(address) => write!(text, "for={address}"),
        IpAddr::V6(address) => write!(text, "for=\"[{address}]\""),
    };
    let host = client.host;
    if !host.contains(['"', '\\']) {
        let _ = write!(text, ";host=\"{host}\"");
    }
    let _ = write!(text, ";proto={proto}");
    if let Some(value) = text.value() {
        request.insert_header(FORWARDED, value)?;
    }
    Ok(())
}

/// The client's request id if it is sane, else a new one in the shape of a UUID.
pub fn request_id(request: &RequestHeader) -> HeaderValue {
    if let Some(given) = request.headers.get(REQUEST_ID)
        && sane(given.as_bytes())
    {
        return given.clone();
    }
    let bits = clock::random_bits();
    let mut text = [b'-'; 36];
    let mut digit = 0u32;
    for (place, byte) in text.iter_mut().enumerate() {
        if !matches!(place, 8 | 13 | 18 | 23) {
            *byte = b"0123456789abcdef"[(bits >> (digit * 4)) as usize & 15];
            digit += 1;
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

fn sane(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

/// Text built on the stack while it is short.
struct Text {
    short: [u8; 160],
    used: usize,
    long: String,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            short: [0; 160],
            used: 0,
            long: String::new(),
        }
    }
}

impl Text {
    fn value(&self) -> Option<HeaderValue> {
        if self.long.is_empty() {
            HeaderValue::from_bytes(&self.short[..self.used]).ok()
        } else {
            HeaderValue::from_str(&self.long).ok()
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.long.is_empty() {
            let end = self.used + text.len();
            if let Some(room) = self.short.get_mut(self.used..end) {
                room.copy_from_slice(text.as_bytes());
                self.used = end;
                return Ok(());
            }
            let so_far = String::from_utf8_lossy(&self.short[..self.used]);
            self.long.push_str(&so_far);
        }
        self.long.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("request");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("header");
        }
        request
    }

    fn client(trusted: bool) -> Client<'static> {
        Client {
            address: IpAddr::from([192, 0, 2, 7]),
            trusted,
            tls: true,
            port: 8443,
            host: "app.localhost:8443",
        }
    }

    #[test]
    fn what_a_client_claims_is_replaced() {
        let mut request = request(&[
            (FOR, "1.1.1.1"),
            (FORWARDED, "for=1.1.1.1"),
            (PROTO, "ftp"),
            (REAL_IP, "1.1.1.1"),
        ]);
        apply(&mut request, &client(false)).expect("apply");
        assert_eq!(request.headers[FOR], "192.0.2.7");
        assert_eq!(request.headers[PROTO], "https");
        assert_eq!(request.headers[PORT], "8443");
        assert_eq!(request.headers[HOST], "app.localhost:8443");
        assert_eq!(
            request.headers[FORWARDED],
            "for=192.0.2.7;host=\"app.localhost:8443\";proto=https"
        );
        assert!(!request.headers.contains_key(REAL_IP));
    }

    #[test]
    fn what_a_trusted_proxy_claims_is_kept_and_added_to() {
        let mut request = request(&[(FOR, "1.1.1.1"), (PROTO, "http")]);
        apply(&mut request, &client(true)).expect("apply");
        assert_eq!(request.headers[FOR], "1.1.1.1, 192.0.2.7");
        assert_eq!(request.headers[PROTO], "http");
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&request(&[(REQUEST_ID, "abc-1")])), "abc-1");
        let made = request_id(&request(&[(REQUEST_ID, "a b")]));
        assert_eq!(made.len(), 36);
        assert_ne!(made, request_id(&request(&[])));
    }

    #[test]
    fn networks_contain_their_addresses() {
        let ten = Network {
            address: IpAddr::from([10, 0, 0, 0]),
            bits: 8,
        };
        assert!(ten.contains(IpAddr::from([10, 200, 0, 1])));
        assert!(!ten.contains(IpAddr::from([11, 0, 0, 1])));
        let all = Network { bits: 0, ..ten };
        assert!(all.contains(IpAddr::from([1, 2, 3, 4])));
    }
}
