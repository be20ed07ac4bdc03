//! What was last seen of hosts and proxies. In memory only: after a restart it is asked for anew.

use beanpole_planner::Reach;
use beanpole_protocol::agent::HostReport;
use beanpole_protocol::proxy::ProxyReport;
use beanpole_protocol::{Digest, EnvironmentId, Generation, HostId, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// After that long without a word, reasons mention it, in milliseconds.
const SILENT_AFTER_MS: u64 = 10_000;

/// An older report that arrives within that long after a newer one was overtaken on its way. Later,
/// it comes from an agent that started afresh with its clock set back.
const OVERTAKEN_WITHIN_MS: u64 = 30_000;

/// What was last seen.
///
/// Every proxy that exists has to be in here, with or without a report: a drain is over only when
/// every one of them has confirmed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Hosts.
    pub hosts: BTreeMap<HostId, HostObserved>,
    /// Proxies by name.
    pub proxies: BTreeMap<String, ProxyObserved>,
    /// Differs for every run of the controller: what is counted here starts at zero in each.
    pub run: String,
    /// When each environment was last asked for, as far as load balancers have told; since when nothing else is
    /// known, at the least.
    pub asked: BTreeMap<EnvironmentId, Timestamp>,
}

/// What was last seen of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostObserved {
    /// Whether the link stands.
    pub connected: bool,
    /// When it was last heard of; when it was registered, until then.
    pub last_seen: Option<Timestamp>,
    /// What its agent said last.
    pub report: Option<HostReport>,
    /// Since when it belongs to another controller. What it reports is not ours to act on.
    pub taken: Option<Timestamp>,
    /// A generation of which it holds orders with other content than ours.
    pub reused: Option<Generation>,
    /// Why it does not take its orders, as the end of "it cannot take orders: …"; absent while it does.
    pub cannot: Option<String>,
    /// Bytes that it was sent of bundles in this run of the controller, those that were sent last at the
    /// end.
    pub sent: VecDeque<(Digest, u64)>,
}

/// Bundles whose bytes are remembered for each host: more than are on their way at once.
const BUNDLES_COUNTED: usize = 16;

impl HostObserved {
    /// Bytes that it was sent of a bundle in this run of the controller.
    pub fn sent_of(&self, bundle: &Digest) -> u64 {
        let sent = self.sent.iter().find(|(of, _)| of == bundle);
        sent.map_or(0, |(_, bytes)| *bytes)
    }
}

/// What was last seen of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyObserved {
    /// Whether the link stands.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// What it said last.
    pub report: Option<ProxyReport>,
    /// Since when it is known in this run of the controller.
    pub since: Option<Timestamp>,
}

impl ProxyObserved {
    /// Whether nothing was heard of it for long.
    fn is_quiet(&self, now: Timestamp, unreachable_after_ms: u64) -> bool {
        let heard = self.last_seen.max(self.since);
        heard.is_some_and(|at| now.since(at) >= Duration::from_millis(unreachable_after_ms))
    }
}

impl Observed {
    /// Makes a host known. Time for it to be heard of counts from now.
    pub fn register_host(&mut self, host: &HostId, now: Timestamp) {
        let seen = self.hosts.entry(host.clone()).or_default();
        seen.last_seen.get_or_insert(now);
    }

    /// Makes a proxy known. Time for it to be heard of counts from now.
    pub fn register_proxy(&mut self, proxy: &str, now: Timestamp) {
        let seen = self.proxies.entry(proxy.to_owned()).or_default();
        seen.since.get_or_insert(now);
    }

    /// Forgets a proxy that is no more.
    pub fn forget_proxy(&mut self, proxy: &str) {
        self.proxies.remove(proxy);
    }

    /// The proxies that are waited for, by name: one that nothing was heard of for long is not, as long as another
    /// one is. It may serve on by its last table, and nobody can tell it anything: a deployment that waited for
    /// it would not end before somebody had repaired a machine. With all of them quiet, all are waited for.
    pub fn counting(
        &self,
        now: Timestamp,
        unreachable_after_ms: u64,
    ) -> impl Iterator<Item = (&String, &ProxyObserved)> {
        let quiet = move |seen: &ProxyObserved| seen.is_quiet(now, unreachable_after_ms);
        let all = self.proxies.values().all(quiet);
        self.proxies
            .iter()
            .filter(move |(_, seen)| all || !quiet(seen))
    }

    /// The names of those that are not waited for.
    pub fn left_out(&self, now: Timestamp, unreachable_after_ms: u64) -> Vec<String> {
        let counting: Vec<&String> = self
            .counting(now, unreachable_after_ms)
            .map(|(name, _)| name)
            .collect();
        let others = self.proxies.keys().filter(|name| !counting.contains(name));
        others.cloned().collect()
    }

    /// Takes a host's report in.
    pub fn host_report(&mut self, host: &HostId, report: HostReport, now: Timestamp) {
        let seen = self.hosts.entry(host.clone()).or_default();
        if let (Some(last), Some(at)) = (&seen.report, seen.last_seen)
            && report.sequence < last.sequence
            && report.now < last.now
            && now.since(at) < Duration::from_millis(OVERTAKEN_WITHIN_MS)
        {
            return;
        }
        seen.connected = true;
        seen.last_seen = Some(now);
        seen.report = Some(report);
    }

    /// Notes that a host belongs to another controller: for this one it is lost, from now on and
    /// whatever it reports, until [`Observed::host_is_ours`].
    pub fn host_taken(&mut self, host: &HostId, now: Timestamp) {
        let seen = self.hosts.entry(host.clone()).or_default();
        seen.taken.get_or_insert(now);
    }

    /// Notes that a host is this controller's own.
    pub fn host_is_ours(&mut self, host: &HostId) {
        self.hosts.entry(host.clone()).or_default().taken = None;
    }

    /// Notes that a host holds other orders of this generation than ours: they came from this
    /// controller before its records were restored, or from another run of it. The next turn steps
    /// over them.
    pub fn generation_reused(&mut self, host: &HostId, generation: Generation) {
        self.hosts.entry(host.clone()).or_default().reused = Some(generation);
    }

    /// Notes why a host does not take its orders, or that it does.
    pub fn orders_not_taken(&mut self, host: &HostId, why: Option<String>) {
        self.hosts.entry(host.clone()).or_default().cannot = why;
    }

    /// Notes bytes of a bundle that a host was sent.
    pub fn bundle_sent(&mut self, host: &HostId, bundle: &Digest, bytes: u64) {
        let seen = self.hosts.entry(host.clone()).or_default();
        let before = seen.sent_of(bundle);
        seen.sent.retain(|(of, _)| of != bundle);
        seen.sent.push_back((bundle.clone(), before + bytes));
        if seen.sent.len() > BUNDLES_COUNTED {
            seen.sent.pop_front();
        }
    }

    /// Takes a proxy's report in.
    pub fn proxy_report(&mut self, proxy: &str, mut report: ProxyReport, now: Timestamp) {
        report.by_instance();
        let seen = self.proxies.entry(proxy.to_owned()).or_default();
        if let Some(last) = &seen.report
            && report.run == last.run
            && report.sequence < last.sequence
        {
            return;
        }
        let last = seen.report.as_ref().filter(|last| last.run == report.run);
        for of in &report.environments {
            let mut before = last.iter().flat_map(|last| &last.environments);
            let before = before.find(|before| before.environment == of.environment);
            if of.traffic.waiting > 0
                || before.is_none_or(|before| before.traffic.requests != of.traffic.requests)
            {
                self.asked.insert(of.environment.clone(), now);
            }
        }
        seen.connected = true;
        seen.last_seen = Some(now);
        seen.report = Some(report);
    }

    /// Notes whether the link to a host stands.
    pub fn host_connected(&mut self, host: &HostId, connected: bool) {
        self.hosts.entry(host.clone()).or_default().connected = connected;
    }

    /// Notes whether the link to a proxy stands.
    pub fn proxy_connected(&mut self, proxy: &str, connected: bool) {
        self.proxies.entry(proxy.to_owned()).or_default().connected = connected;
    }

    /// Whether a host can be reached.
    pub fn reach(&self, host: &HostId, now: Timestamp, unreachable_after_ms: u64) -> Reach {
        if let Some(since) = self.hosts.get(host).and_then(|host| host.taken) {
            return Reach::Taken(since);
        }
        let Some(seen) = self.hosts.get(host).and_then(|host| host.last_seen) else {
            return Reach::Silent(now);
        };
        let quiet = now.since(seen);
        if quiet >= Duration::from_millis(unreachable_after_ms) {
            Reach::Lost(seen)
        } else if quiet >= Duration::from_millis(SILENT_AFTER_MS) {
            Reach::Silent(seen)
        } else {
            Reach::Here
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_cut_off_is_waited_for_a_while_and_then_only_where_no_other_is_heard() {
        let at = Timestamp::from_millis;
        let mut observed = Observed::default();
        let counting = |observed: &Observed, now| -> Vec<String> {
            let counting = observed.counting(at(now), 30_000);
            counting.map(|(name, _)| name.clone()).collect()
        };
        observed.register_proxy("one", at(1));
        observed.register_proxy("other", at(1));
        assert_eq!(counting(&observed, 30_000), ["one", "other"]);
        observed.proxies.get_mut("one").expect("there").last_seen = Some(at(20_000));
        assert_eq!(counting(&observed, 31_000), ["one"]);
        assert_eq!(observed.left_out(at(31_000), 30_000), ["other"]);
        assert_eq!(
            counting(&observed, 50_000),
            ["one", "other"],
            "nobody is heard"
        );
        observed.forget_proxy("other");
        assert_eq!(counting(&observed, 50_000), ["one"]);
    }

    #[test]
    fn a_host_of_another_controller_is_lost_whatever_it_reports() {
        let at = Timestamp::from_millis;
        let host = HostId::from_bits(1);
        let mut observed = Observed::default();
        observed.register_host(&host, at(1));
        observed.host_taken(&host, at(5));
        observed.host_taken(&host, at(9));
        observed.host_connected(&host, true);
        assert_eq!(observed.reach(&host, at(10), 30_000), Reach::Taken(at(5)));
        observed.host_is_ours(&host);
        assert_eq!(observed.reach(&host, at(10), 30_000), Reach::Here);
    }
}
