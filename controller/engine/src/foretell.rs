//! What a plan comes to, said before it is carried out: capacity at each moment, how long it takes by
//! what the environment's last operations took, and which settings change.

use crate::read::Reader;
use crate::{Call, Engine};
use beanpole_planner::{Action, Batch, Gate, Plan, Stage, World};
use beanpole_protocol::agent::ReleasePhase;
use beanpole_protocol::api::{
    BatchReceipt, OperationStatus, Phase, PhaseTime, PlanStep, PlanTime, PlanView, PlannedChange,
    PlannedSetting, Receipt,
};
use beanpole_protocol::options::{self, Change, OptionSettings, PROCESS, PROPERTIES};
use beanpole_store::StoreError;
use beanpole_store::model::{EnvironmentRecord, OperationIndexRecord, OperationRecord};
use std::collections::BTreeSet;

/// Operations that an expectation is measured by. More would tell of an app as it was long ago.
const MEASURED: usize = 5;
/// Operations looked through for these.
const LOOKED_THROUGH: usize = 50;

impl Engine {
    /// A plan that nobody has begun, with all that can be said of it. `settings` are those that the
    /// environment has then.
    pub(crate) fn foretell(
        &self,
        environment: &EnvironmentRecord,
        plan: &Plan,
        settings: &OptionSettings,
        call: &Call<'_>,
    ) -> Result<PlanView, StoreError> {
        let world = self.world(&self.store, environment, call.observed, call.now, false)?;
        let past = Past::read(&self.store, environment)?;
        let steps: Vec<PlanStep> = plan
            .timeline(&world)
            .into_iter()
            .map(|moment| PlanStep {
                batch: moment.batch,
                share: moment.share,
                changes: moment
                    .changes
                    .into_iter()
                    .map(|(change, host, instances)| PlannedChange {
                        change: change.to_owned(),
                        host: world.host_name(&host),
                        instances,
                    })
                    .collect(),
                serving_before: moment.serving_before,
                serving_lowest: moment.serving_lowest,
                serving_after: moment.serving_after,
                running_most: moment.running_most,
                running_after: moment.running_after,
                expected_ms: past.expect(plan, moment.stage, &world),
                at_most_ms: plan.stage_ms(moment.stage),
            })
            .collect();
        let time = PlanTime {
            expected_ms: steps.iter().map(|step| step.expected_ms).sum(),
            at_most_ms: plan.total_ms(),
            measured: u32::try_from(past.operations.len()).unwrap_or(u32::MAX),
        };
        Ok(PlanView {
            steps,
            time: Some(time),
            settings: changes(&environment.settings, settings, tries(plan)),
            ..plan.view(&|host| world.host_name(host))
        })
    }
}

/// What the last operations that went well took, the newest first.
struct Past {
    operations: Vec<(OperationRecord, Receipt)>,
}

impl Past {
    fn read(reader: &impl Reader, environment: &EnvironmentRecord) -> Result<Self, StoreError> {
        let prefix = OperationIndexRecord::prefix(&environment.id);
        let list = reader.under::<OperationIndexRecord>(&prefix)?;
        let mut operations = Vec::new();
        for index in list.iter().rev().take(LOOKED_THROUGH) {
            let key = OperationRecord::key_of(&index.operation);
            let Some(mut operation) = reader.one::<OperationRecord>(&key)? else {
                continue;
            };
            if operation.status == OperationStatus::Succeeded
                && let Some(receipt) = operation.receipt.take()
            {
                operations.push((operation, receipt));
            }
            if operations.len() == MEASURED {
                break;
            }
        }
        Ok(Self { operations })
    }

    /// How long a stage takes, in milliseconds; none where nothing like it was measured.
    fn expect(&self, plan: &Plan, stage: usize, world: &World<'_>) -> Option<u64> {
        match plan.stages.get(stage)? {
            Stage::Prepare { tree, hosts, .. } => {
                let ready = hosts.iter().all(|host| {
                    let seen = world.hosts.get(host);
                    let release = seen.and_then(|seen| seen.release(&world.environment, *tree));
                    release.is_some_and(|release| release.phase == ReleasePhase::Ready)
                });
                if ready { Some(0) } else { self.preparing() }
            }
            Stage::Once { .. } => self.release_command(),
            Stage::Swap { .. } => Some(0),
            Stage::TryCheck { check } => {
                Some(u64::from(check.healthy_threshold) * check.awaited_interval_ms(100))
            }
            Stage::Split(split) => Some(split.wait_ms),
            Stage::Batch(batch) => {
                let mut kinds = vec![Phase::Switching];
                if drains(batch) {
                    kinds.push(Phase::Draining);
                }
                if starts(batch) {
                    kinds.push(Phase::Starting);
                }
                if removes(batch) {
                    kinds.push(Phase::Stopping);
                }
                let phases = kinds.into_iter();
                let phases: Option<u64> = phases.map(|phase| self.of_batches(phase)).sum();
                let checking = if starts(batch) {
                    self.checking(plan, stage)
                } else {
                    Some(0)
                };
                Some(phases? + checking?)
            }
        }
    }

    /// From the first look at a release until every host has it, where they had to get it.
    fn preparing(&self) -> Option<u64> {
        let fresh = self.operations.iter().filter(|(operation, _)| {
            let mut stages = operation.plan.stages.iter();
            stages.any(
                |stage| matches!(stage, Stage::Prepare { release, tree, .. } if release == tree),
            ) && operation.from != operation.to
        });
        let times = fresh.map(|(_, receipt)| {
            in_phase(&receipt.phases, Phase::Bundle) + in_phase(&receipt.phases, Phase::Preparing)
        });
        median(times.collect())
    }

    /// What release commands took.
    fn release_command(&self) -> Option<u64> {
        let ran = self.operations.iter().filter(|(operation, _)| {
            let mut stages = operation.plan.stages.iter();
            stages.any(|stage| matches!(stage, Stage::Once { .. }))
        });
        let times = ran.map(|(_, receipt)| in_phase(&receipt.phases, Phase::ReleaseCommand));
        median(times.collect())
    }

    /// What a phase took in batches that had it.
    fn of_batches(&self, phase: Phase) -> Option<u64> {
        let has = |batch: &Batch| match phase {
            Phase::Draining => drains(batch),
            Phase::Starting => starts(batch),
            Phase::Stopping => removes(batch),
            _ => true,
        };
        median(self.measured(phase, &|_, batch| has(batch)))
    }

    /// How long the instances of a batch are checked and watched. The first that start have to stay up for as
    /// long as the gate says, and so have, before the plan is done, the last; that time is known. What checks
    /// take besides was measured in batches that did not have to.
    fn checking(&self, plan: &Plan, stage: usize) -> Option<u64> {
        let passed = self.measured(Phase::Checking, &|of, batch| {
            let (up_ms, every) = stays_up(of.gate);
            up_ms == 0 || !every && first_to_start(of).is_some_and(|first| first != batch)
        });
        let passed = median(passed);
        let (up_ms, every) = stays_up(plan.gate);
        let starting = plan
            .stages
            .iter()
            .enumerate()
            .filter_map(|(at, one)| match one {
                Stage::Batch(batch) if starts(batch) => Some(at),
                _ => None,
            });
        let starting: Vec<usize> = starting.collect();
        let is_watched = starting.first() == Some(&stage) || starting.last() == Some(&stage);
        if up_ms > 0 && (every || is_watched) {
            return Some(passed.unwrap_or(0).max(up_ms));
        }
        passed
    }

    /// What a phase took in each of the batches that count.
    fn measured(&self, phase: Phase, counts: &dyn Fn(&Plan, &Batch) -> bool) -> Vec<u64> {
        let mut times = Vec::new();
        for (operation, receipt) in &self.operations {
            for stage in &operation.plan.stages {
                let Stage::Batch(batch) = stage else { continue };
                let same = |of: &&BatchReceipt| of.number == batch.number && !of.back;
                if (phase != Phase::Checking || starts(batch))
                    && counts(&operation.plan, batch)
                    && let Some(of) = receipt.batches.iter().find(same)
                {
                    times.push(in_phase(&of.phases, phase));
                }
            }
        }
        times
    }
}

/// For how long a started instance has to stay up, in milliseconds, and whether every one has to before it
/// serves.
const fn stays_up(gate: Gate) -> (u64, bool) {
    match gate {
        Gate::Proxies { up_ms, every, .. } => (up_ms, every),
        Gate::Settle { for_ms } => (for_ms, true),
    }
}

fn first_to_start(plan: &Plan) -> Option<&Batch> {
    plan.stages.iter().find_map(|stage| match stage {
        Stage::Batch(batch) if starts(batch) => Some(batch),
        _ => None,
    })
}

/// Whether instances that serve are drained in it.
fn drains(batch: &Batch) -> bool {
    let mut changes = batch.changes.iter();
    batch.drain && changes.any(|change| !matches!(change.action, Action::Launch { .. }))
}

/// Whether instances start in it.
fn starts(batch: &Batch) -> bool {
    let mut changes = batch.changes.iter();
    changes.any(|change| !matches!(change.action, Action::Remove | Action::Return))
}

fn removes(batch: &Batch) -> bool {
    let mut changes = batch.changes.iter();
    changes.any(|change| change.action == Action::Remove)
}

fn in_phase(phases: &[PhaseTime], phase: Phase) -> u64 {
    let of = phases.iter().find(|of| of.phase == phase);
    of.map_or(0, |of| of.ms)
}

fn median(mut times: Vec<u64>) -> Option<u64> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn tries(plan: &Plan) -> bool {
    let mut stages = plan.stages.iter();
    stages.any(|stage| matches!(stage, Stage::TryCheck { .. }))
}

/// What differs between two sets of settings, without the values of environment properties. `tries`: a check is
/// tried first.
fn changes(from: &OptionSettings, to: &OptionSettings, tries: bool) -> Vec<PlannedSetting> {
    let names: BTreeSet<(&String, &String)> = [from, to]
        .into_iter()
        .flat_map(|settings| &settings.0)
        .flat_map(|(namespace, options)| options.keys().map(move |name| (namespace, name)))
        .collect();
    names
        .into_iter()
        .filter_map(|(namespace, name)| {
            let (before, after) = (from.get(namespace, name), to.get(namespace, name));
            let how = match (before, after) {
                (None, Some(_)) => "set",
                (Some(_), None) => "removed",
                _ if before != after => "changed",
                _ => return None,
            };
            let is_secret = namespace == PROPERTIES;
            let in_force = |settings: &OptionSettings| {
                let value = match (namespace.as_str(), name.as_str()) {
                    // Without it, its older name holds.
                    (PROCESS, "HealthCheckPath") => settings.health_check_path(),
                    _ => settings.effective(namespace, name),
                };
                (!is_secret && !value.is_empty()).then(|| value.to_owned())
            };
            let spec = options::spec(namespace, name);
            let change = spec.map_or(Change::Nothing, |spec| spec.change);
            let differs = from.effective(namespace, name) != to.effective(namespace, name);
            let needs = match change {
                _ if is_secret => "restart",
                // An option that makes a process known, or is the last that did.
                _ if from.knows_process_of(namespace) != to.knows_process_of(namespace) => {
                    "restart"
                }
                Change::Check if tries && from.checks_differently(to) => "check",
                Change::Restart if differs => "restart",
                Change::Replace if differs => "replacement",
                _ => "nothing",
            };
            Some(PlannedSetting {
                namespace: namespace.clone(),
                option: name.clone(),
                from: in_force(from),
                to: in_force(to),
                how: how.to_owned(),
                needs: needs.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::options::COMMAND;

    #[test]
    fn a_changed_setting_says_what_was_and_what_is_but_not_of_properties() {
        let mut from = OptionSettings::default();
        from.set(COMMAND, "BatchSize", "30");
        from.set(PROPERTIES, "PASSWORD", "hunter2");
        let mut to = OptionSettings::default();
        to.set(PROCESS, "HealthCheckPath", "/up");
        to.set(COMMAND, "BatchSize", "50");
        to.set(PROPERTIES, "PASSWORD", "hunter3");
        let told = changes(&from, &to, true);
        assert!(!format!("{told:?}").contains("hunter"));
        let of = |option: &str| {
            let one = told.iter().find(|one| one.option == option).expect(option);
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            (text(&one.from), text(&one.to), one.how.clone())
        };
        let expected =
            |from: &str, to: &str, how: &str| (from.to_owned(), to.to_owned(), how.to_owned());
        assert_eq!(of("BatchSize"), expected("30", "50", "changed"));
        assert_eq!(of("HealthCheckPath"), expected("/", "/up", "set"));
        assert_eq!(of("PASSWORD"), expected("", "", "changed"));
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn the_middle_of_what_was_measured_is_expected() {
        assert_eq!(median(vec![9, 1, 5]), Some(5));
        assert_eq!(median(Vec::new()), None);
    }
}
