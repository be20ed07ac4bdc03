//! Deltas between bundles, made once for as many hosts as want them.

use crate::statics;
use beanpole_fleet::BundleSource;
use beanpole_protocol::Digest;
use beanpole_store::blobs::Blobs;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// As many are kept: a deployment needs one or two.
const KEPT: usize = 4;
/// Most bytes of one that is kept; a longer one is made again for every host, which is no worse than its way.
const LONGEST_KEPT: usize = 32 << 20;

/// Bundles for agents, whole or as what they lack. They verify the digest themselves.
pub(crate) struct Bundles {
    blobs: Arc<Blobs>,
    made: Mutex<VecDeque<Made>>,
}

struct Made {
    base: Digest,
    digest: Digest,
    /// Empty while the first that wants it makes it; none where it is not worth it.
    delta: Arc<OnceLock<Option<Bytes>>>,
}

impl Bundles {
    pub(crate) fn new(blobs: Arc<Blobs>) -> Self {
        Self {
            blobs,
            made: Mutex::default(),
        }
    }

    /// The place of a delta, filled or not; the one that was asked for longest ago makes room for it.
    fn place(&self, base: &Digest, digest: &Digest) -> Arc<OnceLock<Option<Bytes>>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &Made| one.base == *base && one.digest == *digest;
        if let Some(at) = made.iter().position(is_it)
            && let Some(one) = made.remove(at)
        {
            let delta = Arc::clone(&one.delta);
            made.push_back(one);
            return delta;
        }
        if made.len() == KEPT {
            made.pop_front();
        }
        let delta = Arc::<OnceLock<Option<Bytes>>>::default();
        made.push_back(Made {
            base: base.clone(),
            digest: digest.clone(),
            delta: Arc::clone(&delta),
        });
        delta
    }

    fn forget(&self, base: &Digest, digest: &Digest) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|one| one.base != *base || one.digest != *digest);
    }

    fn make(&self, base: &Digest, digest: &Digest) -> io::Result<Option<Bytes>> {
        let started = Instant::now();
        let (base_file, _) = self.open(base)?;
        let (file, size) = self.open(digest)?;
        let delta = beanpole_bundle::delta::make(&base_file, &file)?;
        tracing::info!(
            base = base.short(),
            bundle = digest.short(),
            size,
            bytes = delta.as_ref().map(Vec::len),
            took_ms = started.elapsed().as_millis() as u64,
            "compared two bundles"
        );
        Ok(delta.map(Bytes::from))
    }
}

impl BundleSource for Bundles {
    fn open(&self, digest: &Digest) -> io::Result<(File, u64)> {
        statics::bundle(&self.blobs, digest)
    }

    fn delta(&self, base: &Digest, digest: &Digest) -> io::Result<Option<Bytes>> {
        let place = self.place(base, digest);
        let mut failed = None;
        let delta = place
            .get_or_init(|| {
                self.make(base, digest).unwrap_or_else(|error| {
                    failed = Some(error);
                    None
                })
            })
            .clone();
        let is_long = delta
            .as_ref()
            .is_some_and(|delta| delta.len() > LONGEST_KEPT);
        if failed.is_some() || is_long {
            self.forget(base, digest);
        }
        failed.map_or(Ok(delta), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_is_made_once_and_the_newest_few_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Arc::new(Blobs::open(directory.path(), 1 << 24).expect("blobs"));
        let add = |bytes: &[u8]| {
            let mut writer = blobs.writer().expect("a writer");
            writer.write(bytes).expect("written");
            writer.finish(None).expect("whole").0
        };
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let base = add(&text);
        let digests: Vec<Digest> = (0..6)
            .map(|n| add(&[&text[..], &[n; 10]].concat()))
            .collect();
        let bundles = Bundles::new(Arc::clone(&blobs));
        for digest in &digests {
            let first = bundles
                .delta(&base, digest)
                .expect("readable")
                .expect("worth it");
            let again = bundles
                .delta(&base, digest)
                .expect("readable")
                .expect("worth it");
            assert_eq!(first.as_ptr(), again.as_ptr(), "it was not made twice");
        }
        assert_eq!(bundles.made.lock().expect("nobody panics").len(), KEPT);
        let missing = Digest::new("0".repeat(64)).expect("a digest");
        bundles.delta(&missing, &base).expect_err("it is not there");
    }
}
