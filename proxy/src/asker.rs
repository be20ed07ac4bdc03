//! Who asks, and for what: what may decide who gets a request, whichever way that takes.

use crate::forwarded::{Client, Network};
use http::HeaderMap;
use http::header::COOKIE;
use std::net::IpAddr;

/// A request, as far as who gets it may depend on it. Nothing is read before it is asked for.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// Who sent it.
    pub client: &'a Client,
    /// Proxies whose word on their clients is taken.
    pub trusted: &'a [Network],
    /// Its path, without the query.
    pub path: &'a [u8],
    /// Its headers.
    pub headers: Headers<'a>,
}

/// Headers, read or not.
#[derive(Clone, Copy)]
pub enum Headers<'a> {
    /// As a map.
    Map(&'a HeaderMap),
    /// As the bytes of a head that can be parsed, and of what follows.
    Raw(&'a [u8]),
}

impl Asker<'_> {
    /// Its path as text; empty where it is none.
    pub fn text_of_path(&self) -> &str {
        std::str::from_utf8(self.path).unwrap_or_default()
    }

    /// Whether it came over TLS, here or to a trusted proxy in front.
    pub fn is_secure(&self) -> bool {
        self.client.came_securely(self.headers)
    }

    /// Where the client is: behind trusted proxies, where the last of them that is not trusted says.
    pub fn address(&self) -> IpAddr {
        let own = self.client.address();
        if !self.client.is_trusted() {
            return own;
        }
        let mut told = None;
        self.headers.each("x-forwarded-for", |value| {
            for word in value.split(|byte| *byte == b',') {
                let word = std::str::from_utf8(word.trim_ascii()).unwrap_or_default();
                match word.parse::<IpAddr>().map(|address| address.to_canonical()) {
                    Ok(address) if self.trusted.iter().any(|net| net.contains(address)) => {}
                    Ok(address) => told = Some(address),
                    // What is left of a word that says nothing may be anybody's.
                    Err(_) => told = None,
                }
            }
        });
        told.unwrap_or(own)
    }
}

impl<'a> Headers<'a> {
    /// The first value of a header; `name` in lower case.
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        let mut first = None;
        self.each(name, |value| first = first.or(Some(value)));
        first
    }

    /// The value of a cookie.
    pub fn cookie(self, name: &str) -> Option<&'a [u8]> {
        let mut found = None;
        self.each(COOKIE.as_str(), |value| {
            let mut pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            found = found.or_else(|| {
                pairs.find_map(|pair| {
                    let rest = pair.strip_prefix(name.as_bytes())?;
                    rest.strip_prefix(b"=")
                })
            });
        });
        found
    }

    /// Shows every value of a header, in their order; `name` in lower case.
    pub fn each(self, name: &str, mut show: impl FnMut(&'a [u8])) {
        match self {
            Self::Map(map) => {
                for value in map.get_all(name) {
                    show(value.as_bytes());
                }
            }
            Self::Raw(bytes) => {
                let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                // What follows the empty line is the body.
                for line in lines.take_while(|line| !line.is_empty()) {
                    let Some((named, value)) = line.split_at_checked(name.len()) else {
                        continue;
                    };
                    if let [b':', value @ ..] = value
                        && named.eq_ignore_ascii_case(name.as_bytes())
                    {
                        show(value.trim_ascii());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const RAW: &[u8] =
        b"GET /x: HTTP/1.1\r\nHost: a\r\nX-A:  1 \r\nx-a: 2\r\nCookie: a=b; session=s1;c\r\n\
                         cookie: session=s2\r\n\r\nx-b: body";

    fn map() -> HeaderMap {
        let pairs = [
            ("host", "a"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("cookie", "a=b; session=s1;c"),
            ("cookie", "session=s2"),
        ];
        let pairs = pairs.map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        pairs.into_iter().collect()
    }

    #[test]
    fn headers_say_the_same_read_or_not() {
        let map = map();
        for headers in [Headers::Map(&map), Headers::Raw(RAW)] {
            assert_eq!(headers.get("x-a"), Some(&b"1"[..]));
            assert_eq!(headers.get("host"), Some(&b"a"[..]));
            assert_eq!(headers.get("x-b"), None, "it is in the body");
            assert_eq!(headers.get("x"), None);
            assert_eq!(headers.cookie("session"), Some(&b"s1"[..]));
            assert_eq!(headers.cookie("a"), Some(&b"b"[..]));
            assert_eq!(headers.cookie("c"), None);
        }
    }

    #[test]
    fn only_trusted_proxies_say_where_a_client_is() {
        let trusted = [Network {
            address: IpAddr::from([10, 0, 0, 0]),
            bits: 8,
        }];
        let raw = b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-For: 10.0.0.2\r\n\r\n";
        let at = |is_trusted, raw: &[u8]| {
            let client = Client::new(IpAddr::from([10, 0, 0, 1]), 80, false, is_trusted);
            let asker = Asker {
                client: &client,
                trusted: &trusted,
                path: b"/",
                headers: Headers::Raw(raw),
            };
            asker.address().to_string()
        };
        assert_eq!(at(true, raw), "192.0.2.7");
        assert_eq!(at(false, raw), "10.0.0.1");
        assert_eq!(at(true, b"GET / HTTP/1.1\r\n\r\n"), "10.0.0.1");
        let odd = b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, unknown\r\n\r\n";
        assert_eq!(at(true, odd), "10.0.0.1");
    }
}
