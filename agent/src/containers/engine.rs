//! Docker's Engine API over its socket. A connection for each call: there are few, and some live as long as a container.
//!
//! The version spoken is the oldest that has what is needed, 1.41 (Docker 20.10), or the oldest that the Engine still
//! knows, where that is newer.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Where the Engine listens.
pub const SOCKET: &str = "/var/run/docker.sock";
/// The oldest version of its API that will do.
const OLDEST: (u32, u32) = (1, 41);
/// How long an answer may take to begin that is not waited for on purpose.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest answer in bytes that is read whole.
const LONGEST: usize = 16 << 20;

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Nothing.
pub fn nothing() -> Body {
    Full::default()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// JSON.
pub fn json(value: &Value) -> Body {
    Full::from(value.to_string())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Why the Engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens on its socket.
    #[error("Docker Engine does not answer on {}: {source}", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is too old.
    #[error(
        "Docker Engine speaks version {have} of its API, and 1.41 is needed: bring it up to Docker 20.10 or later"
    )]
    Old {
        /// Its newest.
        have: String,
    },
    /// It said no.
    #[error("Docker Engine could not {what}: {message}")]
    Said {
        /// What was tried.
        what: &'static str,
        /// The status of HTTP.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It did not answer in time.
    #[error("Docker Engine did not {what} within {} s", ANSWER.as_secs())]
    Slow {
        /// What was tried.
        what: &'static str,
    },
    /// The connection broke, or the answer is none.
    #[error("Docker Engine broke off while it was to {what}: {why}")]
    Broken {
        /// What was tried.
        what: &'static str,
        /// How.
        why: String,
    },
}

impl EngineError {
    /// Whether there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Said { status: 404, .. })
    }

    /// Whether it is so already, or something else has that name.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Said { status: 409, .. })
    }

    /// Whether the Engine itself is out of reach, which may pass.
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Broken { .. } | Self::Slow { .. }
        )
    }
}

/// An Engine.
#[derive(Clone, Debug)]
pub struct Engine {
    socket: PathBuf,
    /// `/v1.41`.
    version: String,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "ApiVersion")]
    newest: String,
    #[serde(rename = "MinAPIVersion", default)]
    oldest: String,
}

fn number(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Engine {
    /// Asks the Engine behind `socket` who it is.
    ///
    /// # Errors
    /// It does not answer, or is too old.
    pub async fn connect(socket: impl AsRef<Path>) -> Result<Self, EngineError> {
        let mut engine = Self {
            socket: socket.as_ref().to_owned(),
            version: String::new(),
        };
        let version: Version = engine.get("tell its version", "/version").await?;
        let newest = number(&version.newest).unwrap_or_default();
        if newest < OLDEST {
            return Err(EngineError::Old {
                have: version.newest,
            });
        }
        let (major, minor) = number(&version.oldest).unwrap_or(OLDEST).max(OLDEST);
        engine.version = format!("/v{major}.{minor}");
        Ok(engine)
    }

    /// Sends a request and waits for the head of its answer, for as long as it takes.
    ///
    /// # Errors
    /// It did not answer, or said no.
    pub async fn send(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Body,
    ) -> Result<http::Response<Incoming>, EngineError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| EngineError::Missing {
                    path: self.socket.clone(),
                    source,
                })?;
        let broken = |why: String| EngineError::Broken { what, why };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
        tokio::spawn(async move {
            // What breaks shows in the answer.
            let _ = connection.with_upgrades().await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.version))
            .header("host", "docker");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(body)
            .map_err(|error| broken(error.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| broken(error.to_string()))?;
        let status = answer.status();
        if status.is_success()
            || status == StatusCode::SWITCHING_PROTOCOLS
            || status == StatusCode::NOT_MODIFIED
        {
            return Ok(answer);
        }
        let text = whole(answer).await.unwrap_or_default();
        let said = serde_json::from_slice::<Value>(&text).ok();
        let message = said.and_then(|said| Some(said["message"].as_str()?.trim().to_owned()));
        Err(EngineError::Said {
            what,
            status: status.as_u16(),
            message: message.unwrap_or_else(|| status.to_string()),
        })
    }

    /// [`Engine::send`], answered in time and read whole.
    ///
    /// # Errors
    /// It did not answer, or said no.
    pub async fn call(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, EngineError> {
        let headers = [("content-type", "application/json".to_owned())];
        let body = body.map_or_else(nothing, json);
        let answered = async {
            let answer = self.send(what, method, path, &headers, body).await?;
            whole(answer)
                .await
                .map_err(|why| EngineError::Broken { what, why })
        };
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(EngineError::Slow { what }),
        }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// It did not answer, or said no.
    pub async fn get<T: DeserializeOwned>(
        &self,
        what: &'static str,
        path: &str,
    ) -> Result<T, EngineError> {
        let answer = self.call(what, Method::GET, path, None).await?;
        serde_json::from_slice(&answer).map_err(|error| EngineError::Broken {
            what,
            why: error.to_string(),
        })
    }

    /// Has something done, and says whether there was something to do it to.
    ///
    /// # Errors
    /// It did not answer, or said no for another reason.
    pub async fn remove(&self, what: &'static str, path: &str) -> Result<bool, EngineError> {
        match self.call(what, Method::DELETE, path, None).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it has an image of that id.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn has_image(&self, id: &str) -> Result<bool, EngineError> {
        let path = format!("/images/{}/json", encoded(id));
        match self
            .call("look for an image", Method::GET, &path, None)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

async fn whole(answer: http::Response<Incoming>) -> Result<Vec<u8>, String> {
    let limited = http_body_util::Limited::new(answer.into_body(), LONGEST);
    let read = limited.collect().await.map_err(|error| error.to_string())?;
    Ok(read.to_bytes().to_vec())
}

/// A part of a path or query.
pub fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A query of filters: `filters={"label":["a=b"]}`.
pub fn filters(filters: &Value) -> String {
    format!("filters={}", encoded(&filters.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// Answers one connection with `answer`, and gives what was asked.
    async fn answering(
        directory: &Path,
        answer: &'static str,
    ) -> (PathBuf, tokio::task::JoinHandle<String>) {
        let socket = directory.join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.expect("a request");
            stream
                .write_all(answer.as_bytes())
                .await
                .expect("an answer");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (socket, served)
    }

    #[tokio::test]
    async fn an_engine_is_spoken_to_in_a_version_that_both_know() {
        for (newest, oldest, spoken) in [
            ("1.41", "1.12", Some("/v1.41")),
            ("1.52", "1.44", Some("/v1.44")),
            ("1.40", "1.12", None),
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let body = format!(r#"{{"ApiVersion":"{newest}","MinAPIVersion":"{oldest}"}}"#);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let (socket, served) = answering(directory.path(), answer.leak()).await;
            let engine = Engine::connect(&socket).await;
            match (spoken, engine) {
                (Some(spoken), Ok(engine)) => assert_eq!(engine.version, spoken),
                (None, Err(EngineError::Old { have })) => assert_eq!(have, newest),
                (_, other) => panic!("{newest}: {other:?}"),
            }
            assert!(
                served
                    .await
                    .expect("served")
                    .starts_with("GET /version HTTP/1.1\r\n")
            );
        }
    }

    #[tokio::test]
    async fn what_the_engine_says_is_told_and_that_nobody_listens() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = Engine::connect(directory.path().join("none"))
            .await
            .expect_err("nobody");
        assert!(missing.is_away(), "{missing}");
        let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 31\r\n\r\n{\"message\":\"No such image: a\"}\n";
        let (socket, _served) = answering(directory.path(), answer).await;
        let engine = Engine {
            socket,
            version: String::new(),
        };
        assert!(!engine.has_image("a").await.expect("an answer"));
    }
}
