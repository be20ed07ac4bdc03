//! What runs once, container commands for the leader and the release command: started at most once, and nothing is touched before it has succeeded.
//!
//! First it is recorded which agent shall run it; only then is it ordered, from that agent alone. What
//! that agent says is the only proof of how it ended. Where there is none, the plan fails and says so:
//! a command such as a migration must not run twice because nobody knows of the first time.

use super::failure::{gone, host_name, last_lines, unheard};
use super::prepare::OUTDATED;
use super::{Step, Turn};
use crate::{Happened, HostState, Reach};
use beanpole_protocol::agent::{OncePhase, ReleasePhase};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::{AgentId, HostId, ReleaseNumber};

/// What to do when nobody can say whether a command has run to its end.
const LOOK: &str = "It is not known whether it ran to its end: look at what it changes, such as the \
                    database, then deploy again, which runs it again.";

/// A text as the beginning of a sentence.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// What runs once, as its stage has it.
#[derive(Clone, Copy)]
pub(super) struct Command<'p> {
    pub(super) release: ReleaseNumber,
    pub(super) tree: ReleaseNumber,
    pub(super) host: &'p HostId,
    pub(super) shown: &'p str,
}

impl Turn<'_, '_> {
    /// Whether what runs once has succeeded.
    pub(super) fn once(&mut self, command: Command<'_>) -> Step<bool> {
        let (world, progress) = (self.world, self.progress);
        let name = world.host_name(command.host);
        let ordered = progress.once_by.as_ref();
        let Some(host) = world.hosts.get(command.host) else {
            return Err(self.not_run(command, "host-lost", "its host was removed", ordered));
        };
        let how = match ordered {
            None => self.order_once(command, host)?,
            Some(agent) => self.follow_once(command, host, agent)?,
        };
        let Some(how) = how else {
            return Ok(ordered.is_some());
        };
        if let Some(why) = gone(host.reach, self.now) {
            let why = format!("the host {why}");
            return Err(self.not_run(command, "host-lost", &why, ordered));
        }
        let how = match host.reach {
            Reach::Silent(since) => format!("{how}; the host {}", unheard(since, self.now)),
            _ => how,
        };
        if self.late(self.stage_bound()) {
            return Err(self.not_run(command, "release-command-timeout", &how, ordered));
        }
        let shown = command.shown;
        self.wait(None, format!("Waiting for {shown} on {name}: {how}."));
        Ok(false)
    }

    /// Records who shall run it, once its host can be told; else what that waits for.
    fn order_once(&mut self, command: Command<'_>, host: &HostState<'_>) -> Step<Option<String>> {
        let seen = host.release(&self.world.environment, command.tree);
        let Some(seen) = seen.filter(|seen| seen.phase == ReleasePhase::Ready) else {
            return Ok(Some("its release is not ready there any more".to_owned()));
        };
        if host.reach != Reach::Here {
            return Ok(Some("it is not started yet".to_owned()));
        }
        let agent = host.report.and_then(|report| report.agent.clone());
        let Some(agent) = agent.filter(|_| seen.has_release_command) else {
            let why = format!(
                "the agent there is of a version that runs none; `beanpole host upgrade {}` brings it \
                 up to date",
                host.name
            );
            return Err(self.not_run(command, OUTDATED, &why, None));
        };
        self.entries.push(Happened::OnceOrdered { agent });
        Ok(None)
    }

    /// What the agent that was told to run it says: what it waits for, or none when it has succeeded.
    fn follow_once(
        &self,
        command: Command<'_>,
        host: &HostState<'_>,
        agent: &AgentId,
    ) -> Step<Option<String>> {
        let says = host.report.and_then(|report| report.agent.as_ref());
        if says.is_some_and(|says| says != agent) {
            let why = "the host was set up anew, and what it knew is gone";
            return Err(self.not_run(command, "host-lost", why, Some(agent)));
        }
        let seen = host
            .release(&self.world.environment, command.tree)
            .and_then(|seen| seen.once.as_ref())
            .filter(|once| Some(&once.operation) == self.world.operation.as_ref());
        let Some(once) = seen else {
            return Ok(Some(host.not_begun()));
        };
        match &once.phase {
            OncePhase::Succeeded { .. } => Ok(None),
            OncePhase::Failed(failure) => Err(Box::new(OperationFailure {
                code: failure.code.clone(),
                message: format!(
                    "{} of release {} failed on {}: {}",
                    capital(command.shown),
                    command.release,
                    host.name,
                    failure.message
                ),
                instance: None,
                host: host_name(&host.name),
                probe: None,
                answer: None,
                log: last_lines(&failure.log),
            })),
            OncePhase::Running => {
                let said_at = host.report.map_or(once.since, |report| report.now);
                let seconds = said_at.since(once.since).as_secs();
                Ok(Some(format!("it has been running for {seconds} s")))
            }
        }
    }

    /// Nobody says how it ended, or it never began.
    fn not_run(
        &self,
        command: Command<'_>,
        code: &str,
        why: &str,
        ordered: Option<&AgentId>,
    ) -> Box<OperationFailure> {
        let name = self.world.host_name(command.host);
        let then = match ordered {
            Some(_) => LOOK,
            None => "It was not started.",
        };
        Box::new(OperationFailure {
            code: code.to_owned(),
            message: format!(
                "{} of release {} did not succeed on {name}: {why}. {then}",
                capital(command.shown),
                command.release
            ),
            instance: None,
            host: host_name(&name),
            probe: None,
            answer: None,
            log: Vec::new(),
        })
    }
}
