//! A turn: every open operation as far as it goes, then what hosts and proxies shall hold.

use crate::apply::Scene;
use crate::events::Draft;
use crate::read::Repute;
use crate::{Engine, EngineError, Observed, answers, compare, linger, read, receipt};
use beanpole_planner::{Decision, Happened, Stage, World, next, plan_back};
use beanpole_protocol::api::{EnvironmentStatus, OperationKind, OperationStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::{HostId, OperationId, Timestamp};
use beanpole_store::model::{EnvironmentRecord, InstanceRecord, OperationRecord};
use std::time::Duration;

/// Steps that one operation may take in one turn: far more than any plan has, so that a bug ends a
/// turn instead of holding the engine for ever.
const STEPS_PER_TURN: u32 = 10_000;

/// How often what lingers is looked at while the end of its environment waits for it; reports that say it
/// is gone come before.
const LINGERERS_LOOKED_AT: Duration = Duration::from_secs(1);

/// What a turn changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Hosts with new orders.
    pub hosts_changed: Vec<HostId>,
    /// There is a new routing table.
    pub table_changed: bool,
    /// Events were written.
    pub events: bool,
    /// When to take the next turn at the latest, if nothing is observed before.
    pub wake_at: Option<Timestamp>,
}

impl Turn {
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

impl Engine {
    /// Takes everything as far as what was observed allows. `bits` gives random bits for the ids of
    /// operations that the engine starts by itself.
    pub fn turn(
        &self,
        observed: &Observed,
        now: Timestamp,
        bits: &mut dyn FnMut() -> u128,
    ) -> Result<Turn, EngineError> {
        self.turn_at_most(observed, now, bits, u64::MAX)
    }

    /// A turn that stops after that many transactions: what a controller that dies midway leaves in
    /// its store. For the simulator.
    pub fn turn_at_most(
        &self,
        observed: &Observed,
        now: Timestamp,
        bits: &mut dyn FnMut() -> u128,
        transactions: u64,
    ) -> Result<Turn, EngineError> {
        let mut turn = Turn::default();
        let before = self.store.commits();
        for environment in self.store.list::<EnvironmentRecord>()? {
            if self.store.commits() - before >= transactions {
                return Ok(turn);
            }
            self.watch(&environment, observed, now, &mut turn)?;
            self.watch_ports(&environment, observed, now, &mut turn)?;
            self.count_after(&environment, observed, now, &mut turn)?;
            self.linger(&environment, observed, now, &mut turn)?;
            if environment.operation.is_some() {
                self.advance(&environment, observed, now, &mut turn)?;
            } else if environment.next.is_some() {
                self.begin_queued(&environment, observed, now, bits(), &mut turn)?;
            } else if environment.status == EnvironmentStatus::Ready {
                let changed = self.sleep_or_wake(&environment, observed, now, &mut turn)?;
                let environment = changed.as_ref().unwrap_or(&environment);
                self.mend(environment, observed, now, bits, &mut turn)?;
            }
            // Last: what an operation has just returned to service may have ended meanwhile.
            self.withdraw(&environment, observed, &mut turn)?;
        }
        if self.store.commits() - before < transactions {
            self.derive(observed, now, &mut turn)?;
        }
        Ok(turn)
    }

    /// Takes one operation as far as it goes.
    fn advance(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let Some(id) = &environment.operation else {
            return Ok(());
        };
        let key = OperationRecord::key_of(id);
        // Most looks find nothing to record; those cost no write.
        if let Some(operation) = self.store.get::<OperationRecord>(&key)?
            && !wants_back(&operation)
            && !wants_promotion(&operation)
            && compare::due_at(&operation).is_none_or(|due| now < due)
        {
            let world = self.world(&self.store, environment, observed, now, false)?;
            if let Decision::Wait { until, .. } = decide(&operation, &world, now)
                && !answers::any_new(&operation, &world, now)
                && !receipt::any_new(&operation, observed, now)
            {
                turn.wake(until);
                if let Some(due) = compare::due_at(&operation) {
                    turn.wake(due);
                }
                return Ok(());
            }
        }
        let (until, entries) = self.store.update(|tx| {
            let Some(mut environment) =
                tx.get::<EnvironmentRecord>(&EnvironmentRecord::key_of(&environment.id))?
            else {
                return Ok((None, None));
            };
            let Some(mut operation) = tx.get::<OperationRecord>(&key)? else {
                environment.operation = None;
                environment.status = EnvironmentStatus::Ready;
                environment.split = None;
                tx.put(&environment)?;
                return Ok((None, None));
            };
            let before = operation.entries;
            let mut scene = Scene {
                tx,
                environment: &mut environment,
                operation: &mut operation,
                now,
                ports: None,
            };
            if compare::due_at(scene.operation).is_some_and(|due| now >= due) {
                let prefix = InstanceRecord::prefix(&scene.environment.id);
                let instances = scene.tx.list_prefix::<InstanceRecord>(&prefix)?;
                let run = instances.iter().map(|one| one.release).collect();
                compare::advance(scene.operation, &run, observed, now);
            }
            // The planner reads what was compared from the records.
            scene.tx.put(scene.operation)?;
            let until = self.play(&mut scene, observed)?;
            let until = until.map(|until| match compare::due_at(scene.operation) {
                Some(due) => until.min(due),
                None => until,
            });
            receipt::advance(&mut operation, observed, now);
            tx.put(&operation)?;
            tx.put(&environment)?;
            Ok::<_, EngineError>((until, Some(before + 1..=operation.entries)))
        })?;
        if let (Some(recorded), Some(entries)) = (&self.recorded, entries)
            && !entries.is_empty()
        {
            recorded(id, entries);
        }
        turn.events = true;
        turn.wake(until.unwrap_or(now));
        Ok(())
    }

    /// Steps until there is something to wait for (then says until when) or the operation is over.
    fn play(
        &self,
        scene: &mut Scene<'_, '_>,
        observed: &Observed,
    ) -> Result<Option<Timestamp>, EngineError> {
        for _ in 0..STEPS_PER_TURN {
            let now = scene.now;
            let world = self.world(scene.tx, scene.environment, observed, now, false)?;
            if wants_back(scene.operation) {
                self.turn_back(scene, observed)?;
                continue;
            }
            if wants_promotion(scene.operation) {
                scene.record(&world, &Happened::Promoted)?;
                continue;
            }
            match decide(scene.operation, &world, now) {
                Decision::Wait { until, .. } => {
                    answers::tell(scene, &world)?;
                    return Ok(Some(until));
                }
                Decision::Record(entries) => {
                    for entry in entries {
                        scene.record(&world, &entry)?;
                    }
                }
                // Nothing outlives its environment; what lingers is on its way out, within its own bound.
                Decision::Finished
                    if scene.operation.kind == OperationKind::Terminate
                        && linger::any(scene.tx, &scene.environment.id)? =>
                {
                    return Ok(Some(now.after(LINGERERS_LOOKED_AT)));
                }
                Decision::Finished => {
                    let operation = &scene.operation;
                    let status = match (&operation.back, &operation.aborted_by) {
                        (None, _) => OperationStatus::Succeeded,
                        (Some(_), Some(_)) => OperationStatus::Aborted,
                        (Some(_), None)
                            if operation.from.is_some() && !operation.changes_no_release() =>
                        {
                            OperationStatus::RolledBack
                        }
                        (Some(_), None) => OperationStatus::Failed,
                    };
                    self.finish(scene, observed, status)?;
                    return Ok(None);
                }
                Decision::Failed(failure) => {
                    let operation = &mut *scene.operation;
                    if operation.back.is_none() {
                        operation.failure = Some(failure);
                        if goes_back(operation) {
                            self.turn_back(scene, observed)?;
                            continue;
                        }
                    }
                    self.finish(scene, observed, OperationStatus::Failed)?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(scene.now))
    }

    /// Ends the way there and starts the way back.
    fn turn_back(&self, scene: &mut Scene<'_, '_>, observed: &Observed) -> Result<(), EngineError> {
        let world = self.world(scene.tx, scene.environment, observed, scene.now, true)?;
        let operation = &mut *scene.operation;
        // Replacing and restarting change no release; what they broke is not mended by breaking it
        // again. An abort still has to bring back what it interrupted.
        let in_place = operation.changes_no_release();
        let from = operation
            .from
            .filter(|_| !in_place || operation.aborted_by.is_some());
        let from = match from {
            Some(number) => read::release(scene.tx, &scene.environment.id, number)?
                .map(|release| (release.number, release.tree, release.settings)),
            None => None,
        };
        let settings = from
            .as_ref()
            .map_or(&scene.environment.settings, |(.., settings)| settings);
        let leaves = &scene.environment.settings;
        let rules = read::rules(settings, leaves, scene.environment.tier, Repute::Live);
        let back = plan_back(
            &world,
            &operation.plan,
            &operation.progress,
            from.as_ref().map(|(number, tree, _)| (*number, *tree)),
            &rules,
            seed_of(&operation.id),
        );
        operation.back = Some(back);
        // Until they are drained, in this same turn, the new instances get their fair part and no more.
        scene.environment.split = None;
        operation.status = OperationStatus::RollingBack;
        if let Some(request) = operation.aborted_by.clone() {
            let text = "The operation is being aborted.";
            let draft = Draft::new(Severity::Info, "aborting", text, scene.now)
                .request(&request)
                .operation_id(&operation.id.clone());
            scene.say_draft(draft)?;
        }
        if runs_once(scene.operation) {
            let text = "What runs once is ended where it is, if it still runs: what it has done so far \
                        stays. Look at what it changes, such as the database.";
            scene.say(Severity::Warn, "release-command-ended", text)?;
        }
        let text = match &from {
            _ if scene.operation.touched_nothing() => "Nothing has to be undone.".to_owned(),
            Some((number, ..)) => format!("Going back to release {number}."),
            None => "Undoing what can be undone.".to_owned(),
        };
        scene.say(Severity::Warn, "going-back", text)?;
        Ok(())
    }
}

/// What the ids of new instances on the way back are made from: the same whenever it is made, and no
/// other operation's.
fn seed_of(operation: &OperationId) -> u128 {
    // FNV-1a's prime and offset for 128 bits.
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let bytes = operation.as_str().bytes();
    bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    })
}

/// What comes next for an operation.
pub(crate) fn decide(operation: &OperationRecord, world: &World<'_>, now: Timestamp) -> Decision {
    match &operation.back {
        Some(back) => next(back, &operation.back_progress, world, now),
        None => next(&operation.plan, &operation.progress, world, now),
    }
}

/// It was given up by an abort while what runs once was under way.
fn runs_once(operation: &OperationRecord) -> bool {
    let progress = &operation.progress;
    let plan = operation.way_there();
    let stage = plan.stages.get(progress.stage);
    progress.failed.is_none()
        && progress.once_by.is_some()
        && matches!(stage, Some(Stage::Once { .. }))
}

/// It was aborted and has not turned back yet.
fn wants_back(operation: &OperationRecord) -> bool {
    operation.aborted_by.is_some() && operation.back.is_none()
}

/// Somebody wants its split to end with all requests at the new release, and it is not recorded yet.
fn wants_promotion(operation: &OperationRecord) -> bool {
    operation.promoted_by.is_some()
        && !operation.progress.promoted
        && operation.back.is_none()
        && operation.progress.failed.is_none()
        && operation.progress.share.is_some()
}

/// Whether a failed operation goes back. A first deployment has nowhere to go: what it left is kept
/// to be looked at.
fn goes_back(operation: &OperationRecord) -> bool {
    !operation.no_auto_rollback
        && operation.from.is_some()
        && operation.kind != OperationKind::Terminate
}
