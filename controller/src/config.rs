//! What the controller is told at its start, and why it may not start.

use beanpole_fleet::ssh::KeyError;
use beanpole_store::StoreError;
use beanpole_store::blobs::{BlobError, DEFAULT_LIMIT_BYTES};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// Far longer than any client takes from an upload to its version.
const BUNDLE_GRACE: Duration = Duration::from_hours(1);

/// How the API is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    #[default]
    Off,
    /// With a certificate chain and its private key, PEM files.
    Files {
        /// The chain, the server's own certificate first.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// With a certificate of its own making, kept in the data directory.
    SelfSigned,
}

/// What a controller needs to be told.
#[derive(Debug)]
pub struct ControllerConfig {
    /// The data directory; the controller keeps its things in `controller/` below it, and the token
    /// in `token`.
    pub data: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// How the API is encrypted.
    pub tls: Tls,
    /// Listen beyond this machine without encryption.
    pub insecure: bool,
    /// The socket of the agent on this machine, if there is one: registered as the host `local`.
    pub local_agent: Option<PathBuf>,
    /// Where load balancers meet the instances of the host `local`.
    pub instance_address: IpAddr,
    /// The sockets of the proxies on this machine.
    pub local_proxies: Vec<PathBuf>,
    /// Environments answer at `CNAME.domain`.
    pub domain: String,
    /// The proxy's port for HTTP, for URLs; 80 when absent.
    pub http_port: Option<u16>,
    /// The greatest bundle, in bytes.
    pub bundle_limit_bytes: u64,
    /// How long a bundle stays that nothing needs, counted from when a caller was last told that it is
    /// here: the version that it was uploaded for is created meanwhile.
    pub bundle_grace: Duration,
    /// Executables for hosts of other architectures, named `beanpole-ARCH`.
    pub builds: Option<PathBuf>,
    /// Bytes per second for pushing bundles, over all hosts; none for no limit.
    pub push_bytes_per_second: Option<u64>,
    /// Told where the API listens, once it does.
    pub listening: Option<oneshot::Sender<SocketAddr>>,
}

impl ControllerConfig {
    /// The usual settings for a data directory and an address.
    pub fn new(data: &Path, api: SocketAddr) -> Self {
        Self {
            data: data.to_owned(),
            api,
            tls: Tls::Off,
            insecure: false,
            local_agent: None,
            instance_address: Ipv4Addr::LOCALHOST.into(),
            local_proxies: Vec::new(),
            domain: "localhost".to_owned(),
            http_port: None,
            bundle_limit_bytes: DEFAULT_LIMIT_BYTES,
            bundle_grace: BUNDLE_GRACE,
            builds: None,
            push_bytes_per_second: None,
            listening: None,
        }
    }

    /// Where the controller keeps its things.
    pub fn directory(&self) -> PathBuf {
        self.data.join("controller")
    }

    /// Refuses to offer the API to a network in the open.
    pub fn check_listening(&self) -> Result<(), ControllerError> {
        if self.api.ip().is_loopback() || self.tls != Tls::Off || self.insecure {
            return Ok(());
        }
        Err(ControllerError::OpenToNetwork { address: self.api })
    }
}

/// Why the controller does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// It would offer tokens and bundles to a network in the open.
    #[error(
        "{address} can be reached from other machines, and without TLS tokens and bundles travel in the open: give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure"
    )]
    OpenToNetwork {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The store cannot be used.
    #[error("the records cannot be used")]
    Store(#[from] StoreError),
    /// The bundles cannot be used.
    #[error("the bundles cannot be used")]
    Blobs(#[from] BlobError),
    /// The controller's SSH key cannot be used.
    #[error("the controller's SSH key cannot be used")]
    Key(#[from] KeyError),
    /// A file of the data directory cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record could not be written, and the database answers nothing any more.
    #[error(
        "the database could not write its records, and answers nothing before it is opened anew"
    )]
    Broken,
    /// The engine ended, which it never should.
    #[error("the engine ended: {0}")]
    Engine(String),
}

impl ControllerError {
    /// What to type next, where that is known. `data` is its data directory.
    pub fn hint(&self, data: &Path) -> Option<String> {
        if matches!(self, Self::Broken) {
            return Some(format!(
                "Look at the disk of {} (df, dmesg) and start the controller again; what was acknowledged is there",
                data.display()
            ));
        }
        let Self::Store(StoreError::Damaged { dir, backup, .. }) = self else {
            return None;
        };
        let data = data.display();
        Some(match backup {
            Some(backup) => format!(
                "Nothing was changed. Go back to the newest automatic backup, or one of your own; what came after it is lost, and the damaged records are kept: beanpole restore {} --data {data}",
                backup.display()
            ),
            None => format!(
                "Nothing was changed, and there is no automatic backup. Restore one of your own: beanpole restore FILE --data {data}. To begin with no records at all, move {} away",
                dir.display()
            ),
        })
    }
}
