//! Hostnames that an environment has besides the one below the default domain.

use crate::ids::{shown, text_type};
use crate::names::{LONGEST_DNS_LABEL, LONGEST_DNS_NAME, is_dns_name};
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

/// What is wrong with a text as a hostname, as the end of a sentence; none where it is one.
pub fn wrong_with_host(text: &str) -> Option<String> {
    if is_hostname(text) {
        return None;
    }
    let odd = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c));
    if let Some(odd) = text.chars().find(|c| odd(*c)) {
        let shown = odd.escape_debug();
        return Some(match odd {
            _ if text.contains("://") => "it is a URL, and the hostname alone is needed".to_owned(),
            '_' => "hostnames have no `_`, which is for other records of the DNS".to_owned(),
            '*' => {
                "`*` stands for whole names below one, and comes first: `*.example.org`".to_owned()
            }
            'A'..='Z' => "it has to be in lower case".to_owned(),
            ':' => "it is without a port".to_owned(),
            _ if odd.is_whitespace() => "there is a space in it".to_owned(),
            _ if odd.is_ascii() => {
                format!("`{shown}` is none of letters, digits, hyphens and dots")
            }
            _ => format!(
                "`{shown}` is not ASCII, and the DNS has such names in a form of their own (`xn--…`)"
            ),
        });
    }
    let mut labels = text.split('.');
    Some(if text.is_empty() {
        "it is empty".to_owned()
    } else if labels.clone().any(str::is_empty) {
        "a dot has to stand between two labels".to_owned()
    } else if let Some(label) = labels.clone().find(|label| label.len() > LONGEST_DNS_LABEL) {
        let many = label.len();
        format!(
            "what is between two dots has {LONGEST_DNS_LABEL} characters at most, and `{}` has {many}",
            shown(label)
        )
    } else if let Some(label) = labels.find(|label| label.starts_with('-') || label.ends_with('-'))
    {
        format!("`{label}` has a hyphen at an end")
    } else {
        let many = text.len();
        format!("a name has {LONGEST_DNS_NAME} characters at most, and this one has {many}")
    })
}

/// The same of a text as a domain: a hostname or a pattern of them, and a path.
pub fn wrong_with_domain(text: &str) -> Option<String> {
    let (host, path) = match text.split_once("://") {
        // All of a URL is wrong.
        Some(_) => (text, ""),
        None => text.split_at(text.find('/').unwrap_or(text.len())),
    };
    let wrong = match host {
        "*" => None,
        _ => wrong_with_host(host.strip_prefix("*.").unwrap_or(host)),
    };
    wrong.or_else(|| {
        (!is_path(path)).then(|| {
            format!(
                "`{}` is no path that a domain can have: without `/` at its end, `..`, or what a URL writes as %20 and \
                 the like, and {LONGEST_PATH} characters at most",
                shown(path)
            )
        })
    })
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
            assert_eq!(wrong_with_domain(good), None, "{good}");
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
            assert!(wrong_with_domain(bad).is_some(), "{bad}");
        }
        assert!(DomainName::new("a.".repeat(127)).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_domain_is_said_by_its_name() {
        let long = "a".repeat(64);
        for (text, said) in [
            ("", "empty"),
            ("a b", "a space"),
            ("a_b.org", "no `_`"),
            (long.as_str(), "63 characters at most, and `aaa"),
            ("a.".repeat(127).as_str(), "a dot has to stand"),
            (
                format!("{}a", "a.".repeat(127)).as_str(),
                "253 characters at most, and this one has 255",
            ),
            ("bücher.de", "`ü` is not ASCII"),
            ("a.*.org", "comes first"),
            ("*.*.org", "comes first"),
            ("Shop.org", "lower case"),
            ("https://shop.org", "a URL"),
            ("shop.org:80", "without a port"),
            ("-a.org", "`-a` has a hyphen"),
            ("a@b", "`@` is none"),
            ("shop.org/", "`/` is no path"),
        ] {
            let wrong = wrong_with_domain(text).unwrap_or_default();
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }

    #[test]
    fn a_path_is_a_prefix_unless_it_is_a_pattern() {
        let patterns = |name: &str| DomainName::new(name).expect("a domain").patterns();
        assert_eq!(patterns("a"), [""; 0]);
        assert_eq!(patterns("a/api"), ["/api", "/api/*"]);
        assert_eq!(patterns("a/img*.png"), ["/img*.png"]);
    }
}
