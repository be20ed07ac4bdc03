//! What an app is told about the client: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Request-Id`.
//! What clients claim about themselves is replaced or dropped, unless they are trusted proxies.
//!
//! All of it is ready-made per connection ([`Client`]): a request costs no formatting, and its
//! headers share the bytes.

use crate::host::Asked;
use beanpole_daemon::clock;
use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// The header that names a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a client (as `protocol::RequestId`, plus `_`, `.` and `:`).
const LONGEST_ID: usize = 64;
/// How many headers [`Client::introduce`] may add.
pub const ADDED: usize = 6;

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
pub struct Client {
    address: IpAddr,
    /// Whether it is a proxy whose claims are believed.
    trusted: bool,
    proto: HeaderValue,
    text: HeaderValue,
    port: HeaderValue,
    /// What it asked for last.
    asked: Mutex<Option<Arc<Asked>>>,
}

impl Client {
    /// A client at `address` that came to `port`.
    pub fn new(address: IpAddr, port: u16, tls: bool, trusted: bool) -> Self {
        Self {
            address,
            trusted,
            proto: HeaderValue::from_static(if tls { "https" } else { "http" }),
            text: shared(address.to_string()),
            port: shared(port.to_string()),
            asked: Mutex::default(),
        }
    }

    /// Its address, in words.
    pub fn text(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// What host `head` asks for; else what is wrong with it, as a sentence for people.
    pub fn asks(&self, head: &Parts) -> Result<Arc<Asked>, &'static str> {
        let mut last = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = &*last
            && asked.is_for(head)
        {
            return Ok(asked.clone());
        }
        let asked = Arc::new(Asked::read(head, |host| self.forwarded(host))?);
        *last = Some(asked.clone());
        Ok(asked)
    }

    /// Tells the app about the client.
    pub fn introduce(&self, headers: &mut HeaderMap, asked: &Asked) {
        let (host, forwarded) = (&asked.host, &asked.forwarded);
        if self.trusted {
            append(headers, FOR, &self.text);
            append(headers, header::FORWARDED, forwarded);
            for (name, value) in [(PROTO, &self.proto), (HOST, host), (PORT, &self.port)] {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        } else {
            headers.insert(FOR, self.text.clone());
            headers.insert(header::FORWARDED, forwarded.clone());
            headers.insert(PROTO, self.proto.clone());
            headers.insert(HOST, host.clone());
            headers.insert(PORT, self.port.clone());
        }
    }

    /// Takes out of a request what would mislead an app.
    pub fn clean(&self, headers: &mut HeaderMap) {
        let mut found: Vec<HeaderName> = Vec::new();
        for name in headers.keys() {
            if misleads(name.as_str()) || (!self.trusted && claims(name.as_str())) {
                found.push(name.clone());
            }
        }
        for name in found {
            headers.remove(name);
        }
    }

    fn forwarded(&self, host: &str) -> HeaderValue {
        let by = match self.address {
            IpAddr::V4(address) => format!("for={address}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\""),
        };
        let proto = self.proto.to_str().unwrap_or_default();
        // A host has no quotes: it was looked at.
        shared(format!("{by};host=\"{host}\";proto={proto}"))
    }
}

/// A value whose copies share its bytes.
fn shared(text: String) -> HeaderValue {
    let bytes = Bytes::from_owner(text);
    HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static("unknown"))
}

/// All that was claimed, and then `value`, as one header.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut all = String::new();
    for claim in headers.get_all(&name) {
        if let Ok(claim) = claim.to_str() {
            all.push_str(claim);
            all.push_str(", ");
        }
    }
    all.push_str(value.to_str().unwrap_or_default());
    headers.insert(name, shared(all));
}

/// Headers that no client has a use for. CGI and its heirs (WSGI, PHP) make `HTTP_X_Y` of both
/// `X-Y` and `X_Y`, so that the latter could stand in for a header that was checked; and of `Proxy`
/// they make `HTTP_PROXY`, which many libraries send their own requests through (httpoxy).
fn misleads(name: &str) -> bool {
    name == "proxy" || name.as_bytes().contains(&b'_')
}

/// Headers by which proxies tell of the client. The ones that are set anyway are not among them.
fn claims(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            matches!(
                name,
                "x-real-ip" | "x-client-ip" | "x-cluster-client-ip" | "x-original-host"
            ) || (name.starts_with("x-forwarded-")
                && !matches!(&name[12..], "for" | "proto" | "host" | "port"))
        }
        Some(b't') => name == "true-client-ip",
        Some(b'c') => name == "cf-connecting-ip",
        Some(b'f') => name == "fastly-client-ip" || name == "front-end-https",
        _ => false,
    }
}

/// The client's request id if it is sane, else a new one in the shape of a UUID.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get(REQUEST_ID)
        && sane(given.as_bytes())
    {
        return given.clone();
    }
    let bits = next_id().to_be_bytes();
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (index, byte) in bits.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            place += 1;
        }
        text[place] = DIGITS[usize::from(byte >> 4)];
        text[place + 1] = DIGITS[usize::from(byte & 15)];
        place += 2;
    }
    let shared = Bytes::copy_from_slice(&text);
    HeaderValue::from_maybe_shared(shared).unwrap_or(HeaderValue::from_static("-"))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A number that no other request has. Ids are no secrets: a thread draws its beginning at random
/// and goes on from there in steps that touch all bits (Weyl's sequence, mixed as in MurmurHash).
fn next_id() -> u128 {
    thread_local! {
        static STATE: Cell<(u64, u64)> = {
            let bits = clock::random_bits();
            Cell::new((bits as u64, (bits >> 64) as u64))
        };
    }
    let (fixed, count) = STATE.get();
    let count = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set((fixed, count));
    let mut mixed = count;
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^= mixed >> 33;
    (u128::from(mixed) << 64) | u128::from(fixed)
}

fn sane(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn head(host: &'static str) -> Parts {
        let request = http::Request::get("/").header("host", host).body(());
        request.expect("a request").into_parts().0
    }

    fn introduced(client: &Client, host: &'static str, headers: &mut HeaderMap) {
        let asked = client.asks(&head(host));
        client.introduce(headers, &asked.unwrap_or_else(|why| panic!("{why}")));
    }

    fn told(trusted: bool, claimed: &[(&'static str, &'static str)]) -> HeaderMap {
        let client = Client::new(IpAddr::from([192, 0, 2, 7]), 8443, true, trusted);
        let mut headers = headers(claimed);
        client.clean(&mut headers);
        introduced(&client, "app.localhost:8443", &mut headers);
        headers
    }

    #[test]
    fn what_a_client_claims_is_replaced() {
        let told = told(
            false,
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("forwarded", "for=1.1.1.1"),
                ("x-forwarded-proto", "ftp"),
                ("x-real-ip", "1.1.1.1"),
                ("x-forwarded-prefix", "/admin"),
                ("x-forwarded-ssl", "on"),
                ("true-client-ip", "1.1.1.1"),
            ],
        );
        assert_eq!(told[FOR], "192.0.2.7");
        assert_eq!(told[PROTO], "https");
        assert_eq!(told[PORT], "8443");
        assert_eq!(told[HOST], "app.localhost:8443");
        assert_eq!(
            told[header::FORWARDED],
            "for=192.0.2.7;host=\"app.localhost:8443\";proto=https"
        );
        assert_eq!(told.len(), 5, "{told:?}");
    }

    #[test]
    fn what_a_trusted_proxy_claims_is_kept_and_added_to() {
        let told = told(
            true,
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-prefix", "/shop"),
            ],
        );
        assert_eq!(told[FOR], "1.1.1.1, 192.0.2.7");
        assert_eq!(told[PROTO], "http");
        assert_eq!(told["x-forwarded-prefix"], "/shop");
    }

    #[test]
    fn nobody_may_send_what_misleads() {
        for trusted in [false, true] {
            let told = told(trusted, &[("proxy", "1.1.1.1:80"), ("x_user", "root")]);
            assert_eq!(told.len(), 5, "{told:?}");
        }
    }

    #[test]
    fn a_client_is_told_with_the_host_of_each_request() {
        let client = Client::new(IpAddr::from([192, 0, 2, 7]), 80, false, false);
        for host in ["a.localhost", "b.localhost", "a.localhost"] {
            let mut headers = HeaderMap::new();
            introduced(&client, host, &mut headers);
            let forwarded = format!("for=192.0.2.7;host=\"{host}\";proto=http");
            assert_eq!(headers[header::FORWARDED], forwarded);
        }
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc-1")])), "abc-1");
        let made = request_id(&headers(&[("x-request-id", "a b")]));
        assert_eq!(made.len(), 36);
        assert_ne!(made, request_id(&headers(&[])));
        let dashes = |text: &HeaderValue| {
            let text = text.to_str().expect("text");
            [8, 13, 18, 23].map(|place| text.as_bytes()[place])
        };
        assert_eq!(dashes(&made), *b"----");
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
