//! Rules of a route: which of its requests go to other pools than the rest, as by the rules of a load balancer's
//! listeners in Elastic Beanstalk.

use super::{Route, WeightedPool};
use crate::router::matches;
use serde::{Deserialize, Serialize};

/// Which requests of a route go to other pools. They have to meet all that it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRule {
    /// What its options call it; empty where it is what no rule of a listener takes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Patterns, one of which the host matches, in lower case; any host where there are none. `*` stands for any
    /// characters and `?` for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The same of the path, without the query. Upper and lower case differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Only requests that came over TLS, or only those that did not; either where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<bool>,
    /// Where they go.
    pub pools: Vec<WeightedPool>,
}

impl RouteRule {
    /// Whether it is for requests for `path` of `host`. `https` says whether they came over TLS.
    pub fn takes(&self, host: &str, path: &str, https: impl FnOnce() -> bool) -> bool {
        let any = |patterns: &[String], text: &str| {
            let mut patterns = patterns.iter();
            patterns.len() == 0
                || patterns.any(|pattern| matches(pattern.as_bytes(), text.as_bytes()))
        };
        any(&self.paths, path)
            && any(&self.hosts, host)
            && self.https.is_none_or(|wanted| wanted == https())
    }
}

impl Route {
    /// The first of its rules that is for such requests.
    pub fn rule(&self, host: &str, path: &str, https: bool) -> Option<&RouteRule> {
        let mut rules = self.rules.iter();
        rules.find(|rule| rule.takes(host, path, || https))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_takes_what_meets_all_that_it_asks_for() {
        let patterns = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let rule = RouteRule {
            hosts: patterns(&["api.*", "*.example.org"]),
            paths: patterns(&["/v?/*", "/up"]),
            https: Some(true),
            ..RouteRule::default()
        };
        for (host, path, https, wanted) in [
            ("api.localhost", "/v1/", true, true),
            ("a.example.org", "/up", true, true),
            ("a.example.org", "/up", false, false),
            ("a.example.org", "/upper", true, false),
            ("a.example.org", "/UP", true, false),
            ("example.org", "/up", true, false),
        ] {
            assert_eq!(rule.takes(host, path, || https), wanted, "{host}{path}");
        }
        assert!(RouteRule::default().takes("x", "/", || false));
    }
}
