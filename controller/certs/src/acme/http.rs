//! Calls to an authority: a connection each, within bounds.

use super::{AcmeError, Directory, Kind};
use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a call may take, from the connection to the last byte.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 1024 * 1024;
/// The longest that an authority is left alone because it says so.
const LONGEST_RETRY: Duration = Duration::from_hours(7 * 24);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A client of one authority.
#[derive(Clone)]
pub(super) struct Https {
    tls: TlsConnector,
    /// What the last answer said of when to come again.
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Https {
    pub(super) fn new(directory: &Directory) -> Result<Self, AcmeError> {
        let wrong = |why: String| AcmeError {
            kind: Kind::Own,
            why,
            advice: "Give the authority's own root certificate as PEM.",
            retry_after: None,
        };
        let mut roots = webpki_roots::TLS_SERVER_ROOTS
            .iter()
            .cloned()
            .collect::<RootCertStore>();
        for root in
            CertificateDer::pem_slice_iter(directory.roots.as_deref().unwrap_or("").as_bytes())
        {
            let root = root.map_err(|error| wrong(format!("the root cannot be read: {error}")))?;
            roots
                .add(root)
                .map_err(|error| wrong(format!("the root cannot be used: {error}")))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            retry_after: Arc::default(),
        })
    }

    pub(super) fn take_retry_after(&self) -> Option<Duration> {
        self.retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn note(&self, answer: &Response<Full<Bytes>>) {
        let seconds = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // The other form, a date, is not in use for errors.
        let wait = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY));
        let refused = answer.status().is_client_error() || answer.status().is_server_error();
        *self
            .retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = wait.filter(|_| refused);
    }

    /// What a URL answers, as JSON.
    pub(super) async fn json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        let request = Request::get(url).body(BodyWrapper::default())?;
        let answer = self.call(request).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }

    async fn call(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Failure> {
        let uri = request.uri().clone();
        if uri.scheme_str() != Some("https") {
            return Err(format!("`{uri}` is no URL that begins with https://").into());
        }
        let host = uri.host().ok_or("its URL names no host")?.to_owned();
        let plain = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let socket = TcpStream::connect((plain.as_str(), port)).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(plain)?;
        let stream = self.tls.connect(name, socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let answered = async {
            let answer = sender.send_request(relative(request, &uri)?).await?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
            Ok::<_, Failure>(Response::from_parts(head, Full::new(body.to_bytes())))
        };
        let answer = answered.await;
        driver.abort();
        answer
    }
}

/// The request as it is written to a server: the path alone, and the host in a header.
fn relative(
    request: Request<BodyWrapper<Bytes>>,
    uri: &Uri,
) -> Result<Request<BodyWrapper<Bytes>>, Failure> {
    let (mut parts, body) = request.into_parts();
    let authority = uri.authority().ok_or("its URL names no host")?;
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(authority.as_str())?);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse()?;
    Ok(Request::from_parts(parts, body))
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let answer = tokio::time::timeout(CALL_LIMIT, this.call(request)).await;
            let limit = CALL_LIMIT.as_secs();
            let answer = answer
                .map_err(|_| Error::Other(format!("no answer within {limit} s").into()))?
                .map_err(Error::Other)?;
            this.note(&answer);
            Ok(BytesResponse::from(answer))
        })
    }
}
