//! A call to a responder: one connection, within bounds, and no redirects.
//!
//! Its URL is written in a certificate, by whoever signed that. So it may lead to many places: to private addresses,
//! where an authority of one's own has its responder, and to this machine. It leads nowhere by another scheme than
//! `http`, and to no link-local address, where clouds tell machines their secrets (decision 103). What is sent is chosen by nobody, and
//! of what comes back nothing is told but a status or that it is no answer.

use super::Question;
use ::http::header::{ACCEPT, CONTENT_TYPE, HOST};
use ::http::{Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long a call may take, from the name's resolution to the last byte.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long one of several addresses may take to be connected to.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The most addresses that are tried.
const MOST_ADDRESSES: usize = 4;
/// The longest answer, in bytes. Real ones have 0.3 to 3 kB; each full handshake carries it.
const LONGEST_ANSWER: usize = 16 * 1024;

/// A URL that is asked.
pub(super) fn usable(url: &str) -> Option<Uri> {
    let url: Uri = url.parse().ok()?;
    let authority = url.authority()?.as_str();
    let plain = url.scheme_str() == Some("http") && !authority.contains('@');
    (plain && url.host().is_some_and(|host| !host.is_empty())).then_some(url)
}

/// Puts a question to its responder: what it answers, or why it did not, for people.
pub async fn ask(question: &Question) -> Result<Vec<u8>, String> {
    let answered = timeout(CALL_LIMIT, call(&question.url, question.request())).await;
    answered.unwrap_or_else(|_| {
        Err(format!(
            "There was no answer within {} s.",
            CALL_LIMIT.as_secs()
        ))
    })
}

async fn call(url: &Uri, body: Vec<u8>) -> Result<Vec<u8>, String> {
    let broke = |error: &dyn std::fmt::Display| format!("The connection broke: {error}.");
    let socket = connect(url).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| broke(&error))?;
    let driver = tokio::spawn(connection);
    let answered = async {
        let request = request(url, body).map_err(|error| broke(&error))?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| broke(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(format!(
                    "It answered {status}, and no redirect is followed."
                ));
            }
            status => return Err(format!("It answered {status}.")),
        }
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER);
        let body = body.collect().await.map_err(|error| {
            format!("Its answer broke off or is longer than {LONGEST_ANSWER} bytes: {error}.")
        })?;
        Ok(body.to_bytes().to_vec())
    };
    let answer = answered.await;
    driver.abort();
    answer
}

fn request(url: &Uri, body: Vec<u8>) -> Result<Request<Full<Bytes>>, ::http::Error> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = url.authority().map_or("", |authority| authority.as_str());
    Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/ocsp-request")
        .header(ACCEPT, "application/ocsp-response")
        .body(Full::new(Bytes::from(body)))
}

/// A connection to one of the addresses that were looked at: its name is not resolved a second time.
async fn connect(url: &Uri) -> Result<TcpStream, String> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(80);
    let found = lookup_host((host, port)).await;
    let found: Vec<SocketAddr> = found
        .map_err(|error| format!("{host} has no address: {error}."))?
        .collect();
    let mut why = format!("{host} leads to no address that is asked.");
    for address in found
        .iter()
        .filter(|one| is_asked(one.ip()))
        .take(MOST_ADDRESSES)
    {
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => why = format!("{address} cannot be connected to: {error}."),
            Err(_) => {
                let limit = CONNECT_LIMIT.as_secs();
                why = format!("{address} cannot be connected to: no answer within {limit} s.");
            }
        }
    }
    Err(why)
}

fn is_asked(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_link_local() || v4.is_broadcast() || v4.is_multicast())
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_is_asked_and_nothing_link_local() {
        for url in [
            "http://ocsp.example.com",
            "http://10.0.0.1:8080/a?b",
            "http://[::1]/",
        ] {
            assert!(usable(url).is_some(), "{url}");
        }
        for url in [
            "https://ocsp.example.com",
            "file:///etc/passwd",
            "http://a@b/",
            "http:///x",
            "ocsp",
            "",
        ] {
            assert!(usable(url).is_none(), "{url}");
        }
        for address in [
            "10.1.2.3",
            "127.0.0.1",
            "192.0.2.1",
            "::1",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert!(is_asked(address.parse().expect("an address")), "{address}");
        }
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "::",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_asked(address.parse().expect("an address")), "{address}");
        }
    }
}
