//! How the load balancer checks instances, read from options.

use super::kind::{parse_ranges, parse_statuses};
use super::processes::process_namespace;
use super::{OptionSettings, PROXY};
use crate::proxy::{
    BodyMatch, HealthCheck, HttpDetails, LAST_GRPC_CODE, LONGEST_PATTERN, Probe, ProxyProtocol,
    Upstream, UpstreamProtocol,
};

/// Most headers that a check sends, and the longest line that says them, in bytes.
const MOST_HEADERS: usize = 16;
const LONGEST_HEADERS: usize = 4096;
/// Headers that say where a message ends and what becomes of its connection: these are the load balancer's.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `Host: shop.example.org | X-Probe: 1`; names in lower case.
pub(super) fn parse_headers(value: &str) -> Option<Vec<(String, String)>> {
    if value.trim().is_empty() {
        return Some(Vec::new());
    }
    let headers = value.split('|').map(|header| {
        let (name, value) = header.split_once(':')?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        // RFC 9110, section 5.6.2 and 5.5.
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`~".contains(&byte);
        let is_name = !name.is_empty() && name.bytes().all(of_name);
        let is_value = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let fits = is_name && is_value && !FRAMING.contains(&name.as_str());
        let whole = name != "host" || !value.is_empty();
        (fits && whole).then(|| (name, value.to_owned()))
    });
    let headers = headers.collect::<Option<Vec<_>>>()?;
    let hosts = headers.iter().filter(|(name, _)| name == "host").count();
    let fits = value.len() <= LONGEST_HEADERS && headers.len() <= MOST_HEADERS && hosts <= 1;
    fits.then_some(headers)
}

/// `contains:TEXT`, `matches:REGEX`.
pub(super) fn parse_body(value: &str) -> Option<BodyMatch> {
    let body = match value.split_once(':')? {
        ("contains", text) => BodyMatch::Contains(text.to_owned()),
        ("matches", pattern) => BodyMatch::Matches(pattern.to_owned()),
        _ => return None,
    };
    let (BodyMatch::Contains(text) | BodyMatch::Matches(text)) = &body;
    let fits = (1..=LONGEST_PATTERN).contains(&text.len()) && !text.contains(['\r', '\n', '\0']);
    (fits && body.regex().is_ok()).then_some(body)
}

/// Why a pattern is no regular expression.
pub(super) fn body_fault(value: &str) -> Option<String> {
    let pattern = value.strip_prefix("matches:")?;
    let error = BodyMatch::Matches(pattern.to_owned()).regex().err()?;
    // The lines before the last draw where in the pattern it is.
    let last = error.lines().last()?.trim();
    Some(format!(
        "That is no regular expression: {}",
        last.strip_prefix("error: ").unwrap_or(last)
    ))
}

/// `0`, `0,12`, `0-16`.
pub(super) fn parse_grpc_codes(value: &str) -> Option<Vec<(u16, u16)>> {
    parse_ranges(value, 0, LAST_GRPC_CODE)
}

impl OptionSettings {
    /// How the load balancer checks the default process of instances.
    pub fn health_check(&self) -> HealthCheck {
        self.health_check_of("")
    }

    /// How it checks a process of theirs; the default one where `process` is empty.
    pub fn health_check_of(&self, process: &str) -> HealthCheck {
        let namespace = &process_namespace(process);
        let small = |name, default| {
            self.number(namespace, name)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(default)
        };
        HealthCheck {
            probe: self.probe(process),
            interval_ms: self.number(namespace, "HealthCheckInterval").unwrap_or(1) * 1_000,
            timeout_ms: self.number(namespace, "HealthCheckTimeout").unwrap_or(5) * 1_000,
            healthy_threshold: small("HealthyThresholdCount", 2),
            unhealthy_threshold: small("UnhealthyThresholdCount", 3),
        }
    }

    fn probe(&self, process: &str) -> Probe {
        let namespace = &process_namespace(process);
        let path = if process.is_empty() {
            self.health_check_path()
        } else {
            self.effective(namespace, "HealthCheckPath")
        };
        let by_grpc = self.effective(PROXY, "ProtocolVersion") == "GRPC";
        let protocol = match self.get(namespace, "Protocol") {
            None if by_grpc => "GRPC",
            None if self.is_network() && !self.asks_for_a_path(namespace) => "TCP",
            _ => self.effective(namespace, "Protocol"),
        };
        match protocol {
            "TCP" => Probe::Tcp,
            "GRPC" => Probe::Grpc {
                service: self.effective(PROXY, "HealthCheckService").to_owned(),
                codes: parse_grpc_codes(self.effective(PROXY, "MatcherGRPCCode"))
                    .unwrap_or_else(|| vec![(0, 0)]),
            },
            _ if path.is_empty() => Probe::Tcp,
            _ => Probe::Http {
                path: path.to_owned(),
                statuses: parse_statuses(self.effective(namespace, "MatcherHTTPCode"))
                    .unwrap_or_else(|| vec![(200, 399)]),
                details: HttpDetails {
                    headers: parse_headers(self.effective(PROXY, "HealthCheckHeaders"))
                        .unwrap_or_default(),
                    // What one says, another need not.
                    body: Some(self.effective(PROXY, "MatcherBody"))
                        .filter(|_| process.is_empty())
                        .and_then(parse_body),
                    http2: self.upstream().protocol == UpstreamProtocol::Http2,
                },
            },
        }
    }

    /// How instances are spoken to.
    pub fn upstream(&self) -> Upstream {
        Upstream {
            protocol: match self.effective(PROXY, "ProtocolVersion") {
                "HTTP2" | "GRPC" => UpstreamProtocol::Http2,
                _ => UpstreamProtocol::Http1,
            },
            announce: match self.effective(PROXY, "ProxyProtocol") {
                "v1" => Some(ProxyProtocol::V1),
                "v2" => Some(ProxyProtocol::V2),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PROCESS;
    use super::*;

    #[test]
    fn headers_of_a_check_are_names_with_values_and_frame_nothing() {
        let headers = parse_headers("Host: shop.example.org | X-Probe: a, b; c=1").expect("two");
        assert_eq!(
            headers[0],
            ("host".to_owned(), "shop.example.org".to_owned())
        );
        assert_eq!(headers[1], ("x-probe".to_owned(), "a, b; c=1".to_owned()));
        assert!(parse_headers(" ").expect("none").is_empty());
        for wrong in [
            "Host",
            "Host:",
            ": x",
            ":authority: x",
            "A b: c",
            "Content-Length: 3",
            "Connection: x",
            "X: a\r\nY: b",
            "Host: a | Host: b",
        ] {
            assert!(parse_headers(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_body_is_matched_by_a_text_or_by_a_regular_expression() {
        let contains = BodyMatch::Contains("\"ok\": true".to_owned());
        assert_eq!(parse_body("contains:\"ok\": true"), Some(contains));
        let matches = BodyMatch::Matches("^(ok|up)".to_owned());
        assert_eq!(parse_body("matches:^(ok|up)"), Some(matches));
        for wrong in [
            "ready",
            "contains:",
            "matches:(",
            "matches:(\\w{500}){500}",
            "equals:x",
        ] {
            assert_eq!(parse_body(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_spoken_to_by_grpc_is_checked_by_it_unless_told_otherwise() {
        let mut settings = OptionSettings::default();
        assert!(settings.upstream().is_usual());
        settings.set(PROXY, "ProtocolVersion", "GRPC");
        settings.validate().expect("it is known");
        assert_eq!(settings.upstream().protocol, UpstreamProtocol::Http2);
        assert_eq!(settings.health_check().probe.to_string(), "gRPC health");
        settings.set(PROCESS, "Protocol", "HTTP");
        let Probe::Http { details, .. } = settings.health_check().probe else {
            panic!("HTTP is asked for");
        };
        assert!(details.http2, "it speaks nothing else");
    }

    #[test]
    fn clients_are_announced_to_those_who_expect_it() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.upstream().announce, None);
        settings.set(PROXY, "ProxyProtocol", "v2");
        settings.validate().expect("it is known");
        assert_eq!(settings.upstream().announce, Some(ProxyProtocol::V2));
        settings.set(PROXY, "ProxyProtocol", "v3");
        assert!(settings.validate().is_err());
    }

    #[test]
    fn a_pattern_that_is_none_is_told_with_what_is_wrong_with_it() {
        let mut settings = OptionSettings::default();
        settings.set(PROXY, "MatcherBody", "matches:(ready");
        let error = settings.validate().expect_err("no regex").to_string();
        assert!(
            error.ends_with("That is no regular expression: unclosed group"),
            "{error}"
        );
    }

    #[test]
    fn what_a_check_asks_follows_its_options() {
        let mut settings = OptionSettings::default();
        settings.set(PROXY, "HealthCheckHeaders", "Host: a.example");
        settings.set(PROXY, "MatcherBody", "contains:ready");
        settings.validate().expect("they are known");
        let Probe::Http { details, .. } = settings.health_check().probe else {
            panic!("HTTP is asked for");
        };
        assert_eq!(details.headers[0].1, "a.example");
        assert_eq!(
            details.body.expect("a body").to_string(),
            "contain \"ready\""
        );
        settings.set(PROCESS, "Protocol", "GRPC");
        settings.set(PROXY, "HealthCheckService", "shop.v1.Cart");
        settings.set(PROXY, "MatcherGRPCCode", "0,12");
        settings.validate().expect("they are known");
        let probe = settings.health_check().probe;
        assert_eq!(probe.to_string(), "gRPC health of shop.v1.Cart");
        assert!(matches!(probe, Probe::Grpc { codes, .. } if codes == [(0, 0), (12, 12)]));
        settings.set(PROXY, "MatcherGRPCCode", "17");
        assert!(settings.validate().is_err());
    }
}
