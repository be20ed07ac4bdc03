//! The targets of the project, and whether they are reached.

use super::Measure;
use super::Measured;
use super::peers::{BARE, BEANPOLE, RIVALS};
use super::rows::{Kind, Row};
use crate::stats::{median, ratios, short};
use serde::Serialize;

/// From here on a core counts as used up.
const FULL: f64 = 0.95;
/// From here on other programs on the core of the load balancers are worth a word.
pub const DISTURBED: f64 = 0.05;
/// What Beanpole may cost over its framework, and what hostnames may cost: CPU time per request.
const OVER_BARE: f64 = 1.05;
const OVER_ONE_HOST: f64 = 1.02;
/// When a table of 10,000 routes has to be in force, in milliseconds.
const APPLIED_MS: f64 = 50.0;
/// How much the 99th percentile may rise while tables change.
const P99_CHANGING: f64 = 2.0;

/// A target and what came of it.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The row that tells.
    pub row: String,
    /// What is to be.
    pub target: String,
    /// What is.
    pub value: String,
    /// Whether that is enough; none where it could not be measured.
    pub reached: Option<bool>,
}

/// Whether the load generator and the upstream had no more to give, while the load balancer's core had.
pub fn load_limited(measured: &Measured) -> bool {
    let share = |measure| measured.median(measure).unwrap_or(0.0);
    share(Measure::LoadBusy) >= FULL && share(Measure::CoreBusy) < FULL
}

impl Measured {
    /// A measure of every run.
    pub fn column(&self, measure: Measure) -> Vec<f64> {
        let values = self.runs.iter().map(|run| run.get(&measure).copied());
        values.flatten().collect()
    }

    /// Its median.
    pub fn median(&self, measure: Measure) -> Option<f64> {
        let column = self.column(measure);
        (!column.is_empty()).then(|| median(&column))
    }
}

/// Everything that was measured, to be judged.
pub struct Court<'a>(pub &'a [Measured]);

impl Court<'_> {
    /// Every target that belongs to the rows measured.
    pub fn judge(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut better = Vec::new();
        for ours in self.0.iter().filter(|one| one.peer.name == BEANPOLE) {
            match ours.row.kind {
                Kind::Load(_) => {
                    better.extend(self.against_rivals(ours, &mut verdicts));
                    verdicts.extend(self.against_bare(ours));
                }
                Kind::Idle { tls: true } => verdicts.push(self.idle(ours)),
                Kind::Idle { tls: false } => {}
                Kind::Change => verdicts.extend(changes(ours)),
            }
        }
        verdicts.extend(self.hostnames());
        if !better.is_empty() {
            let rows = better.len();
            let count = better.iter().filter(|better| **better).count();
            verdicts.push(Verdict {
                row: "all".to_owned(),
                target: "better than nginx and HAProxy on most rows".to_owned(),
                value: format!("on {count} of {rows}"),
                reached: Some(2 * count > rows),
            });
        }
        verdicts
    }

    fn find(&self, row: &str, peer: &str) -> Option<&Measured> {
        let mut all = self.0.iter();
        all.find(|one| one.row.name == row && one.peer.name == peer)
    }

    /// Both targets against each rival; whether it is better than all of them, where all were measured.
    fn against_rivals(&self, ours: &Measured, verdicts: &mut Vec<Verdict>) -> Option<bool> {
        let mut best = Some(true);
        for rival in RIVALS {
            let Some(theirs) = self.find(ours.row.name, rival) else {
                best = None;
                continue;
            };
            // How many requests it could have been is not known then.
            let limited = load_limited(ours) || load_limited(theirs);
            let requests = Bound {
                measure: if limited {
                    Measure::CpuUsPerRequest
                } else {
                    Measure::RequestsPerSecond
                },
                what: if limited {
                    "CPU time per request (the load was the limit) of"
                } else {
                    "requests of"
                },
                least: !limited,
                factor: 1.0,
            };
            let p99 = Bound {
                measure: Measure::P99Ms,
                what: if limited {
                    "p99 (the load was the limit) of"
                } else {
                    "p99 of"
                },
                least: false,
                factor: 1.0,
            };
            let strictly = requests.ratio(ours, theirs).map(|ratio| {
                if requests.least {
                    ratio > 1.0
                } else {
                    ratio < 1.0
                }
            });
            best = best.zip(strictly).map(|(best, this)| best && this);
            verdicts.push(requests.verdict(ours, theirs));
            verdicts.push(p99.verdict(ours, theirs));
        }
        best
    }

    fn against_bare(&self, ours: &Measured) -> Option<Verdict> {
        let bare = self.find(ours.row.name, BARE)?;
        // Rows in which it has no part have no floor.
        if (bare.peer.cannot)(bare.row).is_some() {
            return None;
        }
        let cost = Bound {
            measure: Measure::CpuUsPerRequest,
            what: "CPU time per request of",
            least: false,
            factor: OVER_BARE,
        };
        Some(cost.verdict(ours, bare))
    }

    fn idle(&self, ours: &Measured) -> Verdict {
        let bound = Bound {
            measure: Measure::KbPerConnection,
            what: "memory per connection of",
            least: false,
            factor: 1.0,
        };
        match self.find(ours.row.name, RIVALS[0]) {
            Some(theirs) => bound.verdict(ours, theirs),
            None => not_measured(
                ours.row,
                "memory per connection of nginx",
                "nginx is missing",
            ),
        }
    }

    /// What many hostnames cost, against one in the same rounds.
    fn hostnames(&self) -> Option<Verdict> {
        let [one, many] = ["hosts-1", "hosts-10000"].map(|row| self.find(row, BEANPOLE));
        let cost = Bound {
            measure: Measure::CpuUsPerRequest,
            what: "CPU time per request of 1 hostname with",
            least: false,
            factor: OVER_ONE_HOST,
        };
        Some(cost.verdict(many?, one?))
    }
}

/// What a ratio, Beanpole's by the other's, has to stay within.
struct Bound {
    measure: Measure,
    what: &'static str,
    /// Whether it has to reach the bound, or else to stay below.
    least: bool,
    factor: f64,
}

impl Bound {
    /// The median of the rounds' ratios.
    fn ratio(&self, ours: &Measured, theirs: &Measured) -> Option<f64> {
        let ratios = ratios(&ours.column(self.measure), &theirs.column(self.measure));
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    fn verdict(&self, ours: &Measured, theirs: &Measured) -> Verdict {
        let word = if self.least { "at least" } else { "at most" };
        let target = format!(
            "{word} {} x the {} {}",
            self.factor, self.what, theirs.peer.name
        );
        let Some(ratio) = self.ratio(ours, theirs) else {
            let failed = [ours, theirs].map(|one| one.failed.as_deref());
            let why = failed.into_iter().flatten().next();
            return not_measured(ours.row, &target, why.unwrap_or("no figures"));
        };
        Verdict {
            row: ours.row.name.to_owned(),
            target,
            value: format!("{ratio:.2} x{}", disturbed(&[ours, theirs])),
            reached: Some(if self.least {
                ratio >= self.factor
            } else {
                ratio <= self.factor
            }),
        }
    }
}

/// What is said of a figure that was taken while others used the load balancers' core.
fn disturbed(of: &[&Measured]) -> &'static str {
    let share = |one: &&Measured| one.median(Measure::Disturbed).unwrap_or(0.0);
    if of.iter().any(|one| share(one) > DISTURBED) {
        ", disturbed"
    } else {
        ""
    }
}

fn not_measured(row: &Row, target: &str, why: &str) -> Verdict {
    Verdict {
        row: row.name.to_owned(),
        target: target.to_owned(),
        value: format!("not measured: {why}"),
        reached: None,
    }
}

fn changes(ours: &Measured) -> [Verdict; 2] {
    let soon = format!("in force within {APPLIED_MS} ms");
    let calm = format!("p99 at most {P99_CHANGING} x that without changes");
    let why = ours.failed.as_deref().unwrap_or("no figures");
    let applied = ours.median(Measure::AppliedMs);
    let [during, before] =
        [Measure::P99ChangingMs, Measure::P99Ms].map(|measure| ours.column(measure));
    let rise = ratios(&during, &before);
    let verdict = |target: &str, value: String, reached| Verdict {
        row: ours.row.name.to_owned(),
        target: target.to_owned(),
        value,
        reached: Some(reached),
    };
    [
        applied.map_or_else(
            || not_measured(ours.row, &soon, why),
            |ms| {
                verdict(
                    &soon,
                    format!("{} ms{}", short(ms), disturbed(&[ours])),
                    ms <= APPLIED_MS,
                )
            },
        ),
        if rise.is_empty() {
            not_measured(ours.row, &calm, why)
        } else {
            let rise = median(&rise);
            verdict(
                &calm,
                format!("{rise:.2} x{}", disturbed(&[ours])),
                rise <= P99_CHANGING,
            )
        },
    ]
}

/// Runs of one row: requests per second, p99, CPU per request, how busy the load's core was.
#[cfg(test)]
pub fn measured(row: &str, peer: &str, runs: &[[f64; 4]]) -> Measured {
    Measured {
        row: super::rows::ROWS
            .iter()
            .find(|one| one.name == row)
            .expect("a row"),
        peer: super::peers::PEERS
            .iter()
            .find(|one| one.name == peer)
            .expect("a peer"),
        runs: runs
            .iter()
            .map(|[requests, p99, cpu, load]| {
                super::Run::from([
                    (Measure::RequestsPerSecond, *requests),
                    (Measure::P50Ms, 0.5),
                    (Measure::P99Ms, *p99),
                    (Measure::MemoryMb, 5.0),
                    (Measure::CpuUsPerRequest, *cpu),
                    (Measure::LoadBusy, *load),
                    (Measure::CoreBusy, requests * cpu / 1e6),
                ])
            })
            .collect(),
        failed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(verdicts: &[Verdict]) -> Vec<(&str, &str, Option<bool>)> {
        verdicts
            .iter()
            .map(|one| (one.target.as_str(), one.value.as_str(), one.reached))
            .collect()
    }

    /// Two good rounds and one in which everything took three times as long.
    fn rounds(peer: &str, [requests, p99]: [f64; 2]) -> Measured {
        let (good, bad) = (
            [requests, p99, 1.0, 0.5],
            [requests / 3.0, p99 * 3.0, 1.0, 0.5],
        );
        measured("http-1k", peer, &[good, good, bad])
    }

    #[test]
    fn who_answers_less_than_a_rival_misses_the_target_by_the_median_of_its_rounds() {
        let all = [
            // The third round was a bad one for all of them: it changes no ratio.
            rounds(BEANPOLE, [90.0, 2.0]),
            rounds("nginx", [100.0, 1.0]),
            rounds("HAProxy", [80.0, 3.0]),
        ];
        assert_eq!(
            told(&Court(&all).judge()),
            [
                ("at least 1 x the requests of nginx", "0.90 x", Some(false)),
                ("at most 1 x the p99 of nginx", "2.00 x", Some(false)),
                ("at least 1 x the requests of HAProxy", "1.12 x", Some(true)),
                ("at most 1 x the p99 of HAProxy", "0.67 x", Some(true)),
                (
                    "better than nginx and HAProxy on most rows",
                    "on 0 of 1",
                    Some(false)
                ),
            ]
        );
    }

    #[test]
    fn where_the_load_was_the_limit_cpu_time_decides() {
        let all = [
            measured("http-1k", BEANPOLE, &[[100.0, 1.0, 8.0, 0.99]]),
            measured("http-1k", "nginx", &[[100.0, 1.0, 10.0, 0.99]]),
        ];
        let verdicts = Court(&all).judge();
        assert_eq!(verdicts[0].value, "0.80 x");
        assert!(verdicts[0].target.contains("CPU time per request"));
        // HAProxy was not there: nothing is said of rows that are better than both.
        assert_eq!(verdicts.len(), 2);
    }

    #[test]
    fn what_failed_is_neither_reached_nor_missed() {
        let mut broken = measured("idle-tls", "nginx", &[]);
        broken.failed = Some("nginx is not installed".to_owned());
        let all = [measured("idle-tls", BEANPOLE, &[]), broken];
        assert_eq!(
            told(&Court(&all).judge()),
            [(
                "at most 1 x the memory per connection of nginx",
                "not measured: nginx is not installed",
                None
            )]
        );
    }
}
