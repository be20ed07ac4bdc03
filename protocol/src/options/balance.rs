//! How the load balancer shares requests, read from options.

use super::network::NETWORK_IDLE_S;
use super::processes::process_namespace;
use super::split::parse_sticky;
use super::{LOADBALANCER, OptionSettings, PROXY, SPLIT};
use crate::proxy::{
    Capacity, HashBy, Outliers, PoolLimits, PoolRules, Rate, Rates, Retries, Stickiness, Sticky,
};

/// The longest name of a header or a cookie.
const LONGEST_NAME: usize = 128;

/// The name of a header that may tell clients apart, in lower case. `Cookie` does not: all cookies together
/// change from request to request.
pub(super) fn telling_header(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_name = (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(fits);
    (is_name && name != "cookie").then_some(name)
}

/// `address`, `path`, `header:NAME`, `cookie:NAME`.
pub(super) fn parse_hash_by(value: &str) -> Option<HashBy> {
    match value {
        "address" => Some(HashBy::Address),
        "path" => Some(HashBy::Path),
        other => {
            if let Some(name) = other.strip_prefix("header:") {
                return telling_header(name).map(HashBy::Header);
            }
            let name = other.strip_prefix("cookie:")?;
            // A token (RFC 6265, section 4.1.1).
            let fits =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let is_name = (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(fits);
            is_name.then(|| HashBy::Cookie(name.to_owned()))
        }
    }
}

/// What sessions stick by: `cookie`, `address`, `header:NAME`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StickyBy {
    Cookie,
    Address,
    Header(String),
}

pub(super) fn parse_sticky_by(value: &str) -> Option<StickyBy> {
    match value {
        "cookie" => Some(StickyBy::Cookie),
        "address" => Some(StickyBy::Address),
        other => telling_header(other.strip_prefix("header:")?).map(StickyBy::Header),
    }
}

impl OptionSettings {
    /// What decides who gets the next request, besides the algorithm.
    pub fn pool_rules(&self) -> PoolRules {
        self.pool_rules_of("")
    }

    /// The same for a process; the default one where `process` is empty.
    pub fn pool_rules_of(&self, process: &str) -> PoolRules {
        PoolRules {
            hash_by: parse_hash_by(self.effective(PROXY, "HashBy")).unwrap_or_default(),
            sticky: self.stickiness(process),
            outliers: self.outliers(),
            slow_start_ms: self.number(PROXY, "SlowStart").unwrap_or(0) * 1_000,
        }
    }

    /// What requests may take.
    pub fn pool_limits(&self) -> PoolLimits {
        let usual = PoolLimits::default();
        let idle = match self.get(LOADBALANCER, "IdleTimeout") {
            None if self.is_network() => Some(NETWORK_IDLE_S),
            _ => self.number(LOADBALANCER, "IdleTimeout"),
        };
        PoolLimits {
            idle_ms: idle.map_or(usual.idle_ms, |seconds| seconds * 1_000),
            body_bytes: self.number(PROXY, "MaxBodySize").unwrap_or(0) << 20,
            rates: Rates {
                all: self.rate("RateLimit", "RateBurst"),
                by_client: self.rate("ClientRateLimit", "ClientRateBurst"),
            },
            answer_ms: self.number(PROXY, "AnswerTimeout").unwrap_or(0) * 1_000,
            whole_ms: self.number(PROXY, "RequestTimeout").unwrap_or(0) * 1_000,
            capacity: self.capacity(),
            retries: self.retries(),
        }
    }

    fn capacity(&self) -> Capacity {
        let number = |name| self.number(PROXY, name).unwrap_or(0);
        let small = |name| u32::try_from(number(name)).unwrap_or(u32::MAX);
        Capacity {
            all: small("MaxRequests"),
            each: small("MaxRequestsPerInstance"),
            pending: small("MaxPending"),
            wait_ms: number("PendingTimeout") * 1_000,
        }
    }

    fn retries(&self) -> Retries {
        let usual = Retries::default();
        let percent = self.number(PROXY, "RetryBudget");
        let minimum = self.number(PROXY, "RetryMinimum");
        Retries {
            percent: percent.map_or(usual.percent, |n| u8::try_from(n.min(100)).unwrap_or(100)),
            per_second: minimum
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(usual.per_second),
            failed: self.flag(PROXY, "RetryFailed"),
        }
    }

    fn rate(&self, limit: &str, burst: &str) -> Rate {
        let number = |name| self.number(PROXY, name).unwrap_or(0);
        let small = |name| u32::try_from(number(name)).unwrap_or(u32::MAX);
        Rate {
            per_second: small(limit),
            burst: small(burst),
        }
    }

    /// When instances get no requests for a while because of how they answered.
    fn outliers(&self) -> Option<Outliers> {
        let number = |name| self.number(PROXY, name).unwrap_or(0);
        let small = |name| u32::try_from(number(name)).unwrap_or(u32::MAX);
        let percent = |name| u8::try_from(number(name).min(100)).unwrap_or(100);
        let outliers = Outliers {
            failures: small("EjectAfterFailures"),
            errors: small("EjectAfterErrors"),
            error_percent: percent("EjectErrorRate"),
            window_s: small("EjectWindow"),
            lasts_s: small("EjectTime"),
            most_percent: percent("MaxEjected"),
        };
        let any = outliers.failures > 0 || outliers.errors > 0 || outliers.error_percent > 0;
        any.then_some(outliers)
    }

    /// What keeps a client at one instance.
    fn stickiness(&self, process: &str) -> Option<Stickiness> {
        let namespace = &process_namespace(process);
        if !self.flag(namespace, "StickinessEnabled") {
            return None;
        }
        if self.is_network() || self.effective(namespace, "StickinessType") == "source_ip" {
            return Some(Stickiness::Address);
        }
        let lasts_s = self.number(namespace, "StickinessLBCookieDuration");
        let lasts_s = lasts_s.and_then(|s| u32::try_from(s).ok());
        Some(match parse_sticky_by(self.effective(PROXY, "StickyBy"))? {
            StickyBy::Cookie => Stickiness::Cookie {
                lasts_s: lasts_s.unwrap_or(86_400),
            },
            StickyBy::Address => Stickiness::Address,
            StickyBy::Header(name) => Stickiness::Header(name),
        })
    }

    /// What keeps a client on one side of a split: what is set for that, or what keeps it at one instance,
    /// which without its side would not.
    pub fn sticky(&self) -> Option<Sticky> {
        if self.is_network() {
            return None;
        }
        let own = parse_sticky(self.effective(SPLIT, "Sticky")).flatten();
        own.or_else(|| {
            Some(match self.stickiness("")? {
                Stickiness::Header(name) => Sticky::Header(name),
                Stickiness::Cookie { .. } | Stickiness::Address => Sticky::Cookie,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::PROCESS;
    use super::*;

    #[test]
    fn nobody_is_ejected_unless_that_is_asked_for() {
        let mut settings = OptionSettings::default();
        settings.set(PROXY, "MaxEjected", "50");
        assert_eq!(settings.pool_rules().outliers, None);
        settings.set(PROXY, "EjectAfterErrors", "5");
        settings.validate().expect("they are known");
        let outliers = settings.pool_rules().outliers.expect("asked for");
        assert_eq!((outliers.failures, outliers.errors), (0, 5));
        assert_eq!((outliers.lasts_s, outliers.window_s), (30, 30));
        assert_eq!(outliers.most_percent, 50);
    }

    #[test]
    fn nothing_is_bounded_unless_that_is_asked_for_but_how_often_requests_are_sent_again() {
        let mut settings = OptionSettings::default();
        let limits = settings.pool_limits();
        assert!(!limits.capacity.limits_any());
        assert_eq!(limits.retries, Retries::default());
        settings.set(PROXY, "MaxRequestsPerInstance", "8");
        settings.set(PROXY, "RetryFailed", "true");
        settings.set(PROXY, "AnswerTimeout", "15");
        settings.validate().expect("they are known");
        let limits = settings.pool_limits();
        assert_eq!((limits.capacity.each, limits.capacity.pending), (8, 100));
        assert_eq!(limits.capacity.wait_ms, 5_000);
        assert!(limits.retries.failed);
        assert_eq!((limits.answer_ms, limits.whole_ms), (15_000, 0));
    }

    #[test]
    fn sessions_stick_once_that_is_enabled_and_then_to_their_side_too() {
        let mut settings = OptionSettings::default();
        settings.set(PROXY, "StickyBy", "header:X-Tenant");
        assert_eq!(settings.pool_rules().sticky, None);
        assert_eq!(settings.sticky(), None);
        settings.set(PROCESS, "StickinessEnabled", "true");
        settings.validate().expect("it is known");
        let header = || "x-tenant".to_owned();
        let rules = settings.pool_rules();
        assert_eq!(rules.sticky, Some(Stickiness::Header(header())));
        assert_eq!(settings.sticky(), Some(Sticky::Header(header())));
        settings.set(PROXY, "StickyBy", "cookie");
        settings.set(PROCESS, "StickinessLBCookieDuration", "60");
        let rules = settings.pool_rules();
        assert_eq!(rules.sticky, Some(Stickiness::Cookie { lasts_s: 60 }));
        settings.set(SPLIT, "Sticky", "header:X-Tenant");
        assert_eq!(settings.sticky(), Some(Sticky::Header(header())));
        settings.set(PROXY, "StickyBy", "header:Cookie");
        let error = settings
            .validate()
            .expect_err("no client's own")
            .to_string();
        assert!(error.contains("change from request to request"), "{error}");
    }

    #[test]
    fn requests_are_told_apart_by_one_thing() {
        assert_eq!(parse_hash_by("address"), Some(HashBy::Address));
        assert_eq!(parse_hash_by("path"), Some(HashBy::Path));
        let header = HashBy::Header("x-tenant".to_owned());
        assert_eq!(parse_hash_by("header:X-Tenant"), Some(header));
        let cookie = HashBy::Cookie("JSESSIONID".to_owned());
        assert_eq!(parse_hash_by("cookie:JSESSIONID"), Some(cookie));
        for wrong in [
            "",
            "header:",
            "header:Cookie",
            "cookie:",
            "cookie:a b",
            "cookie:a=b",
            "ip",
        ] {
            assert_eq!(parse_hash_by(wrong), None, "{wrong}");
        }
    }
}
