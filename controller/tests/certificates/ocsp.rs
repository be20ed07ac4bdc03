//! OCSP, with OpenSSL's own responder.

use super::{codes, patch, put};
use crate::support::Controller;
use beanpole_protocol::Timestamp;
use beanpole_store::Store;
use beanpole_store::certificates::{CertificateRecord, OcspRecord};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, IsCa, KeyPair,
    SerialNumber,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The serial number of the certificates here, in hexadecimal.
const SERIAL: &str = "42";

/// An authority with a responder.
struct Authority {
    signer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// A responder on a port of its own, and where it says what it does.
struct Responder {
    child: Child,
    port: u16,
    _said: Lines<BufReader<ChildStdout>>,
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = key.serialize_pem();
        let signer = CertifiedIssuer::self_signed(parameters, key).expect("signed");
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("ca.key"), pem).expect("written");
        std::fs::write(directory.path().join("ca.pem"), signer.pem()).expect("written");
        Self { signer, directory }
    }

    /// What it says of the certificate: `V` (valid) or `R` (revoked), as OpenSSL keeps it.
    fn says(&self, state: &str) {
        let revoked = if state == "R" {
            "260101000000Z,keyCompromise"
        } else {
            ""
        };
        let line = format!("{state}\t491231235959Z\t{revoked}\t{SERIAL}\tunknown\t/CN=shop\n");
        std::fs::write(self.file("index.txt"), line).expect("written");
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn respond(&self) -> Responder {
        let mut child = Command::new("openssl")
            .args([
                "ocsp",
                "-port",
                "0",
                "-nmin",
                "60",
                "-index",
                "index.txt",
                "-CA",
                "ca.pem",
            ])
            .args(["-rsigner", "ca.pem", "-rkey", "ca.key"])
            .current_dir(self.directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let port = said.find_map(|line| {
            let line = line.expect("text");
            let address = line.strip_prefix("ACCEPT ")?.split(' ').next()?.to_owned();
            address.rsplit(':').next()?.parse().ok()
        });
        Responder {
            child,
            port: port.expect("it says where it listens"),
            _said: said,
        }
    }

    /// A certificate that names a responder on `port`, and its key.
    fn certificate(&self, port: u16) -> (String, String) {
        let names = vec!["shop.example.com".to_owned()];
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.serial_number = Some(SerialNumber::from_slice(&[0x42]));
        let url = format!("http://127.0.0.1:{port}/");
        let length = u8::try_from(url.len()).expect("it is short");
        let oid = [6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
        let head = [0x30, length + 14, 0x30, length + 12];
        let access = [&head[..], &oid, &[0x86, length], url.as_bytes()].concat();
        let access = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
        parameters.custom_extensions = vec![access];
        let key = KeyPair::generate().expect("a key");
        let made = parameters.signed_by(&key, &self.signer).expect("signed");
        (
            format!("{}{}", made.pem(), self.signer.pem()),
            key.serialize_pem(),
        )
    }
}

fn shop(controller: &Controller) -> Value {
    controller.get("/v1/certificates/shop").json()
}

fn until(controller: &Controller, is: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let view = shop(controller);
        if is(&view) {
            return view;
        }
        assert!(Instant::now() < end, "{view}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is kept, with the next attempt due at once.
fn due_at_once(data: &Path) -> OcspRecord {
    let store = Store::open(&data.join("controller/store")).expect("the records");
    let mut record: OcspRecord = store.list().expect("list").remove(0);
    let kept = record.clone();
    record.next_at = Timestamp::EPOCH;
    store.update(|tx| tx.put(&record)).expect("put");
    kept
}

#[test]
fn an_answer_is_got_kept_while_the_responder_is_away_and_a_revocation_is_told() {
    let authority = Authority::new();
    authority.says("V");
    let responder = authority.respond();
    let (chain, key) = authority.certificate(responder.port);
    let controller = Controller::start();
    let body = json!({"chain": chain, "key": key, "ocsp": true});
    let added = put(&controller, "shop", &body);
    assert_eq!(added.status, 201, "{added:?}");
    assert_eq!(added.json()["terms"]["ocsp"], true);
    let view = until(&controller, |view| view["ocsp"]["says"] == "good");
    assert_eq!(view["causes"], json!([]), "{view}");
    assert_eq!(view["ocsp"]["trouble"], Value::Null);

    drop(responder);
    let mut before = None;
    let controller = controller.restart_after(|data| before = Some(due_at_once(data)));
    let view = until(&controller, |view| view["causes"] != json!([]));
    assert_eq!(view["ocsp"]["says"], "good", "{view}");
    assert_eq!(view["status"], "Valid", "{view}");
    let why = view["ocsp"]["trouble"].as_str().expect("a reason");
    assert!(why.contains("cannot be connected to"), "{why}");
    let mut after = None;
    authority.says("R");
    let responder = authority.respond();
    let (chain, key) = authority.certificate(responder.port);
    let controller = controller.restart_after(|data| after = Some(due_at_once(data)));
    let answer = |record: Option<OcspRecord>| record.expect("a record").answer.expect("an answer");
    assert_eq!(answer(after), answer(before), "it is shown until it ends");

    let body = json!({"chain": chain, "key": key});
    assert_eq!(put(&controller, "shop", &body).status, 200);
    let view = until(&controller, |view| view["status"] == "Revoked");
    let why = view["causes"][0].as_str().expect("a reason");
    assert!(
        why.contains("keyCompromise") && why.contains("beanpole cert add shop"),
        "{why}"
    );
    assert_eq!(view["ocsp"]["says"], "revoked");
    let told = codes(&controller);
    assert!(told.contains(&"certificate-revoked".to_owned()), "{told:?}");

    let view = patch(&controller, "shop", &json!({"ocsp": false})).json();
    let told = (&view["status"], view.get("ocsp"));
    assert_eq!(told, (&json!("Revoked"), None), "it is not forgotten");
    let causes = view["causes"].to_string();
    assert!(causes.contains("cert set shop --ocsp"), "{causes}");
    let view = patch(&controller, "shop", &json!({"ocsp": true})).json();
    assert_eq!(view["ocsp"]["says"], "revoked");
}

#[test]
fn a_responder_that_says_nothing_keeps_no_other_waiting_and_is_being_asked_now() {
    let authority = Authority::new();
    authority.says("V");
    let responder = authority.respond();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("an address").port();
    let controller = Controller::start();
    let (chain, key) = authority.certificate(port);
    let body = json!({"chain": chain, "key": key, "ocsp": true});
    assert_eq!(put(&controller, "slow", &body).status, 201);
    let _held = silent.accept().expect("it is asked");
    let (chain, key) = authority.certificate(responder.port);
    let body = json!({"chain": chain, "key": key, "ocsp": true});
    assert_eq!(put(&controller, "shop", &body).status, 201);
    until(&controller, |view| view["ocsp"]["says"] == "good");
    let slow = controller.get("/v1/certificates/slow").json();
    assert_eq!(slow["ocsp"]["trouble"], Value::Null, "it is still asked");
    let next: Timestamp = serde_json::from_value(slow["ocsp"]["next_at"].clone()).expect("a time");
    assert!(next <= beanpole_daemon::clock::now(), "and not only later");
}

#[test]
fn where_nobody_can_be_asked_it_is_refused_or_told() {
    let controller = Controller::start();
    let (chain, key) = super::certificate(&["shop.example.com"], |_| {});
    let body = json!({"chain": chain, "key": key, "ocsp": true});
    put(&controller, "shop", &body).expect_problem(422, "ocsp-impossible");
    controller
        .get("/v1/certificates/shop")
        .expect_problem(404, "certificate-not-found");
    put(&controller, "shop", &json!({"chain": chain, "key": key}));
    patch(&controller, "shop", &json!({"ocsp": true})).expect_problem(422, "ocsp-impossible");
    assert_eq!(shop(&controller)["terms"].get("ocsp"), None);

    controller.post("/v1/authority", &json!({"domains": ["home.example"]}));
    let wanted = json!({"name": "web", "hosts": ["web.home.example"], "ocsp": true});
    let wanted = controller.post("/v1/certificates", &wanted);
    wanted.expect_problem(422, "ocsp-impossible");

    // In the place of one that had a responder, as an authority that gave it up would sign it.
    let authority = Authority::new();
    let (chain, key) = authority.certificate(1);
    let body = json!({"chain": chain, "key": key, "ocsp": true});
    assert_eq!(put(&controller, "shop", &body).status, 200);
    let (chain, key) = super::certificate(&["shop.example.com"], |_| {});
    assert_eq!(
        put(&controller, "shop", &json!({"chain": chain, "key": key})).status,
        200
    );
    let view = until(&controller, |view| {
        let cause = view["causes"][0].as_str().unwrap_or_default();
        cause.contains("names no OCSP responder") && cause.contains("--no-ocsp")
    });
    assert_eq!(view["status"], "Valid");
}

#[test]
fn one_that_demands_an_answer_says_so_where_it_has_none() {
    let controller = Controller::start();
    let (chain, key) = super::certificate(&["shop.example.com"], |one| {
        let feature = [1, 3, 6, 1, 5, 5, 7, 1, 24];
        let feature = CustomExtension::from_oid_content(&feature, vec![0x30, 3, 2, 1, 5]);
        one.custom_extensions = vec![feature];
    });
    let view = put(&controller, "shop", &json!({"chain": chain, "key": key})).json();
    let cause = view["causes"][0].as_str().expect("a cause");
    assert!(
        cause.contains("must-staple") && cause.contains("--ocsp"),
        "{cause}"
    );
}

#[test]
fn records_of_before_are_read() {
    let record = json!({"name": "shop", "fingerprint": "0".repeat(64)});
    let record: OcspRecord = serde_json::from_value(record).expect("read");
    assert_eq!(record.next_at, Timestamp::EPOCH);
    let key = CertificateRecord::key_of(&record.name);
    assert!(!key.is_empty());
}
