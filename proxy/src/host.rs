//! Which host a request is for, and what is known once it has been asked for.

use beanpole_protocol::router::normal_host;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version, header};
use std::net::Ipv6Addr;
use std::sync::OnceLock;

/// A host, as requests of one client ask for it.
pub struct Asked {
    /// As it was sent, with the port.
    pub host: HeaderValue,
    /// As the table knows it.
    pub name: String,
    /// What `Forwarded` says of the client and this host.
    pub forwarded: HeaderValue,
    /// All that the app is told, if it is the same for all requests; made for the first that takes the long way.
    pub told: OnceLock<HeaderMap>,
    /// What it is told of a client that tells nothing itself, as lines of a head.
    pub lines: Box<[u8]>,
}

impl Asked {
    /// What `head` asks for; else what is wrong with it, as a sentence for people. `forwarded` makes
    /// the value for a host.
    pub fn read(
        head: &Parts,
        forwarded: impl FnOnce(&str) -> HeaderValue,
    ) -> Result<Self, &'static str> {
        let host = host_of(head);
        if host.is_empty() && head.version == Version::HTTP_11 {
            return Err("It has no Host header, or an empty one.");
        }
        Self::of(host, forwarded)
    }

    /// What asking for `host` asks for.
    pub fn of(
        host: &str,
        forwarded: impl FnOnce(&str) -> HeaderValue,
    ) -> Result<Self, &'static str> {
        if !plausible(host) {
            return Err("Its Host is not a hostname.");
        }
        // A copy: the value of the request would keep the whole head.
        let sent = HeaderValue::from_str(host).map_err(|_| "Its Host is not a hostname.")?;
        Ok(Self {
            name: normal_host(host).into_owned(),
            forwarded: forwarded(host),
            host: sent,
            told: OnceLock::new(),
            lines: Box::default(),
        })
    }

    /// Whether `head` asks for the same.
    pub fn is_for(&self, head: &Parts) -> bool {
        !self.host.is_empty()
            && head.uri.authority().is_none()
            && head.headers.get(header::HOST) == Some(&self.host)
    }
}

/// The host that a request is for: an absolute URI (or HTTP/2's `:authority`) wins over the header
/// (RFC 9112, section 3.2.2).
pub fn host_of(head: &Parts) -> &str {
    head.uri
        .authority()
        .map(http::uri::Authority::as_str)
        // What precedes an `@` is not the host.
        .map(|authority| authority.rsplit('@').next().unwrap_or(authority))
        .or_else(|| {
            let value = head.headers.get(header::HOST)?;
            // Bytes that are no text are no host either.
            Some(value.to_str().unwrap_or("\u{fffd}"))
        })
        .unwrap_or_default()
}

/// The port that a host names.
pub fn port_of(host: &str) -> Option<u16> {
    let (name, port) = host.rsplit_once(':')?;
    let is_port = !name.contains(':') || name.ends_with(']');
    is_port.then(|| port.parse().ok()).flatten()
}

/// Whether this can be a hostname or an address, with or without a port.
fn plausible(host: &str) -> bool {
    let is_v6 = |address: &str| address.parse::<Ipv6Addr>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        let port = port.strip_prefix(':').or(port.is_empty().then_some(""));
        return is_v6(address) && port.is_some_and(is_port);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    match host.split_once(':') {
        // Several colons: an address without brackets, as some write it.
        Some((_, rest)) if rest.contains(':') => is_v6(host),
        Some((name, port)) => name.bytes().all(allowed) && is_port(port),
        None => host.bytes().all(allowed),
    }
}

/// Whether this is a port, which may be left out (RFC 3986, section 3.2.3).
fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit())
        && (port.is_empty() || port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_what_cannot_be_one() {
        for host in [
            "a",
            "app.localhost:8080",
            "192.0.2.1",
            "[::1]:80",
            "::1",
            "a_b.example",
        ] {
            assert!(plausible(host), "{host}");
        }
        for host in [
            "a b",
            "a/b",
            "a:x",
            "a@b",
            "a\u{fffd}",
            "[::1]:x",
            "a,b",
            "[::1",
            "::1]",
            "[a]",
            "[::1]a",
            "a:1:2",
            "a:65536",
            "a:+1",
            "[::1]::1",
        ] {
            assert!(!plausible(host), "{host}");
        }
    }

    #[test]
    fn what_was_asked_for_is_known_again() {
        let head = |host: &'static str| {
            let request = http::Request::get("/").header("host", host).body(());
            request.expect("a request").into_parts().0
        };
        let asked = Asked::read(&head("App.localhost:80"), |_| HeaderValue::from_static("f"));
        let asked = asked.unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(asked.name, "app.localhost");
        assert!(asked.is_for(&head("App.localhost:80")));
        assert!(!asked.is_for(&head("other.localhost")));
    }
}
