//! SSH against the real OpenSSH server.

mod common;

use beanpole_daemon::http::Connection;
use beanpole_fleet::chain;
use beanpole_fleet::ssh::{self, Credential, HostKey, KeyError, Options, SshError};
use beanpole_protocol::agent::HostReport;
use common::{FakeAgent, PATIENCE, Sshd, keygen, sshd_available};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn a_probe_shows_the_fingerprint_that_ssh_keygen_prints() {
    if !sshd_available() {
        return;
    }
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let sshd = Sshd::start(kind);
        let key = ssh::probe(&sshd.address(), None, &Options::default())
            .await
            .expect("probe");
        assert_eq!(key.fingerprint, sshd.host_key_fingerprint());
        let algorithm = key.algorithm.expect("algorithm");
        assert!(algorithm.contains(kind), "{algorithm}");
    }
}

#[tokio::test]
async fn a_changed_key_is_refused_with_both_fingerprints() {
    if !sshd_available() {
        return;
    }
    let mut sshd = Sshd::start("ed25519");
    let target = sshd.target();
    ssh::connect(&target, &Options::default())
        .await
        .expect("the pinned key");
    sshd.change_host_key();
    let error = ssh::connect(&target, &Options::default())
        .await
        .expect_err("another key");
    let (pinned, shown) = error.changed_key().expect("changed");
    assert_eq!(*pinned, target.host_key);
    assert_eq!(shown.fingerprint, sshd.host_key_fingerprint());
    let text = error.to_string();
    assert!(
        text.contains(&pinned.fingerprint) && text.contains(&shown.fingerprint),
        "{text}"
    );
    assert!(error.is_permanent());
}

#[tokio::test]
async fn a_pinned_key_of_a_less_preferred_kind_is_found() {
    if !sshd_available() {
        return;
    }
    // The server has two keys; the RSA one is pinned, by its fingerprint alone and with its name.
    let mut sshd = Sshd::start("ed25519");
    keygen(&sshd.directory.path().join("other_key"), "rsa", "");
    sshd.add_host_key("other_key");
    let fingerprint = common::fingerprint(&sshd.directory.path().join("other_key.pub"));
    for algorithm in [None, Some("ssh-rsa".to_owned())] {
        let mut target = sshd.target();
        target.host_key = HostKey {
            algorithm,
            fingerprint: fingerprint.clone(),
        };
        let session = ssh::connect(&target, &Options::default())
            .await
            .expect("connect");
        assert_eq!(session.host_key().fingerprint, fingerprint);
        assert!(session.host_key().algorithm.is_some());
    }
}

#[tokio::test]
async fn identities_of_all_kinds_get_in_with_their_passphrase() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    for (kind, passphrase) in [
        ("ed25519", ""),
        ("ed25519", "open sesame"),
        ("rsa", ""),
        ("ecdsa", ""),
    ] {
        let path = sshd
            .directory
            .path()
            .join(format!("id_{kind}_{}", passphrase.len()));
        keygen(&path, kind, passphrase);
        let public = std::fs::read_to_string(path.with_file_name(format!(
            "{}.pub",
            path.file_name().expect("name").to_string_lossy()
        )))
        .expect("public key");
        sshd.authorize(&public);
        let text = std::fs::read_to_string(&path).expect("private key");
        if !passphrase.is_empty() {
            let error = Credential::identity(&text, None).expect_err("encrypted");
            assert!(matches!(error, KeyError::NeedsPassphrase), "{error:?}");
            let error = Credential::identity(&text, Some("wrong")).expect_err("wrong");
            assert!(matches!(error, KeyError::WrongPassphrase), "{error:?}");
        }
        let passphrase = Some(passphrase).filter(|p| !p.is_empty());
        let credential = Credential::identity(&text, passphrase).expect("decode");
        ssh::connect(&sshd.target_with(credential), &Options::default())
            .await
            .unwrap_or_else(|error| panic!("{kind}: {}", chain(&error)));
    }
}

#[tokio::test]
async fn a_stranger_is_denied() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let path = sshd.directory.path().join("stranger");
    keygen(&path, "ed25519", "");
    let text = std::fs::read_to_string(&path).expect("private key");
    let credential = Credential::identity(&text, None).expect("decode");
    let error = ssh::connect(&sshd.target_with(credential), &Options::default())
        .await
        .expect_err("denied");
    assert!(matches!(error, SshError::Denied { .. }), "{error:?}");
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_keys_of_an_ssh_agent_get_in() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let root = sshd.directory.path();
    let socket = root.join("ssh-agent.sock");
    let _agent = Agent(
        Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("ssh-agent runs"),
    );
    common::eventually("ssh-agent listens", || socket.exists()).await;
    for (name, kind) in [("first", "ed25519"), ("second", "rsa")] {
        keygen(&root.join(name), kind, "");
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(root.join(name))
            .env("SSH_AUTH_SOCK", &socket)
            .status()
            .expect("ssh-add runs");
        assert!(added.success());
    }
    // Only the second is let in.
    sshd.authorize(&std::fs::read_to_string(root.join("second.pub")).expect("public key"));
    ssh::connect(
        &sshd.target_with(Credential::Agent(socket)),
        &Options::default(),
    )
    .await
    .expect("connect");

    let error = ssh::connect(
        &sshd.target_with(Credential::Agent(root.join("nothing"))),
        &Options::default(),
    )
    .await
    .expect_err("no agent");
    assert!(matches!(error, SshError::Agent { .. }), "{error:?}");
}

async fn ask_report(session: &ssh::Session, agent: &FakeAgent) -> HostReport {
    let socket = agent.socket.display().to_string();
    let stream = session.open_socket(&socket).await.expect("channel");
    let mut connection = Connection::open(stream).await.expect("handshake");
    connection
        .get("/v1/report", PATIENCE)
        .await
        .expect("report")
}

#[tokio::test]
async fn calls_go_over_a_forwarded_unix_socket_without_nagle() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let session = ssh::connect(&sshd.target(), &Options::default())
        .await
        .expect("connect");
    let socket = agent.socket.display().to_string();
    let stream = session.open_socket(&socket).await.expect("channel");
    let mut connection = Connection::open(stream).await.expect("handshake");
    let start = tokio::time::Instant::now();
    for _ in 0..50 {
        let _: HostReport = connection
            .get("/v1/report", PATIENCE)
            .await
            .expect("report");
    }
    let each = start.elapsed() / 50;
    // With Nagle's algorithm each takes 40 ms.
    assert!(each < Duration::from_millis(30), "{each:?}");

    let error = session
        .open_socket("/nonexistent/agent.sock")
        .await
        .err()
        .expect("no such socket");
    assert!(matches!(error, SshError::NobodyListens { .. }), "{error:?}");
    assert!(!session.is_closed());
}

#[tokio::test]
async fn a_bastion_is_gone_through_with_its_own_pinned_key() {
    if !sshd_available() {
        return;
    }
    let bastion = Sshd::start("ed25519");
    let sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let mut target = sshd.target();
    target.jump = Some(Arc::new(bastion.target()));
    let session = ssh::connect(&target, &Options::default())
        .await
        .expect("connect");
    assert_eq!(ask_report(&session, &agent).await.agent_version, "0.1.0");

    let key = ssh::probe(
        &sshd.address(),
        Some(&bastion.target()),
        &Options::default(),
    )
    .await
    .expect("probe through the bastion");
    assert_eq!(key.fingerprint, sshd.host_key_fingerprint());

    let mut wrong = bastion.target();
    wrong.host_key = HostKey::pinned(sshd.host_key_fingerprint());
    target.jump = Some(Arc::new(wrong));
    let error = ssh::connect(&target, &Options::default())
        .await
        .expect_err("the bastion's key is another");
    assert!(matches!(error, SshError::Jump { .. }), "{error:?}");
    // It is the bastion's key that changed, not the host's.
    assert!(error.changed_key().is_none() && error.is_permanent());
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed() {
    if !sshd_available() {
        return;
    }
    assert_eq!(
        Options::default().keepalive_interval,
        Duration::from_secs(10)
    );
    assert_eq!(Options::default().keepalive_max, 3);
    let sshd = Sshd::start("ed25519");
    let options = Options {
        keepalive_interval: Duration::from_millis(200),
        ..Options::default()
    };
    let session = ssh::connect(&sshd.target(), &options)
        .await
        .expect("connect");
    sshd.freeze_sessions();
    common::eventually("the silence is noticed", || session.is_closed()).await;
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_given_up_in_time() {
    // A listener whose queue is full, or that says nothing: no banner ever comes.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = beanpole_protocol::api::SshAddress {
        user: "root".to_owned(),
        address: "127.0.0.1".to_owned(),
        port: listener.local_addr().expect("address").port(),
    };
    let options = Options {
        connect_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let error = ssh::probe(&address, None, &options)
        .await
        .expect_err("silence");
    assert!(matches!(error, SshError::TimedOut { .. }), "{error:?}");
    drop(listener);
    let error = ssh::probe(&address, None, &options)
        .await
        .expect_err("refused");
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
}
