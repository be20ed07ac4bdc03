//! Names of targets for clients. A cookie that named an instance or an address would tell everybody how many
//! there are and where; these are hashes with a key that only this proxy has.

use beanpole_daemon::clock;
use beanpole_daemon::files::{self, ReadError};
use beanpole_protocol::InstanceId;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;

/// What names are made with. It is kept on disk: clients stay where they are when the proxy starts again.
pub struct Names {
    key: u128,
}

impl Names {
    /// The key that is kept at `path`; a new one where there is none, or none that can be read.
    pub fn kept_at(path: &Path) -> io::Result<Self> {
        match files::read_json::<[u64; 2]>(path) {
            Ok(Some([high, low])) => Ok(Self {
                key: (u128::from(high) << 64) | u128::from(low),
            }),
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
        Ok(Self { key })
    }

    /// The name of an instance, whatever its run.
    pub fn of(&self, instance: &InstanceId) -> u64 {
        // The key has a fixed length, and most of the hash is kept back: no need for HMAC.
        let hash = Sha256::new()
            .chain_update(self.key.to_be_bytes())
            .chain_update(instance.as_str())
            .finalize();
        hash.iter()
            .take(8)
            .fold(0, |name, byte| (name << 8) | u64::from(*byte))
    }
}

#[cfg(test)]
impl Default for Names {
    fn default() -> Self {
        Self { key: 7 }
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
}
