//! The routing table in force: an immutable value made for lookups, and whose turn it is of a route's pools.

use crate::asker::{Asker, Headers};
use crate::balance::{Budget, OfEnvironment, Pool, Used};
use crate::compress::asked_for;
use crate::names::Names;
use crate::network::{self, Streams};
use crate::pages::takes_html;
use crate::rate::Rates;
use crate::sticky::{Sides, Stay};
use crate::target::{Changes, TargetState};
use crate::traffic::{Counters, ReleaseCounters};
use beanpole_protocol::proxy::{
    self, EnvironmentTraffic, HealthCheck, Probe, Redirect, ReleaseTraffic, RouteRule,
    RoutingTable, Target, TargetMode, TargetPool, Traffic, WeightedPool,
};
use beanpole_protocol::router::{
    Router, is_host_pattern, is_hostname, is_path_pattern, normal_host,
};
use beanpole_protocol::{EnvironmentId, InstanceId, ReleaseNumber};
use fnv::{FnvHashMap, FnvHashSet};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many routes are worked on before others may work: some two milliseconds. Where requests use up the core, each
/// turn that is given away costs the table several.
const PIECE: usize = 2_048;
/// Longest turn of a route's weights. Shares are exact over one turn.
const LONGEST_TURN: u64 = 10_000;

/// The table in force.
#[derive(Default)]
pub struct Table {
    /// As it was given; none before the first.
    pub source: Option<RoutingTable>,
    routes: Router<Route>,
    /// Where connections go that are no requests.
    pub streams: Streams,
    /// Whose turn it is, by route that has turns: it goes on in the next table.
    cursors: HashMap<Turned, Arc<AtomicUsize>>,
    pools: FnvHashMap<String, Arc<Pool>>,
    /// By instance and process.
    targets: BTreeMap<(InstanceId, String), Arc<TargetState>>,
    environments: BTreeMap<EnvironmentId, Arc<Counters>>,
    rates: BTreeMap<EnvironmentId, Arc<Rates>>,
    used: BTreeMap<EnvironmentId, Arc<Used>>,
    budgets: BTreeMap<EnvironmentId, Arc<Budget>>,
    releases: BTreeMap<(EnvironmentId, ReleaseNumber), Arc<ReleaseCounters>>,
}

/// Whose turns are counted together: a host, patterns of its paths, and a rule of that route if it is one's.
type Turned = (String, Vec<String>, Option<(String, Option<bool>)>);

/// Where requests go. There may be one for each of ten thousand hosts, so what few have is apart.
#[derive(Clone)]
pub struct Route {
    /// Clients that come without TLS are sent to where it is.
    pub only_https: bool,
    /// The first of its pools, which says what is done to answers.
    first: Option<Arc<Pool>>,
    more: Option<Arc<More>>,
}

/// What a route has that leads to more than one pool, or elsewhere.
struct More {
    /// Where clients are sent instead.
    redirect: Option<Redirect>,
    /// In the order of their turns.
    pools: Vec<Arc<Pool>>,
    /// Which of them has the largest share.
    main: usize,
    turns: Box<[u16]>,
    next: Arc<AtomicUsize>,
    sides: Option<Sides>,
    /// What goes to other pools.
    rules: Box<[(RouteRule, Route)]>,
}

/// What a change of tables did to the targets.
#[derive(Default)]
pub struct Difference {
    /// New ones, to be checked from now on.
    pub came: Vec<Arc<TargetState>>,
    /// Ones that are no longer in the table.
    pub went: Vec<Arc<TargetState>>,
}

/// Why a table makes no sense; a sentence for people.
pub fn validate(table: &RoutingTable) -> Result<(), String> {
    let mut pools = FnvHashSet::default();
    let mut targets = FnvHashSet::default();
    for pool in &table.pools {
        if !pools.insert(pool.name.as_str()) {
            return Err(format!("The pool `{}` is there twice.", pool.name));
        }
        for target in &pool.targets {
            let mut checks = std::iter::once(&target.check).chain(&target.tried);
            if checks.any(|check| check.interval_ms == 0 || check.timeout_ms == 0) {
                return Err(format!(
                    "A check of instance {} has an interval or a timeout of 0.",
                    target.instance
                ));
            }
            if let Some(why) = std::iter::once(&target.check)
                .chain(&target.tried)
                .find_map(no_regex)
            {
                return Err(format!(
                    "A check of instance {} has a pattern that cannot be used: {why}",
                    target.instance
                ));
            }
            if !targets.insert((&target.instance, &target.process)) {
                return Err(format!("The instance {} is there twice.", target.instance));
            }
        }
    }
    let mut routes = FnvHashSet::default();
    routes.reserve(table.routes.len());
    for (number, route) in table.routes.iter().enumerate() {
        let_others_work(number);
        let host = normal_host(&route.host);
        if !is_host_pattern(&host) {
            return Err(format!("`{}` is not a hostname.", route.host));
        }
        if let Some(path) = route.paths.iter().find(|path| !is_path_pattern(path)) {
            return Err(format!("`{path}` is not a pattern of paths."));
        }
        if !routes.insert((host, &route.paths)) {
            return Err(format!("The host `{}` is there twice.", route.host));
        }
        if let Some(redirect) = &route.redirect
            && !is_hostname(&redirect.host)
        {
            return Err(format!("`{}` is not a hostname.", redirect.host));
        }
        let rules = route.rules.iter();
        if let Some(path) = (rules.clone())
            .flat_map(|rule| &rule.paths)
            .find(|path| !is_path_pattern(path))
        {
            return Err(format!("`{path}` is not a pattern of paths."));
        }
        for weighted in rules.flat_map(|rule| &rule.pools).chain(&route.pools) {
            if !pools.contains(weighted.pool.as_str()) {
                return Err(format!(
                    "The route of `{}` leads to the pool `{}`, which is not in the table.",
                    route.host, weighted.pool
                ));
            }
        }
    }
    network::validate(table)
}

/// Why the pattern of a check cannot be used, where that is so.
fn no_regex(check: &HealthCheck) -> Option<String> {
    match &check.probe {
        Probe::Http { details, .. } => details.body.as_ref()?.regex().err(),
        Probe::Grpc { .. } | Probe::Tcp => None,
    }
}

impl Table {
    /// Makes a table that follows on `self`: targets that stay keep their state. `source` must be
    /// valid. `assumed`: targets that serve are taken for healthy until checked.
    pub fn follow(
        &self,
        source: RoutingTable,
        assumed: bool,
        names: &Names,
        changes: &Changes,
    ) -> (Self, Difference) {
        let mut next = Self::default();
        let mut difference = Difference::default();
        for pool in &source.pools {
            let counters = next
                .environments
                .entry(pool.environment.clone())
                .or_insert_with(|| {
                    self.environments
                        .get(&pool.environment)
                        .cloned()
                        .unwrap_or_default()
                })
                .clone();
            let mut serving = Vec::new();
            for target in &pool.targets {
                let of_release = (pool.environment.clone(), target.release);
                let kept = self.releases.get(&of_release).cloned();
                let release = next.releases.entry(of_release);
                let release = release.or_insert_with(|| kept.unwrap_or_default()).clone();
                let place = (target.instance.clone(), target.process.clone());
                let known = self.targets.get(&place).filter(|t| t.is(target));
                let state = known.cloned().unwrap_or_else(|| {
                    let new = TargetState::new(target, release, assumed, names, changes.clone());
                    difference.came.push(new.clone());
                    new
                });
                if target.mode == TargetMode::Serve {
                    serving.push(state.clone());
                }
                next.targets.insert(place, state);
            }
            let before = self.pools.get(&pool.name).map(|pool| &**pool);
            let shared = OfEnvironment {
                rates: self.rates_of(pool, &mut next.rates),
                used: kept(&self.used, &mut next.used, pool, Arc::default),
                budget: kept(&self.budgets, &mut next.budgets, pool, || {
                    Arc::new(Budget::new(counters.clone()))
                }),
                counters,
            };
            let made = Pool::new(pool, serving, shared, before, changes);
            next.pools.insert(pool.name.clone(), Arc::new(made));
        }
        next.routes = Router::with_capacity(source.routes.len());
        for (number, route) in source.routes.iter().enumerate() {
            let_others_work(number);
            let host = normal_host(&route.host);
            let made = self.route_of(route, &host, &mut next);
            next.routes
                .insert(&host, &route.paths, route.priority, &made);
        }
        next.routes.sort();
        let streams = self.streams_of(&source, &mut next);
        next.streams = streams;
        for (place, state) in &self.targets {
            if !next
                .targets
                .get(place)
                .is_some_and(|kept| Arc::ptr_eq(kept, state))
            {
                difference.went.push(state.clone());
            }
        }
        next.source = Some(source);
        (next, difference)
    }

    /// A route of the next table.
    fn route_of(&self, route: &proxy::Route, host: &str, next: &mut Self) -> Route {
        let turned = |of_rule| (host.to_owned(), route.paths.clone(), of_rule);
        let mut rules = Vec::new();
        for rule in &route.rules {
            let turned = || turned(Some((rule.name.clone(), rule.https)));
            let leads = self.leads(next, route, &rule.pools, turned, Box::default());
            rules.push((rule.clone(), leads));
        }
        self.leads(next, route, &route.pools, || turned(None), rules.into())
    }

    /// A route, or what a rule of it leads to: with these pools.
    fn leads(
        &self,
        next: &mut Self,
        route: &proxy::Route,
        weighted: &[WeightedPool],
        turned: impl FnOnce() -> Turned,
        rules: Box<[(RouteRule, Route)]>,
    ) -> Route {
        let pools = weighted.iter();
        let mut pools = pools.filter_map(|weighted| next.pools.get(&weighted.pool).cloned());
        let mut made = Route {
            only_https: route.only_https,
            first: pools.next(),
            more: None,
        };
        if weighted.len() < 2 && route.redirect.is_none() && rules.is_empty() {
            return made;
        }
        let pools = made.first.iter().cloned().chain(pools).collect();
        let turned = turned();
        let cursor = self.cursors.get(&turned).cloned().unwrap_or_default();
        made.more = Some(Arc::new(More {
            redirect: route.redirect.clone(),
            pools,
            main: main(weighted),
            turns: turns(weighted),
            next: cursor.clone(),
            sides: route
                .sticky
                .as_ref()
                .filter(|_| weighted.len() > 1)
                .and_then(|sticky| Sides::new(sticky, weighted)),
            rules,
        }));
        next.cursors.insert(turned, cursor);
        made
    }

    /// Where connections go, each as the route of its pools.
    fn streams_of(&self, source: &RoutingTable, next: &mut Self) -> Streams {
        let cursors = &mut next.cursors;
        Streams::new(
            &source.streams,
            &self.streams,
            &next.pools,
            |stream, pools| {
                let (port, hosts) = network::cursor_name(stream);
                let turned = (port, hosts, None);
                let cursor = self.cursors.get(&turned).cloned().unwrap_or_default();
                cursors.insert(turned, cursor.clone());
                Route {
                    only_https: false,
                    first: pools.first().cloned(),
                    more: Some(Arc::new(More {
                        redirect: None,
                        pools,
                        main: main(&stream.pools),
                        turns: turns(&stream.pools),
                        next: cursor,
                        sides: None,
                        rules: Box::default(),
                    })),
                }
            },
        )
    }

    /// The limits of a pool's environment: those that there are, as long as they are wanted so.
    fn rates_of(
        &self,
        pool: &TargetPool,
        next: &mut BTreeMap<EnvironmentId, Arc<Rates>>,
    ) -> Option<Arc<Rates>> {
        let wanted = pool.limits.rates;
        let rates = next.entry(pool.environment.clone()).or_insert_with(|| {
            let kept = self.rates.get(&pool.environment);
            let kept = kept.filter(|kept| kept.wanted == wanted).cloned();
            kept.unwrap_or_else(|| Arc::new(Rates::new(wanted)))
        });
        rates.limits_any().then(|| rates.clone())
    }

    /// The budgets of all environments.
    pub fn budgets(&self) -> impl Iterator<Item = &Arc<Budget>> {
        self.budgets.values()
    }

    /// The limits of all environments.
    pub fn rates(&self) -> impl Iterator<Item = &Arc<Rates>> {
        self.rates.values()
    }

    /// Brings the targets' own state in line, once this table is in force.
    pub fn enact(&self) {
        let pools = self.source.iter().flat_map(|source| &source.pools);
        for (pool, target) in pools.flat_map(|pool| pool.targets.iter().map(move |t| (pool, t))) {
            if let Some(state) = self.target(target) {
                state.update(target, &pool.rules);
            }
        }
    }

    /// Every target with what the table says of it.
    pub fn given(&self) -> impl Iterator<Item = (&Arc<TargetState>, &Target)> {
        let pools: &[TargetPool] = self.source.as_ref().map_or(&[], |source| &source.pools);
        let targets = pools.iter().flat_map(|pool| &pool.targets);
        targets.filter_map(|target| Some((self.target(target)?, target)))
    }

    fn target(&self, given: &Target) -> Option<&Arc<TargetState>> {
        let place = (given.instance.clone(), given.process.clone());
        self.targets.get(&place)
    }

    /// Where requests for `path` of `host` go; `host` as [`normal_host`] makes it. `https` says whether they came
    /// over TLS, where that matters.
    pub fn route(&self, host: &str, path: &str, https: impl Fn() -> bool) -> Option<&Route> {
        let route = self.routes.find(host, path)?;
        let rules = route.more.iter().flat_map(|more| &more.rules);
        let rule = rules
            .into_iter()
            .find(|(rule, _)| rule.takes(host, path, &https));
        Some(rule.map_or(route, |(_, leads)| leads))
    }

    /// Every target, by instance.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<TargetState>> {
        self.targets.values()
    }

    /// What every release was given.
    pub fn releases(&self) -> Vec<ReleaseTraffic> {
        self.releases
            .iter()
            .map(|((environment, release), counters)| counters.snapshot(environment, *release))
            .collect()
    }

    /// How many requests for an environment wait for a target.
    fn waiting(&self, environment: &EnvironmentId) -> u32 {
        let pools = self.source.iter().flat_map(|source| &source.pools);
        let its = pools.filter(|pool| pool.environment == *environment);
        let waiting = its.filter_map(|pool| Some(self.pools.get(&pool.name)?.waiting()));
        u32::try_from(waiting.sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// What every environment was given.
    pub fn environments(&self) -> Vec<EnvironmentTraffic> {
        self.environments
            .iter()
            .map(|(environment, counters)| {
                let budget = self.budgets.get(environment);
                let (retried, retries_denied) = budget.map_or((0, 0), |budget| budget.counts());
                EnvironmentTraffic {
                    environment: environment.clone(),
                    traffic: Traffic {
                        waiting: self.waiting(environment),
                        retried,
                        retries_denied,
                        over_capacity: self.used.get(environment).map_or(0, |used| used.refused()),
                        ..counters.snapshot()
                    },
                }
            })
            .collect()
    }
}

/// What an environment had in the table before, or has anew.
fn kept<T>(
    before: &BTreeMap<EnvironmentId, Arc<T>>,
    next: &mut BTreeMap<EnvironmentId, Arc<T>>,
    of: &TargetPool,
    new: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    let entry = next.entry(of.environment.clone());
    let kept = || before.get(&of.environment).cloned();
    entry.or_insert_with(|| kept().unwrap_or_else(new)).clone()
}

impl Route {
    /// Where clients are sent instead.
    pub fn redirect(&self) -> Option<&Redirect> {
        self.more.as_ref()?.redirect.as_ref()
    }

    /// Whether a client is sent elsewhere that came with or without TLS, where there is an `https` to be sent to.
    pub fn leads_elsewhere(&self, tls: bool, https: bool) -> bool {
        self.redirect().is_some() || (self.only_https && !tls && https)
    }

    /// Whether answers to a request with these headers may be changed, which takes the long way.
    pub fn changes_answers(&self, headers: Headers<'_>) -> bool {
        let Some(content) = self.first.as_ref().map(|pool| &pool.content) else {
            return false;
        };
        let compression = content.compression.as_ref();
        compression.is_some_and(|wanted| asked_for(headers, &wanted.encodings).is_some())
            || content.replaces_errors && takes_html(headers)
    }

    /// Whether some requests may be answered with files.
    pub fn has_files(&self) -> bool {
        let first = self.first.as_ref();
        first.is_some_and(|pool| !pool.content.static_files.is_empty())
    }

    /// The pool whose files a client gets: that which it stays at, else the main one. It takes nobody's turn.
    pub fn side(&self, asker: &Asker<'_>) -> Option<&Arc<Pool>> {
        let Some(more) = &self.more else {
            return self.first.as_ref();
        };
        let kept = more.sides.as_ref().and_then(|sides| {
            let number = sides.known(asker.headers)?;
            Some(sides.pool_of(number))
        });
        more.pools.get(kept.unwrap_or(more.main))
    }

    /// A pool of the environment, where that is closed to the client.
    pub fn closed_to(&self, asker: &Asker<'_>) -> Option<&Arc<Pool>> {
        let pool = self.first.as_ref()?;
        let closed = pool.content.maintenance.as_ref()?;
        let address = asker.address();
        let may_come = closed.allow.iter().any(|one| one.contains(address));
        (!may_come).then_some(pool)
    }

    /// Who gets the next request, other than `except`. The pool without a target when no target is fit for
    /// it; nothing when the route has no pool at all. What `stay` says of the client is followed, and what
    /// comes of it is written there.
    pub fn pick(
        &self,
        except: Option<&Arc<TargetState>>,
        asker: &Asker<'_>,
        stay: &mut Stay,
    ) -> Option<(&Arc<Pool>, Option<Arc<TargetState>>)> {
        let Some(more) = &self.more else {
            let pool = self.first.as_ref()?;
            return Some((pool, pool.pick(except, asker, stay)));
        };
        let mut first = 0;
        if let Some(sides) = &more.sides
            && stay.number.is_none()
        {
            stay.number = sides.number(asker.headers, &more.next);
        }
        if let (Some(sides), Some(number)) = (&more.sides, stay.number) {
            first = sides.pool_of(number);
        } else if more.turns.len() > 1 {
            let turn = more.next.fetch_add(1, Relaxed) % more.turns.len();
            first = usize::from(more.turns[turn]);
        } else if let Some(only) = more.turns.first() {
            first = usize::from(*only);
        }
        let pool = more.pools.get(first)?;
        if let Some(target) = pool.pick(except, asker, stay) {
            return Some((pool, Some(target)));
        }
        // Better another pool of the route than no answer; never one of weight 0.
        for (index, other) in more.pools.iter().enumerate() {
            let shares = more.turns.contains(&(index as u16));
            if shares && let Some(target) = other.pick(except, asker, stay) {
                return Some((other, Some(target)));
            }
        }
        Some((pool, None))
    }
}

/// The pool with the largest share; of two that are alike, the later one.
fn main(pools: &[WeightedPool]) -> usize {
    let numbered = pools.iter().enumerate();
    numbered
        .max_by_key(|(_, pool)| pool.weight)
        .map_or(0, |(number, _)| number)
}

/// Between pieces of long work on a table: on a machine with few cores, requests wait for this thread's turn to end.
fn let_others_work(number: usize) {
    if number % PIECE == PIECE - 1 {
        std::thread::yield_now();
    }
}

/// The order in which pools take their turns: smooth (no pool has all its turns in a row) and, over
/// one round, exact. Larger sums are scaled to [`LONGEST_TURN`], every pool with a share keeping at
/// least one turn.
fn turns(pools: &[WeightedPool]) -> Box<[u16]> {
    let mut weights: Vec<u64> = pools.iter().map(|pool| u64::from(pool.weight)).collect();
    let divisor = weights.iter().copied().fold(0, gcd);
    if divisor == 0 {
        return Box::new([]);
    }
    for weight in &mut weights {
        *weight /= divisor;
    }
    let sum: u64 = weights.iter().sum();
    if sum > LONGEST_TURN {
        scale(&mut weights, sum);
    }
    let sum: u64 = weights.iter().sum();
    let mut credit = vec![0i64; weights.len()];
    (0..sum)
        .map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += *weight as i64;
            }
            let mut best = 0;
            for index in 1..credit.len() {
                if credit[index] > credit[best] {
                    best = index;
                }
            }
            credit[best] -= sum as i64;
            best as u16
        })
        .collect()
}

/// Largest remainders, so that the scaled weights add up to [`LONGEST_TURN`].
fn scale(weights: &mut [u64], sum: u64) {
    let mut rest: Vec<(u64, usize)> = Vec::new();
    let mut given = 0;
    for (index, weight) in weights.iter_mut().enumerate() {
        let exact = *weight * LONGEST_TURN;
        let share = (exact / sum).max(u64::from(*weight > 0));
        rest.push((exact % sum, index));
        *weight = share;
        given += share;
    }
    rest.sort_unstable_by(|a, b| b.cmp(a));
    for (_, index) in rest {
        if given >= LONGEST_TURN {
            break;
        }
        if weights[index] > 0 {
            weights[index] += 1;
            given += 1;
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighted(weights: &[u32]) -> Vec<WeightedPool> {
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| WeightedPool {
                pool: format!("p{index}"),
                weight: *weight,
            })
            .collect()
    }

    fn share(weights: &[u32], of: usize, requests: usize) -> usize {
        let turns = turns(&weighted(weights));
        (0..requests)
            .filter(|turn| usize::from(turns[turn % turns.len()]) == of)
            .count()
    }

    #[test]
    fn shares_are_exact_over_ten_thousand_requests() {
        assert_eq!(share(&[75, 25], 1, 10_000), 2_500);
        assert_eq!(share(&[99, 1], 1, 10_000), 100);
        assert_eq!(share(&[9_999, 1], 1, 10_000), 1);
        assert_eq!(share(&[1, 1, 2], 2, 10_000), 5_000);
        assert_eq!(share(&[750_000, 250_001], 1, 10_000), 2_500);
    }

    #[test]
    fn turns_are_spread_and_weight_zero_gets_none() {
        assert_eq!(&*turns(&weighted(&[5, 1, 1])), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(&*turns(&weighted(&[3, 0])), [0]);
        assert!(turns(&weighted(&[0, 0])).is_empty());
        assert_eq!(share(&[4_000_000_000, 1], 1, 10_000), 1);
    }
}
