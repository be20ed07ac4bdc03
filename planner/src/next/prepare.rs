//! Getting a release ready on hosts, while nothing that runs is touched.

use super::failure::{gone, host_name, lost, prepare_failed, unheard};
use super::{Step, Turn};
use crate::{Change, HostState, Reach, Stage};
use beanpole_protocol::agent::{ReleasePhase, ReleaseReport};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::{HostId, ReleaseNumber};

/// The code of an agent that is too old for what a release needs.
pub(super) const OUTDATED: &str = "agent-outdated";

impl Turn<'_, '_> {
    /// Whether the release is ready on every host.
    pub(super) fn prepare(
        &mut self,
        release: ReleaseNumber,
        tree: ReleaseNumber,
        hosts: &[HostId],
    ) -> Step<bool> {
        let mut all = true;
        for id in hosts {
            let name = self.world.host_name(id);
            let Some(host) = self.world.hosts.get(id) else {
                return Err(lost(&name, None, "was removed"));
            };
            let seen = host.release(&self.world.environment, tree);
            let how = match seen.map(|seen| &seen.phase) {
                Some(ReleasePhase::Ready) => {
                    if let Some(why) = seen.and_then(|seen| self.without_commands(tree, host, seen))
                    {
                        return Err(Box::new(OperationFailure {
                            code: OUTDATED.to_owned(),
                            message: why,
                            instance: None,
                            host: host_name(&name),
                            probe: None,
                            answer: None,
                            log: Vec::new(),
                        }));
                    }
                    continue;
                }
                Some(ReleasePhase::Failed(failure)) => {
                    if seen.is_some_and(|seen| self.is_answered(seen)) {
                        return Err(prepare_failed(release, &name, None, failure));
                    }
                    format!(
                        "an earlier attempt failed ({}), and it is tried again",
                        failure.code
                    )
                }
                Some(ReleasePhase::NeedsBundle) => format!(
                    "the bundle is on its way ({} bytes arrived)",
                    seen.map_or(0, |seen| seen.bundle_have)
                ),
                Some(ReleasePhase::Unpacking) => "the bundle is being unpacked".to_owned(),
                Some(ReleasePhase::Building { command }) => format!("`{command}` runs"),
                None => host.not_begun(),
            };
            if let Some(why) = gone(host.reach, self.now) {
                return Err(lost(&name, None, &why));
            }
            all = false;
            let how = match host.reach {
                Reach::Silent(since) => format!("{how}; the host {}", unheard(since, self.now)),
                _ => how,
            };
            self.wait(
                None,
                format!("Waiting for release {release} on {name}: {how}."),
            );
            if self.late(self.stage_bound()) {
                return Err(Box::new(OperationFailure {
                    code: "prepare-timeout".to_owned(),
                    message: format!(
                        "Release {release} was not ready on {name} within {} s: {how}.",
                        self.plan.timeouts.prepare_ms / 1_000
                    ),
                    instance: None,
                    host: host_name(&name),
                    probe: None,
                    answer: None,
                    log: Vec::new(),
                }));
            }
        }
        Ok(all)
    }

    /// Fails when the release of an instance that is started could not be prepared on its host.
    pub(super) fn prepared(&self, change: &Change, host: &HostState<'_>) -> Step<()> {
        let Some((release, tree)) = self.prepares() else {
            return Ok(());
        };
        match host.release(&self.world.environment, tree) {
            Some(seen) if self.is_answered(seen) => match &seen.phase {
                ReleasePhase::Failed(failure) => Err(prepare_failed(
                    release,
                    &host.name,
                    Some(&change.instance),
                    failure,
                )),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Fails when the container commands of an instance's release did not run on its host. Hosts that
    /// a detour leads to are not waited for when the release is prepared.
    pub(super) fn ran_its_commands(&self, change: &Change, host: &HostState<'_>) -> Step<()> {
        let seen = |tree| host.release(&self.world.environment, tree);
        let why = self
            .prepares()
            .and_then(|(_, tree)| self.without_commands(tree, host, seen(tree)?));
        match why {
            Some(why) => Err(self.failure(change, OUTDATED, why)),
            None => Ok(()),
        }
    }

    /// The release that the plan prepares, and that of its tree.
    fn prepares(&self) -> Option<(ReleaseNumber, ReleaseNumber)> {
        self.plan.stages.iter().find_map(|stage| match stage {
            Stage::Prepare { release, tree, .. } => Some((*release, *tree)),
            _ => None,
        })
    }

    /// Why a release that is ready on a host may not be used: its container commands did not run.
    fn without_commands(
        &self,
        tree: ReleaseNumber,
        host: &HostState<'_>,
        seen: &ReleaseReport,
    ) -> Option<String> {
        let sets_up = self.world.with_commands.get(&tree)?;
        host.ran_no_commands(seen, *sets_up)
    }

    /// Whether a failure counts for this operation. One of before it says nothing: a registry may be
    /// back, a disk be free again.
    fn is_answered(&self, failed: &ReleaseReport) -> bool {
        let is_final = failed.again_at.is_none();
        is_final || failed.asked_by == self.world.operation
    }
}
