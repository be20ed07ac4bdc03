//! What instances that are not well yet answer, told in events: once each time that it changes, so that
//! who waits for a deployment sees why.

use crate::apply::Scene;
use crate::events::Draft;
use beanpole_planner::{ChangeState, World};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::{InstanceId, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::model::{EnvironmentRecord, OperationRecord};

/// Answers told of one operation at most: one that changes with every check is told often enough by then.
const MOST: u32 = 200;

/// What an instance that is waited for answers.
struct Answer {
    instance: InstanceId,
    /// What is compared with the one before.
    text: String,
    /// For people, with how long it is waited for.
    message: String,
}

/// Whether there is something to tell.
pub(crate) fn any_new(
    environment: &EnvironmentRecord,
    operation: &OperationRecord,
    world: &World<'_>,
    now: Timestamp,
) -> bool {
    operation.answers_told < MOST
        && answers(&environment.settings, operation, world, now)
            .iter()
            .any(|answer| is_new(operation, answer))
}

/// Tells what is new.
pub(crate) fn tell(scene: &mut Scene<'_, '_>, world: &World<'_>) -> Result<(), StoreError> {
    let settings = scene.environment.settings.clone();
    for answer in answers(&settings, scene.operation, world, scene.now) {
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

fn answers(
    settings: &OptionSettings,
    operation: &OperationRecord,
    world: &World<'_>,
    now: Timestamp,
) -> Vec<Answer> {
    let (plan, progress) = match &operation.back {
        Some(back) => (back, &operation.back_progress),
        None => (&operation.plan, &operation.progress),
    };
    let probe = settings.health_check().probe;
    let mut answers = Vec::new();
    for (_, change) in plan.changes() {
        let id = &change.instance;
        let (since, may_take) = match progress.of(id) {
            ChangeState::Starting { since } => (since, plan.timeouts.started_ms()),
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
        let text = ended.or_else(|| {
            world
                .proxies
                .iter()
                .filter_map(|proxy| proxy.target(id, instance.incarnation))
                .filter_map(|target| target.last_check.as_ref())
                .find(|check| !check.good)
                .map(|check| format!("{probe} {}", said(&check.answer)))
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

/// `500 in 2 ms` is an answer, and how long it took is another every time; `connection refused` is none.
fn said(answer: &str) -> String {
    match answer.split_once(" in ") {
        Some((status, _)) if status.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("answered {status}")
        }
        _ => format!("got no answer: {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn how_long_an_answer_took_does_not_make_it_another() {
        assert_eq!(said("500 in 2 ms"), "answered 500");
        assert_eq!(said("500 in 31 ms"), "answered 500");
        assert_eq!(
            said("connection refused"),
            "got no answer: connection refused"
        );
    }
}
