//! What instances that are not well yet answer, told in events: once each time that it changes, so that
//! who waits for a deployment sees why.

use crate::apply::Scene;
use crate::events::Draft;
use beanpole_planner::{ChangeState, World, listens_unreached};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::event::Severity;
use beanpole_protocol::proxy::{self, CheckResult};
use beanpole_protocol::{InstanceId, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::model::OperationRecord;
use std::time::Duration;

/// Answers told of one operation at most: one that changes with every check is told often enough by then.
const MOST: u32 = 200;

/// After that long a check has been made since the app began to listen, or it listens later than others.
const SURELY_CHECKED: Duration = Duration::from_secs(10);

/// What an instance that is waited for answers.
struct Answer {
    instance: InstanceId,
    /// What is compared with the one before.
    text: String,
    /// For people, with how long it is waited for.
    message: String,
}

/// Whether there is something to tell.
pub(crate) fn any_new(operation: &OperationRecord, world: &World<'_>, now: Timestamp) -> bool {
    operation.answers_told < MOST
        && answers(operation, world, now)
            .iter()
            .any(|answer| is_new(operation, answer))
}

/// Tells what is new.
pub(crate) fn tell(scene: &mut Scene<'_, '_>, world: &World<'_>) -> Result<(), StoreError> {
    for answer in answers(scene.operation, world, scene.now) {
        if scene.operation.answers_told >= MOST || !is_new(scene.operation, &answer) {
            continue;
        }
        let draft = Draft::new(Severity::Info, "instance-waits", answer.message, scene.now)
            .operation(scene.operation)
            .instance(Some(&answer.instance));
        scene.say_draft(draft)?;
        scene.operation.answers_told += 1;
        scene.operation.answers.insert(answer.instance, answer.text);
    }
    Ok(())
}

fn is_new(operation: &OperationRecord, answer: &Answer) -> bool {
    operation.answers.get(&answer.instance) != Some(&answer.text)
}

fn answers(operation: &OperationRecord, world: &World<'_>, now: Timestamp) -> Vec<Answer> {
    let (plan, progress) = operation.under_way();
    let mut answers = Vec::new();
    for (_, change) in plan.changes() {
        let id = &change.instance;
        let (since, may_take) = match progress.of(id) {
            ChangeState::Starting { since } => (since, plan.start_ms(progress, id)),
            ChangeState::Checking { since } => (since, plan.timeouts.proven_ms(plan.gate)),
            _ => continue,
        };
        let (Some(instance), Some(host)) = (world.instances.get(id), world.hosts.get(&change.host))
        else {
            continue;
        };
        let seen = host
            .instance(id)
            .filter(|seen| seen.incarnation == instance.incarnation);
        let ended = seen
            .filter(|seen| seen.phase == InstancePhase::Restarting)
            .and_then(|seen| {
                let process = seen.processes.iter().find(|one| one.pid.is_none())?;
                let how = beanpole_planner::how_it_ended(process)?;
                Some(format!("process `{}` ended {how}", process.name))
            });
        let startup = seen
            .filter(|seen| seen.phase == InstancePhase::Running)
            .and_then(|seen| seen.startup.as_ref()?.said());
        let text = ended.or(startup).or_else(|| {
            world
                .proxies
                .iter()
                .filter_map(|proxy| proxy.target(id, instance.incarnation))
                .filter_map(|target| Some((target, target.last_check.as_ref()?)))
                .find(|(_, check)| !check.good)
                .map(|(target, check)| {
                    // The check may be older than what the host says.
                    let unreached = now.since(since) >= SURELY_CHECKED
                        && seen.is_some_and(|seen| listens_unreached(seen, target));
                    let though = if unreached {
                        ", though the app listens (on 127.0.0.1 alone, or behind a firewall?)"
                    } else {
                        ""
                    };
                    format!("{}{though}", without_times(check))
                })
        });
        let Some(text) = text else { continue };
        let message = format!(
            "{id} on {}: {text}, waiting ({} s of {} s).",
            host.name,
            now.since(since).as_secs(),
            may_take / 1_000
        );
        answers.push(Answer {
            instance: id.clone(),
            text,
            message,
        });
    }
    answers
}

/// What came back, but for how long it took: that is another every time.
fn without_times(check: &CheckResult) -> String {
    match proxy::answered(&check.answer) {
        Some((came, wrong)) if wrong.starts_with(", but ") => {
            format!("{} answered {came}{wrong}", check.asked)
        }
        Some((came, _)) => format!("{} answered {came}", check.asked),
        None => proxy::said(&check.asked, &check.answer),
    }
}

#[cfg(test)]
mod tests {
    use super::without_times;
    use beanpole_protocol::Timestamp;
    use beanpole_protocol::proxy::CheckResult;

    #[test]
    fn how_long_an_answer_took_does_not_make_it_another() {
        let said = |answer: &str| {
            without_times(&CheckResult {
                at: Timestamp::EPOCH,
                asked: "GET /".to_owned(),
                good: false,
                connected: true,
                answer: answer.to_owned(),
            })
        };
        assert_eq!(said("500 in 2 ms"), "GET / answered 500");
        assert_eq!(said("500 in 31 ms"), "GET / answered 500");
        assert_eq!(
            said("connection refused"),
            "GET / got no answer: connection refused"
        );
    }
}
