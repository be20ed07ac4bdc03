//! Keys to get in with: an identity handed over as text, an ssh-agent, or the controller's own
//! ed25519 key.

use beanpole_protocol::api::AdminKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file that holds the controller's own key, in its data directory.
const KEY_FILE: &str = "ssh_ed25519_key";
/// What the controller's key is called in `authorized_keys`.
const KEY_COMMENT: &str = "beanpole-controller";

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is encrypted and no passphrase was given.
    #[error("the private key is encrypted: its passphrase is needed")]
    NeedsPassphrase,
    /// The passphrase is not the one it was encrypted with.
    #[error("the passphrase does not open the private key")]
    WrongPassphrase,
    /// It is no private key.
    #[error("this is not a private key that SSH knows")]
    NotAKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key's file cannot be read or written.
    #[error("cannot use the key file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How to authenticate. Never shows the key.
#[derive(Clone)]
pub enum Credential {
    /// A private key.
    Key(IdentityKey),
    /// An ssh-agent, by the path of its socket. Its keys are offered in turn.
    Agent(PathBuf),
}

/// A decoded private key.
#[derive(Clone)]
pub struct IdentityKey(pub(super) Arc<PrivateKey>);

impl Credential {
    /// Reads a private key in OpenSSH's, PKCS#8 or PKCS#1 format.
    pub fn identity(text: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        use russh::keys::Error;
        let key = match russh::keys::decode_secret_key(text, passphrase) {
            Ok(key) => key,
            Err(Error::KeyIsEncrypted) => return Err(KeyError::NeedsPassphrase),
            Err(_) if passphrase.is_some() => return Err(KeyError::WrongPassphrase),
            Err(error) => return Err(KeyError::NotAKey(Box::new(error))),
        };
        if key.is_encrypted() {
            return Err(KeyError::NeedsPassphrase);
        }
        Ok(Self::Key(IdentityKey(Arc::new(key))))
    }

    /// The way in that an API call names.
    pub fn admin(key: &AdminKey) -> Result<Self, KeyError> {
        match key {
            AdminKey::Identity {
                private_key,
                passphrase,
            } => Self::identity(private_key, passphrase.as_deref().filter(|p| !p.is_empty())),
            AdminKey::Agent { socket } => Ok(Self::Agent(PathBuf::from(socket))),
        }
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key) => write!(
                f,
                "Key({})",
                key.0.public_key().fingerprint(HashAlg::Sha256)
            ),
            Self::Agent(socket) => write!(f, "Agent({})", socket.display()),
        }
    }
}

/// The controller's own key: what hosts let it in by once they are set up.
#[derive(Clone)]
pub struct ControllerKey {
    key: Arc<PrivateKey>,
    public: String,
}

impl ControllerKey {
    /// The key in `directory`; generated there, readable by this user only, at first use.
    pub fn load_or_create(directory: &Path) -> Result<Self, KeyError> {
        let path = directory.join(KEY_FILE);
        let failed = |source| KeyError::File {
            path: path.clone(),
            source,
        };
        let key = match std::fs::read_to_string(&path) {
            Ok(text) => {
                PrivateKey::from_openssh(&text).map_err(|error| failed(io::Error::other(error)))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(directory).map_err(failed)?;
                let mut key =
                    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
                        .map_err(|error| failed(io::Error::other(error)))?;
                key.set_comment(KEY_COMMENT);
                let text = key
                    .to_openssh(LineEnding::LF)
                    .map_err(|error| failed(io::Error::other(error)))?;
                beanpole_daemon::files::write_atomically(&path, text.as_bytes(), 0o600)
                    .map_err(failed)?;
                key
            }
            Err(error) => return Err(failed(error)),
        };
        let public = key
            .public_key()
            .to_openssh()
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            key: Arc::new(key),
            public,
        })
    }

    /// The public half, as a line of `authorized_keys` without options.
    pub fn public_line(&self) -> &str {
        self.public.trim()
    }

    /// Its fingerprint, `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.key
            .public_key()
            .fingerprint(HashAlg::Sha256)
            .to_string()
    }

    /// To authenticate with it.
    pub fn credential(&self) -> Credential {
        Credential::Key(IdentityKey(Arc::clone(&self.key)))
    }
}

impl std::fmt::Debug for ControllerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControllerKey({})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_controllers_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = ControllerKey::load_or_create(directory.path()).expect("create");
        let second = ControllerKey::load_or_create(directory.path()).expect("load");
        assert_eq!(first.public_line(), second.public_line());
        assert!(first.public_line().starts_with("ssh-ed25519 "));
        let mode = std::fs::metadata(directory.path().join(KEY_FILE))
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_credential_never_prints_its_key() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let key = ControllerKey::load_or_create(directory.path()).expect("create");
        let shown = format!("{:?}", key.credential());
        assert!(shown.starts_with("Key(SHA256:"), "{shown}");
        assert!(Credential::identity("nonsense", None).is_err());
    }
}
