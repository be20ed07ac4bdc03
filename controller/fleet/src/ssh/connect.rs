//! Dialling, the verdict on the host key, authentication.

use super::line::{Scissors, cuttable};
use super::{Credential, HostKey, Options, SshError, Target, Verdict};
use beanpole_protocol::api::SshAddress;
use russh::cipher;
use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Measured on loopback with 200 MB: AES-GCM needs 18 to 35 % less than ChaCha20 where the CPU has
/// AES instructions; ChaCha20 stays for those without.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
/// Bytes under way in one channel before the other side confirms: enough for 100 ms at 1 Gbit/s.
const WINDOW: u32 = 16 * 1024 * 1024;
/// The largest packet that SSH implementations must accept is smaller, but OpenSSH takes this.
const PACKET: u32 = 65_535;
/// How long one attempt at a TCP connection may take, of those that [`Options::connect_timeout`] allows.
const KNOCK_AGAIN: Duration = Duration::from_secs(3);
/// Bytes that a host has not confirmed for so long are lost, and the connection with them: a write
/// that is stuck would otherwise wait for the kernel, for a quarter of an hour.
const UNCONFIRMED_LIMIT: Duration = Duration::from_secs(30);
/// How long a goodbye may take. Whoever closes has something else to do.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Keys of an ssh-agent that are offered; sshd gives up after six failures by default.
const MOST_AGENT_KEYS: usize = 5;

const RSA: [Algorithm; 2] = [
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
];
const ECDSA: [Algorithm; 3] = [
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
];

/// A stream to an SSH server.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What happened inside russh.
#[derive(Debug, thiserror::Error)]
pub(super) enum Inner {
    #[error(transparent)]
    Russh(#[from] russh::Error),
    #[error("the host key was refused")]
    Refused,
    #[error("no plain key")]
    NoPlainKey,
}

/// Judges the host key and remembers it.
pub(super) struct Judge {
    pinned: Option<HostKey>,
    shown: Arc<Mutex<Option<HostKey>>>,
}

impl client::Handler for Judge {
    type Error = Inner;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Inner> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            return Err(Inner::NoPlainKey);
        };
        let shown = HostKey {
            algorithm: Some(key.algorithm().to_string()),
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        };
        let verdict = Verdict::of(self.pinned.as_ref(), &shown);
        if let Ok(mut slot) = self.shown.lock() {
            *slot = Some(shown);
        }
        match verdict {
            Verdict::Matches => Ok(true),
            // Nothing pinned: this is a probe, which ends here.
            Verdict::Unknown | Verdict::Changed => Err(Inner::Refused),
        }
    }
}

/// An authenticated connection. Clones share it; it ends when the last clone and the last channel
/// are gone.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle<Judge>>,
    scissors: Scissors,
    address: String,
    host_key: HostKey,
    // Keeps the bastion's connection open for as long as this one runs through it.
    _jump: Option<Box<Session>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, {})", self.address, self.host_key)
    }
}

impl Session {
    /// The key that the host showed, with its algorithm.
    pub fn host_key(&self) -> &HostKey {
        &self.host_key
    }

    /// `USER@ADDRESS[:PORT]`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Connects to the Unix socket at `path` on the host.
    pub async fn open_socket(
        &self,
        path: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, SshError> {
        let channel = self
            .handle
            .channel_open_direct_streamlocal(path)
            .await
            .map_err(|source| match source {
                // sshd says so when it cannot connect; forbidden forwarding is another reason.
                russh::Error::ChannelOpenFailure(russh::ChannelOpenFailure::ConnectFailed) => {
                    SshError::NobodyListens {
                        address: self.address.clone(),
                        socket: path.to_owned(),
                        source: Box::new(source),
                    }
                }
                source => self.refused(path, source),
            })?;
        Ok(channel.into_stream())
    }

    /// Opens a channel for one command.
    pub(super) async fn open_exec(&self) -> Result<russh::Channel<client::Msg>, SshError> {
        self.handle
            .channel_open_session()
            .await
            .map_err(|source| self.refused("a shell", source))
    }

    /// Says goodbye; what runs through the connection breaks. A host that does not take it in time
    /// goes without.
    pub async fn close(&self) {
        let goodbye = async {
            // An error says that the session is over already.
            let _ = self
                .handle
                .disconnect(russh::Disconnect::ByApplication, "", "en")
                .await;
            self.scissors.ended().await;
        };
        if tokio::time::timeout(CLOSE_LIMIT, goodbye).await.is_err() {
            self.scissors.cut();
        }
    }

    /// Whether the host lets us on to the machine at `to`, and that one answers, within `limit`.
    pub(crate) async fn reaches(&self, to: &SshAddress, limit: Duration) -> Result<(), SshError> {
        bounded(to, "connecting", limit, self.open_tcp(to))
            .await
            .map(drop)
    }

    async fn open_tcp(&self, to: &SshAddress) -> Result<Box<dyn Stream>, SshError> {
        let channel = self
            .handle
            .channel_open_direct_tcpip(to.address.as_str(), u32::from(to.port), "127.0.0.1", 0)
            .await
            .map_err(|source| self.refused(&format!("{}:{}", to.address, to.port), source))?;
        Ok(Box::new(channel.into_stream()))
    }

    fn refused(&self, to: &str, source: russh::Error) -> SshError {
        match source {
            russh::Error::ChannelOpenFailure(_) => SshError::ChannelRefused {
                address: self.address.clone(),
                to: to.to_owned(),
                source: Box::new(source),
            },
            source => self.broken(source),
        }
    }

    pub(super) fn broken(
        &self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> SshError {
        SshError::Broken {
            address: self.address.clone(),
            source: Box::new(source),
        }
    }
}

/// Connects to `target` and authenticates. Where only the fingerprint of its key is known, the
/// server is asked for its keys of other kinds too before the key counts as changed.
pub async fn connect(target: &Target, options: &Options) -> Result<Session, SshError> {
    let jump = match &target.jump {
        None => None,
        Some(jump) => {
            let session =
                Box::pin(connect(jump, options))
                    .await
                    .map_err(|source| SshError::Jump {
                        address: jump.ssh.to_string(),
                        source: Box::new(source),
                    })?;
            Some(Box::new(session))
        }
    };
    let pinned = Some(target.host_key.clone());
    let mut first_error = None;
    for keys in preferences(target.host_key.algorithm.as_deref()) {
        let stream = dial(&target.ssh, jump.as_deref(), options).await?;
        let (stream, scissors) = cuttable(stream);
        match exchange(&target.ssh, stream, pinned.clone(), keys, options).await {
            Ok((handle, host_key)) => {
                let mut handle = handle;
                bounded(
                    &target.ssh,
                    "authenticating",
                    options.connect_timeout,
                    authenticate(target, &mut handle),
                )
                .await?;
                return Ok(Session {
                    handle: Arc::new(handle),
                    scissors,
                    address: target.ssh.to_string(),
                    host_key,
                    _jump: jump,
                });
            }
            Err(error @ SshError::KeyChanged { .. }) => {
                first_error.get_or_insert(error);
            }
            Err(error) if first_error.is_none() => return Err(error),
            // The server has no key of that other kind: the first verdict stands so far.
            Err(_) => {}
        }
    }
    Err(first_error.expect("there is at least one preference, and it failed"))
}

/// Asks a server for its key without authenticating or trusting it.
pub async fn probe(
    address: &SshAddress,
    jump: Option<&Target>,
    options: &Options,
) -> Result<HostKey, SshError> {
    let jump = match jump {
        None => None,
        Some(jump) => {
            Some(
                Box::pin(connect(jump, options))
                    .await
                    .map_err(|source| SshError::Jump {
                        address: jump.ssh.to_string(),
                        source: Box::new(source),
                    })?,
            )
        }
    };
    let stream = dial(address, jump.as_ref(), options).await?;
    let keys = all_algorithms();
    match exchange(address, stream, None, keys, options).await {
        Ok((_, shown)) | Err(SshError::KeyChanged { shown, .. }) => Ok(shown),
        Err(error) => Err(error),
    }
}

fn all_algorithms() -> Vec<Algorithm> {
    let mut all = vec![Algorithm::Ed25519];
    all.extend(ECDSA);
    all.extend(RSA);
    all
}

/// What to offer, one attempt after the other. With a known algorithm there is one attempt, in
/// which that algorithm comes first.
fn preferences(algorithm: Option<&str>) -> Vec<Vec<Algorithm>> {
    let first: Vec<Algorithm> = match algorithm {
        None => return vec![all_algorithms(), ECDSA.to_vec(), RSA.to_vec()],
        Some(name) if name.contains("rsa") => RSA.to_vec(),
        Some(name) => Algorithm::new(name).into_iter().collect(),
    };
    let mut all = first;
    for other in all_algorithms() {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    vec![all]
}

async fn dial(
    to: &SshAddress,
    jump: Option<&Session>,
    options: &Options,
) -> Result<Box<dyn Stream>, SshError> {
    bounded(to, "connecting", options.connect_timeout, async {
        if let Some(jump) = jump {
            return jump.open_tcp(to).await;
        }
        let failed = |source| SshError::Connect {
            address: to.to_string(),
            source,
        };
        // The system repeats the first packet after 1, 3, 7 s: a way that opens in between is found sooner so.
        let stream = loop {
            let connecting = TcpStream::connect((to.address.as_str(), to.port));
            if let Ok(connected) = tokio::time::timeout(KNOCK_AGAIN, connecting).await {
                break connected.map_err(failed)?;
            }
        };
        // Without it every call waits 40 ms for Nagle's algorithm.
        stream.set_nodelay(true).map_err(failed)?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNCONFIRMED_LIMIT.as_millis() as u32)
            .map_err(|error| failed(error.into()))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    })
    .await
}

async fn bounded<T>(
    to: &SshAddress,
    doing: &'static str,
    after: Duration,
    work: impl Future<Output = Result<T, SshError>>,
) -> Result<T, SshError> {
    tokio::time::timeout(after, work).await.unwrap_or_else(|_| {
        Err(SshError::TimedOut {
            address: to.to_string(),
            doing,
            after,
        })
    })
}

async fn exchange(
    to: &SshAddress,
    stream: impl Stream + 'static,
    pinned: Option<HostKey>,
    keys: Vec<Algorithm>,
    options: &Options,
) -> Result<(Handle<Judge>, HostKey), SshError> {
    let config = client::Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        keepalive_interval: Some(options.keepalive_interval),
        keepalive_max: options.keepalive_max,
        nodelay: true,
        preferred: russh::Preferred {
            key: Cow::Owned(keys),
            cipher: Cow::Borrowed(CIPHERS),
            // Bundles are compressed already.
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..russh::Preferred::DEFAULT
        },
        ..client::Config::default()
    };
    let shown = Arc::new(Mutex::new(None));
    let judge = Judge {
        pinned: pinned.clone(),
        shown: Arc::clone(&shown),
    };
    let seen = || shown.lock().ok().and_then(|slot| slot.clone());
    let work = async {
        match client::connect_stream(Arc::new(config), stream, judge).await {
            Ok(handle) => match seen() {
                Some(host_key) => Ok((handle, host_key)),
                None => Err(SshError::NoPlainKey {
                    address: to.to_string(),
                }),
            },
            Err(Inner::NoPlainKey) => Err(SshError::NoPlainKey {
                address: to.to_string(),
            }),
            Err(Inner::Refused) => {
                let shown = seen().ok_or_else(|| SshError::NoPlainKey {
                    address: to.to_string(),
                })?;
                Err(SshError::KeyChanged {
                    address: to.to_string(),
                    pinned: pinned.clone().unwrap_or_else(|| shown.clone()),
                    shown,
                })
            }
            Err(Inner::Russh(source)) => Err(SshError::Broken {
                address: to.to_string(),
                source: Box::new(source),
            }),
        }
    };
    bounded(to, "exchanging keys", options.connect_timeout, work).await
}

async fn authenticate(target: &Target, handle: &mut Handle<Judge>) -> Result<(), SshError> {
    let broken = |source: russh::Error| SshError::Broken {
        address: target.ssh.to_string(),
        source: Box::new(source),
    };
    let denied = |tried: String| SshError::Denied {
        user: target.ssh.user.clone(),
        address: target.ssh.address.clone(),
        tried,
    };
    let user = target.ssh.user.as_str();
    match &target.credential {
        Credential::Key(key) => {
            let hash = if key.0.algorithm().is_rsa() {
                handle
                    .best_supported_rsa_hash()
                    .await
                    .map_err(broken)?
                    .unwrap_or(Some(HashAlg::Sha256))
            } else {
                None
            };
            let offered = PrivateKeyWithHashAlg::new(Arc::clone(&key.0), hash);
            match handle
                .authenticate_publickey(user, offered)
                .await
                .map_err(broken)?
            {
                AuthResult::Success => Ok(()),
                AuthResult::Failure { .. } => Err(denied(
                    key.0.public_key().fingerprint(HashAlg::Sha256).to_string(),
                )),
            }
        }
        Credential::Agent(socket) => {
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| SshError::Agent {
                socket: socket.display().to_string(),
                source,
            };
            let mut agent = AgentClient::connect_uds(socket)
                .await
                .map_err(|error| failed(Box::new(error)))?;
            let identities = agent
                .request_identities()
                .await
                .map_err(|error| failed(Box::new(error)))?;
            let mut tried = Vec::new();
            for identity in identities.into_iter().take(MOST_AGENT_KEYS) {
                let AgentIdentity::PublicKey { key, .. } = identity else {
                    continue;
                };
                tried.push(key.fingerprint(HashAlg::Sha256).to_string());
                let hash = if key.algorithm().is_rsa() {
                    handle
                        .best_supported_rsa_hash()
                        .await
                        .map_err(broken)?
                        .unwrap_or(Some(HashAlg::Sha256))
                } else {
                    None
                };
                let result = handle
                    .authenticate_publickey_with(user, key, hash, &mut agent)
                    .await
                    .map_err(|error| failed(Box::new(error)))?;
                if matches!(result, AuthResult::Success) {
                    return Ok(());
                }
            }
            Err(denied(if tried.is_empty() {
                "the ssh-agent holds no keys".to_owned()
            } else {
                tried.join(", ")
            }))
        }
    }
}
