//! HTTP/2, TLS, bodies, and clients that behave badly.

use crate::support::*;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A TLS client that trusts only the proxy's own certificate.
pub async fn tls(proxy: &Proxy, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let file = proxy.directory.path().join("localhost.crt");
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(file).expect("certificate");
    roots.add(certificate).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let socket = TcpStream::connect(proxy.https).await.expect("connect");
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").expect("name"), socket)
        .await
        .expect("handshake")
}

async fn h2_get(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uri: &str) -> Answer {
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::get(uri)
        .body(Full::<Bytes>::default())
        .expect("request");
    let answer = sender.send_request(wanted).await.expect("an answer");
    let (head, body) = answer.into_parts();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.expect("a body").to_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_goes_over_tls_and_by_prior_knowledge() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;

    let answer = h2_get(tls(&proxy, b"h2").await, "https://app.localhost/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.told("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(answer.told("host").as_deref(), Some("app.localhost"));

    let plain = TcpStream::connect(proxy.http).await.expect("connect");
    let answer = h2_get(plain, "http://app.localhost/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.told("x-forwarded-proto").as_deref(), Some("http"));
    let plain = TcpStream::connect(proxy.http).await.expect("connect");
    assert_eq!(h2_get(plain, "http://nobody.example/").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_goes_over_tls_and_the_certificate_stays_over_a_restart() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut io = tls(&proxy, b"http/1.1").await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n")
        .await
        .expect("write");
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    let file = proxy.directory.path().join("localhost.crt");
    let before = std::fs::read(&file).expect("read");
    let directory = proxy.stopped().await;
    let _proxy = Proxy::start_in(directory, |_| {}).await;
    assert_eq!(std::fs::read(&file).expect("read"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_goes_through_and_back() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let body: Bytes = (0..16 * 1024 * 1024u32)
        .map(|n| (n % 251) as u8)
        .collect::<Vec<_>>()
        .into();
    let mut client = Client::connect(proxy.http).await;
    let mut post = request(Method::POST, HOST, "/echo", &[]);
    *post.body_mut() = Full::new(body.clone());
    let answer = client.send(post).await.expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "the body came back as it went");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_and_slow_clients_are_fine() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut socket = TcpStream::connect(proxy.http).await.expect("connect");
    let request = b"POST /echo HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    for byte in request {
        socket.write_all(&[*byte]).await.expect("write");
        socket.flush().await.expect("flush");
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("abcdefg") || (answer.contains("abc") && answer.contains("defg")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_lengths_cannot_smuggle_another() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let answer = raw(
        proxy.http,
        b"POST /one HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /two HTTP/1.1\r\nHost: app.localhost\r\n\r\n",
    )
    .await;
    assert!(!answer.contains("/two"), "{answer}");
    assert!(backend.hits() <= 1);
    let answer = raw(
        proxy.http,
        b"POST /one HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 3\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcde",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_or_no_http_are_refused() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let large = format!(
        "GET / HTTP/1.1\r\nHost: app.localhost\r\nX-Large: {}\r\n\r\n",
        "x".repeat(70 * 1024)
    );
    let answer = raw(proxy.http, large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = raw(proxy.http, b"\x16\x03\x01 this is no HTTP\r\n\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    // Shorter than the preface of HTTP/2, which is looked for first.
    let answer = raw(proxy.http, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(backend.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_over_http2_is_refused_with_a_page() {
    let proxy = Proxy::start().await;
    let io = TokioIo::new(tls(&proxy, b"h2").await);
    let (mut sender, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::builder()
        .method("CONNECT")
        .uri("app.localhost:443")
        .body(Full::<Bytes>::default());
    let answer = sender.send_request(wanted.expect("request")).await;
    let (head, body) = answer.expect("an answer").into_parts();
    assert_eq!(head.status, 405);
    assert!(head.headers.contains_key("x-request-id"), "{head:?}");
    assert_eq!(head.headers.get("server"), None);
    let body = body.collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("no tunnels"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http2_connection_does_not_delay_a_stop() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let io = TokioIo::new(tls(&proxy, b"h2").await);
    let (mut sender, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::get("https://app.localhost/").body(Full::<Bytes>::default());
    let answer = sender.send_request(wanted.expect("request")).await;
    let body = answer.expect("an answer").into_body().collect().await;
    body.expect("a body");
    // Greeted over TLS, and then nothing.
    let _silent = tls(&proxy, b"h2").await;

    let begun = std::time::Instant::now();
    proxy.stopped().await;
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
}

/// Debian's curl loses an answer that comes before the end of its request's body.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_http2_reaches_a_client_that_sent_a_body() {
    let proxy = Proxy::start().await;
    let asked = tokio::process::Command::new("curl")
        .args(["-sSk", "--http2", "--max-time", "10", "-d", "hi"])
        .args(["-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
        .args(["--connect-to", &format!("::{}", proxy.https)])
        .arg("https://nobody.localhost/")
        .output();
    let output = asked.await.expect("curl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "2 404", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_says_of_its_connection_stays_between_it_and_the_proxy() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let answer = proxy.get("/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers.get("keep-alive"), None, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_announced_in_front_is_the_one_that_the_app_is_told_of() {
    let backend = Backend::start().await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let proxy = Proxy::start_in(directory.into(), |config| config.proxy_protocol = true).await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let announced = format!("PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n{request}");
    let answer = raw(proxy.http, announced.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains(r#"["x-forwarded-for","192.0.2.7"]"#),
        "{answer}"
    );
    assert_eq!(
        raw(proxy.http, request.as_bytes()).await,
        "",
        "nobody announced it"
    );
}
