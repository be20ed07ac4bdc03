//! Hostnames that an environment has besides the one below the default domain.

use crate::ids::text_type;
use crate::names::is_dns_name;
use serde::{Deserialize, Serialize};

text_type!(
    /// A hostname: labels of 1 to 63 lower-case letters, digits or hyphens, 253 characters in all (RFC 1123, section
    /// 2.1), or an IPv4 address. Names of other alphabets are written as DNS has them (`xn--…`).
    Hostname, "hostname", "it must be labels of lower-case letters, digits and hyphens with dots between, without a scheme, port or path, such as `shop.example.org`; names of other alphabets are written as DNS has them (`xn--…`)",
    is_hostname
);

text_type!(
    /// What a domain is for: a hostname, `*.` before one for every name below it, or `*` for every name; and
    /// from `/` on, a part of its paths. That is a prefix (`/api` takes `/api` and all below it) or a pattern in
    /// which `*` stands for any characters and `?` for one, 128 characters at most (as a path pattern of
    /// Elastic Beanstalk's listener rules).
    DomainName, "domain", "it must be a hostname in lower case, `*.` before one, or `*`, and may go on with a path: `shop.example.org`, `*.example.org`, `example.org/api`",
    |text| {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        (host == "*" || is_hostname(host.strip_prefix("*.").unwrap_or(host))) && is_path(path)
    }
);

/// Longest path of a domain.
const LONGEST_PATH: usize = 128;

fn is_hostname(text: &str) -> bool {
    let plain = |byte: u8| !byte.is_ascii_uppercase() && byte != b'_';
    is_dns_name(text) && text.bytes().all(plain)
}

fn is_path(path: &str) -> bool {
    // What ends in `/` is below it, and is written without. Clients resolve `..` before they ask (RFC 3986, section
    // 5.2.4).
    path.is_empty()
        || (path.len() <= LONGEST_PATH
            && !path.ends_with('/')
            && !path[1..]
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."))
            && path
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"#\\\"<>`{}|^".contains(&byte)))
}

impl DomainName {
    /// The hostname, or the pattern of hostnames.
    pub fn host(&self) -> &str {
        self.parts().0
    }

    /// The path from its `/` on; empty where all of the host's paths are meant.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        let text = self.as_str();
        text.split_at(text.find('/').unwrap_or(text.len()))
    }

    /// The patterns of paths that it takes, as the load balancer matches them; none where all are meant.
    pub fn patterns(&self) -> Vec<String> {
        match self.path() {
            "" => Vec::new(),
            path if path.contains(['*', '?']) => vec![path.to_owned()],
            path => vec![path.to_owned(), format!("{path}/*")],
        }
    }

    /// Whether it is for more than one hostname.
    pub fn is_wildcard(&self) -> bool {
        self.host().starts_with('*')
    }
}

impl From<Hostname> for DomainName {
    fn from(host: Hostname) -> Self {
        Self(host.0)
    }
}

/// A domain of an environment, as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// What it is for.
    pub name: DomainName,
    /// Clients are sent to the same path of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to: Option<Hostname>,
    /// Clients that come over plain HTTP are sent to HTTPS.
    #[serde(default)]
    pub only_https: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_host_or_a_pattern_of_hosts_and_may_have_a_path() {
        for good in [
            "shop.example.org",
            "nas",
            "192.0.2.7",
            "*.example.org",
            "*",
            "*/status",
            "xn--bcher-kva.example",
            "example.org/api",
            "example.org/*.png",
        ] {
            assert!(DomainName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Shop.example.org",
            "https://shop.example.org",
            "shop.example.org:80",
            "shop.example.org/",
            "a..b",
            "-a.b",
            "a.*.b",
            "**",
            "bücher.example",
            "a b",
            "a/b c",
            "a/../b",
            "a/b/.",
            "a//b",
            ".a",
            "a.",
        ] {
            assert!(DomainName::new(bad).is_err(), "{bad}");
        }
        assert!(DomainName::new("a.".repeat(127)).is_err());
    }

    #[test]
    fn a_path_is_a_prefix_unless_it_is_a_pattern() {
        let patterns = |name: &str| DomainName::new(name).expect("a domain").patterns();
        assert_eq!(patterns("a"), [""; 0]);
        assert_eq!(patterns("a/api"), ["/api", "/api/*"]);
        assert_eq!(patterns("a/img*.png"), ["/img*.png"]);
    }
}
