//! Which releases of an environment are needed: what it runs or is on its way to, and what it can
//! return to at once because hosts keep it prepared. The others are history.

use beanpole_protocol::ReleaseNumber;
use beanpole_store::model::{
    EnvironmentRecord, InstanceRecord, LingererRecord, OperationRecord, QueuedWish, ReleaseRecord,
};
use beanpole_store::{StoreError, Tx};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What a release is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The environment runs it, or an operation leads from or to it.
    Runs,
    /// It is one of the last that were live, kept to go back to.
    Returns,
}

/// The trees that hosts keep prepared: those of the last `keep` that were live.
pub(crate) fn prepared<'r>(
    releases: impl Iterator<Item = &'r ReleaseRecord>,
    keep: usize,
) -> Vec<ReleaseNumber> {
    let mut lived: Vec<&ReleaseRecord> = releases
        .filter(|release| release.live_at.is_some())
        .collect();
    lived.sort_by_key(|release| Reverse((release.live_at, release.number)));
    let mut trees = Vec::new();
    for release in lived {
        if trees.len() < keep && !trees.contains(&release.tree) {
            trees.push(release.tree);
        }
    }
    trees
}

/// The releases of `environment` that are needed, by number.
pub fn needed_releases(
    tx: &Tx<'_>,
    environment: &EnvironmentRecord,
) -> Result<BTreeMap<ReleaseNumber, Need>, StoreError> {
    let releases: Vec<ReleaseRecord> = tx.list_prefix(&ReleaseRecord::prefix(&environment.id))?;
    let instances: Vec<InstanceRecord> =
        tx.list_prefix(&InstanceRecord::prefix(&environment.id))?;
    let lingering: Vec<LingererRecord> =
        tx.list_prefix(&LingererRecord::prefix(&environment.id))?;
    let operation = match &environment.operation {
        Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
        None => None,
    };
    let queued = match &environment.next {
        Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
        None => None,
    };
    let returns_to = match queued.and_then(|queued| queued.wish) {
        Some(QueuedWish::Rollback(body)) => body.to,
        _ => None,
    };
    let running: Vec<ReleaseNumber> = operation
        .iter()
        .flat_map(|operation| [operation.from, operation.to])
        .flatten()
        .chain(environment.live)
        .chain(returns_to)
        .chain(instances.iter().map(|instance| instance.release))
        .chain(lingering.iter().map(|one| one.instance.release))
        .collect();
    let keep = environment.settings.deployment().keep_releases as usize;
    let prepared = prepared(releases.iter(), keep);
    let mut needed = BTreeMap::new();
    for release in &releases {
        let need = if running.contains(&release.number) {
            Need::Runs
        } else if release.live_at.is_some() && prepared.contains(&release.tree) {
            Need::Returns
        } else {
            continue;
        };
        needed.insert(release.number, need);
        // The release that its tree was prepared for is read along with it.
        needed.entry(release.tree).or_insert(need);
    }
    Ok(needed)
}
