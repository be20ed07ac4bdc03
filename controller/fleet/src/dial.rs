//! The way to a daemon's Unix socket: through SSH, or directly on this machine. What comes after is
//! the same for both.

use crate::client::AgentClient;
use crate::ssh::{self, HostKey, Session, SshError, Target};
use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::edge::CONTROL_UPGRADE;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a host may take to be connected before its load balancer counts as unreachable.
const HOST_BACK: Duration = Duration::from_secs(5);
/// How long a channel may take to open.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How to reach a daemon.
#[derive(Clone, Debug)]
pub enum Dialer {
    /// Through SSH to a socket on the host.
    Ssh {
        /// The host.
        target: Box<Target>,
        /// The path of the socket there.
        socket: String,
        /// Bounds of the connection.
        options: ssh::Options,
    },
    /// A socket on this machine.
    Local {
        /// Its path.
        socket: PathBuf,
    },
    /// The load balancer of a host, by way of its agent: over the connection that its link holds.
    Edge {
        /// The agent.
        agent: AgentClient,
    },
}

impl Dialer {
    /// Through SSH with the default bounds.
    pub fn ssh(target: Target, socket: impl Into<String>) -> Self {
        Self::Ssh {
            target: Box::new(target),
            socket: socket.into(),
            options: ssh::Options::default(),
        }
    }

    /// A socket on this machine.
    pub fn local(socket: impl Into<PathBuf>) -> Self {
        Self::Local {
            socket: socket.into(),
        }
    }

    pub(crate) async fn dial(&self) -> Result<Transport, DialError> {
        match self {
            Self::Ssh {
                target,
                socket,
                options,
            } => Ok(Transport::Ssh {
                session: ssh::connect(target, options).await?,
                socket: socket.clone(),
            }),
            Self::Local { socket } => Ok(Transport::Local(socket.clone())),
            Self::Edge { agent } => {
                let transport = agent.transport_within(HOST_BACK).await;
                Ok(Transport::Edge {
                    agent: Box::new(transport.ok_or(DialError::NoHost)?),
                    path: format!("/v1/edge/control?controller={}", agent.controller),
                })
            }
        }
    }
}

/// Why a daemon cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// SSH does not get there.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The socket on this machine does not answer.
    #[error("cannot connect to {}", path.display())]
    Local {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The daemon behind the socket does not speak as it should.
    #[error("the daemon does not answer")]
    Call(#[from] CallError),
    /// There is no connection to the host that it is on.
    #[error("its host is not connected")]
    NoHost,
    /// The channel did not open in time.
    #[error("the daemon's socket did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl DialError {
    /// The pinned and the shown key, where this is about a changed key.
    pub fn changed_key(&self) -> Option<(&HostKey, &HostKey)> {
        match self {
            Self::Ssh(error) => error.changed_key(),
            _ => None,
        }
    }
}

/// An open way to a daemon, over which any number of connections run.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Ssh {
        session: Session,
        socket: String,
    },
    Local(PathBuf),
    /// Through an agent to the load balancer beside it.
    Edge {
        agent: Box<Transport>,
        path: String,
    },
}

impl Transport {
    /// Opens a connection of its own.
    pub(crate) async fn open(&self) -> Result<Connection, DialError> {
        let opening = async {
            match self {
                Self::Ssh { session, socket } => {
                    Ok(Connection::open(session.open_socket(socket).await?).await?)
                }
                Self::Local(path) => Ok(Connection::open(local(path).await?).await?),
                Self::Edge { agent, path } => {
                    let agent = agent.open_upgradable().await?;
                    let through = agent.through(path, CONTROL_UPGRADE, OPEN_LIMIT).await?;
                    Ok(Connection::open(through).await?)
                }
            }
        };
        tokio::time::timeout(OPEN_LIMIT, opening)
            .await
            .unwrap_or(Err(DialError::TimedOut(OPEN_LIMIT)))
    }

    /// A connection that leads on from the daemon at its end.
    async fn open_upgradable(&self) -> Result<Connection, DialError> {
        match self {
            Self::Ssh { session, socket } => {
                Ok(Connection::open_upgradable(session.open_socket(socket).await?).await?)
            }
            Self::Local(path) => Ok(Connection::open_upgradable(local(path).await?).await?),
            // Nothing is behind a load balancer.
            Self::Edge { .. } => Err(DialError::NoHost),
        }
    }

    /// Ends the connection to the host, if there is one.
    pub(crate) async fn close(&self) {
        if let Self::Ssh { session, .. } = self {
            session.close().await;
        }
    }
}

async fn local(path: &Path) -> Result<UnixStream, DialError> {
    UnixStream::connect(path)
        .await
        .map_err(|source| DialError::Local {
            path: path.to_owned(),
            source,
        })
}
