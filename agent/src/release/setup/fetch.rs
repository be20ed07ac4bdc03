//! Fetches what a bundle names by its URL, into a file and within bounds.

use super::super::blocking;
use super::{Fault, Host};
use sha2::{Digest as _, Sha256};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The most that is fetched at once, in bytes: as much as a bundle may have.
const LONGEST: u64 = 512 << 20;
/// How long the other side may take to answer, or to be reached.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pieces in which it is written, in bytes.
const PIECE: usize = 128 * 1024;

/// What was fetched.
pub(super) struct Fetched {
    /// Its SHA-256.
    pub(super) digest: String,
    /// What tells another content under the same URL, where the other side says so.
    pub(super) tag: Option<String>,
}

impl Host<'_> {
    /// Fetches `url`, which is for `what`, into the new file `to`; none where its content is still that of `known`.
    pub(super) async fn fetch(
        &self,
        url: &str,
        known: Option<String>,
        what: String,
        to: &Path,
    ) -> Result<Option<Fetched>, Fault> {
        let (url, to, cancelled) = (url.to_owned(), to.to_owned(), Arc::clone(self.cancelled));
        let limit = Duration::from_millis(self.site.order.prepare_timeout_ms);
        blocking(move || fetch(&url, known.as_deref(), &what, &to, (limit, &cancelled))).await
    }
}

/// Blocks: for `limit` at most, and until it is cancelled. The URL may hold a secret and is in no message.
fn fetch(
    url: &str,
    known: Option<&str>,
    what: &str,
    to: &Path,
    (limit, cancelled): (Duration, &AtomicBool),
) -> Result<Option<Fetched>, Fault> {
    let failed = |why: &dyn std::fmt::Display| {
        Fault::new(
            "download-failed",
            format!("What {what} names by its URL could not be fetched: {why}."),
        )
    };
    let secure = url
        .get(..6)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    let agent = agent(secure, limit);
    let mut request = agent.get(url);
    if let Some(tag) = known {
        request = request.header("If-None-Match", tag);
    }
    let mut answer = request
        .call()
        .map_err(|error| failed(&without_url(&error)))?;
    let status = answer.status().as_u16();
    if status == 304 && known.is_some() {
        return Ok(None);
    }
    if status != 200 {
        return Err(failed(&format!("the answer is {status}")));
    }
    let tag = answer
        .headers()
        .get("etag")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| Fault::io("make", to, &error))?;
    let mut body = answer.body_mut().as_reader();
    let (mut digest, mut size) = (Sha256::new(), 0_u64);
    let mut piece = vec![0; PIECE];
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Fault::cancelled());
        }
        let read = body.read(&mut piece).map_err(|error| failed(&error))?;
        if read == 0 {
            break;
        }
        size += read as u64;
        if size > LONGEST {
            return Err(failed(&format!("it is longer than {} MiB", LONGEST >> 20)));
        }
        digest.update(&piece[..read]);
        file.write_all(&piece[..read])
            .map_err(|error| Fault::io("write", to, &error))?;
    }
    Ok(Some(Fetched {
        digest: hex::encode(digest.finalize()),
        tag,
    }))
}

/// What went wrong, without where.
fn without_url(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the URL cannot be read".to_owned(),
        ureq::Error::HostNotFound => "its host is not known".to_owned(),
        other => other.to_string(),
    }
}

fn agent(secure: bool, limit: Duration) -> ureq::Agent {
    // Whom the host trusts; else whom browsers do.
    let own: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    let roots = if own.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::new_with_certs(&own)
    };
    ureq::Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        // A redirect leads to no less than was asked for.
        .https_only(secure)
        .http_status_as_error(false)
        .timeout_global(Some(limit))
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Answers one request with `answer`; gives its URL and, in the end, what was asked.
    fn serve(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!(
            "http://{}/a?key=s3cret",
            listener.local_addr().expect("bound")
        );
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a request");
            let mut reader = BufReader::new(stream.try_clone().expect("the same"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).expect("a line");
            }
            stream.write_all(answer.as_bytes()).expect("answered");
            head
        });
        (url, served)
    }

    #[test]
    fn what_is_fetched_is_known_again() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (to, go_on) = (top.path().join("it"), AtomicBool::new(false));
        let (url, served) = serve(
            "HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        );
        let fetched = fetch(&url, None, "`x`", &to, (LIMIT, &go_on))
            .expect("fetched")
            .expect("new");
        served.join().expect("asked");
        assert_eq!(std::fs::read(&to).expect("there"), b"hi");
        assert_eq!(fetched.tag.as_deref(), Some("\"one\""));
        assert!(fetched.digest.starts_with("8f434346"), "{}", fetched.digest);
        let (url, served) = serve("HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n");
        let again =
            fetch(&url, fetched.tag.as_deref(), "`x`", &to, (LIMIT, &go_on)).expect("asked");
        assert!(again.is_none());
        let head = served.join().expect("asked").to_ascii_lowercase();
        assert!(head.contains("if-none-match: \"one\""), "{head}");
    }

    #[test]
    fn a_refusal_says_why_and_not_where() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (to, go_on) = (top.path().join("it"), AtomicBool::new(false));
        let (url, served) =
            serve("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let fault = fetch(&url, None, "`x`", &to, (LIMIT, &go_on))
            .err()
            .expect("refused")
            .0;
        served.join().expect("asked");
        assert!(
            fault.message.contains("the answer is 403"),
            "{}",
            fault.message
        );
        let nowhere = "http://127.0.0.1:1/?key=s3cret";
        let gone = fetch(nowhere, None, "`x`", &to, (LIMIT, &go_on))
            .err()
            .expect("no")
            .0;
        for fault in [fault, gone] {
            assert!(!fault.message.contains("s3cret"), "{}", fault.message);
        }
    }
}
