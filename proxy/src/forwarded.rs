//! What an app is told about the client: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Request-Id`.
//! What clients claim about themselves is replaced, unless they are trusted proxies; `head` drops the
//! rest of it.
//!
//! All of it is ready-made per connection ([`Client`]): a request costs no formatting, and its
//! headers share the bytes.

use crate::asker::Headers;
use crate::host::Asked;
use beanpole_daemon::clock;
pub use beanpole_protocol::Network;
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
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// The header that names a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a client (as `protocol::RequestId`, plus `_`, `.` and `:`).
const LONGEST_ID: usize = 64;
/// How long the lines are that tell of a client, usually, in bytes.
const LINES: usize = 192;
/// How many headers [`Client::introduce`] may add.
const ADDED: usize = 6;
/// Up to how many headers of a request are moved into a map that has the others already. More would
/// make that map grow: then the others are added to theirs.
const FEW: usize = 4;

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

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
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
        let asked = Asked::read(head, |host| self.forwarded(host))?;
        Ok(last.insert(self.completed(asked)).clone())
    }

    /// What a request asks for whose only `Host` is `host`.
    pub fn asks_for(&self, host: &[u8]) -> Result<Arc<Asked>, &'static str> {
        let mut last = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = &*last
            && asked.host.as_bytes() == host
            && !host.is_empty()
        {
            return Ok(asked.clone());
        }
        let host = std::str::from_utf8(host)
            .ok()
            .filter(|host| !host.is_empty());
        let host = host.ok_or("It has no Host header, or an empty one.")?;
        let asked = Asked::of(host, |host| self.forwarded(host))?;
        Ok(last.insert(self.completed(asked)).clone())
    }

    fn completed(&self, mut asked: Asked) -> Arc<Asked> {
        let all = [
            (FOR, &self.text),
            (header::FORWARDED, &asked.forwarded),
            (PROTO, &self.proto),
            (HOST, &asked.host),
            (PORT, &self.port),
        ];
        let mut lines = Vec::with_capacity(LINES);
        for (name, value) in all {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        asked.lines = lines.into();
        Arc::new(asked)
    }

    /// All that the app is told with a request for `asked`, if that is the same for all.
    fn told<'a>(&self, asked: &'a Asked) -> Option<&'a HeaderMap> {
        (!self.trusted).then(|| {
            asked.told.get_or_init(|| {
                let mut told = HeaderMap::with_capacity(ADDED + 1);
                told.insert(header::HOST, asked.host.clone());
                self.tell(&mut told, &asked.host, &asked.forwarded);
                told.insert(REQUEST_ID, HeaderValue::from_static("-"));
                // A copy has no room to spare: there is one for each connection.
                told.clone()
            })
        })
    }

    /// Tells the app about the client, and the request's id.
    pub fn introduce(&self, headers: &mut HeaderMap, asked: &Asked, id: &HeaderValue) {
        if headers.len() <= FEW
            && headers.get(header::HOST) == Some(&asked.host)
            && let Some(told) = self.told(asked)
        {
            let sent = std::mem::replace(headers, told.clone());
            let mut name = None;
            for (next, value) in sent {
                // Without a name it is one more value of the last.
                if let Some(next) = next {
                    name = (!told.contains_key(&next)).then_some(next);
                }
                if let Some(name) = &name {
                    headers.append(name.clone(), value);
                }
            }
        } else {
            headers.reserve(ADDED);
            self.tell(headers, &asked.host, &asked.forwarded);
        }
        headers.insert(REQUEST_ID, id.clone());
    }

    fn tell(&self, headers: &mut HeaderMap, host: &HeaderValue, forwarded: &HeaderValue) {
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

    /// Whether it came over TLS.
    pub fn is_tls(&self) -> bool {
        self.proto == "https"
    }

    /// Whether a request with these headers came over TLS, here or to a proxy in front whose claims are believed.
    pub fn came_securely(&self, headers: Headers<'_>) -> bool {
        let told = self.trusted.then(|| headers.get(PROTO.as_str())).flatten();
        told.map_or(self.is_tls(), |proto| proto.eq_ignore_ascii_case(b"https"))
    }

    /// Whether its claims are believed.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Whether a request that has headers with these names is from somebody on this machine, and not
    /// carried by a proxy on it.
    pub fn is_here(&self, has: impl Fn(&HeaderName) -> bool) -> bool {
        let carried = [FOR, header::FORWARDED, header::VIA, REAL_IP];
        self.address.is_loopback() && !self.trusted && !carried.iter().any(has)
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

/// The client's request id if it is sane, else a new one in the shape of a UUID.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(given) if is_sane(given.as_bytes()) => given.clone(),
        _ => new_id(),
    }
}

/// A new request id.
pub fn new_id() -> HeaderValue {
    let bits = next_id();
    let [a, b, c, d] = [96, 64, 32, 0].map(|shift| digits((bits >> shift) as u32));
    let mut text = [b'-'; 36];
    text[..8].copy_from_slice(&a);
    text[9..13].copy_from_slice(&b[..4]);
    text[14..18].copy_from_slice(&b[4..]);
    text[19..23].copy_from_slice(&c[..4]);
    text[24..28].copy_from_slice(&c[4..]);
    text[28..].copy_from_slice(&d);
    // Copies of an owner share its only allocation.
    HeaderValue::from_maybe_shared(Bytes::from_owner(text)).unwrap_or(HeaderValue::from_static("-"))
}

/// Eight hexadecimal digits, all at once.
pub fn digits(number: u32) -> [u8; 8] {
    let number = u64::from(number);
    let pairs = ((number << 16) | number) & 0x0000_ffff_0000_ffff;
    let bytes = ((pairs << 8) | pairs) & 0x00ff_00ff_00ff_00ff;
    let nibbles = ((bytes << 4) | bytes) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((nibbles + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    let letter_offset = u64::from(b'a' - b'0' - 10);
    (nibbles + 0x3030_3030_3030_3030 + letters * letter_offset).to_be_bytes()
}

/// Random bits: cheap, and no secret.
pub fn random() -> u64 {
    (next_id() >> 64) as u64
}

/// A number that no other request has. Ids are no secrets: a thread draws its beginning at random
/// and goes on from there in steps that touch all bits (Weyl's sequence, mixed as in MurmurHash). Either half looks
/// random by itself: samplers of traces look at the last bytes (Trace Context of the W3C, level 2, section 5.1).
pub fn next_id() -> u128 {
    thread_local! {
        static STATE: Cell<(u64, u64)> = {
            let bits = clock::random_bits();
            Cell::new((bits as u64, (bits >> 64) as u64))
        };
    }
    let (apart, count) = STATE.get();
    let count = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set((apart, count));
    let (high, low) = (mixed(count), mixed(count.wrapping_add(apart)));
    (u128::from(high) << 64) | u128::from(low)
}

fn mixed(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// Whether a request id of a client is taken over.
pub fn is_sane(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Seen;
    use http::Version;

    #[test]
    fn a_network_is_an_address_or_has_its_bits() {
        let read = |text: &str| text.parse::<Network>().map(|network| network.to_string());
        assert_eq!(read("10.0.0.0/8").as_deref(), Ok("10.0.0.0/8"));
        assert_eq!(read("10.0.0.7").as_deref(), Ok("10.0.0.7/32"));
        assert_eq!(read("fd00::/8").as_deref(), Ok("fd00::/8"));
        for wrong in ["10.0.0.0/33", "10.0.0", "a/8", "10.0.0.0/-1", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

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
        let asked = asked.unwrap_or_else(|why| panic!("{why}"));
        client.introduce(headers, &asked, &HeaderValue::from_static("id"));
    }

    fn told(trusted: bool, claimed: &[(&'static str, &'static str)]) -> HeaderMap {
        let client = Client::new(IpAddr::from([192, 0, 2, 7]), 8443, true, trusted);
        let mut headers = headers(claimed);
        let seen = Seen::look(&headers, Version::HTTP_11, trusted);
        seen.unwrap_or_else(|why| panic!("{why}"))
            .clean(&mut headers);
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
        assert_eq!(told.len(), 6, "{told:?}");
    }

    #[test]
    fn what_is_told_does_not_depend_on_how_many_headers_there_are() {
        let client = Client::new(IpAddr::from([192, 0, 2, 7]), 80, false, false);
        let sent = [
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-request-id", "theirs"),
            ("x-b", "3"),
            ("x-c", "4"),
            ("x-d", "5"),
        ];
        for count in 0..=sent.len() {
            let mut told = headers(&sent[..count]);
            told.insert(header::HOST, HeaderValue::from_static("a.localhost"));
            introduced(&client, "a.localhost", &mut told);
            assert_eq!(told[header::HOST], "a.localhost");
            assert_eq!(told[REQUEST_ID], "id");
            assert_eq!(told[FOR], "192.0.2.7");
            assert_eq!(told[PROTO], "http");
            assert_eq!(told[PORT], "80");
            assert_eq!(told[HOST], "a.localhost");
            assert!(told.contains_key(header::FORWARDED));
            let others = sent[..count].iter().filter(|(name, _)| name.len() == 3);
            assert_eq!(told.len(), 7 + others.count(), "{told:?}");
            let repeated: Vec<_> = told.get_all("x-a").iter().collect();
            assert_eq!(repeated, ["1", "2"][..count.min(2)]);
        }
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
            assert_eq!(told.len(), 6, "{told:?}");
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
        assert_eq!(digits(0x0189_abef), *b"0189abef");
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
