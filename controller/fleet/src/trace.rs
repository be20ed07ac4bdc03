//! Asking a proxy what became of one request.

use crate::dial::{DialError, Dialer};
use beanpole_daemon::http::CallError;
use beanpole_protocol::proxy::TracedRequest;
use std::time::Duration;

/// How long a proxy may take to say it: it waits for the end of the request for a second itself.
const LIMIT: Duration = Duration::from_secs(3);

impl Dialer {
    /// What became of the request with that id at the proxy that this leads to; none if it does not know. The id has
    /// to be one that stands for itself in a path: letters, digits and hyphens.
    pub async fn trace(&self, id: &str) -> Result<Option<TracedRequest>, DialError> {
        let asking = async {
            let transport = self.dial().await?;
            let mut connection = transport.open().await?;
            let asked = connection.get(&format!("/v1/requests/{id}"), LIMIT).await;
            transport.close().await;
            match asked {
                Ok(traced) => Ok(Some(traced)),
                Err(CallError::Refused(problem)) if problem.code == "request-not-found" => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let answer = tokio::time::timeout(LIMIT, asking).await;
        answer.unwrap_or(Err(DialError::TimedOut(LIMIT)))
    }
}
