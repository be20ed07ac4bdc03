//! Frees bundles that nothing refers to any more.
//!
//! What refers to a bundle is a record: a version; a release of an environment that is not
//! terminated, which covers running operations (they lead from and to releases); the orders of a
//! host, which may still be fetching it. A bundle without a record may yet get one: its upload has
//! ended, or was skipped because it is here, and the version comes next. So one that somebody was told
//! of stays for a grace time.
//!
//! The order makes it safe to be killed anywhere. A record goes first, on disk, then its bundle: what
//! is left over in between is found the next time, like the bundle of an upload that nothing came
//! of. Writers of records wait while a bundle is looked up and removed, so that no record can come to
//! refer to it meanwhile; whoever writes one looks for the bundle within the transaction.

use crate::StoreError;
use crate::blobs::{BlobError, Blobs};
use crate::model::{EnvironmentRecord, HostOrdersRecord, ReleaseRecord, VersionRecord};
use crate::recover;
use crate::store::Store;
use beanpole_protocol::Digest;
use beanpole_protocol::api::EnvironmentStatus;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long records that were replaced by a backup keep all bundles from being freed: they lie
/// beside, and whoever returns to them needs theirs.
const WAY_BACK: Duration = Duration::from_hours(7 * 24);

/// What was freed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// The bundles.
    pub bundles: Vec<Digest>,
    /// Their size together, in bytes.
    pub bytes: u64,
}

/// Why nothing can be said about what may be freed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The records.
    #[error("the records cannot be read")]
    Store(#[from] StoreError),
    /// The bundles.
    #[error("the bundles cannot be listed or removed")]
    Blobs(#[from] BlobError),
}

/// Removes the bundles that no record refers to and nobody was told of within `grace`.
pub fn collect(store: &Store, blobs: &Blobs, grace: Duration) -> Result<Freed, CollectError> {
    let mut freed = Freed::default();
    if let Some(dir) = store.dir()
        && recover::set_aside_within(dir, WAY_BACK)?
    {
        tracing::debug!("no bundle is freed: records that a backup replaced may need them");
        return Ok(freed);
    }
    let needed = referred(store)?;
    let mut candidates = blobs.list()?;
    candidates.retain(|(digest, _)| !needed.contains(digest));
    let mut known: Option<(u64, BTreeSet<Digest>)> = None;
    for (digest, size) in candidates {
        let _writers = store.hold_writers();
        // Most of the time nothing was written since the bundle before this one.
        let commits = store.commits();
        let needed = match known {
            Some((at, needed)) if at == commits => needed,
            _ => referred(store)?,
        };
        if !needed.contains(&digest) && blobs.remove_unused(&digest, grace)? {
            tracing::info!(bundle = digest.short(), size, "bundle freed");
            freed.bundles.push(digest.clone());
            freed.bytes += size;
        }
        known = Some((commits, needed));
    }
    Ok(freed)
}

/// The bundles that records refer to.
fn referred(store: &Store) -> Result<BTreeSet<Digest>, StoreError> {
    let living: BTreeSet<_> = store
        .list::<EnvironmentRecord>()?
        .into_iter()
        .filter(|environment| environment.status != EnvironmentStatus::Terminated)
        .map(|environment| environment.id)
        .collect();
    let versions = store.list::<VersionRecord>()?.into_iter();
    let releases = store.list::<ReleaseRecord>()?.into_iter();
    let orders = store.list::<HostOrdersRecord>()?.into_iter();
    Ok(versions
        .map(|version| version.bundle)
        .chain(
            releases
                .filter(|release| living.contains(&release.environment))
                .map(|release| release.bundle),
        )
        .chain(
            orders
                .flat_map(|record| record.orders.releases)
                .map(|release| release.bundle),
        )
        .collect())
}
