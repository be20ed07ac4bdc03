//! What there is: environments, releases, hosts, properties.

use crate::beanpole;
use crate::deploying::app;
use crate::script::{Script, environment, operation, problem, receipt};
use serde_json::{Value, json};

#[test]
fn health_tells_nothing_measured_from_nothing_taken_and_names_the_times() {
    let script = Script::start(|_, _| {
        let traffic = |requests: u32, us: u32| {
            json!({"requests": requests, "by_class": [0, requests, 0, 0, 0], "failed": 0,
                "p50_us": us, "p99_us": us})
        };
        let environment = environment("v2", 7);
        let mut instances = environment["instances"].clone();
        instances[0]["traffic"] = traffic(0, 0);
        instances[1]["traffic"] = traffic(12, 900);
        (
            200,
            json!({"environment": "shop-prod", "status": "Ready", "health": "Green", "causes": [],
                "instances": instances, "traffic": traffic(9001, 0)}),
        )
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["health", "shop-prod"]);
    insta::assert_snapshot!("health", ran.all());
}

#[test]
fn what_lingers_is_listed_apart_and_can_be_cut() {
    let one = json!({"id": "i-00000000000000009", "host": "web-1", "host_id": "h-0000000000",
        "address": "192.0.2.1:20009", "release": 1, "version": "v1",
        "operation": "op-000000000001", "open": 3, "since": "2026-01-02T03:04:05.678Z",
        "until": "2026-01-02T07:04:05.678Z", "ending": false});
    let script = Script::start(move |request, _| match request.path.as_str() {
        "/v1/environments/shop-prod/lingering/end" => (
            202,
            json!({"instances": ["i-00000000000000009"], "open": 3}),
        ),
        _ => {
            let mut environment = environment("v2", 2);
            environment["lingering"] = json!([one]);
            (200, environment)
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["status", "shop-prod"]);
    insta::assert_snapshot!("lingering", ran.all());
    let ran = beanpole(directory.path(), &script.url(), &["cut", "shop-prod"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert_eq!(
        ran.out,
        "i-00000000000000009 is being stopped; 3 open requests are cut.\n"
    );
}

/// An operation that has ended, on an instance that could not be reached.
fn terminated_but_for_one() -> serde_json::Value {
    let mut ended = operation("succeeded", "removed");
    ended["kind"] = json!("terminate");
    ended["leftovers"] = json!([{"instance": "i-00000000000000002", "host": "web-2"}]);
    ended
}

#[test]
fn what_a_terminate_could_not_reach_is_named_last() {
    let script = Script::start(|request, _| match request.path.as_str() {
        "/v1/environments/shop-prod" if request.method == "GET" => problem(404, "gone", "Gone."),
        _ => (200, terminated_but_for_one()),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let arguments = ["terminate", "shop-prod", "--yes"];
    let ran = beanpole(directory.path(), &script.url(), &arguments);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.out.ends_with(
            "shop-prod is gone but for what could not be reached, 6.2 s.\n\
             i-00000000000000002 on web-2 could not be reached: its processes may run on there, with \
             their settings, and are removed when the host is back.\n"
        ),
        "{}",
        ran.all()
    );
    let arguments = ["terminate", "shop-prod", "--yes", "--json"];
    let ran = beanpole(directory.path(), &script.url(), &arguments);
    let said: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(said["leftovers"], terminated_but_for_one()["leftovers"]);
}

#[test]
fn a_host_that_is_forgotten_is_told_with_what_runs_on_there() {
    let script = Script::start(|_, _| {
        let left = json!(["i-00000000000000002"]);
        (
            200,
            json!({"name": "web-2", "uninstalled": null, "left": left}),
        )
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let arguments = ["host", "remove", "web-2", "--yes", "--force"];
    let ran = beanpole(directory.path(), &script.url(), &arguments);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.out
            .contains("nobody ends it any more: i-00000000000000002."),
        "{}",
        ran.all()
    );
}

#[test]
fn properties_are_printed_so_that_they_can_be_read_back() {
    let key = "-----BEGIN-----\na \"b\"\n-----END-----\n";
    let script = Script::start(move |request, _| match request.method.as_str() {
        "GET" => (
            200,
            json!({"aws:elasticbeanstalk:application:environment": {"KEY": key, "A": "\u{1b}[2J", "B": "plain b"}}),
        ),
        _ => problem(409, "enough", "Seen."),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let printed = beanpole(directory.path(), &script.url(), &["printenv", "shop-prod"]);
    assert_eq!(
        printed.out,
        "A=\"\\u001b[2J\"\nB=plain b\nKEY=\"-----BEGIN-----\\na \\\"b\\\"\\n-----END-----\\n\"\n"
    );
    std::fs::write(directory.path().join("env"), &printed.out).expect("write");
    beanpole(
        directory.path(),
        &script.url(),
        &["setenv", "shop-prod", "--file", "env"],
    );
    let one = beanpole(
        directory.path(),
        &script.url(),
        &["printenv", "shop-prod", "--name", "KEY"],
    );
    assert_eq!(one.out, format!("{key}\n"));
    let requests = script.requests();
    let patch = requests
        .iter()
        .find(|r| r.method == "PATCH")
        .expect("patch");
    let body: serde_json::Value = serde_json::from_slice(&patch.body).expect("JSON");
    let set = &body["set"]["aws:elasticbeanstalk:application:environment"];
    assert_eq!(*set, json!({"KEY": key, "A": "\u{1b}[2J", "B": "plain b"}));
}

#[test]
fn status_is_a_table_or_json() {
    let script = Script::start(|_, _| (200, environment("v2", 7)));
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["status", "shop-prod"]);
    insta::assert_snapshot!("status", ran.all());
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["status", "shop-prod", "--json"],
    );
    let view: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    for field in ["status", "health", "release", "version", "url"] {
        assert!(!view[field].is_null(), "{field}");
    }
    for field in ["id", "host", "address", "version", "health"] {
        assert!(view["instances"][0][field].is_string(), "{field}");
    }
}

#[test]
fn init_writes_once() {
    let app = app();
    let first = beanpole(
        app.path(),
        "http://127.0.0.1:1",
        &["init", "--application", "shop"],
    );
    assert_eq!(first.code, 0, "{}", first.all());
    insta::assert_snapshot!(
        "init",
        std::fs::read_to_string(app.path().join("deploy.toml")).expect("read")
    );
    let second = beanpole(app.path(), "http://127.0.0.1:1", &["init"]);
    assert_eq!(second.code, 1, "{}", second.all());
    assert!(second.err.contains("hint:"), "{}", second.err);
}

#[test]
fn an_unknown_host_key_is_shown_and_not_trusted_without_being_asked() {
    let script = Script::start(|_, _| {
        (
            200,
            json!({"algorithm": "ssh-ed25519", "fingerprint": "SHA256:abc"}),
        )
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(
        directory.path().join("key"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE\n",
    )
    .expect("write");
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["host", "add", "deploy@192.0.2.10", "--identity", "key"],
    );
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 2
    --- stdout
    --- stderr
    error: deploy@192.0.2.10 shows the key SHA256:abc (ssh-ed25519).
    hint: Compare it on the host (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then accept it: --host-key SHA256:abc
    ");
    assert_eq!(script.requests().len(), 1, "only the probe");
}

#[test]
fn properties_are_set_removed_and_printed() {
    let script = Script::start(|request, _| match request.method.as_str() {
        "GET" if request.path.ends_with("/settings") => (
            200,
            json!({"aws:elasticbeanstalk:application:environment": {"A": "1", "B": "x y"}}),
        ),
        _ => (202, operation("running", "pending")),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["printenv", "shop-prod"]);
    assert_eq!(ran.out, "A=1\nB=x y\n");
    std::fs::write(
        directory.path().join("more.env"),
        "# comment\nexport C='quoted'\n\nD=\n",
    )
    .expect("write");
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &[
            "setenv",
            "shop-prod",
            "A=2",
            "B=",
            "--file",
            "more.env",
            "--detach",
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    let requests = script.requests();
    let patch = requests
        .iter()
        .find(|r| r.method == "PATCH")
        .expect("patch");
    let body: serde_json::Value = serde_json::from_slice(&patch.body).expect("JSON");
    let namespace = "aws:elasticbeanstalk:application:environment";
    assert_eq!(body["set"][namespace], json!({"A": "2", "C": "quoted"}));
    assert_eq!(body["remove"][namespace], json!(["B", "D"]));
}

/// A controller with release 2, whose deployment is described by `deployment`.
fn showing(deployment: serde_json::Value) -> Script {
    Script::start(move |request, _| {
        let release = json!({"number": 2, "version": "v2", "created_at": "2026-01-02T03:04:05.000Z",
            "reason": "deploy", "outcome": "succeeded", "live": true, "settings": {}});
        match request.path.as_str() {
            "/v1/environments/shop-prod/releases?limit=1" => {
                (200, json!({"items": [release], "next": null}))
            }
            "/v1/environments/shop-prod/releases" => {
                let mut told = release;
                told["receipt"] = json!({"took_ms": 6_200, "requests": 1_234, "failed": 2,
                    "p99_before_us": null, "p99_during_us": null, "p99_after_us": null,
                    "sent_bytes": 0});
                (200, json!({"items": [told], "next": null}))
            }
            "/v1/environments/shop-prod/releases/2" => {
                let mut detail = release;
                detail["deployment"] = deployment.clone();
                (200, detail)
            }
            "/v1/operations/op-000000000001" => {
                let mut operation = operation("succeeded", "done");
                operation["kind"] = json!("restart");
                operation["receipt"] = receipt(true);
                (200, operation)
            }
            _ => problem(
                404,
                "release-not-found",
                "There is no release of that number.",
            ),
        }
    })
}

fn deployed_with(complete: bool) -> serde_json::Value {
    json!({"operation": "op-000000000001", "kind": "deploy", "from": 1, "message": "Done.",
        "started_at": "2026-01-02T03:04:05.000Z", "finished_at": "2026-01-02T03:04:11.200Z",
        "receipt": receipt(complete)})
}

#[test]
fn a_release_is_shown_with_its_receipt() {
    let script = showing(deployed_with(true));
    let directory = tempfile::tempdir().expect("temporary directory");
    let show = |words: &[&str]| {
        let ran = beanpole(directory.path(), &script.url(), words);
        assert_eq!(ran.code, 0, "{}", ran.all());
        ran
    };
    let last = show(&["show", "shop-prod"]);
    insta::assert_snapshot!("show", last.all());
    assert_eq!(show(&["show", "shop-prod", "2"]).out, last.out);
    let json = show(&["show", "shop-prod", "2", "--json"]).out;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["number"], 2);
    assert_eq!(json["deployment"]["receipt"], receipt(true));
    let restarted = show(&["show", "op-000000000001"]);
    assert!(
        restarted.out.contains("restart of shop-prod"),
        "{}",
        restarted.all()
    );
    assert!(restarted.out.contains("INSTANCE"), "{}", restarted.all());
    let listed = show(&["releases", "shop-prod"]);
    assert!(listed.out.contains("6.2 s  2 of 1,234"), "{}", listed.all());
}

#[test]
fn a_receipt_that_is_not_complete_says_so() {
    let script = showing(deployed_with(false));
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["show", "shop-prod"]);
    assert!(ran.out.contains("counted for a minute"), "{}", ran.all());
    let script = showing(json!(null));
    let ran = beanpole(directory.path(), &script.url(), &["show", "shop-prod"]);
    assert!(ran.err.contains("left receipts"), "{}", ran.all());
}

#[test]
fn what_there_is_not_cannot_be_shown() {
    let script = showing(deployed_with(true));
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["show", "shop-prod", "9"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["show", "other-prod", "op-000000000001"],
    );
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(ran.err.contains("not of other-prod"), "{}", ran.err);
}

#[test]
fn version_says_its_own_and_fails_without_a_controller() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = "http://127.0.0.1:1";
    let ran = beanpole(directory.path(), nobody, &["version"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert_eq!(
        ran.out,
        concat!("beanpole ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert!(ran.err.contains("refused"), "{}", ran.err);
    let ran = beanpole(directory.path(), nobody, &["version", "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    let shown: Value = serde_json::from_str(&ran.out).expect("one document");
    assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(shown["controller"], Value::Null);
    assert!(shown["error"]["message"].is_string(), "{shown}");
    let script = Script::start(|_, _| {
        (
            200,
            json!({"status": "ok", "waiting": [], "version": "9.9.9"}),
        )
    });
    let ran = beanpole(directory.path(), &script.url(), &["version"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(ran.out.contains("controller 9.9.9 at "), "{}", ran.out);
}

#[test]
fn domains_are_listed_with_the_cnames_in_json_too() {
    let script = Script::start(|_, _| {
        let mut shop = environment("v1", 1);
        shop["domains"] = json!([{"name": "shop.example.org", "only_https": true, "url": null,
            "in_force": true, "since": "2026-01-02T03:04:05.678Z"}]);
        (200, json!({"items": [shop]}))
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let run = |arguments: &[&str]| beanpole(directory.path(), &script.url(), arguments);
    let ran = run(&["domain", "list", "--json"]);
    let listed: Value = serde_json::from_str(&ran.out).expect("JSON");
    let shown = |row: usize| {
        (
            &listed[row]["name"],
            &listed[row]["cname"],
            &listed[row]["environment"],
        )
    };
    let of = json!("shop-prod");
    let cname = (&json!("shop-prod.localhost"), &json!(true), &of);
    assert_eq!(shown(0), cname, "{}", ran.all());
    let domain = (&json!("shop.example.org"), &json!(false), &of);
    assert_eq!(shown(1), domain, "{}", ran.all());
    let ran = run(&["domain", "add", "shop-prod", "bücher.de"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(
        ran.err.contains("hint: Write xn--bcher-kva.de"),
        "{}",
        ran.all()
    );
}
