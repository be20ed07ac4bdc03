//! From a hostname and a path to what answers there: the most exact host first, and of its routes the first whose
//! pattern the path matches. Proxies route by it, and the controller explains by it where they do.

use fnv::FnvHashMap;
use std::borrow::Cow;
use std::cmp::Reverse;

/// Longest hostname (RFC 1035, section 2.3.4). What is longer is below no name, and costs no looking.
const LONGEST_HOST: usize = 253;
/// Longest pattern of paths, and most wildcards in it, as in Elastic Beanstalk's listener rules.
pub(crate) const LONGEST_PATTERN: usize = 128;

/// Where hostnames lead.
pub struct Router<R> {
    /// By a quick hash: whoever sends requests has no say in the names.
    exact: FnvHashMap<Box<str>, Paths<R>>,
    /// By what stands behind `*.`.
    below: FnvHashMap<Box<str>, Paths<R>>,
    any: Option<Paths<R>>,
}

struct Paths<R> {
    patterns: Vec<Pattern<R>>,
    rest: Option<R>,
}

struct Pattern<R> {
    text: Box<str>,
    priority: u32,
    route: R,
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
            patterns: Vec::new(),
            rest: None,
        }
    }
}

impl<R: Clone> Router<R> {
    /// Adds a route for a host, or a pattern of hosts, and patterns of its paths; for the rest of its paths where
    /// there are none.
    pub fn insert(&mut self, host: &str, paths: &[String], priority: u32, route: &R) {
        let at = match host.strip_prefix("*.") {
            _ if host == "*" => self.any.get_or_insert_default(),
            Some(parent) => self.below.entry(parent.into()).or_default(),
            None => self.exact.entry(host.into()).or_default(),
        };
        if paths.is_empty() {
            at.rest = Some(route.clone());
        }
        at.patterns.extend(paths.iter().map(|path| Pattern {
            text: path.as_str().into(),
            priority,
            route: route.clone(),
        }));
    }

    /// Puts the patterns into the order in which they are tried.
    pub fn sort(&mut self) {
        let hosts = self.exact.values_mut().chain(self.below.values_mut());
        for paths in hosts.chain(&mut self.any) {
            paths
                .patterns
                .sort_by_key(|pattern| (pattern.priority, Reverse(pattern.text.len())));
        }
    }
}

impl<R> Router<R> {
    /// Where `path` of `host` leads.
    pub fn find(&self, host: &str, path: &str) -> Option<&R> {
        if let Some(found) = self.exact.get(host).and_then(|paths| paths.find(path)) {
            return Some(found);
        }
        if !self.below.is_empty() && host.len() <= LONGEST_HOST {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(found) = self.below.get(parent).and_then(|paths| paths.find(path)) {
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
        let mut patterns = self.patterns.iter();
        let found = patterns.find(|pattern| matches(pattern.text.as_bytes(), path.as_bytes()));
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

/// Whether a host can be called so.
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
