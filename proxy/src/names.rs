//! Names of targets for clients. A cookie that named an instance or an address would tell everybody how many
//! there are and where; these are hashes with a key that no client has.
//!
//! The key comes from the controller, the same for all its load balancers, so that a client stays where it is
//! whichever of them it comes to. Until it came, and in cookies of before, the key is this proxy's own.

use arc_swap::ArcSwapOption;
use beanpole_daemon::clock;
use beanpole_daemon::files::{self, ReadError};
use beanpole_protocol::InstanceId;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What names are made with. It is kept on disk: clients stay where they are when the proxy starts again.
pub struct Names {
    own: u128,
    /// Of all load balancers, once known; it is kept with the certificates.
    given: ArcSwapOption<u128>,
}

/// The names of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The one that clients are told.
    pub name: u64,
    /// The one that clients may have been told before.
    pub before: u64,
}

impl Names {
    /// The key that is kept at `path`; a new one where there is none, or none that can be read.
    pub fn kept_at(path: &Path) -> io::Result<Self> {
        match files::read_json::<[u64; 2]>(path) {
            Ok(Some([high, low])) => Ok(Self::of_own((u128::from(high) << 64) | u128::from(low))),
            Err(ReadError::Damaged { source, .. }) => {
                tracing::warn!(%source, path = %path.display(),
                    "the key of session cookies is damaged: clients may move to other instances");
                Self::new_at(path)
            }
            Ok(None) => Self::new_at(path),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn new_at(path: &Path) -> io::Result<Self> {
        let key = clock::random_bits();
        files::write_json(path, &[(key >> 64) as u64, key as u64], 0o600)?;
        Ok(Self::of_own(key))
    }

    fn of_own(own: u128) -> Self {
        Self {
            own,
            given: ArcSwapOption::empty(),
        }
    }

    /// Takes the key of all load balancers; whether names are others by it.
    pub fn take(&self, key: Option<u128>) -> bool {
        let before = self.given.swap(key.map(Arc::new));
        before.as_deref() != key.as_ref()
    }

    /// The names of an instance, whatever its run.
    pub fn of(&self, instance: &InstanceId) -> Named {
        let before = name(self.own, instance);
        let given = self.given.load();
        Named {
            name: given.as_ref().map_or(before, |key| name(**key, instance)),
            before,
        }
    }
}

fn name(key: u128, instance: &InstanceId) -> u64 {
    // The key has a fixed length, and most of the hash is kept back: no need for HMAC.
    let hash = Sha256::new()
        .chain_update(key.to_be_bytes())
        .chain_update(instance.as_str())
        .finalize();
    hash.iter()
        .take(8)
        .fold(0, |name, byte| (name << 8) | u64::from(*byte))
}

#[cfg(test)]
impl Default for Names {
    fn default() -> Self {
        Self::of_own(7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_last_as_long_as_their_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        let (one, other) = (InstanceId::from_bits(1), InstanceId::from_bits(2));
        let first = Names::kept_at(&path).expect("a key");
        let again = Names::kept_at(&path).expect("the key");
        assert_eq!(first.of(&one), again.of(&one));
        assert_ne!(first.of(&one), first.of(&other));
        std::fs::write(&path, "{").expect("it can be damaged");
        let fresh = Names::kept_at(&path).expect("another key");
        assert_ne!(first.of(&one), fresh.of(&one));
        assert_eq!(fresh.of(&one), Names::kept_at(&path).expect("it").of(&one));
    }

    #[test]
    fn load_balancers_with_the_key_of_all_use_the_same_names_and_know_their_own() {
        let one = InstanceId::from_bits(1);
        let (here, there) = (Names::of_own(7), Names::of_own(8));
        let own = here.of(&one);
        assert_eq!(own.name, own.before);
        assert!(here.take(Some(3)) && there.take(Some(3)));
        assert!(!here.take(Some(3)), "it has it");
        assert_eq!(here.of(&one).name, there.of(&one).name);
        assert_eq!(here.of(&one).before, own.name);
        assert!(here.take(None));
        assert_eq!(here.of(&one), own);
    }
}
