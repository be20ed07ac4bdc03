//! Certificates through the JSON API of a real controller. What load balancers make of them is tested with
//! these.

mod ocsp;

use crate::support::{Controller, Reply};
use beanpole_store::Store;
use beanpole_store::certificates::CertificateRecord;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

/// A certificate for `names` and its key, signed by itself.
fn certificate(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::new(names).expect("names");
    change(&mut parameters);
    let made = parameters.self_signed(&key).expect("signed");
    (made.pem(), key.serialize_pem())
}

fn put(controller: &Controller, name: &str, body: &Value) -> Reply {
    let body = serde_json::to_vec(body).expect("JSON");
    controller.call("PUT", &format!("/v1/certificates/{name}"), &[], &body)
}

fn patch(controller: &Controller, name: &str, body: &Value) -> Reply {
    let body = serde_json::to_vec(body).expect("JSON");
    controller.call("PATCH", &format!("/v1/certificates/{name}"), &[], &body)
}

fn codes(controller: &Controller) -> Vec<String> {
    let events = controller.get("/v1/events?limit=1000").json();
    let items = events["items"].as_array().expect("events");
    items
        .iter()
        .filter_map(|event| event["code"].as_str())
        .filter(|code| code.starts_with("certificate"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_certificate_is_added_replaced_and_removed() {
    let controller = Controller::start();
    let (chain, key) = certificate(&["shop.example.com", "*.shop.example.com"], |_| {});
    let added = put(&controller, "shop", &json!({"chain": chain, "key": key}));
    assert_eq!(added.status, 201, "{added:?}");
    let view = added.json();
    assert_eq!(
        view["hosts"],
        json!(["*.shop.example.com", "shop.example.com"])
    );
    assert_eq!(view["status"], "Valid");
    assert_eq!(view["origin"], "given");
    assert_eq!(view["in_force"], false, "there is no load balancer");
    assert!(!added.json().to_string().contains("PRIVATE KEY"));

    let (chain, key) = certificate(&["shop.example.com"], |_| {});
    put(&controller, "shop", &json!({"chain": chain, "key": key}))
        .expect_problem(409, "names-lost");
    let meant = json!({"chain": chain, "key": key, "drop_names": true});
    let replaced = put(&controller, "shop", &meant);
    assert_eq!(replaced.status, 200);
    assert_eq!(replaced.json()["added_at"], view["added_at"]);
    assert_ne!(replaced.json()["fingerprint"], view["fingerprint"]);
    let list = controller.get("/v1/certificates").json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0].get("chain"), None);
    let one = controller.get("/v1/certificates/shop").json();
    assert_eq!(one["chain"], chain);

    let gone = controller.call("DELETE", "/v1/certificates/shop", &[], b"");
    assert_eq!(gone.status, 204);
    controller
        .get("/v1/certificates/shop")
        .expect_problem(404, "certificate-not-found");
    controller
        .call("DELETE", "/v1/certificates/shop", &[], b"")
        .expect_problem(404, "certificate-not-found");
    assert_eq!(
        codes(&controller),
        [
            "certificate-added",
            "certificate-replaced",
            "certificate-removed"
        ]
    );
}

#[test]
fn what_cannot_be_used_is_refused_and_changes_nothing() {
    let controller = Controller::start();
    let (chain, key) = certificate(&["shop.example.com"], |_| {});
    let (_, other) = certificate(&["shop.example.com"], |_| {});
    put(&controller, "shop", &json!({"chain": chain, "key": key}));
    let before = controller.get("/v1/certificates/shop").json();
    let (old, old_key) = certificate(&["shop.example.com"], |one| {
        one.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for (chain, key, code) in [
        (&chain, &other, "private-key-does-not-match"),
        (&chain, &encrypted, "private-key-encrypted"),
        (&key, &key, "no-certificate"),
        (&old, &old_key, "certificate-expired"),
    ] {
        let refused = put(&controller, "shop", &json!({"chain": chain, "key": key}));
        refused.expect_problem(422, code);
        assert!(refused.json()["hint"].is_string(), "{code}");
        assert!(
            !refused.json().to_string().contains("PRIVATE KEY-----\n"),
            "{code}"
        );
    }
    put(&controller, "-shop", &json!({"chain": chain, "key": key}))
        .expect_problem(400, "invalid-path");
    put(&controller, "shop", &json!({"chain": chain, "key": 5}))
        .expect_problem(400, "invalid-body");
    assert_eq!(controller.get("/v1/certificates/shop").json(), before);
}

#[test]
fn how_it_is_shown_can_be_changed_and_one_alone_is_for_all_other_names() {
    let controller = Controller::start();
    for name in ["shop", "web"] {
        let (chain, key) = certificate(&["shop.example.com"], |_| {});
        put(&controller, name, &json!({"chain": chain, "key": key}));
        assert_eq!(
            patch(&controller, name, &json!({"fallback": true})).status,
            200
        );
    }
    assert_eq!(
        controller.get("/v1/certificates/shop").json()["fallback"],
        false
    );
    let (authority, _) = certificate(&["ca.example.com"], |_| {});
    let body = json!({"min_tls": "1.3", "hsts": {"max_age_s": 86400, "subdomains": true},
        "client_authorities": authority});
    let view = patch(&controller, "web", &body).json();
    assert_eq!(view["terms"]["min_tls"], "1.3");
    assert_eq!(view["terms"]["hsts"]["max_age_s"], 86400);
    assert_eq!(view["fallback"], true, "what is not named stays");
    let view = patch(
        &controller,
        "web",
        &json!({"no_hsts": true, "no_client_authorities": true}),
    );
    assert_eq!(view.json()["terms"], json!({"min_tls": "1.3"}));
    // A certificate in its place is shown in the same way.
    let (chain, key) = certificate(&["shop.example.com"], |_| {});
    let view = put(&controller, "web", &json!({"chain": chain, "key": key})).json();
    assert_eq!(view["terms"], json!({"min_tls": "1.3"}));

    for (body, status, code) in [
        (
            json!({"hsts": {"max_age_s": 1}, "no_hsts": true}),
            400,
            "contradiction",
        ),
        (
            json!({"hsts": {"max_age_s": 999_999_999}}),
            400,
            "hsts-too-long",
        ),
        (
            json!({"client_authorities": "x"}),
            422,
            "client-authorities-unusable",
        ),
        (json!({"min_tls": "1.1"}), 400, "invalid-body"),
    ] {
        patch(&controller, "web", &body).expect_problem(status, code);
    }
    patch(&controller, "none", &json!({"fallback": true}))
        .expect_problem(404, "certificate-not-found");
}

#[test]
fn keys_are_on_disk_sealed_alone_and_a_restore_needs_what_opens_them() {
    let controller = Controller::start();
    let (chain, key) = certificate(&["shop.example.com"], |_| {});
    put(&controller, "shop", &json!({"chain": chain, "key": key}));
    let body: Vec<&str> = key.lines().filter(|line| !line.contains("---")).collect();
    let backup = controller.call("POST", "/v1/backup", &[], b"");
    let backup = String::from_utf8_lossy(&backup.body).into_owned();
    assert!(backup.contains("shop.example.com"));
    for line in &body {
        assert!(
            !backup.contains(line),
            "the backup holds the key in the open"
        );
    }

    // The records without their key, as after a restore elsewhere.
    let mut kept = Vec::new();
    let controller = controller.restart_after(|data| {
        let sealing = data.join("sealing-key");
        let mode = std::fs::metadata(&sealing)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let store = Store::open(&data.join("controller/store")).expect("the records");
        let records: Vec<CertificateRecord> = store.list().expect("list");
        assert!(records[0].key.starts_with("v1:"), "{}", records[0].key);
        kept = std::fs::read(&sealing).expect("the key");
        std::fs::remove_file(&sealing).expect("lost");
    });
    let view = controller.get("/v1/certificates/shop").json();
    assert_eq!(view["status"], "Unreadable");
    assert!(
        view["causes"][0]
            .as_str()
            .is_some_and(|cause| cause.contains("sealing-key"))
    );
    assert_eq!(controller.get("/v1/certificates").status, 200);
    let controller = controller.restart_after(|data| {
        std::fs::write(data.join("sealing-key"), kept).expect("copied");
    });
    assert_eq!(
        controller.get("/v1/certificates/shop").json()["status"],
        "Valid"
    );
}

#[test]
fn an_end_that_is_near_is_told_in_time_and_once() {
    let controller = Controller::start();
    let now = std::time::SystemTime::now();
    let at =
        |days: u64| time::OffsetDateTime::from(now + std::time::Duration::from_secs(days * 86_400));
    let (chain, key) = certificate(&["shop.example.com"], |one| {
        one.not_before = at(0) - time::Duration::days(300);
        one.not_after = at(20);
    });
    put(&controller, "shop", &json!({"chain": chain, "key": key}));
    let view = controller.get("/v1/certificates/shop").json();
    assert_eq!(view["status"], "Expiring");
    assert!(
        view["causes"][0]
            .as_str()
            .is_some_and(|cause| cause.contains("in 19 days")),
        "{view}"
    );
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !codes(&controller).contains(&"certificate-expiring".to_owned()) {
        assert!(std::time::Instant::now() < end, "it is told");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let told = codes(&controller);
    assert_eq!(told, ["certificate-added", "certificate-expiring"]);
}

#[test]
fn the_controllers_own_authority_signs_for_its_domains_and_renews_by_itself() {
    let controller = Controller::start();
    controller
        .get("/v1/authority")
        .expect_problem(404, "authority-not-found");
    for (domain, code) in [("ho me", "invalid-domain"), ("com", "authority-too-wide")] {
        controller
            .post("/v1/authority", &json!({"domains": [domain]}))
            .expect_problem(400, code);
    }
    let made = controller.post(
        "/v1/authority",
        &json!({"domains": ["home.example"], "name": "of a test"}),
    );
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["subject"], "Beanpole of a test");
    assert!(!made.json().to_string().contains("PRIVATE KEY"));
    controller
        .post("/v1/authority", &json!({}))
        .expect_problem(409, "authority-exists");

    let issued = controller.post(
        "/v1/authority/certificates",
        &json!({"hosts": ["nas.home.example", "192.168.1.5"], "days": 30}),
    );
    assert_eq!(issued.status, 201, "{issued:?}");
    assert!(
        issued.json()["key"]
            .as_str()
            .is_some_and(|key| key.contains("PRIVATE KEY"))
    );
    for (hosts, days, code) in [
        (json!(["example.com"]), 30, "host-not-allowed"),
        (json!(["8.8.8.8"]), 30, "host-not-allowed"),
        (json!([]), 30, "invalid-host"),
        (json!(["a b"]), 30, "invalid-host"),
        (json!(["nas.home.example"]), 826, "invalid-lifetime"),
    ] {
        let body = json!({"hosts": hosts, "days": days});
        controller
            .post("/v1/authority/certificates", &body)
            .expect_problem(400, code);
    }

    let body = json!({"name": "web", "hosts": ["web.home.example"]});
    assert_eq!(controller.post("/v1/certificates", &body).status, 202);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    // When it is renewed is noted once it is there.
    let first = loop {
        let seen = controller.get("/v1/certificates/web").json();
        if seen["status"] == "Valid" && seen["renews_at"].is_string() {
            break seen;
        }
        assert!(std::time::Instant::now() < end, "it is signed: {seen}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(first["origin"], "ca");
    assert_eq!(
        controller
            .post("/v1/certificates/web/renew", &json!({}))
            .status,
        202
    );
    while controller.get("/v1/certificates/web").json()["fingerprint"] == first["fingerprint"] {
        assert!(std::time::Instant::now() < end, "it is renewed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (chain, key) = certificate(&["web.home.example"], |_| {});
    put(&controller, "web", &json!({"chain": chain, "key": key}))
        .expect_problem(409, "certificate-kept-by-itself");
}

#[test]
fn another_authority_signs_anew_and_one_that_nobody_needs_is_forgotten() {
    let controller = Controller::start();
    let remove = || controller.call("DELETE", "/v1/authority", &[], b"");
    remove().expect_problem(404, "authority-not-found");
    let body = json!({"domains": ["home.example"]});
    let first = controller.post("/v1/authority", &body).json();
    let wanted = json!({"name": "web", "hosts": ["web.home.example"]});
    assert_eq!(controller.post("/v1/certificates", &wanted).status, 202);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let web = || controller.get("/v1/certificates/web").json();
    while web()["status"] != "Valid" {
        assert!(std::time::Instant::now() < end, "it is signed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let signed = web();
    remove().expect_problem(409, "authority-in-use");
    let body = json!({"domains": ["home.example"], "replace": true});
    let second = controller.post("/v1/authority", &body);
    assert_eq!(second.status, 201, "{second:?}");
    assert_ne!(second.json()["fingerprint"], first["fingerprint"]);
    while web()["fingerprint"] == signed["fingerprint"] {
        assert!(std::time::Instant::now() < end, "it is signed anew");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let gone = controller.call("DELETE", "/v1/certificates/web", &[], b"");
    assert_eq!(gone.status, 204);
    assert_eq!(remove().status, 204);
    controller
        .get("/v1/authority")
        .expect_problem(404, "authority-not-found");
}

/// A network environment is created that takes connections at a port, and TLS ends there, or passes (`TCP`).
fn network(controller: &Controller, name: &str, port: u16, protocol: &str) {
    let listener = format!("aws:elbv2:listener:{port}");
    let settings = json!({
        "aws:elasticbeanstalk:environment": {"LoadBalancerType": "network"},
        listener: {"Protocol": protocol},
    });
    let body = json!({"application": "shop", "name": name, "settings": settings});
    let created = controller.post("/v1/environments", &body);
    assert_eq!(created.status, 202, "{created:?}");
    controller.until_ready(name);
}

#[test]
fn hostnames_of_network_environments_get_certificates_where_tls_ends() {
    let controller = Controller::start();
    controller.application("shop");
    network(&controller, "shop-mqtt", 8883, "TLS");
    network(&controller, "shop-db", 5432, "TCP");
    let body = json!({"domains": ["localhost"], "automatic": true});
    assert_eq!(controller.post("/v1/authority", &body).status, 201);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let signed = || controller.get("/v1/certificates/ca-shop-mqtt.localhost");
    while signed().status != 200 {
        assert!(std::time::Instant::now() < end, "it is signed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let view = signed().json();
    assert_eq!(view["hosts"], json!(["shop-mqtt.localhost"]));
    assert_eq!(view["used_by"], json!(["shop-mqtt"]));
    // All are signed in one go: the other would be here by now.
    controller
        .get("/v1/certificates/ca-shop-db.localhost")
        .expect_problem(404, "certificate-not-found");

    let (chain, key) = certificate(&["*.localhost"], |_| {});
    let given = put(&controller, "all", &json!({"chain": chain, "key": key}));
    assert_eq!(given.status, 201, "{given:?}");
    // What was given takes the place of what was signed for the same, and of nothing that passes.
    while signed().status != 404 {
        assert!(std::time::Instant::now() < end, "it is needed no more");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let used_by = &controller.get("/v1/certificates/all").json()["used_by"];
    assert_eq!(*used_by, json!(["shop-mqtt"]));
}

#[test]
fn what_no_authority_could_sign_is_refused_before_any_is_asked() {
    let controller = Controller::start();
    for (body, status, code) in [
        (
            json!({"name": "a", "hosts": ["a.example"]}),
            404,
            "authority-not-found",
        ),
        (
            json!({"name": "a", "hosts": ["a.example"], "account": "none"}),
            404,
            "account-not-found",
        ),
    ] {
        controller
            .post("/v1/certificates", &body)
            .expect_problem(status, code);
    }
    // Nobody listens there: the account is not made, and its key is kept for the next try.
    let account =
        json!({"name": "home", "directory": "https://127.0.0.1:1/dir", "agree_terms": true});
    controller
        .post("/v1/acme-accounts", &account)
        .expect_problem(502, "authority-refuses");
    for (change, code) in [
        (json!({"agree_terms": false}), "terms-not-agreed"),
        (json!({"email": "bad mail"}), "invalid-email"),
        (json!({"email": "nobody"}), "invalid-email"),
        (
            json!({"directory": "http://127.0.0.1:1/dir"}),
            "invalid-directory",
        ),
    ] {
        let mut body = account.clone();
        let fields = body.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        controller
            .post("/v1/acme-accounts", &body)
            .expect_problem(400, code);
    }
    for (change, code) in [
        (json!({"hosts": ["*.a.example"]}), "invalid-host"),
        (json!({"hosts": ["localhost"]}), "invalid-host"),
        (json!({"hosts": ["127.0.0.1"]}), "invalid-host"),
        (json!({"hosts": []}), "invalid-host"),
        (json!({"proof": "dns-01"}), "hook-missing"),
        (
            json!({"proof": "dns-01", "hook": "../../bin/sh"}),
            "hook-not-found",
        ),
        (json!({"proof": "dns-01", "hook": "none"}), "hook-not-found"),
        (json!({"hook": "none"}), "hook-unused"),
        (json!({"dns_wait_s": 3601}), "invalid-wait"),
        (json!({"proof": "dns-02"}), "invalid-body"),
    ] {
        let mut body = json!({"name": "a", "hosts": ["a.example"], "account": "home"});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        controller
            .post("/v1/certificates", &body)
            .expect_problem(400, code);
    }
    controller
        .post("/v1/certificates/a/renew", &json!({}))
        .expect_problem(404, "certificate-not-found");
    // It counts as an attempt, and is tried again within it, since nobody was reached.
    let body = json!({"name": "a", "hosts": ["a.example"], "account": "home"});
    assert_eq!(controller.post("/v1/certificates", &body).status, 202);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while controller.get("/v1/certificates/a").json()["causes"] == json!([]) {
        assert!(std::time::Instant::now() < end, "it says why");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let view = controller.get("/v1/certificates/a").json();
    assert_eq!(view["status"], "Pending", "{view}");
    controller
        .call("DELETE", "/v1/acme-accounts/home", &[], b"")
        .expect_problem(409, "account-in-use");
    assert_eq!(
        controller
            .call("DELETE", "/v1/certificates/a", &[], b"")
            .status,
        204
    );
    assert_eq!(
        controller
            .call("DELETE", "/v1/acme-accounts/home", &[], b"")
            .status,
        204
    );
}
