//! An instance as the proxy lives with it: its health, what it is doing, its counts.
//!
//! A [`TargetState`] belongs to one (instance, incarnation, address) and outlives changes of the
//! table; a new incarnation gets a new one.

use crate::announcing::{self, Ends};
use crate::balance::{Conduct, Lasting, Pace, Rank, Seat, Warmth};
use crate::check::Plan;
use crate::connection::ConnState;
use crate::names::Names;
use crate::traffic::{Counters, ReleaseCounters};
use arc_swap::{ArcSwap, ArcSwapOption};
use beanpole_daemon::clock;
use beanpole_protocol::proxy::{
    CheckResult, Ejection, PoolRules, Target, TargetMode, TargetReport, Traffic, TriedCheck,
    UpstreamProtocol,
};
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How long a connection to a target may take: long enough for one lost packet (RFC 6298, section 2).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a target may stay silent over a request, as in EB's load balancers.
pub const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a connection to a target is kept for the next request. Below the shortest common
/// keep-alive of app servers (gunicorn's 2 s), so that it is we who close: a request sent at the
/// moment in which the other side closes is lost.
pub const KEPT_IDLE: Duration = Duration::from_millis(1_500);

/// Requests that share a connection over HTTP/2, of each worker, as far as the target takes so many.
const MOST_STREAMS: usize = 100;

/// Tells the watchers of reports that there is something new, and pools whether they have to look again.
#[derive(Clone)]
pub struct Changes {
    reports: Arc<watch::Sender<u64>>,
    of_health: Arc<AtomicU64>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            reports: Arc::new(watch::Sender::new(0)),
            of_health: Arc::default(),
        }
    }
}

impl Changes {
    /// Something worth a report has changed.
    pub fn tell(&self) {
        self.reports.send_modify(|count| *count += 1);
    }

    /// A view that wakes at every change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    /// Whether some target may have requests has changed: pools see it at their next pick.
    fn look_again(&self) {
        self.of_health.fetch_add(1, SeqCst);
    }

    /// How often that has changed.
    pub fn of_health(&self) -> u64 {
        self.of_health.load(SeqCst)
    }
}

/// A target's life across tables.
pub struct TargetState {
    /// No other target of this proxy has, or had, the same.
    pub number: u64,
    /// What clients know it by that stay at it, and what those of before may know it by.
    name: AtomicU64,
    name_before: u64,
    /// As the table says; its `mode`, `check` and `release` may be out of date.
    pub target: Target,
    /// Requests given to it and how they went.
    pub counters: Counters,
    /// The same, together with all others that run its release.
    pub release: Arc<ReleaseCounters>,
    /// How soon it answers.
    pub pace: Pace,
    /// How it answers.
    pub conduct: Conduct,
    /// How much of its share it gets.
    pub warmth: Warmth,
    /// How it is checked now.
    pub plan: ArcSwap<Plan>,
    /// The check that is tried beside that one, and how it goes.
    tried: ArcSwapOption<Mutex<TriedCheck>>,
    /// Asks for a check at once.
    pub nudge: Notify,
    /// Cancelled when it has left the table.
    pub gone: CancellationToken,
    mode: AtomicU8,
    in_flight: AtomicU32,
    /// How many of these it has not begun to answer, and how many it has ever begun to answer.
    waiting: AtomicU32,
    answers: AtomicU32,
    /// Whether it may be given requests: healthy and not ejected.
    fit: AtomicBool,
    /// Whether it keeps a check waiting: others are asked before it.
    silent: AtomicBool,
    health: Mutex<Health>,
    sockets: Mutex<Vec<Weak<ConnState>>>,
    changes: Changes,
    /// Whether it is spoken to by HTTP/2.
    pub http2: bool,
    peer: HttpPeer,
    upgrade_peer: HttpPeer,
}

#[derive(Default)]
struct Health {
    /// By checks and their thresholds.
    healthy: bool,
    /// Refused a connection since the last good check.
    ejected: bool,
    /// Healthy only by what an earlier run of the proxy knew: the first bad check ends it.
    assumed: bool,
    good: u32,
    /// When the first of these was.
    good_since: Option<Instant>,
    bad: u32,
    /// When the first of these was.
    bad_since: Option<Instant>,
    last: Option<CheckResult>,
}

impl TargetState {
    /// What clients are told that stay at it.
    pub fn name(&self) -> u64 {
        self.name.load(Relaxed)
    }

    /// Every name that a client may know it by.
    pub fn names(&self) -> impl Iterator<Item = u64> {
        [self.name_before, self.name()].into_iter()
    }

    /// Gives it the name that it has by now.
    pub fn rename(&self, names: &Names) {
        self.name
            .store(names.of(&self.target.instance).name, Relaxed);
    }

    /// A target of which nothing is known yet. `assumed`: it served when the proxy last ran, so it
    /// may have requests until a check says otherwise.
    pub fn new(
        target: &Target,
        release: Arc<ReleaseCounters>,
        assumed: bool,
        names: &Names,
        changes: Changes,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Relaxed);
        let mut peer = HttpPeer::new(target.address, false, String::new());
        // Keeps connections to an earlier run at the same address from being used for this one.
        peer.group_key = number;
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.read_timeout = Some(ANSWER_TIMEOUT);
        peer.options.write_timeout = Some(ANSWER_TIMEOUT);
        peer.options.idle_timeout = Some(KEPT_IDLE);
        // `head` does it, for half the cost and without refusing what others serve.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        let http2 = target.upstream.protocol == UpstreamProtocol::Http2;
        if http2 {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = MOST_STREAMS;
        }
        let mut upgrade_peer = peer.clone();
        // A read timeout would also cut WebSockets that are silent.
        upgrade_peer.options.read_timeout = None;
        upgrade_peer.options.write_timeout = None;
        let assumed = assumed && target.mode == TargetMode::Serve;
        let named = names.of(&target.instance);
        Arc::new(Self {
            number,
            name: AtomicU64::new(named.name),
            name_before: named.before,
            target: target.clone(),
            counters: Counters::default(),
            release,
            pace: Pace::default(),
            conduct: Conduct::default(),
            warmth: Warmth::default(),
            plan: ArcSwap::from_pointee(Plan::new(target.check.clone(), target.upstream.announce)),
            tried: ArcSwapOption::empty(),
            nudge: Notify::new(),
            gone: CancellationToken::new(),
            mode: AtomicU8::new(mode_number(target.mode)),
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            fit: AtomicBool::new(assumed),
            silent: AtomicBool::new(false),
            health: Mutex::new(Health {
                healthy: assumed,
                assumed,
                ..Health::default()
            }),
            sockets: Mutex::default(),
            changes,
            http2,
            peer,
            upgrade_peer,
        })
    }

    /// Takes what another process found out about it, before it is checked here and given requests.
    pub fn resume(&self, told: &TargetReport) {
        let since = |ms: u64, checks: u32| {
            let since = Instant::now().checked_sub(Duration::from_millis(ms));
            since.filter(|_| checks > 0)
        };
        *lock(&self.health) = Health {
            healthy: told.healthy,
            ejected: false,
            assumed: false,
            good: told.good_checks,
            good_since: since(told.good_for_ms, told.good_checks),
            bad: told.bad_checks,
            bad_since: since(told.bad_for_ms, told.bad_checks),
            last: told.last_check.clone(),
        };
        self.fit.store(told.healthy, Relaxed);
        if let Some(ejection) = &told.ejected {
            self.conduct.resume(ejection, Instant::now());
        }
    }

    /// Whether this is the same process of the same run of an instance, at the same place.
    pub fn is(&self, target: &Target) -> bool {
        self.target.instance == target.instance
            && self.target.process == target.process
            && self.target.incarnation == target.incarnation
            && self.target.address == target.address
            && self.target.upstream == target.upstream
    }

    /// Whether only the long way can speak to it.
    pub fn takes_the_long_way(&self) -> bool {
        self.http2 || self.target.upstream.announce.is_some()
    }

    /// Has `peer` announce a client, where the target expects that.
    pub fn announce(&self, peer: &mut HttpPeer, ends: Option<Ends>) -> std::io::Result<()> {
        match self.target.upstream.announce {
            None => Ok(()),
            Some(version) => announcing::announce(peer, self.number, version, ends),
        }
    }

    /// What it is for now.
    pub fn mode(&self) -> TargetMode {
        match self.mode.load(SeqCst) {
            0 => TargetMode::Probe,
            1 => TargetMode::Serve,
            _ => TargetMode::Drain,
        }
    }

    /// Follows a new table, in a pool with these rules.
    pub fn update(&self, target: &Target, rules: &PoolRules) {
        self.warmth.takes(rules.slow_start_ms);
        let before = self.mode.swap(mode_number(target.mode), SeqCst);
        if before != mode_number(target.mode) {
            self.begins();
        }
        if ***self.plan.load() != target.check {
            self.plan.store(Arc::new(Plan::new(
                target.check.clone(),
                target.upstream.announce,
            )));
            self.nudge.notify_one();
        }
    }

    /// Takes up the check that a new table has tried, if it is another one than before.
    pub fn tries(&self, target: &Target) -> Option<Arc<Mutex<TriedCheck>>> {
        let before = self.tried.load_full();
        let before = before.as_ref().map(|tried| lock(tried).check.clone());
        if before == target.tried {
            return None;
        }
        let new = target.tried.clone().map(TriedCheck::new);
        let new = new.map(|tried| Arc::new(Mutex::new(tried)));
        self.tried.store(new.clone());
        new
    }

    /// Takes the outcome of a check that is tried. Whether there shall be another.
    pub fn tried(&self, of: &Arc<Mutex<TriedCheck>>, result: CheckResult) -> bool {
        let is_wanted = self
            .tried
            .load()
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, of));
        let mut tried = lock(of);
        tried.note(result);
        let open = tried.passes().is_none();
        drop(tried);
        self.changes.tell();
        is_wanted && open
    }

    /// It has left the table: no more checks, and its WebSockets are closed. Plain requests finish.
    pub fn leave(&self) {
        self.gone.cancel();
        let sockets = std::mem::take(&mut *lock(&self.sockets));
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            socket.close();
        }
    }

    /// Remembers an upgraded connection, to close it when the target leaves.
    pub fn holds(&self, socket: &Arc<ConnState>) {
        let mut sockets = lock(&self.sockets);
        if sockets.len() == sockets.capacity() {
            sockets.retain(|socket| socket.strong_count() > 0);
        }
        sockets.push(Arc::downgrade(socket));
        drop(sockets);
        if self.gone.is_cancelled() {
            socket.close();
        }
    }

    /// Who is asked before it. Pools look once and again only after [`Changes::look_again`].
    pub fn rank(&self) -> Rank {
        if !self.fit.load(Relaxed) {
            Rank::Unfit
        } else if self.conduct.is_out() {
            Rank::Out
        } else if self.silent.load(Relaxed) {
            Rank::Silent
        } else {
            Rank::Preferred
        }
    }

    /// Takes whether it keeps checks waiting. A slow answer ends it as well as a quick one: nothing is said
    /// here about health, only about who is asked first.
    pub fn falls_silent(&self, silent: bool) {
        if self.silent.swap(silent, Relaxed) != silent {
            self.changes.look_again();
            tracing::debug!(instance = %self.target.instance, address = %self.target.address, silent,
                "target's silence changed");
        }
    }

    /// Whether it gets requests has changed: if it does now, it begins with a part of its share.
    fn begins(&self) {
        if self.mode() == TargetMode::Serve && self.rank() < Rank::Out {
            self.warmth.begin(Instant::now());
        }
        self.changes.look_again();
    }

    /// It gets no requests for a while because of how it answered them.
    pub fn is_put_out(&self) {
        self.changes.look_again();
        if let Some(Ejection { why, lasts_ms, .. }) = self.conduct.report(Instant::now()) {
            tracing::info!(instance = %self.target.instance, address = %self.target.address, why,
                lasts_ms, "a target that fails requests gets none for a while");
        }
        self.changes.tell();
    }

    /// Ends what has lasted long enough; to be called twice a second.
    pub fn keep_time(&self) {
        let now = Instant::now();
        if self.warmth.grows(now) {
            self.changes.look_again();
        }
        if self.conduct.comes_back(now) {
            self.begins();
            tracing::info!(instance = %self.target.instance, address = %self.target.address,
                "a target that failed requests gets them again");
            self.changes.tell();
        }
    }

    /// How many requests wait for the beginning of its answer, and how many ever got it.
    pub fn answering(&self) -> (u32, u32) {
        (self.waiting.load(Relaxed), self.answers.load(Relaxed))
    }

    /// Whether checks should come quickly: a deployment waits for it.
    pub fn is_awaited(&self) -> bool {
        let health = lock(&self.health);
        !health.healthy || health.ejected || health.good < self.plan.load().healthy_threshold
    }

    /// Requests being answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Counts one more request, where it has fewer than `most`; any number where that is 0.
    pub fn enters(&self, most: u32) -> bool {
        let one_more = |count: u32| (most == 0 || count < most).then_some(count + 1);
        let entered = self.in_flight.fetch_update(SeqCst, SeqCst, one_more);
        entered.is_ok()
    }

    /// Where pingora sends a request.
    pub fn peer(&self, upgrade: bool) -> Box<HttpPeer> {
        Box::new(if upgrade {
            self.upgrade_peer.clone()
        } else {
            self.peer.clone()
        })
    }

    /// Takes the outcome of an active check.
    pub fn checked(&self, result: CheckResult) {
        self.note(result, false);
    }

    /// It could not be asked, which is not its fault: it is as well as it was, and `why` is told.
    pub fn unchecked(&self, why: String) {
        let mut health = lock(&self.health);
        let told = health.last.as_ref().is_some_and(|last| last.answer == why);
        let good = health.healthy && !health.ejected;
        health.last = Some(CheckResult {
            at: clock::now(),
            asked: self.plan.load().probe.to_string(),
            good,
            connected: true,
            answer: why,
        });
        drop(health);
        if !told {
            self.changes.tell();
        }
    }

    /// A connection was refused or not made in time: nothing more until a good check.
    pub fn eject(&self, answer: String) {
        self.note(of_a_request(answer), true);
        self.nudge.notify_one();
    }

    /// A request broke midway: reason for a check at once, which decides. By itself it says nothing of the
    /// target: a client that knows a request which the app breaks off could take it out of service.
    pub fn broke(&self) {
        self.nudge.notify_one();
    }

    fn note(&self, result: CheckResult, eject: bool) {
        let good = result.good;
        let plan = self.plan.load();
        let mut health = lock(&self.health);
        let before = (health.healthy, health.ejected, health.good, health.bad);
        if good {
            health.good = health.good.saturating_add(1);
            health.good_since.get_or_insert_with(Instant::now);
            health.bad = 0;
            health.bad_since = None;
            health.ejected = false;
            if health.good >= plan.healthy_threshold {
                health.healthy = true;
                health.assumed = false;
            }
        } else {
            health.bad = health.bad.saturating_add(1);
            health.bad_since.get_or_insert_with(Instant::now);
            health.good = 0;
            health.good_since = None;
            health.ejected |= eject;
            if health.assumed || health.bad >= plan.unhealthy_threshold {
                health.healthy = false;
                health.assumed = false;
            }
        }
        health.last = Some(result);
        let fit = health.healthy && !health.ejected;
        let was_fit = self.fit.swap(fit, Relaxed);
        // Past the threshold a check that is as good as the last is no news.
        let settled = (health.healthy, health.ejected) == (before.0, before.1)
            && before.2 >= plan.healthy_threshold.max(3)
            && health.good > before.2;
        if was_fit != fit {
            self.begins();
            let answer = health.last.as_ref().map(|last| last.answer.as_str());
            tracing::info!(instance = %self.target.instance, address = %self.target.address,
                incarnation = %self.target.incarnation, fit, answer, "target's health changed");
        }
        drop(health);
        if !settled {
            self.changes.tell();
        }
    }

    /// What is seen of it now.
    pub fn report(&self) -> TargetReport {
        let health = lock(&self.health);
        TargetReport {
            instance: self.target.instance.clone(),
            process: self.target.process.clone(),
            processes: Vec::new(),
            incarnation: self.target.incarnation,
            mode: self.mode(),
            healthy: health.healthy && !health.ejected,
            good_checks: health.good,
            good_for_ms: passed(health.good_since),
            bad_checks: health.bad,
            bad_for_ms: passed(health.bad_since),
            last_check: health.last.clone(),
            in_flight: self.in_flight(),
            traffic: Traffic {
                ejections: self.conduct.ejections(),
                ..self.counters.snapshot()
            },
            tried: self.tried.load().as_ref().map(|tried| lock(tried).clone()),
            ejected: self.conduct.report(Instant::now()),
        }
    }
}

/// Milliseconds since then; none since never.
fn passed(since: Option<Instant>) -> u64 {
    since.map_or(0, |since| {
        u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
    })
}

/// A request that a target is answering. Ends with its value.
pub struct InFlight {
    target: Arc<TargetState>,
    waiting: bool,
    /// The pool that counts it as well, if it does.
    pool: Option<Arc<Lasting>>,
    /// Its seat, where its environment has only so many.
    seat: Option<Seat>,
}

impl InFlight {
    /// Counts one more request at `target`, and in its pool.
    pub fn at(target: Arc<TargetState>, pool: Option<Arc<Lasting>>) -> Self {
        target.in_flight.fetch_add(1, SeqCst);
        Self::counted(target, pool, None)
    }

    /// One that `target` has let in.
    pub fn entered(target: Arc<TargetState>, pool: Option<Arc<Lasting>>, seat: Seat) -> Self {
        Self::counted(target, pool, Some(seat))
    }

    fn counted(target: Arc<TargetState>, pool: Option<Arc<Lasting>>, seat: Option<Seat>) -> Self {
        target.waiting.fetch_add(1, Relaxed);
        if let Some(pool) = &pool {
            pool.counts(true);
        }
        Self {
            target,
            waiting: true,
            pool,
            seat,
        }
    }

    /// Who answers it.
    pub fn target(&self) -> &Arc<TargetState> {
        &self.target
    }

    /// The answer has begun.
    pub fn answered(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.target.waiting.fetch_sub(1, Relaxed);
            self.target.answers.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.counts(false);
        }
        if self.waiting {
            self.target.waiting.fetch_sub(1, Relaxed);
        }
        let before = self.target.in_flight.fetch_sub(1, SeqCst);
        if let Some(seat) = self.seat.take() {
            seat.leave();
        }
        if before == 1 && self.target.mode() == TargetMode::Drain {
            self.target.changes.tell();
        }
    }
}

/// What a request of a client found out about a target that gave it no connection.
fn of_a_request(answer: String) -> CheckResult {
    CheckResult {
        at: clock::now(),
        asked: "a request".to_owned(),
        good: false,
        connected: false,
        answer,
    }
}

const fn mode_number(mode: TargetMode) -> u8 {
    match mode {
        TargetMode::Probe => 0,
        TargetMode::Serve => 1,
        TargetMode::Drain => 2,
    }
}

/// A panic elsewhere leaves the data whole: every holder of these locks writes plain fields.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
