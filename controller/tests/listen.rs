//! Where the API may listen.

use beanpole_controller::{ControllerConfig, ControllerError, Tls, run};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

fn on(address: &str, dir: &tempfile::TempDir) -> ControllerConfig {
    ControllerConfig::new(dir.path(), address.parse().expect("an address"))
}

#[tokio::test]
async fn beyond_this_machine_it_needs_tls_or_an_explicit_word() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7700"] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = run(on(address, &dir), CancellationToken::new())
            .await
            .expect_err("refused");
        assert!(
            matches!(error, ControllerError::OpenToNetwork { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("--insecure"), "{error}");
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("list").count(),
            0,
            "nothing was touched"
        );
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    for address in ["127.0.0.1:0", "[::1]:7700"] {
        on(address, &dir).check_listening().expect("loopback");
    }
    let mut config = on("0.0.0.0:0", &dir);
    config.insecure = true;
    config.check_listening().expect("it was told so");
}

#[tokio::test]
async fn with_a_certificate_of_its_own_it_speaks_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut config = on("0.0.0.0:0", &dir);
    config.tls = Tls::SelfSigned;
    let (listening, address) = oneshot::channel();
    config.listening = Some(listening);
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(config, stop.clone()));
    let address = tokio::time::timeout(Duration::from_secs(30), address)
        .await
        .expect("in time")
        .expect("it listens");

    use rustls_pki_types::pem::PemObject;
    let cert = dir.path().join("controller/api-cert.pem");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls_pki_types::CertificateDer::from_pem_file(cert).expect("PEM"))
        .expect("a root");
    let client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", address.port()))
        .await
        .expect("connect");
    let name = "localhost".try_into().expect("a name");
    let mut tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client))
        .connect(name, tcp)
        .await
        .expect("handshake");
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    tls.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await
        .expect("send");
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200 OK"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stop.cancel();
    running.await.expect("no panic").expect("it stops well");
}
