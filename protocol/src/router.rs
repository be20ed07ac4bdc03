//! From a hostname and a path to what answers there: the most exact host first, and of its routes the first whose
//! pattern the path matches. Proxies route by it, and the controller explains by it where they do.

use fnv::FnvHashMap;
use std::borrow::{Borrow, Cow};
use std::cmp::Reverse;
use std::hash::{Hash, Hasher};

/// Longest hostname (RFC 1035, section 2.3.4). What is longer is below no name, and costs no looking.
const LONGEST_HOST: usize = 253;
/// Longest pattern of paths, and most wildcards in it, as in Elastic Beanstalk's listener rules.
pub(crate) const LONGEST_PATTERN: usize = 128;

/// How long a hostname may be to stand in the table itself, in bytes: with what it leads to, in 64 of them.
const SHORT_HOST: usize = 22;

/// Where hostnames lead.
pub struct Router<R> {
    /// By a quick hash: whoever sends requests has no say in the names.
    exact: FnvHashMap<Name, Paths<R>>,
    /// By what stands behind `*.`.
    below: FnvHashMap<Name, Paths<R>>,
    any: Option<Paths<R>>,
}

/// A hostname. One that is short is beside what it leads to: to look it up, memory is asked once.
#[derive(Debug)]
enum Name {
    Short(u8, [u8; SHORT_HOST]),
    Long(Box<[u8]>),
}

struct Paths<R> {
    patterns: Option<Box<Patterns<R>>>,
    rest: Option<R>,
}

struct Patterns<R>(Vec<Pattern<R>>);

struct Pattern<R> {
    text: Box<str>,
    priority: u32,
    route: R,
}

impl Name {
    fn new(host: &str) -> Self {
        let bytes = host.as_bytes();
        let mut short = [0; SHORT_HOST];
        match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(bytes);
                Self::Short(length, short)
            }
            _ => Self::Long(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl<R> Default for Router<R> {
    fn default() -> Self {
        Self {
            exact: FnvHashMap::default(),
            below: FnvHashMap::default(),
            any: None,
        }
    }
}

impl<R> Default for Paths<R> {
    fn default() -> Self {
        Self {
            patterns: None,
            rest: None,
        }
    }
}

impl<R: Clone> Router<R> {
    /// One with room for so many hosts.
    pub fn with_capacity(hosts: usize) -> Self {
        let mut router = Self::default();
        router.exact.reserve(hosts);
        router
    }

    /// Adds a route for a host, or a pattern of hosts, and patterns of its paths; for the rest of its paths where
    /// there are none.
    pub fn insert(&mut self, host: &str, paths: &[String], priority: u32, route: &R) {
        let at = match host.strip_prefix("*.") {
            _ if host == "*" => self.any.get_or_insert_default(),
            Some(parent) => self.below.entry(Name::new(parent)).or_default(),
            None => self.exact.entry(Name::new(host)).or_default(),
        };
        if paths.is_empty() {
            at.rest = Some(route.clone());
            return;
        }
        let patterns = at
            .patterns
            .get_or_insert_with(|| Box::new(Patterns(Vec::new())));
        patterns.0.extend(paths.iter().map(|path| Pattern {
            text: path.as_str().into(),
            priority,
            route: route.clone(),
        }));
    }

    /// Puts the patterns into the order in which they are tried.
    pub fn sort(&mut self) {
        let hosts = self.exact.values_mut().chain(self.below.values_mut());
        for paths in hosts.chain(&mut self.any) {
            if let Some(patterns) = &mut paths.patterns {
                let order = |pattern: &Pattern<R>| (pattern.priority, Reverse(pattern.text.len()));
                patterns.0.sort_by_key(order);
            }
        }
    }
}

impl<R> Router<R> {
    /// Where `path` of `host` leads.
    pub fn find(&self, host: &str, path: &str) -> Option<&R> {
        if let Some(found) = self
            .exact
            .get(host.as_bytes())
            .and_then(|paths| paths.find(path))
        {
            return Some(found);
        }
        if !self.below.is_empty() && host.len() <= LONGEST_HOST {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(found) = self
                    .below
                    .get(parent.as_bytes())
                    .and_then(|paths| paths.find(path))
                {
                    return Some(found);
                }
                rest = parent;
            }
        }
        self.any.as_ref()?.find(path)
    }
}

impl<R> Paths<R> {
    fn find(&self, path: &str) -> Option<&R> {
        let Some(patterns) = &self.patterns else {
            return self.rest.as_ref();
        };
        let found = patterns
            .0
            .iter()
            .find(|pattern| matches(pattern.text.as_bytes(), path.as_bytes()));
        found.map(|pattern| &pattern.route).or(self.rest.as_ref())
    }
}

/// Whether all of `text` matches `pattern`, in which `*` stands for any characters and `?` for one.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Behind the last star, and where what it stands for may end.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, from));
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((behind, end)) = star else {
                    return false;
                };
                star = Some((behind, end + 1));
                at = behind;
                from = end + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters and `?` for one.
pub fn is_like(text: &str, pattern: &str) -> bool {
    matches(pattern.as_bytes(), text.as_bytes())
}

/// Whether some text matches both patterns.
pub fn may_both_match(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    // For each place in `other`, whether the rest of both can match the same.
    let mut rests = vec![false; other.len() + 1];
    for at in (0..=one.len()).rev() {
        let mut row = vec![false; other.len() + 1];
        for to in (0..=other.len()).rev() {
            let (a, b) = (one.get(at), other.get(to));
            row[to] = match (a, b) {
                (None, None) => true,
                (Some(b'*'), _) if rests[to] => true,
                (_, Some(b'*')) if row[to + 1] => true,
                // A star takes one more of what the other has.
                (Some(b'*'), Some(_)) => row[to + 1],
                (Some(_), Some(b'*')) => rests[to],
                (Some(a), Some(b)) => (a == b || *a == b'?' || *b == b'?') && rests[to + 1],
                _ => false,
            };
        }
        rests = row;
    }
    rests[0]
}

/// Whether a route can be for such hosts: a name or an address, `*.` before a name, `*`.
pub fn is_host_pattern(host: &str) -> bool {
    host == "*" || is_hostname(host.strip_prefix("*.").unwrap_or(host))
}

/// Whether a host can be called so by a table: by a name of the DNS ([`is_dns_name`](crate::names::is_dns_name)), an address, or
/// whatever else an installation has its domain called, as long as it leads somewhere: a table that is refused serves nobody.
pub fn is_hostname(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    host.len() <= LONGEST_HOST
        && host.bytes().all(allowed)
        && host.split('.').all(|label| !label.is_empty())
}

/// Whether paths can match it.
pub fn is_path_pattern(pattern: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    pattern.starts_with(['/', '*', '?'])
        && pattern.len() <= LONGEST_PATTERN
        && pattern.bytes().all(plain)
}

/// A host as the table knows it: without port and trailing dot, in lower case, an IPv6 address
/// without its brackets.
pub fn normal_host(host: &str) -> Cow<'_, str> {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon: an IPv6 address that nobody put into brackets.
        None if host.bytes().filter(|byte| *byte == b':').count() == 1 => {
            host.split(':').next().unwrap_or(host)
        }
        None => host,
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    if bare.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(routes: &[(&str, &[&str], u32, &'static str)]) -> Router<&'static str> {
        let mut router = Router::default();
        for (host, paths, priority, name) in routes {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            router.insert(host, &paths, *priority, name);
        }
        router.sort();
        router
    }

    #[test]
    fn the_most_exact_host_counts() {
        let router = router(&[
            ("*", &[], 0, "any"),
            ("*.example.org", &[], 0, "below"),
            ("*.a.example.org", &[], 0, "further below"),
            ("www.example.org", &[], 0, "exact"),
        ]);
        for (host, wanted) in [
            ("www.example.org", "exact"),
            ("shop.example.org", "below"),
            ("b.shop.example.org", "below"),
            ("x.a.example.org", "further below"),
            ("a.example.org", "below"),
            ("example.org", "any"),
            ("elsewhere", "any"),
        ] {
            assert_eq!(router.find(host, "/"), Some(&wanted), "{host}");
        }
    }

    #[test]
    fn a_host_of_any_length_is_found_and_no_other() {
        for length in [1, SHORT_HOST - 1, SHORT_HOST, SHORT_HOST + 1, LONGEST_HOST] {
            let host = "a".repeat(length);
            let router = router(&[
                (&host, &[], 0, "it"),
                (&format!("*.{host}"), &[], 0, "below"),
            ]);
            assert_eq!(router.find(&host, "/"), Some(&"it"), "{length}");
            assert_eq!(router.find(&host[1..], "/"), None, "{length}");
            assert_eq!(router.find(&format!("{host}a"), "/"), None, "{length}");
            assert_eq!(router.find(&format!("{host}\0"), "/"), None, "{length}");
        }
        let router = router(&[("*.b", &[], 0, "below")]);
        assert_eq!(router.find("a.b", "/"), Some(&"below"));
        assert!(size_of::<(Name, Paths<[usize; 3]>)>() <= 64);
    }

    #[test]
    fn of_a_hosts_paths_the_lowest_priority_and_then_the_longest_pattern_counts() {
        let router = router(&[
            ("a", &[], 0, "rest"),
            ("a", &["/api", "/api/*"], 0, "api"),
            ("a", &["/api/v2/*"], 0, "v2"),
            ("a", &["*.png"], 5, "pictures"),
            ("a", &["/api/v2/special/*"], 1, "never before v2"),
        ]);
        for (path, wanted) in [
            ("/", "rest"),
            ("/api", "api"),
            ("/apis", "rest"),
            ("/api/v1/x", "api"),
            ("/api/v2/special/x", "v2"),
            ("/API/", "rest"),
            ("/logo.png", "pictures"),
            ("/api/logo.png", "api"),
        ] {
            assert_eq!(router.find("a", path), Some(&wanted), "{path}");
        }
    }

    #[test]
    fn a_path_that_the_exact_host_does_not_take_may_be_a_wildcards() {
        let router = router(&[("a.b", &["/only"], 0, "only"), ("*.b", &[], 0, "below")]);
        assert_eq!(router.find("a.b", "/only"), Some(&"only"));
        assert_eq!(router.find("a.b", "/else"), Some(&"below"));
        assert_eq!(router.find("b", "/else"), None);
    }

    #[test]
    fn stars_and_question_marks_match_as_they_do_in_a_listener_rule() {
        for (pattern, text, wanted) in [
            ("/a*", "/a", true),
            ("/a*c", "/abbc", true),
            ("/a*c", "/abbcd", false),
            ("/?", "/x", true),
            ("/?", "/", false),
            ("*", "", true),
            ("/*/b/*", "/a/a/b/b/c", true),
            ("/*/b/*", "/a/c", false),
            ("", "x", false),
        ] {
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn patterns_are_told_apart_that_nothing_matches_both_of() {
        for (one, other, wanted) in [
            ("*.example.org", "api.*", true),
            ("*.example.org", "*.example.com", false),
            ("*.example.org", "example.org", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "x.y", true),
            ("", "*", true),
        ] {
            assert_eq!(may_both_match(one, other), wanted, "{one} {other}");
            assert_eq!(may_both_match(other, one), wanted, "{other} {one}");
        }
    }

    #[test]
    fn a_host_of_endless_labels_costs_no_looking() {
        let router = router(&[("*.b", &[], 0, "below")]);
        let endless = "a.".repeat(30_000) + "b";
        assert_eq!(router.find(&endless, "/"), None);
    }

    #[test]
    fn hosts_are_compared_without_port_case_and_dot() {
        for (given, wanted) in [
            ("App.Example.com:8080", "app.example.com"),
            ("app.example.com.", "app.example.com"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(normal_host(given), wanted, "{given}");
        }
    }
}
