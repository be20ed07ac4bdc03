//! Who of a pool gets the next request.
//!
//! Those who may have it are kept in a list that is made anew when the health of some target has changed, and
//! not before: a pick looks at one of them or a few, however many there are.

mod budget;
mod outlier;
mod pace;
mod ring;
mod room;
mod warmth;

pub use budget::Budget;
pub use outlier::{Conduct, End};
pub use pace::Pace;
pub use room::{Room, Seat, Used};
pub use warmth::Warmth;

use crate::asker::Asker;
use crate::rate::Rates;
use crate::sticky::{Session, Stay};
use crate::target::{Changes, InFlight, TargetState, lock};
use crate::traffic::Counters;
use arc_swap::{ArcSwap, Guard};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::content::PoolContent;
use beanpole_protocol::proxy::{
    Algorithm, HashBy, Hold, Outliers, Retries, Stickiness, TargetPool,
};
use fnv::FnvHashMap;
use ring::{Ring, hash_of, mix};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use warmth::WHOLE;

/// How many targets are looked at for the one with the fewest requests in flight. Where there are more, those
/// that are looked at move on with every request.
const LOOKED_AT: usize = 16;
/// How many requests in flight no target is too busy for, whatever its share: a few that come together do not
/// tear a client from its target.
const NEVER_BUSY: usize = 4;

/// Targets that share traffic.
pub struct Pool {
    /// The environment's name, for pages and logs.
    pub environment_name: EnvironmentName,
    /// The environment's counts.
    pub counters: Arc<Counters>,
    /// How requests wait where no target can take them.
    pub hold: Option<Hold>,
    /// How many requests may come, where that is limited.
    pub rates: Option<Arc<Rates>>,
    /// How many of them may be in flight, where that is limited.
    pub room: Option<Room>,
    /// How many of them may be sent again.
    pub budget: Arc<Budget>,
    /// By which rules.
    pub retries: Retries,
    /// How long a target or a client may stay silent over a request.
    pub idle: Duration,
    /// How long the beginning of an answer, and a whole request, may take, where that is bounded.
    pub times: Times,
    /// The largest body of a request, in bytes, where there is one.
    pub largest_body: Option<u64>,
    /// What is done to answers.
    pub content: PoolContent,
    algorithm: Algorithm,
    hash_by: HashBy,
    sticky: Option<Stickiness>,
    outliers: Option<Outliers>,
    /// The targets by the names that clients know them by, where these are told.
    by_name: FnvHashMap<u64, usize>,
    serving: Box<[Arc<TargetState>]>,
    ring: Option<Arc<Ring>>,
    fits: ArcSwap<Fits>,
    lasting: Arc<Lasting>,
    changes: Changes,
}

/// How long requests may take, where that is bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    answer: Option<Duration>,
    whole: Option<Duration>,
}

impl Times {
    /// Until when a request that began then has to be answered, or with its answer begun, to be over.
    pub fn end(&self, begun: Instant, answered: bool) -> Option<Instant> {
        let answer = self.answer.filter(|_| !answered);
        let least = match (answer, self.whole) {
            (Some(answer), Some(whole)) => Some(answer.min(whole)),
            (answer, whole) => answer.or(whole),
        };
        least.map(|limit| begun + limit)
    }
}

fn limit(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// What pools of one environment share.
#[derive(Clone)]
pub struct OfEnvironment {
    /// Its counts.
    pub counters: Arc<Counters>,
    /// How many requests may come, where that is limited.
    pub rates: Option<Arc<Rates>>,
    /// What is in use of its room.
    pub used: Arc<Used>,
    /// How many of its requests may be sent again.
    pub budget: Arc<Budget>,
}

/// What of a pool outlives its tables.
#[derive(Default)]
pub struct Lasting {
    next: AtomicUsize,
    /// Requests in flight, where they are counted.
    in_flight: AtomicUsize,
    /// Requests that wait for a target.
    waiting: AtomicUsize,
    /// One target is put out after the other.
    putting_out: Mutex<()>,
}

/// A request's place among those that wait for a target. Ends with its value.
pub struct Place(Arc<Lasting>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Who may have the next request.
struct Fits {
    /// How often any target's health had changed when it was looked at.
    as_of: u64,
    /// Those who may, in the order of their turns.
    targets: Box<[Arc<TargetState>]>,
    /// Their shares, in parts of [`WHOLE`]; empty where all have a whole one. One of them always does.
    shares: Box<[u32]>,
    /// The shares by the numbers of the ring, where there is one; 0 for those who may not.
    on_ring: Box<[u32]>,
}

impl Pool {
    /// The pool of a table, where `before` was the one of that name; `serving` are its targets that serve.
    pub fn new(
        given: &TargetPool,
        serving: Vec<Arc<TargetState>>,
        shared: OfEnvironment,
        before: Option<&Self>,
        changes: &Changes,
    ) -> Self {
        let names = || serving.iter().map(|one| one.target.instance.as_str());
        let same = |before: &&Self| {
            let theirs = before.serving.iter();
            theirs.map(|one| one.target.instance.as_str()).eq(names())
        };
        let sticky = given.rules.sticky.clone();
        let by_key = matches!(sticky, Some(Stickiness::Address | Stickiness::Header(_)));
        let ring = (by_key || given.algorithm == Algorithm::ConsistentHash).then(|| {
            let kept = before.filter(same).and_then(|before| before.ring.clone());
            kept.unwrap_or_else(|| Arc::new(Ring::new(names())))
        });
        Self {
            environment_name: given.environment_name.clone(),
            counters: shared.counters,
            hold: given.hold,
            rates: shared.rates,
            room: (given.limits.capacity.limits_any())
                .then(|| Room::new(given.limits.capacity, shared.used)),
            budget: shared.budget,
            retries: given.limits.retries,
            idle: Duration::from_millis(given.limits.idle_ms),
            times: Times {
                answer: limit(given.limits.answer_ms),
                whole: limit(given.limits.whole_ms),
            },
            largest_body: (given.limits.body_bytes > 0).then_some(given.limits.body_bytes),
            content: given.content.clone(),
            algorithm: given.algorithm,
            hash_by: given.rules.hash_by.clone(),
            by_name: match sticky {
                Some(Stickiness::Cookie { .. }) => {
                    let numbered = (0..).zip(&serving);
                    numbered
                        .flat_map(|(number, one)| one.names().map(move |name| (name, number)))
                        .collect()
                }
                _ => FnvHashMap::default(),
            },
            sticky,
            outliers: given.rules.outliers.clone(),
            ring,
            fits: ArcSwap::from_pointee(Fits::not_looked()),
            lasting: before
                .map(|before| before.lasting.clone())
                .unwrap_or_default(),
            changes: changes.clone(),
            serving: serving.into(),
        }
    }

    /// Counts one more request, where it may come now; else how long until it may.
    pub fn admit(&self, asker: &Asker<'_>) -> Result<(), Duration> {
        self.rates
            .as_ref()
            .map_or(Ok(()), |rates| rates.admit(asker))
    }

    /// Whether a body of so many bytes is larger than it may be.
    pub fn is_too_large(&self, bytes: u64) -> bool {
        self.largest_body.is_some_and(|most| bytes > most)
    }

    /// How many requests wait for a target.
    pub fn waiting(&self) -> usize {
        self.lasting.waiting.load(Relaxed)
    }

    /// A place for a request to wait at, where it may.
    pub fn place(&self) -> Option<Place> {
        let most = self.hold?.most as usize;
        let place = Place(self.lasting.clone());
        let before = self.lasting.waiting.fetch_add(1, Relaxed);
        if before == 0 {
            // Whoever starts instances hears of it at once.
            self.changes.tell();
        }
        (before < most).then_some(place)
    }

    /// Who gets the next request, other than `except`; none where no other is fit for it. What a client is to
    /// be told so that it stays there is written to `stay`.
    pub fn pick(
        &self,
        except: Option<&Arc<TargetState>>,
        asker: &Asker<'_>,
        stay: &mut Stay,
    ) -> Option<Arc<TargetState>> {
        let fits = self.fits();
        stay.came_to = None;
        let kept = match &self.sticky {
            None => None,
            Some(Stickiness::Cookie { .. }) => self.came_to(asker, except),
            // As long as it is on the ring and well, however busy it is.
            Some(Stickiness::Address) => self.owner(&fits, key_of(asker.address()), except, None),
            Some(Stickiness::Header(name)) => asker
                .headers
                .get(name)
                .and_then(|value| self.owner(&fits, hash_of(value), except, None)),
        };
        if let Some(kept) = kept {
            return Some(kept.clone());
        }
        let chosen = self.choose(&fits, except, asker)?;
        if let Some(Stickiness::Cookie { lasts_s }) = self.sticky {
            stay.came_to = Some(Session {
                name: chosen.name(),
                lasts_s,
            });
        }
        Some(chosen)
    }

    /// Who gets the next request of a client that stays nowhere.
    fn choose(
        &self,
        fits: &Fits,
        except: Option<&Arc<TargetState>>,
        asker: &Asker<'_>,
    ) -> Option<Arc<TargetState>> {
        // A second attempt takes nobody's turn: with two targets the first one would come in turn again.
        let turn = match except {
            None => self.lasting.next.fetch_add(1, Relaxed),
            Some(_) => self.lasting.next.load(Relaxed),
        };
        let among = Among {
            targets: &fits.targets,
            shares: &fits.shares,
            turn,
            next: &self.lasting.next,
            except,
        };
        let chosen = match self.algorithm {
            Algorithm::RoundRobin => among.in_turn(),
            Algorithm::LeastConnections => among.least_busy(),
            Algorithm::PeakEwma => among.sooner_of_two(),
            Algorithm::ConsistentHash => self
                .key(asker)
                .and_then(|key| self.owner(fits, key, except, Some(self.most(fits))))
                .or_else(|| among.in_turn()),
        };
        chosen.cloned().or_else(|| self.instead_of(except?, turn))
    }

    /// Counts a request that `target` is given.
    pub fn begin(&self, target: Arc<TargetState>) -> InFlight {
        let counts = self.algorithm == Algorithm::ConsistentHash;
        let counted = counts.then(|| self.lasting.clone());
        InFlight::at(target, counted)
    }

    /// The same, of one that has been let in.
    fn entered(&self, target: Arc<TargetState>, seat: Seat) -> InFlight {
        let counts = self.algorithm == Algorithm::ConsistentHash;
        let counted = counts.then(|| self.lasting.clone());
        InFlight::entered(target, counted, seat)
    }

    /// Where a look at so many targets begins.
    fn turn(&self, of: usize) -> usize {
        let turn = self.lasting.next.fetch_add(1, Relaxed);
        turn.checked_rem(of).unwrap_or(0)
    }

    /// Whether a request may be sent once more; it counts as sent.
    pub fn may_retry(&self) -> bool {
        self.budget.spend(self.retries, Instant::now())
    }

    /// Whether somebody else than `target` may have requests.
    pub fn has_others(&self, target: &Arc<TargetState>) -> bool {
        let fits = self.fits();
        fits.targets.iter().any(|one| !Arc::ptr_eq(one, target))
    }

    /// Takes how long an answer of `target` took to begin, and whether it was a good one.
    pub fn learn(&self, target: &TargetState, began: Instant, latency: Duration, good: bool) {
        if self.algorithm == Algorithm::PeakEwma {
            target.pace.note(began, latency, good);
        }
    }

    /// Takes how a request to `target` ended, for which nobody else is to blame.
    pub fn judge(&self, target: &TargetState, end: End) {
        let Some(rules) = &self.outliers else {
            return;
        };
        let now = Instant::now();
        if let Some(why) = target.conduct.note(rules, end, now) {
            let _turn = lock(&self.lasting.putting_out);
            if outlier::put_out(target, &self.serving, rules, why, now) {
                target.is_put_out();
            }
        }
    }

    fn fits(&self) -> Guard<Arc<Fits>> {
        let known = self.fits.load();
        // Read before the targets are looked at: what changes meanwhile is seen the next time.
        let now = self.changes.of_health();
        if known.as_of == now {
            return known;
        }
        let fresh = Arc::new(self.look(now));
        self.fits.store(fresh.clone());
        Guard::from_inner(fresh)
    }

    fn look(&self, as_of: u64) -> Fits {
        // Where all are silent, waiting is better than no answer.
        let ranks: Vec<Rank> = self.serving.iter().map(|one| one.rank()).collect();
        let best = ranks.iter().copied().min().unwrap_or(Rank::Unfit);
        let now = Instant::now();
        let share = |(rank, one): (&Rank, &Arc<TargetState>)| {
            let may = *rank == best && best != Rank::Unfit;
            if may { one.warmth.share(now) } else { 0 }
        };
        let mut all: Box<[u32]> = ranks.iter().zip(&self.serving).map(share).collect();
        // Where nobody is warm, nobody is spared.
        let most = all.iter().copied().max().unwrap_or(WHOLE).max(1);
        for share in &mut all {
            *share = *share * WHOLE / most;
        }
        let targets = self.serving.iter().zip(&all);
        let targets = targets.filter(|(_, share)| **share > 0);
        let cold = all.iter().any(|share| (1..WHOLE).contains(share));
        Fits {
            as_of,
            targets: targets.map(|(target, _)| target.clone()).collect(),
            shares: if cold {
                all.iter().copied().filter(|share| *share > 0).collect()
            } else {
                Box::default()
            },
            on_ring: self.ring.as_ref().map(|_| all).unwrap_or_default(),
        }
    }

    /// Another one, where `failed` was the only one of its rank.
    fn instead_of(&self, failed: &Arc<TargetState>, turn: usize) -> Option<Arc<TargetState>> {
        let (before, after) = self.serving.split_at(turn.checked_rem(self.serving.len())?);
        let others = after.iter().chain(before);
        others
            .filter(|one| !Arc::ptr_eq(one, failed) && one.rank() != Rank::Unfit)
            .min_by_key(|one| one.rank())
            .cloned()
    }

    /// What tells this request from others; none where it lacks that.
    fn key(&self, asker: &Asker<'_>) -> Option<u64> {
        match &self.hash_by {
            HashBy::Address => Some(key_of(asker.address())),
            HashBy::Path => Some(hash_of(asker.path)),
            HashBy::Header(name) => asker.headers.get(name).map(hash_of),
            HashBy::Cookie(name) => asker.headers.cookie(name).map(hash_of),
        }
    }

    /// The target that a client came to, by its cookie, as long as it is well. A moment of silence is no reason
    /// to lose a session.
    fn came_to(
        &self,
        asker: &Asker<'_>,
        except: Option<&Arc<TargetState>>,
    ) -> Option<&Arc<TargetState>> {
        let number = self.by_name.get(&Session::named(asker.headers)?)?;
        let target = self.serving.get(*number)?;
        (target.rank() < Rank::Out && is_other(target, except)).then_some(target)
    }

    /// How many requests in flight nobody is to have more of: 1.25 times a share.
    fn most(&self, fits: &Fits) -> u32 {
        let in_flight = self.lasting.in_flight.load(Relaxed) + 1;
        let share = (in_flight * 5).div_ceil(4 * fits.targets.len().max(1));
        u32::try_from(share.max(NEVER_BUSY)).unwrap_or(u32::MAX)
    }

    /// Whose `key` is, or who comes next, where that one has `most` requests in flight
    /// (consistent hashing with bounded loads: Mirrokni, Thorup, Zadimoghaddam 2016).
    fn owner(
        &self,
        fits: &Fits,
        key: u64,
        except: Option<&Arc<TargetState>>,
        most: Option<u32>,
    ) -> Option<&Arc<TargetState>> {
        let ring = self.ring.as_ref()?;
        let may = |number: &usize| {
            let share = fits.on_ring.get(*number).copied().unwrap_or(0);
            // Of the keys of one that is cold always the same wait, and fewer and fewer.
            let draw = || mix(key.wrapping_add(*number as u64)) % u64::from(WHOLE);
            share == WHOLE || (share > 0 && draw() < u64::from(share))
        };
        let mut targets = ring
            .after(key)
            .filter(may)
            .filter_map(|number| self.serving.get(number))
            .filter(|target| is_other(target, except));
        let first = targets.next()?;
        let Some(most) = most.filter(|most| first.in_flight() >= *most) else {
            return Some(first);
        };
        // By count one is less busy than the average, unless counts change meanwhile.
        let next = targets.find(|target| target.in_flight() < most);
        next.or(Some(first))
    }
}

/// Whom a request may go to, and in whose turn it came.
struct Among<'a> {
    targets: &'a [Arc<TargetState>],
    shares: &'a [u32],
    turn: usize,
    /// Whose turn is next.
    next: &'a AtomicUsize,
    except: Option<&'a Arc<TargetState>>,
}

impl<'a> Among<'a> {
    /// The one at that place, if it may have this request. One with a part of its share passes on the rest.
    fn at(&self, place: usize) -> Option<&'a Arc<TargetState>> {
        let target = self.targets.get(place)?;
        let share = self.shares.get(place).copied().unwrap_or(WHOLE);
        let takes = share == WHOLE || target.warmth.takes_turn(share);
        (takes && is_other(target, self.except)).then_some(target)
    }

    fn in_turn(&self) -> Option<&'a Arc<TargetState>> {
        let count = self.targets.len();
        let mut turn = self.turn;
        // Within a round somebody has a whole share, unless it is the one that is left out.
        for _ in 0..=count {
            if let Some(target) = self.at(turn.checked_rem(count)?) {
                return Some(target);
            }
            // Whoever comes behind one that passes gets no more for that: the turns go on.
            turn = self.next.fetch_add(1, Relaxed);
        }
        let mut others = self.targets.iter();
        others.find(|target| is_other(target, self.except))
    }

    /// The one with the fewest requests in flight, of [`LOOKED_AT`].
    fn least_busy(&self) -> Option<&'a Arc<TargetState>> {
        let count = self.targets.len();
        let mut least: Option<(u32, &Arc<TargetState>)> = None;
        for step in 0..count.min(LOOKED_AT) {
            let place = (self.turn + step) % count;
            let Some(target) = self.at(place) else {
                continue;
            };
            let busy = target.in_flight();
            if busy == 0 {
                return Some(target);
            }
            let busy = busy.saturating_mul(self.weight(place));
            if least.is_none_or(|(fewest, _)| busy < fewest) {
                least = Some((busy, target));
            }
        }
        least.map_or_else(|| self.in_turn(), |(_, target)| Some(target))
    }

    /// How much a request weighs there: the smaller the share, the more.
    fn weight(&self, place: usize) -> u32 {
        let share = self.shares.get(place).copied().unwrap_or(WHOLE);
        WHOLE / share.max(1)
    }

    /// The one of two, drawn by lot, that would answer first (the power of two choices: Mitzenmacher 2001).
    fn sooner_of_two(&self) -> Option<&'a Arc<TargetState>> {
        let count = self.targets.len() as u64;
        if count < 2 {
            return self.in_turn();
        }
        let lot = mix(self.turn as u64);
        let drawn = |bits: u64, of: u64| (bits * of) >> 32;
        let first = drawn(lot >> 32, count);
        let second = drawn(lot & u64::from(u32::MAX), count - 1);
        let second = second + u64::from(second >= first);
        match [first, second].map(|drawn| self.at(drawn as usize)) {
            [Some(one), Some(other)] => Some(sooner(one, other)),
            [Some(only), None] | [None, Some(only)] => Some(only),
            [None, None] => self.in_turn(),
        }
    }
}

/// The one that would answer sooner; of one that has not answered yet, only how busy it is is known.
fn sooner<'a>(one: &'a Arc<TargetState>, other: &'a Arc<TargetState>) -> &'a Arc<TargetState> {
    let now = Instant::now();
    let busy = [one, other].map(|target| f64::from(target.in_flight() + 1));
    let (first, second) = match (one.pace.at(now), other.pace.at(now)) {
        (Some(first), Some(second)) => (first * busy[0], second * busy[1]),
        (None, Some(_)) if busy[0] <= busy[1] => return one,
        (Some(_), None) if busy[1] <= busy[0] => return other,
        _ => (busy[0], busy[1]),
    };
    if first <= second { one } else { other }
}

fn key_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => hash_of(&address.octets()),
        IpAddr::V6(address) => hash_of(&address.octets()),
    }
}

fn is_other(target: &Arc<TargetState>, except: Option<&Arc<TargetState>>) -> bool {
    except.is_none_or(|except| !Arc::ptr_eq(except, target))
}

impl Fits {
    fn not_looked() -> Self {
        Self {
            as_of: u64::MAX,
            targets: Box::default(),
            shares: Box::default(),
            on_ring: Box::default(),
        }
    }
}

impl Lasting {
    /// One request more is in flight, or one less.
    pub fn counts(&self, more: bool) {
        if more {
            self.in_flight.fetch_add(1, Relaxed);
        } else {
            self.in_flight.fetch_sub(1, Relaxed);
        }
    }
}

/// Who is asked before whom; the first is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is well and answers.
    Preferred,
    /// It is well, and keeps a check waiting.
    Silent,
    /// It passes its checks and fails requests: it is left out as long as anybody else is well.
    Out,
    /// It gets nothing.
    Unfit,
}

#[cfg(test)]
mod tests;
