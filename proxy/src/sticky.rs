//! Clients that stay: on one side of a split, and at one target of a pool.
//!
//! For a split each has a number, and the pools of a route have ranges of numbers as wide as their shares: a
//! client that a growing share has taken in stays in.

use crate::asker::Headers;
use crate::cookies;
use beanpole_protocol::proxy::{Sticky, WeightedPool};
use fnv::FnvHasher;
use http::header::HeaderValue;
use std::hash::Hasher;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many numbers there are: shares are exact over as many clients that come one after the other.
const NUMBERS: u32 = 10_000;
/// Has no factor in common with [`NUMBERS`], and about the golden ratio to it: numbers that follow on
/// each other are spread evenly.
const STRIDE: usize = 6_181;
/// How long a client keeps it, in seconds: a week outlasts what a split may take.
const KEPT_S: u32 = 7 * 24 * 3_600;

/// How the clients of a route are told apart, and where each belongs.
pub struct Sides {
    by: By,
    /// For each pool but the first, from the last to the second: its index and the end of its range.
    ends: Vec<(u16, u32)>,
    /// Other clients for every release: the same few should not be the first each time.
    salt: u32,
}

enum By {
    Cookie,
    Header(String),
}

/// A client's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    value: u32,
    /// It has no cookie yet.
    is_new: bool,
}

impl Sides {
    /// The sides of a route with these pools.
    pub fn new(sticky: &Sticky, pools: &[WeightedPool]) -> Option<Self> {
        let by = match sticky {
            Sticky::Cookie => By::Cookie,
            Sticky::Header(name) => By::Header(name.clone()),
        };
        let sum: u64 = pools.iter().map(|pool| u64::from(pool.weight)).sum();
        let mut ends = Vec::new();
        let mut taken = 0;
        for (index, pool) in pools.iter().enumerate().skip(1).rev() {
            taken += u64::from(pool.weight);
            let end = taken * u64::from(NUMBERS) / sum.max(1);
            ends.push((u16::try_from(index).ok()?, u32::try_from(end).ok()?));
        }
        let mut hasher = FnvHasher::default();
        hasher.write(pools.last()?.pool.as_bytes());
        Some(Self {
            by,
            ends,
            salt: (hasher.finish() % u64::from(NUMBERS)) as u32,
        })
    }

    /// The number of the client that sent these headers; none where it cannot be told from others. New
    /// ones take theirs in turn from `next`.
    pub fn number(&self, headers: Headers<'_>, next: &AtomicUsize) -> Option<Number> {
        match &self.by {
            By::Cookie => Some(from_cookies(headers).unwrap_or_else(|| {
                let turn = next.fetch_add(1, Relaxed) % NUMBERS as usize;
                Number {
                    value: (turn * STRIDE % NUMBERS as usize) as u32,
                    is_new: true,
                }
            })),
            By::Header(name) => headers.get(name).map(|value| {
                let mut hasher = FnvHasher::default();
                hasher.write(value);
                // FNV's low bits are the weaker ones.
                let hash = hasher.finish();
                Number {
                    value: ((hash ^ (hash >> 32)) % u64::from(NUMBERS)) as u32,
                    is_new: false,
                }
            }),
        }
    }

    /// The number of a client that has one already.
    pub fn known(&self, headers: Headers<'_>) -> Option<Number> {
        match &self.by {
            By::Cookie => from_cookies(headers),
            By::Header(_) => self.number(headers, &AtomicUsize::new(0)),
        }
    }

    /// The pool of a client.
    pub fn pool_of(&self, number: Number) -> usize {
        let place = (number.value + self.salt) % NUMBERS;
        let found = self.ends.iter().find(|(_, end)| place < *end);
        found.map_or(0, |(index, _)| usize::from(*index))
    }
}

/// What keeps the sender of a request where it is.
#[derive(Debug, Default)]
pub struct Stay {
    /// Its number, where a split keeps clients on their side.
    pub number: Option<Number>,
    /// What it is told of the target that it has come to, if it stays there from now on.
    pub came_to: Option<Session>,
}

/// A client's stay at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The target's name.
    pub name: u64,
    /// For how many seconds.
    pub lasts_s: u32,
}

impl Session {
    /// The name of the target that the client stays at, as far as it says.
    pub fn named(headers: Headers<'_>) -> Option<u64> {
        let value = headers.cookie(cookies::SESSION)?;
        let is_name = value.len() == 16 && value.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(value).ok().filter(|_| is_name)?;
        u64::from_str_radix(digits, 16).ok()
    }
}

impl Stay {
    /// The cookies to give with the answer.
    pub fn cookies(&self, tls: bool) -> impl Iterator<Item = HeaderValue> {
        let number = self.number.filter(|number| number.is_new);
        let number = number.and_then(|number| {
            cookies::give(cookies::CLIENT, &number.value.to_string(), KEPT_S, tls)
        });
        let session = self.came_to.and_then(|session| {
            let name = format!("{:016x}", session.name);
            cookies::give(cookies::SESSION, &name, session.lasts_s, tls)
        });
        number.into_iter().chain(session)
    }
}

fn from_cookies(headers: Headers<'_>) -> Option<Number> {
    let value = std::str::from_utf8(headers.cookie(cookies::CLIENT)?)
        .ok()?
        .parse()
        .ok()?;
    (value < NUMBERS).then_some(Number {
        value,
        is_new: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{COOKIE, HeaderMap};

    fn pools(release: u32, percent: u32) -> Vec<WeightedPool> {
        let pool = |pool: String, weight| WeightedPool { pool, weight };
        vec![
            pool("prod".to_owned(), 100 - percent),
            pool(format!("prod@{release}"), percent),
        ]
    }

    fn on_new(sides: &Sides) -> Vec<u32> {
        let next = AtomicUsize::new(0);
        let numbers = (0..NUMBERS).map(|_| sides.number(Headers::Map(&HeaderMap::new()), &next));
        let mut all: Vec<u32> = numbers
            .flatten()
            .filter(|number| sides.pool_of(*number) == 1)
            .map(|number| number.value)
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn shares_are_exact_over_ten_thousand_clients_and_those_taken_in_stay_in() {
        let sides = |percent| Sides::new(&Sticky::Cookie, &pools(7, percent)).expect("sides");
        let few = on_new(&sides(1));
        let more = on_new(&sides(25));
        assert_eq!((few.len(), more.len()), (100, 2_500));
        assert!(few.iter().all(|one| more.binary_search(one).is_ok()));
        assert_eq!(on_new(&sides(100)).len(), 10_000);
        let other = Sides::new(&Sticky::Cookie, &pools(8, 1)).expect("sides");
        assert_ne!(on_new(&other), few, "other clients come first");
    }

    #[test]
    fn a_client_is_known_by_its_cookie_or_its_header() {
        let sides = Sides::new(&Sticky::Cookie, &pools(7, 50)).expect("sides");
        let next = AtomicUsize::new(3);
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; b=2"));
        headers.append(COOKIE, HeaderValue::from_static("beanpole_client=42"));
        let known = sides
            .number(Headers::Map(&headers), &next)
            .expect("a number");
        assert_eq!((known.value, known.is_new), (42, false));
        for odd in [
            "beanpole_client=10000",
            "beanpole_client=-1",
            "beanpole_client=",
        ] {
            headers.clear();
            headers.append(COOKIE, HeaderValue::from_static(odd));
            let new = sides
                .number(Headers::Map(&headers), &next)
                .expect("a number");
            assert!(new.is_new, "{odd}");
        }
        let by_header = Sticky::Header("x-tenant".to_owned());
        let sides = Sides::new(&by_header, &pools(7, 50)).expect("sides");
        assert_eq!(sides.number(Headers::Map(&HeaderMap::new()), &next), None);
        let of = |tenant: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-tenant", HeaderValue::from_str(tenant).expect("a value"));
            sides.pool_of(
                sides
                    .number(Headers::Map(&headers), &next)
                    .expect("a number"),
            )
        };
        assert_eq!(of("acme"), of("acme"));
        let on_new = (0..10_000)
            .filter(|n| of(&format!("tenant-{n}")) == 1)
            .count();
        assert!((4_700..5_300).contains(&on_new), "{on_new} of 10000");
    }

    #[test]
    fn a_client_is_told_once_where_it_stays() {
        let told = |number: Option<Number>, came_to| {
            let stay = Stay { number, came_to };
            let cookies = stay.cookies(true);
            cookies
                .map(|one| one.to_str().expect("text").to_owned())
                .collect::<Vec<_>>()
        };
        let number = |is_new| Some(Number { value: 42, is_new });
        assert!(told(number(false), None).is_empty());
        let session = Session {
            name: 0xf,
            lasts_s: 60,
        };
        let rest = "HttpOnly; SameSite=Lax; Secure";
        assert_eq!(
            told(number(true), Some(session)),
            [
                format!("beanpole_client=42; Path=/; Max-Age=604800; {rest}"),
                format!("beanpole_session=000000000000000f; Path=/; Max-Age=60; {rest}"),
            ]
        );
        let back = b"GET / HTTP/1.1\r\nCookie: beanpole_session=000000000000000f\r\n\r\n";
        assert_eq!(Session::named(Headers::Raw(back)), Some(0xf));
        for odd in ["f", "+00000000000000f", "00000000000000zz"] {
            let odd = format!("GET / HTTP/1.1\r\nCookie: beanpole_session={odd}\r\n\r\n");
            assert_eq!(Session::named(Headers::Raw(odd.as_bytes())), None, "{odd}");
        }
    }
}
