//! A small HTTP/1.1 client over any byte stream: a Unix socket, or an SSH channel to one.

use beanpole_protocol::problem::Problem;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Longest answer that [`Connection::call`] reads whole, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;
/// Longest line of a stream of JSON lines, in bytes.
const LONGEST_LINE: usize = 16 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection broke or was never there.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The other side refused, and says why.
    #[error("refused: {0}")]
    Refused(Box<Problem>),
    /// The answer cannot be understood.
    #[error("the answer cannot be understood: {0}")]
    Garbled(String),
}

impl CallError {
    /// Whether trying again on a new connection may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Broken(_) | Self::TimedOut(_) => true,
            Self::Refused(problem) => problem.status == 503,
            Self::Garbled(_) => false,
        }
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> CallError {
    CallError::Broken(Box::new(error))
}

/// A request body: whole or streamed.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A body that is already there.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// An HTTP/1.1 connection. One call at a time; open another for a stream.
pub struct Connection {
    sender: http1::SendRequest<Body>,
}

impl Connection {
    /// Speaks HTTP over `io`. The connection is driven by a task that ends with it.
    pub async fn open<I>(io: I) -> Result<Self, CallError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(Self { sender })
    }

    /// The same, for [`Connection::through`].
    pub async fn open_upgradable<I>(io: I) -> Result<Self, CallError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(Self { sender })
    }

    /// Whether the other side has closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and returns the answer's body as it comes; anything but 2xx is
    /// [`CallError::Refused`].
    pub async fn send(&mut self, request: Request<Body>) -> Result<Incoming, CallError> {
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = collect(response.into_body()).await?;
        Err(CallError::Refused(Box::new(problem_of(status, &body))))
    }

    /// Turns the connection to one daemon into that to another behind it: `path` is asked for with an upgrade to
    /// `protocol` (RFC 9110, section 7.8), and what comes after the answer is the other's. Only for a connection
    /// that [`Connection::open_upgradable`] made.
    pub async fn through(
        mut self,
        path: &str,
        protocol: &str,
        limit: Duration,
    ) -> Result<TokioIo<Upgraded>, CallError> {
        let mut request = request(Method::GET, path, None::<&()>)?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let protocol = HeaderValue::from_str(protocol)
            .map_err(|error| CallError::Garbled(error.to_string()))?;
        headers.insert(header::UPGRADE, protocol);
        let upgrading = async {
            self.sender.ready().await.map_err(broken)?;
            let response = self.sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let body = collect(response.into_body()).await?;
                return Err(CallError::Refused(Box::new(problem_of(status, &body))));
            }
            hyper::upgrade::on(response).await.map_err(broken)
        };
        let upgraded = tokio::time::timeout(limit, upgrading)
            .await
            .map_err(|_| CallError::TimedOut(limit))??;
        Ok(TokioIo::new(upgraded))
    }

    /// Asks and reads a JSON answer, within `limit`.
    pub async fn call<A: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        limit: Duration,
    ) -> Result<A, CallError> {
        let request = request(method, path, body)?;
        let answer = async {
            let body = self.send(request).await?;
            collect(body).await
        };
        let bytes = tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| CallError::TimedOut(limit))??;
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(|error| CallError::Garbled(error.to_string()))
    }

    /// `GET path`, read as JSON.
    pub async fn get<A: DeserializeOwned>(
        &mut self,
        path: &str,
        limit: Duration,
    ) -> Result<A, CallError> {
        self.call(Method::GET, path, None::<&()>, limit).await
    }

    /// `GET path`, read as a stream of JSON lines that may go on for ever.
    pub async fn lines<A: DeserializeOwned + Send + 'static>(
        mut self,
        path: &str,
        limit: Duration,
    ) -> Result<impl Stream<Item = Result<A, CallError>> + Send + Unpin + 'static, CallError> {
        let request = request(Method::GET, path, None::<&()>)?;
        let body = tokio::time::timeout(limit, self.send(request))
            .await
            .map_err(|_| CallError::TimedOut(limit))??;
        let state = (body, BytesMut::new(), self);
        Ok(Box::pin(
            stream::unfold(Some(state), |state| async move {
                let (mut body, mut buffer, connection) = state?;
                loop {
                    if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line = buffer.split_to(end + 1);
                        let item = serde_json::from_slice(&line)
                            .map_err(|error| CallError::Garbled(error.to_string()));
                        return Some((item, Some((body, buffer, connection))));
                    }
                    if buffer.len() > LONGEST_LINE {
                        let error = CallError::Garbled("a line without end".to_owned());
                        return Some((Err(error), None));
                    }
                    match body.frame().await {
                        None => return None,
                        Some(Err(error)) => return Some((Err(broken(error)), None)),
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                buffer.extend_from_slice(&data);
                            }
                        }
                    }
                }
            })
            .fuse(),
        ))
    }
}

/// A request with an optional JSON body. `path` is a path with query.
pub fn request(
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<Request<Body>, CallError> {
    let bytes = match body {
        None => Bytes::new(),
        Some(value) => serde_json::to_vec(value)
            .map_err(|error| CallError::Garbled(error.to_string()))?
            .into(),
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "beanpole")
        .header(header::CONTENT_TYPE, "application/json")
        .body(whole(bytes))
        .map_err(|error| CallError::Garbled(error.to_string()))
}

async fn collect(mut body: Incoming) -> Result<BytesMut, CallError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            if bytes.len() + data.len() > LONGEST_ANSWER {
                return Err(CallError::Garbled("the answer is too long".to_owned()));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

fn problem_of(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        Problem::new(status.as_u16(), "unexplained", "The call was refused", text)
    })
}

/// The answer to a request that asks for another daemon's connection ([`Connection::through`]): what comes after it
/// is carried between the two until one of them ends, or `stop`.
pub fn hand_over<I>(
    request: axum::extract::Request,
    to: I,
    protocol: &'static str,
    stop: CancellationToken,
) -> axum::response::Response
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    use axum::response::IntoResponse;
    let asked = request.headers().get(header::UPGRADE);
    if asked.is_none_or(|asked| asked.as_bytes() != protocol.as_bytes()) {
        let detail = format!("This call is for connections that become `{protocol}`.");
        return problem_response(&Problem::new(
            426,
            "upgrade-required",
            "An upgrade is needed",
            detail,
        ));
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let (mut from, mut to) = (TokioIo::new(upgraded), to);
                // Its end is an end like any other.
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
            Err(error) => tracing::debug!(%error, "a connection was not handed over"),
        }
    }));
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)],
    )
        .into_response()
}

/// A problem as an axum response: its status, `application/problem+json`.
pub fn problem_response(problem: &Problem) -> axum::response::Response {
    use axum::response::IntoResponse;
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::net::UnixStream;

    async fn serve(router: Router) -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let listener = crate::socket::bind(&path, 0o600, None).await.expect("bind");
        tokio::spawn(crate::socket::serve(
            listener,
            router,
            CancellationToken::new(),
        ));
        let stream = UnixStream::connect(&path).await.expect("connect");
        (
            directory,
            Connection::open(stream).await.expect("handshake"),
        )
    }

    #[tokio::test]
    async fn a_refusal_carries_the_problem() {
        let router = Router::new().route(
            "/no",
            get(|| async { problem_response(&Problem::conflict("stale-generation", "3 < 4")) }),
        );
        let (_directory, mut connection) = serve(router).await;
        let limit = Duration::from_secs(5);
        let error = connection
            .get::<u8>("/no", limit)
            .await
            .expect_err("refused");
        assert!(
            matches!(&error, CallError::Refused(p) if p.code == "stale-generation"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn one_daemon_is_reached_through_another() {
        let behind = Router::new().route("/who", get(|| async { "\"behind\"" }));
        let (directory, _) = serve(behind).await;
        let path = directory.path().join("test.sock");
        let front = Router::new().route(
            "/through",
            get(async move |request: axum::extract::Request| {
                let to = UnixStream::connect(&path).await.expect("it listens");
                hand_over(request, to, "test", CancellationToken::new())
            }),
        );
        let (directory, mut plain) = serve(front).await;
        let limit = Duration::from_secs(5);
        let refused = plain
            .get::<u8>("/through", limit)
            .await
            .expect_err("no upgrade");
        assert!(refused.to_string().contains("upgrade"), "{refused}");
        let stream = UnixStream::connect(directory.path().join("test.sock")).await;
        let open = Connection::open_upgradable(stream.expect("connect"))
            .await
            .expect("handshake");
        let through = open
            .through("/through", "test", limit)
            .await
            .expect("an upgrade");
        let mut connection = Connection::open(through).await.expect("handshake");
        for _ in 0..2 {
            let who: String = connection.get("/who", limit).await.expect("an answer");
            assert_eq!(who, "behind");
        }
    }

    #[tokio::test]
    async fn lines_arrive_one_by_one() {
        let router = Router::new().route("/watch", get(|| async { "1\n2\n3\n" }));
        let (_directory, connection) = serve(router).await;
        let lines = connection
            .lines::<u8>("/watch", Duration::from_secs(5))
            .await
            .expect("stream");
        let all: Vec<u8> = lines.map(|line| line.expect("line")).collect().await;
        assert_eq!(all, [1, 2, 3]);
    }
}
