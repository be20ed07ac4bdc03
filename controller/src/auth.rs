//! Bearer tokens: one for this machine, in a file that only its user can read. The store knows
//! tokens by their SHA-256 alone.

use crate::ControllerError;
use beanpole_daemon::{clock, files};
use beanpole_protocol::Digest;
use beanpole_store::model::TokenRecord;
use beanpole_store::{Record, Store, StoreError};
use sha2::{Digest as _, Sha256};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What the token of the CLI on this machine is called.
const LOCAL: &str = "local";

/// The hashes of the tokens that open the API.
#[derive(Debug)]
pub(crate) struct Tokens {
    hashes: Vec<Digest>,
}

impl Tokens {
    /// Reads the token of this machine from `path`, or makes one and writes it there (mode 0600);
    /// remembers its hash.
    pub(crate) fn prepare(store: &Store, path: &Path) -> Result<Self, ControllerError> {
        let failed = |source| ControllerError::File {
            path: path.to_owned(),
            source,
        };
        let token = match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => {
                close(path).map_err(failed)?;
                text.trim().to_owned()
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {
                let token = format!(
                    "bp_{:032x}{:032x}",
                    clock::random_bits(),
                    clock::random_bits()
                );
                files::write_atomically(path, format!("{token}\n").as_bytes(), 0o600)
                    .map_err(failed)?;
                token
            }
        };
        let record = TokenRecord {
            name: LOCAL.to_owned(),
            hash: hash(&token),
            created_at: clock::now(),
        };
        let hashes = store.update(|tx| {
            let known: Option<TokenRecord> = tx.get(&record.key())?;
            if known.is_none_or(|known| known.hash != record.hash) {
                tx.put(&record)?;
            }
            let all: Vec<TokenRecord> = tx.list()?;
            Ok::<_, StoreError>(all.into_iter().map(|token| token.hash).collect())
        })?;
        Ok(Self { hashes })
    }

    /// Whether `token` is one of them. Takes as long for a wrong one as for a right one.
    pub(crate) fn accept(&self, token: &str) -> bool {
        let given = hash(token);
        self.hashes
            .iter()
            .fold(false, |found, known| found | same(known, &given))
    }
}

/// Takes a secret that was put there by hand out of the sight of other users.
pub(crate) fn close(path: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others could read the file; now they cannot");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn hash(token: &str) -> Digest {
    Digest::new(hex::encode(Sha256::digest(token.as_bytes())))
        .expect("SHA-256 in hexadecimal is a digest")
}

fn same(one: &Digest, other: &Digest) -> bool {
    let pairs = one.as_str().bytes().zip(other.as_str().bytes());
    pairs.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_by_its_hash_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("token");
        let store = Store::in_memory();
        let tokens = Tokens::prepare(&store, &path).expect("tokens");
        let token = std::fs::read_to_string(&path).expect("read");
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(tokens.accept(token.trim()));
        for wrong in ["", "bp_", &token.trim()[1..], &format!("{}x", token.trim())] {
            assert!(!tokens.accept(wrong), "{wrong:?}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("open it");
        let again = Tokens::prepare(&store, &path).expect("tokens");
        assert!(again.accept(token.trim()));
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "closed again");
        let records: Vec<TokenRecord> = store.list().expect("list");
        assert_eq!(records.len(), 1);
        assert!(!format!("{records:?}").contains(token.trim()));
    }
}
