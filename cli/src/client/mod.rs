//! Talks to the controller's JSON API: one call after another, blocking.

pub mod find;
pub mod sse;

use crate::output::errors::Failure;
use beanpole_daemon::files;
use beanpole_protocol::api::Healthz;
use beanpole_protocol::ids::shown;
use beanpole_protocol::problem::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{HeaderValue, Method, Request, Response, Uri};
use ureq::{Agent, Body, SendBody, Timeout};

/// A call that says nothing for so long is given up. The controller answers every call at once;
/// only bundles and event streams take longer, and those are bounded per read.
const SILENCE: Duration = Duration::from_mins(1);
/// A question whose answer does not begin within this time is given up: what is asked for is read from memory or
/// disk, or from load balancers that have seconds to say it.
const QUESTION: Duration = Duration::from_secs(20);
/// For the TCP connection itself.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest JSON answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 64 * 1024 * 1024;

/// A controller, and how to get in.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
    /// The file of certificates that are trusted instead of the public ones.
    trusted: Option<PathBuf>,
}

/// What the user gave, or was found.
#[derive(Clone)]
pub struct Access {
    /// For example `http://127.0.0.1:7700`.
    pub url: String,
    /// The bearer token.
    pub token: Option<String>,
    /// The certificate to trust, where `up` says that the controller made its own.
    pub ca: Option<PathBuf>,
}

impl Client {
    /// For asking a controller on this machine whether it serves: nothing secret is sent, so its
    /// certificate is not looked at.
    pub fn without_secrets(url: &str) -> Result<Self, Failure> {
        let access = Access {
            url: url.to_owned(),
            token: None,
            ca: None,
        };
        let tls = ureq::tls::TlsConfig::builder().disable_verification(true);
        Self::with_tls(access, tls.build(), None)
    }

    /// For the controller at `access.url`. `ca` is a PEM file with the certificate authority to
    /// trust instead of the public ones.
    pub fn new(access: Access, ca: Option<&Path>) -> Result<Self, Failure> {
        let mut tls = ureq::tls::TlsConfig::builder();
        let trusted = ca.or(access.ca.as_deref()).map(Path::to_owned);
        if let Some(path) = &trusted {
            let pem = files::read(path, files::LARGEST).map_err(|error| {
                Failure::caused(format!("Cannot read {}.", path.display()), &error)
                    .hint("Name the controller's certificate, a PEM file: --ca FILE or BEANPOLE_CA")
                    .into_misuse()
            })?;
            let roots: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if roots.is_empty() {
                return Err(Failure::misuse(format!(
                    "{} holds no certificate in PEM form.",
                    path.display()
                )));
            }
            tls = tls.root_certs(ureq::tls::RootCerts::new_with_certs(&roots));
        }
        Self::with_tls(access, tls.build(), trusted)
    }

    fn with_tls(
        access: Access,
        tls: ureq::tls::TlsConfig,
        trusted: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let base = access.url.trim_end_matches('/').to_owned();
        if let Some(why) = wrong_url(&base) {
            return Err(Failure::misuse(format!(
                "`{}` is not a controller's URL{why}.",
                shown(&without_user(&access.url))
            ))
            .hint("Write it as http://127.0.0.1:7700 or https://beanpole.example.com"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_redirects(0)
            .proxy(None)
            .no_delay(true)
            .user_agent(concat!("beanpole/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            base,
            token: access.token,
            trusted,
        })
    }

    /// The controller's URL, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET path`.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        let request = self.request(Method::GET, path, &[], SendBody::none())?;
        let bounded = self.agent.configure_request(request);
        let bounded = bounded.timeout_recv_response(Some(QUESTION)).build();
        let response = self.answered(self.agent.run(bounded))?;
        if response.status().is_success() {
            read(response)
        } else {
            Err(self.refusal(response))
        }
    }

    /// `POST path` with a JSON body.
    pub fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failure> {
        self.json(Method::POST, path, body)
    }

    /// `PATCH path` with a JSON body.
    pub fn patch<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failure> {
        self.json(Method::PATCH, path, body)
    }

    /// `PUT path` with a JSON body.
    pub fn put_json<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failure> {
        self.json(Method::PUT, path, body)
    }

    /// `DELETE path`, answered with a body.
    pub fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        read(self.send(Method::DELETE, path, &[], SendBody::none())?)
    }

    /// `DELETE path`, whatever it answers.
    pub fn remove(&self, path: &str) -> Result<(), Failure> {
        self.send(Method::DELETE, path, &[], SendBody::none())
            .map(|_| ())
    }

    /// `HEAD path`: whether it is there.
    pub fn exists(&self, path: &str) -> Result<bool, Failure> {
        let response = self.raw(Method::HEAD, path, &[], SendBody::none())?;
        match response.status().as_u16() {
            200..=299 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refusal(response)),
        }
    }

    /// `GET path`: whether it is there. For paths that have no `HEAD`.
    pub fn exists_by_get(&self, path: &str) -> Result<bool, Failure> {
        let response = self.raw(Method::GET, path, &[], SendBody::none())?;
        match response.status().as_u16() {
            200..=299 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refusal(response)),
        }
    }

    /// `PUT path` with `size` bytes from `reader`.
    pub fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        reader: &mut dyn Read,
        size: u64,
    ) -> Result<A, Failure> {
        let headers = [
            ("content-length", size.to_string()),
            ("content-type", "application/zip".to_owned()),
            // One that is refused by its size or name alone is not sent at all.
            ("expect", "100-continue".to_owned()),
        ];
        read(self.send(Method::PUT, path, &headers, SendBody::from_reader(reader))?)
    }

    /// Opens a stream of bytes: an event stream, logs, a backup.
    pub fn stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
    ) -> Result<impl Read + Send + use<>, Failure> {
        let mut headers = headers.to_vec();
        if method == Method::POST {
            // Without it ureq announces a body in chunks, only to say that it is empty.
            headers.push(("content-length", "0".to_owned()));
        }
        let response = self.send(method, path, &headers, SendBody::none())?;
        Ok(response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader())
    }

    fn json<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, Failure> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Failure::caused("The request cannot be written.", &error))?;
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("content-length", bytes.len().to_string()),
        ];
        let mut reader = bytes.as_slice();
        read(self.send(method, path, &headers, SendBody::from_reader(&mut reader))?)
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: SendBody<'_>,
    ) -> Result<Response<Body>, Failure> {
        let response = self.raw(method, path, headers, body)?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response))
        }
    }

    /// Why the controller, or what answers in its place, refuses.
    fn refusal(&self, response: Response<Body>) -> Failure {
        let failure = refusal(response);
        match failure.code.as_deref() {
            Some("path-not-found") => failure.hint(format!(
                "Is the URL that of a controller of this version? Calls go below {}: beanpole version",
                self.base
            )),
            // The code of a page of the load balancer.
            Some("unknown-host") => failure.hint(format!(
                "At {} a load balancer answers, not a controller: its API has another port",
                self.base
            )),
            _ => failure,
        }
    }

    fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: SendBody<'_>,
    ) -> Result<Response<Body>, Failure> {
        let request = self.request(method, path, headers, body)?;
        self.answered(self.agent.run(request))
    }

    fn request<'a>(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: SendBody<'a>,
    ) -> Result<Request<SendBody<'a>>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("accept", "application/json");
        if let Some(token) = &self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                Failure::misuse("The token holds characters that no token has.")
                    .hint("Give it as it stands in DIR/token of `beanpole up`")
            })?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request
            .body(body)
            .map_err(|error| Failure::caused(format!("`{path}` is no valid request."), &error))
    }

    fn answered(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failure> {
        answer.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let cause: &dyn std::error::Error = match error {
            ureq::Error::Io(error) => error,
            error => error,
        };
        let mut failure = Failure::caused(
            format!("Cannot reach the controller at {}.", self.base),
            cause,
        );
        failure.code = Some(UNREACHABLE.to_owned());
        failure.causes.dedup();
        let says = |word: &str| failure.causes.iter().any(|cause| cause.contains(word));
        let (scheme, rest) = self.base.split_once("://").unwrap_or_default();
        if let ureq::Error::Timeout(after) = error
            && !matches!(after, Timeout::Connect | Timeout::Resolve)
        {
            failure.message = format!("The controller at {} does not answer.", self.base);
            let waited = match after {
                Timeout::RecvResponse => QUESTION,
                _ => SILENCE,
            };
            failure.causes = vec![format!("It said nothing for {} s.", waited.as_secs())];
            return failure.hint(
                "See whether it runs and has a disk that it can write to: its log says what it waits for",
            );
        }
        if says("invalid peer certificate") {
            return self.not_trusted(failure);
        }
        if scheme == "https" && says("InvalidContentType") {
            failure.message = format!("What answers at {} speaks no TLS.", self.base);
            return failure.hint(format!("If it is the controller: --url http://{rest}"));
        }
        if scheme == "http" && says("invalid HTTP version") {
            failure.message = format!("What answers at {} speaks no plain HTTP.", self.base);
            return failure.hint(format!(
                "If it is a controller with TLS: --url https://{rest}"
            ));
        }
        let hint = if scheme == "http" && says("Peer disconnected") {
            format!(
                "It closed the connection without an answer. If it has just stopped, try again; if it wants TLS: --url https://{rest}"
            )
        } else {
            "Start one on this machine with `beanpole up`, or say where it is: --url URL or BEANPOLE_URL".to_owned()
        };
        failure.hint(hint)
    }

    /// It was reached, and nothing was said to it: who shows this certificate is not known.
    fn not_trusted(&self, mut failure: Failure) -> Failure {
        let says = |word: &str| failure.causes.iter().any(|cause| cause.contains(word));
        let hint = if says("not valid for name") {
            "Use the name or address that the certificate was made for: --url, or another certificate for the controller (--tls-cert)".to_owned()
        } else if says("certificate expired") || says("not valid yet") {
            "Compare the clocks of both machines (date), or give the controller a newer certificate"
                .to_owned()
        } else {
            match &self.trusted {
                Some(path) => format!(
                    "{} is not the certificate that it shows. Give DIR/controller/api-cert.pem of its data directory, or the authority that signed it: --ca FILE or BEANPOLE_CA",
                    path.display()
                ),
                None => "Where the controller made its own (--tls-self-signed), copy DIR/controller/api-cert.pem from its data directory, as its log says, and give it: --ca FILE or BEANPOLE_CA".to_owned(),
            }
        };
        failure.message = format!(
            "The certificate of the controller at {} is not trusted.",
            self.base
        );
        failure.code = Some(UNTRUSTED.to_owned());
        failure.hint(hint)
    }
}

/// A URL, or what was given for one, without its user and password.
pub fn without_user(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    match rest.split_once('@') {
        Some((_, rest)) => format!("{scheme}…@{rest}"),
        None => url.to_owned(),
    }
}

/// What is wrong with the URL of a controller, as the end of a sentence; none if it may be one.
fn wrong_url(url: &str) -> Option<&'static str> {
    if url.contains(['?', '#']) {
        return Some(": it has no query and no fragment");
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return Some("");
    };
    let Some(authority) = uri.authority() else {
        return Some("");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Some("");
    }
    if authority.as_str().contains('@') {
        return Some(": it has no user and no password");
    }
    let port = authority.as_str().strip_prefix(authority.host());
    let wrong = port.is_some_and(|port| !port.is_empty())
        && authority.port_u16().is_none_or(|port| port == 0);
    wrong.then_some(": a port is a number from 1 to 65535")
}

/// The code of a failure to reach the controller at all.
pub const UNREACHABLE: &str = "controller-unreachable";
/// The code of a certificate that nothing vouches for.
pub const UNTRUSTED: &str = "controller-untrusted";

fn read<A: DeserializeOwned>(response: Response<Body>) -> Result<A, Failure> {
    let mut bytes = Vec::new();
    response
        .into_body()
        .into_with_config()
        .limit(LONGEST_ANSWER)
        .reader()
        .read_to_end(&mut bytes)
        .map_err(|error| {
            let mut failure = Failure::caused("The controller's answer broke off.", &error);
            failure.code = Some(UNREACHABLE.to_owned());
            failure
        })?;
    let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| {
        Failure::caused("The controller's answer cannot be understood.", &error)
            .hint("The controller may be of another version: beanpole version")
    })
}

fn refusal(response: Response<Body>) -> Failure {
    let status = response.status();
    let text = response
        .into_body()
        .into_with_config()
        .limit(1024 * 1024)
        .lossy_utf8(true)
        .read_to_string()
        .unwrap_or_default();
    let mut failure = match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => Failure::from(problem),
        Err(_) if let Ok(health) = serde_json::from_str::<Healthz>(&text) => Failure::new(format!(
            "The controller is up, of version {}, and not all that belongs to it serves yet.",
            health.version
        ))
        .cause(health.waiting.join(" "))
        .hint("It takes a moment after a start or a pause; then try again"),
        Err(_) => {
            let mut failure = Failure::new(format!("The controller answered {status}."));
            let line = text.lines().next().unwrap_or_default().trim();
            if !line.is_empty() {
                failure = failure.cause(line.chars().take(200).collect::<String>());
            }
            failure.code = Some(format!("http-{}", status.as_u16()));
            failure
        }
    };
    if status.as_u16() == 401 && failure.hint.is_none() {
        failure.hint = Some(
            "Give the token that `beanpole up` wrote: BEANPOLE_TOKEN_FILE=DIR/token".to_owned(),
        );
    }
    failure
}

/// Escapes `text` for use as one part of a path or query.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_no_controller_can_have_is_told_apart() {
        for right in [
            "http://127.0.0.1:7700",
            "https://beanpole.example.com",
            "http://[::1]:7700",
            "https://example.com/behind/a/proxy",
        ] {
            assert_eq!(wrong_url(right), None, "{right}");
        }
        for wrong in [
            "",
            "foo",
            "http:",
            "http://",
            "127.0.0.1:7700",
            "ftp://x",
            "http://[::1",
            "http://x:99999",
            "http://x:0",
            "http://x:",
            "http://me:secret@x",
            "http://x?y",
            "http://x/#y",
        ] {
            assert!(wrong_url(wrong).is_some(), "{wrong}");
        }
    }
}
