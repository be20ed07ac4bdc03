//! Calls to one agent that a user waits for: logs, upgrade, uninstall. They run over the link's
//! connection, each on a channel of its own.

use crate::dial::{DialError, Transport};
use crate::push::{BundleSource, PushError, Pushes};
use beanpole_daemon::http::{CallError, request};
use beanpole_protocol::agent::{HostReport, Uninstalled, UpgradeOrder};
use beanpole_protocol::{ControllerId, Digest, InstanceId};
use bytes::Bytes;
use futures::Stream;
use http::Method;
use http_body_util::BodyExt;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long an ordinary call may take.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// How long an agent may take to stop every app and remove everything.
const UNINSTALL_LIMIT: Duration = Duration::from_mins(3);

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to the host now.
    #[error("the host is not connected")]
    NotConnected,
    /// No channel could be opened.
    #[error("cannot reach the agent")]
    Dial(#[from] DialError),
    /// The agent refused, or the connection broke.
    #[error("the agent did not do it")]
    Call(#[from] CallError),
    /// The executable did not get there.
    #[error("the executable did not get there")]
    Push(#[from] PushError),
    /// The agent did not come back as ordered.
    #[error("the agent did not come back with the new executable within {} s", .0.as_secs())]
    NotBack(Duration),
}

/// Which lines of an instance's logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The last so many lines.
    pub tail: u64,
    /// Of this process only.
    pub process: Option<String>,
    /// Whether to go on with new lines as they come.
    pub follow: bool,
}

/// An executable for hosts of one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its version.
    pub version: String,
}

impl BundleSource for Executable {
    fn open(&self, digest: &Digest) -> io::Result<(File, u64)> {
        if *digest != self.digest {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

/// Calls to one agent over its link. Cheap to clone; calls fail at once while the host is not
/// connected.
#[derive(Clone)]
pub struct AgentClient {
    pub(crate) transport: watch::Receiver<Option<Transport>>,
    pub(crate) report: watch::Receiver<Option<Arc<HostReport>>>,
    pub(crate) pushes: Arc<Pushes>,
    pub(crate) controller: ControllerId,
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient").finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Whether the host is connected now.
    pub fn is_connected(&self) -> bool {
        self.transport.borrow().is_some()
    }

    /// Waits until the host is connected, for at most `limit`; says whether it is.
    pub async fn connected(&self, limit: Duration) -> bool {
        let mut transport = self.transport.clone();
        let connected = transport.wait_for(Option::is_some);
        matches!(tokio::time::timeout(limit, connected).await, Ok(Ok(_)))
    }

    /// The connection to the host, waited for at most `limit`.
    pub(crate) async fn transport_within(&self, limit: Duration) -> Option<Transport> {
        let mut transport = self.transport.clone();
        let connected = transport.wait_for(Option::is_some);
        let connected = tokio::time::timeout(limit, connected).await.ok()?.ok()?;
        connected.clone()
    }

    fn transport(&self) -> Result<Transport, ClientError> {
        self.transport
            .borrow()
            .clone()
            .ok_or(ClientError::NotConnected)
    }

    /// Asks for a fresh report.
    pub async fn report(&self) -> Result<HostReport, ClientError> {
        let mut connection = self.transport()?.open().await?;
        Ok(connection.get("/v1/report", CALL_LIMIT).await?)
    }

    /// The last lines of the load balancer's log, `TIME PROCESS STREAM LINE` each; with `access` those of its access
    /// log, as they are.
    pub async fn edge_log(&self, tail: u64, access: bool) -> Result<String, ClientError> {
        let mut connection = self.transport()?.open().await?;
        let path = format!("/v1/edge/logs?tail={tail}&access={access}");
        let request = request(Method::GET, &path, None::<&()>)?;
        let reading = async {
            let body = connection.send(request).await?;
            let text = body
                .collect()
                .await
                .map_err(|error| CallError::Broken(Box::new(error)));
            Ok(text?.to_bytes())
        };
        let text = tokio::time::timeout(CALL_LIMIT, reading)
            .await
            .map_err(|_| CallError::TimedOut(CALL_LIMIT))
            .and_then(|read| read)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Streams an instance's logs: pieces of text, lines `TIME PROCESS STREAM LINE`. With `follow`
    /// it goes on until it is dropped or the connection breaks.
    pub async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Send + Unpin + 'static, ClientError>
    {
        let mut path = format!(
            "/v1/instances/{instance}/logs?tail={}&follow={}",
            query.tail, query.follow
        );
        if let Some(process) = &query.process {
            path.push_str("&process=");
            path.push_str(&percent_encoded(process));
        }
        let mut connection = self.transport()?.open().await?;
        let request = request(Method::GET, &path, None::<&()>)?;
        let body = tokio::time::timeout(CALL_LIMIT, connection.send(request))
            .await
            .map_err(|_| CallError::TimedOut(CALL_LIMIT))??;
        let state = Some((body, connection));
        Ok(Box::pin(futures::stream::unfold(state, |state| async {
            let (mut body, connection) = state?;
            loop {
                match body.frame().await? {
                    Err(error) => return Some((Err(CallError::Broken(Box::new(error))), None)),
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some((Ok(data), Some((body, connection))));
                        }
                    }
                }
            }
        })))
    }

    /// Replaces the agent's executable and waits, at most `limit`, until the new one reports. Apps
    /// run on. `progress` gets the bytes sent and the size.
    pub async fn upgrade(
        &self,
        executable: &Executable,
        limit: Duration,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), ClientError> {
        let transport = self.transport()?;
        let source: Arc<dyn BundleSource> = Arc::new(executable.clone());
        self.pushes
            .push(
                &transport,
                &source,
                &executable.digest,
                &[],
                &|sent, size, _| {
                    progress(sent, size);
                },
            )
            .await?;
        let order = UpgradeOrder {
            digest: executable.digest.clone(),
            version: executable.version.clone(),
        };
        let mut connection = transport.open().await?;
        let path = format!("/v1/upgrade?controller={}", self.controller);
        let answer = connection
            .call::<serde_json::Value>(Method::POST, &path, Some(&order), limit)
            .await;
        match answer {
            // The agent may be gone before its answer is.
            Ok(_) | Err(CallError::Broken(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let mut reports = self.report.clone();
        let back = reports.wait_for(|report| {
            report
                .as_ref()
                .is_some_and(|report| report.agent_digest.as_ref() == Some(&executable.digest))
        });
        match tokio::time::timeout(limit, back).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ClientError::NotConnected),
            Err(_) => Err(ClientError::NotBack(limit)),
        }
    }

    /// Removes everything that the host got from Beanpole, apps included, and ends its agent.
    pub async fn uninstall(&self) -> Result<Uninstalled, ClientError> {
        let mut connection = self.transport()?.open().await?;
        Ok(connection
            .call(
                Method::POST,
                &format!("/v1/uninstall?controller={}", self.controller),
                None::<&()>,
                UNINSTALL_LIMIT,
            )
            .await?)
    }
}

/// `text` for the value of a query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_leave_its_place_in_the_query() {
        assert_eq!(
            percent_encoded("web&follow=true#x y"),
            "web%26follow%3Dtrue%23x%20y"
        );
    }
}
