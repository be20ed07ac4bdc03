//! How many requests an environment gets, and how many each of its clients may send: by the generic cell rate
//! algorithm (ITU-T I.371), so that a burst is taken and then one request after the other.

use crate::asker::Asker;
use beanpole_protocol::proxy::{Rate, Rates as Wanted};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

/// How many clients are remembered before those are forgotten that have not come for a while.
const MANY_CLIENTS: usize = 10_000;
/// How many at most: what comes from others then counts for the environment alone.
const MOST_CLIENTS: usize = 200_000;

/// The limits of one environment, and how much of them is used.
pub struct Rates {
    /// What they were made from.
    pub wanted: Wanted,
    all: Option<DefaultDirectRateLimiter>,
    by_client: Option<DefaultKeyedRateLimiter<IpAddr>>,
    clock: DefaultClock,
}

impl Rates {
    /// Limits of which nothing is used.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            all: quota(wanted.all).map(RateLimiter::direct),
            by_client: quota(wanted.by_client).map(RateLimiter::dashmap),
            clock: DefaultClock::default(),
            wanted,
        }
    }

    /// Whether there is anything to look at.
    pub fn limits_any(&self) -> bool {
        self.all.is_some() || self.by_client.is_some()
    }

    /// Counts one more request, where it may come now; else how long until it may.
    pub fn admit(&self, asker: &Asker<'_>) -> Result<(), Duration> {
        let wait = |until: governor::NotUntil<_>| until.wait_time_from(self.clock.now());
        if let Some(limiter) = &self.by_client {
            let client = network_of(asker.address());
            if limiter.len() < MOST_CLIENTS {
                limiter.check_key(&client).map_err(wait)?;
            }
        }
        match &self.all {
            Some(limiter) => limiter.check().map_err(wait),
            None => Ok(()),
        }
    }

    /// Forgets clients that have all of their limit again, where there are many.
    pub fn prune(&self) {
        if let Some(limiter) = &self.by_client
            && limiter.len() > MANY_CLIENTS
        {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

fn quota(rate: Rate) -> Option<Quota> {
    let each_second = NonZeroU32::new(rate.per_second)?;
    let burst = NonZeroU32::new(rate.burst).unwrap_or(each_second);
    Some(Quota::per_second(each_second).allow_burst(burst))
}

/// Whoever has an IPv6 address has a network of them (RFC 6177): they count as one.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asker::Headers;
    use crate::forwarded::Client;

    fn admitted(rates: &Rates, address: &str) -> bool {
        let address = address.parse().expect("an address");
        let client = Client::new(address, 80, false, false);
        let asker = Asker {
            client: &client,
            trusted: &[],
            path: b"/",
            headers: Headers::Raw(b"GET / HTTP/1.1\r\n\r\n"),
        };
        rates.admit(&asker).is_ok()
    }

    #[test]
    fn a_client_that_has_used_its_burst_waits_and_others_do_not() {
        let rates = Rates::new(Wanted {
            by_client: Rate {
                per_second: 1,
                burst: 3,
            },
            ..Wanted::default()
        });
        for _ in 0..3 {
            assert!(admitted(&rates, "192.0.2.1"));
        }
        assert!(!admitted(&rates, "192.0.2.1"));
        assert!(admitted(&rates, "192.0.2.2"));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let rates = Rates::new(Wanted {
            by_client: Rate {
                per_second: 1,
                burst: 1,
            },
            ..Wanted::default()
        });
        assert!(admitted(&rates, "2001:db8:0:1::1"));
        assert!(!admitted(&rates, "2001:db8:0:1:ffff::2"));
        assert!(admitted(&rates, "2001:db8:0:2::1"));
    }

    #[test]
    fn all_clients_together_have_the_environments_limit() {
        let rates = Rates::new(Wanted {
            all: Rate {
                per_second: 2,
                burst: 0,
            },
            ..Wanted::default()
        });
        assert!(admitted(&rates, "192.0.2.1") && admitted(&rates, "192.0.2.2"));
        assert!(!admitted(&rates, "192.0.2.3"));
        assert!(!Rates::new(Wanted::default()).limits_any());
    }
}
