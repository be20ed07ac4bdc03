//! Certificates, the controller's own authority, and accounts with others.

use crate::beanpole;
use crate::script::{Script, problem};
use serde_json::{Value, json};

fn certificate(name: &str, status: &str) -> Value {
    json!({"name": name, "origin": "given", "status": status, "causes": [],
        "hosts": ["*.shop.example", "shop.example"], "issuer": "Some CA R1", "serial": "04d2",
        "fingerprint": "a".repeat(64), "not_before": "2026-01-01T00:00:00.000Z",
        "not_after": "2199-01-01T00:00:00.000Z", "renews_at": null, "in_force": true, "fallback": false,
        "terms": {"min_tls": "1.3", "hsts": {"max_age_s": 86400, "subdomains": true}},
        "used_by": ["shop-prod"], "added_at": "2026-01-02T03:04:05.678Z"})
}

#[test]
fn certificates_are_listed_with_who_uses_them_and_what_is_odd() {
    let script = Script::start(|_, _| {
        let mut old = certificate("old", "Expired");
        old["not_after"] = json!("2026-01-03T00:00:00.000Z");
        old["causes"] = json!(["It expired on 2026-01-03."]);
        old["used_by"] = json!([]);
        (200, json!({"items": [certificate("shop", "Valid"), old]}))
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["cert", "list"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    for said in [
        "NAME  HOSTS                        ISSUER      EXPIRES",
        "shop  *.shop.example,shop.example  Some CA R1  in ",
        "  Valid    shop-prod",
        "  Expired  -",
        "old: It expired on 2026-01-03.",
    ] {
        assert!(ran.out.contains(said), "{said}\n{}", ran.all());
    }
    let ran = beanpole(directory.path(), &script.url(), &["cert", "list", "--json"]);
    let listed: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(listed[0]["name"], "shop");
}

#[test]
fn a_certificate_goes_as_its_files_say_and_a_refusal_is_told_with_what_to_do() {
    let script = Script::start(|request, _| match request.method.as_str() {
        "PUT" if request.body.windows(5).any(|part| part == b"WRONG") => {
            let mut wrong = problem(
                422,
                "private-key-does-not-match",
                "The private key does not belong to it.",
            );
            wrong.1["hint"] = json!("Compare both");
            wrong
        }
        "PUT" => (201, certificate("shop", "Valid")),
        "PATCH" => (200, certificate("shop", "Valid")),
        "GET" => (200, certificate("shop", "Valid")),
        _ => (204, Value::Null),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("c.pem"), "CHAIN").expect("write");
    std::fs::write(directory.path().join("k.pem"), "KEY").expect("write");
    std::fs::write(directory.path().join("w.pem"), "WRONG").expect("write");
    let run = |arguments: &[&str]| beanpole(directory.path(), &script.url(), arguments);
    let ran = run(&["cert", "add", "shop", "--cert", "c.pem", "--key", "k.pem"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.out
            .starts_with("Certificate shop is in place: for *.shop.example, shop.example")
    );
    let sent: Value = serde_json::from_slice(&script.requests()[0].body).expect("JSON");
    assert_eq!(
        sent,
        json!({"chain": "CHAIN", "key": "KEY", "incomplete_chain": false, "drop_names": false})
    );

    let ran = run(&[
        "cert",
        "add",
        "shop",
        "--cert",
        "/dev/zero",
        "--key",
        "k.pem",
    ]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(ran.err.contains("larger than 1024 KiB"), "{}", ran.all());

    let ran = run(&["cert", "add", "shop", "--cert", "c.pem", "--key", "w.pem"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(
        ran.err.contains("does not belong") && ran.err.contains("hint: Compare both"),
        "{}",
        ran.all()
    );
    let ran = run(&[
        "cert", "add", "shop", "--cert", "none.pem", "--key", "k.pem",
    ]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(
        ran.err.contains("--cert: cannot read none.pem"),
        "{}",
        ran.all()
    );

    let ran = run(&[
        "cert",
        "set",
        "shop",
        "--hsts",
        "365",
        "--hsts-subdomains",
        "--min-tls",
        "1.3",
        "--default",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let sent = script.requests();
    let sent: Value = serde_json::from_slice(&sent.last().expect("a call").body).expect("JSON");
    assert_eq!(
        sent["hsts"],
        json!({"max_age_s": 31_536_000, "subdomains": true})
    );
    assert_eq!(
        (&sent["min_tls"], &sent["fallback"]),
        (&json!("1.3"), &json!(true))
    );
    let ran = run(&["cert", "set", "shop", "--min-tls", "1.1"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    let ran = run(&["cert", "set", "shop"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(ran.err.contains("--min-tls"), "{}", ran.all());

    let ran = run(&["cert", "remove", "shop"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(
        ran.err.contains("shop-prod would be without it"),
        "{}",
        ran.all()
    );
    let ran = run(&["cert", "remove", "shop", "--yes"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "Certificate shop is removed.\n")
    );
}

#[test]
fn one_that_is_ordered_is_waited_for_and_a_failure_says_why() {
    let script = Script::start(|request, before| {
        let mut pending = certificate("shop", "Pending");
        pending["fingerprint"] = Value::Null;
        pending["in_force"] = json!(false);
        match request.path.as_str() {
            "/v1/certificates" => {
                let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
                assert_eq!(sent["proof"], "dns-01");
                assert_eq!(sent["hook"], "dns");
                (202, pending)
            }
            "/v1/certificates/bad/renew" => {
                pending["name"] = json!("bad");
                (202, pending)
            }
            "/v1/certificates/bad" => {
                pending["name"] = json!("bad");
                pending["causes"] = json!(["Nothing answers. Open port 80."]);
                pending["renews_at"] = json!("2199-01-01T00:00:00.000Z");
                (200, pending)
            }
            _ if before.len() < 3 => (200, pending),
            _ => (200, certificate("shop", "Valid")),
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let run = |arguments: &[&str]| beanpole(directory.path(), &script.url(), arguments);
    let ran = run(&[
        "cert",
        "request",
        "shop",
        "*.shop.example",
        "shop.example",
        "--acme",
        "default",
        "--proof",
        "dns-01",
        "--dns-hook",
        "dns",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.out.starts_with("Certificate shop is in place"),
        "{}",
        ran.all()
    );
    let ran = run(&["cert", "renew", "bad"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(
        ran.err.contains("Open port 80.") && ran.err.contains("beanpole cert renew bad"),
        "{}",
        ran.all()
    );
    let ran = run(&["cert", "request", "shop", "shop.example"]);
    assert_eq!(ran.code, 2, "one of --acme and --by-ca: {}", ran.all());
}

#[test]
fn the_authority_is_shown_for_files_and_what_it_signs_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let script = Script::start(|request, _| {
        let authority = json!({"certificate": "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
            "subject": "Beanpole of here", "fingerprint": "ab".repeat(32), "domains": ["home.example"],
            "automatic": false, "not_after": "2199-01-01T00:00:00.000Z",
            "created_at": "2026-01-02T03:04:05.678Z"});
        match request.path.as_str() {
            "/v1/authority" => (200, authority),
            _ => (
                201,
                json!({"certificate": "CERT", "key": "KEY", "not_after": "2199-01-01T00:00:00.000Z"}),
            ),
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["ca", "show"]);
    assert_eq!(
        ran.out,
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"
    );
    for said in [
        "AB:AB:AB",
        "update-ca-certificates",
        "certutil -addstore",
        "Firefox",
        "security add-trusted-cert",
    ] {
        assert!(ran.err.contains(said), "{said}\n{}", ran.all());
    }
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["ca", "issue", "nas.home.example", "--days", "30"],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    let key = directory.path().join("nas.home.example.key");
    assert_eq!(std::fs::read_to_string(&key).expect("written"), "KEY");
    let mode = std::fs::metadata(&key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    std::fs::write(&key, "ELSE").expect("write");
    let issue = |more: &[&str]| {
        let words = [&["ca", "issue", "nas.home.example"], more].concat();
        beanpole(directory.path(), &script.url(), &words)
    };
    let calls = script.requests().len();
    let ran = issue(&[]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(
        ran.err.contains("nas.home.example.key already") && ran.err.contains("--replace"),
        "{}",
        ran.all()
    );
    assert_eq!(script.requests().len(), calls, "nothing is signed");
    assert_eq!(std::fs::read_to_string(&key).expect("kept"), "ELSE");
    let ran = issue(&["--replace"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert_eq!(std::fs::read_to_string(&key).expect("written"), "KEY");
}

#[test]
fn answers_of_ocsp_are_asked_for_and_shown() {
    let script = Script::start(|request, _| {
        let mut shop = certificate("shop", "Revoked");
        shop["causes"] = json!(["Its authority revoked it."]);
        shop["ocsp"] = json!({"responder": "http://ocsp.example.com", "says": "revoked",
            "since": "2026-01-01T00:00:00.000Z", "until": "2199-01-01T00:00:00.000Z",
            "next_at": "2199-01-01T00:00:00.000Z", "trouble": null});
        let status = if request.method == "PUT" { 201 } else { 200 };
        (status, shop)
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("c.pem"), "CHAIN").expect("write");
    let run = |arguments: &[&str]| beanpole(directory.path(), &script.url(), arguments);
    let sent = || {
        let sent = script.requests();
        let sent: Value = serde_json::from_slice(&sent.last().expect("a call").body).expect("JSON");
        sent["ocsp"].clone()
    };
    let ran = run(&[
        "cert", "add", "shop", "--cert", "c.pem", "--key", "c.pem", "--ocsp",
    ]);
    assert_eq!((ran.code, sent()), (0, json!(true)), "{}", ran.all());
    assert!(
        ran.out.contains("\n  Its authority revoked it."),
        "{}",
        ran.all()
    );
    let ran = run(&["cert", "set", "shop", "--no-ocsp"]);
    assert_eq!((ran.code, sent()), (0, json!(false)), "{}", ran.all());
    let ran = run(&["cert", "set", "shop", "--ocsp"]);
    assert_eq!((ran.code, sent()), (0, json!(true)), "{}", ran.all());
    let ran = run(&["cert", "show", "shop"]);
    for said in [
        "Revoked",
        "revoked, shown until it ends in ",
        "; http://ocsp.example.com is asked in ",
    ] {
        assert!(ran.out.contains(said), "{said}\n{}", ran.all());
    }
    let ran = run(&["cert", "request", "a", "a.example", "--by-ca", "--ocsp"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
}
