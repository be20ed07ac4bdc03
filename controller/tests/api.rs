//! The JSON API of a real controller: it listens on a free port and keeps its records in a
//! temporary directory. There is no agent and no proxy here.

mod certificates;
mod support;

use beanpole_protocol::Timestamp;
use beanpole_store::model::{EnvironmentRecord, ReleaseRecord};
use beanpole_store::{Store, StoreError};
use serde_json::{Value, json};
use std::time::Duration;
use support::{Controller, Reply, bundle, bundle_with, sha256};

#[test]
fn without_a_token_nothing_but_health_and_description_answers() {
    let controller = Controller::start();
    for path in ["/v1/applications", "/v1/hosts", "/v1/no-such-thing"] {
        let reply = controller.call("GET", path, &[("authorization", "")], b"");
        reply.expect_problem(401, "unauthorised");
        assert!(reply.header("www-authenticate").is_some());
    }
    let wrong = [("authorization", "Bearer bp_wrong")];
    controller
        .call("GET", "/v1/applications", &wrong, b"")
        .expect_problem(401, "unauthorised");
    let none = [("authorization", "")];
    let healthz = controller.call("GET", "/healthz", &none, b"");
    assert_eq!(healthz.status, 200, "{healthz:?}");
    assert_eq!(healthz.json()["status"], "ok");
    assert_eq!(
        controller.call("GET", "/openapi.json", &none, b"").status,
        200
    );
    assert_eq!(controller.get("/v1/applications").status, 200);
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus_and_for_those_with_a_token() {
    let controller = Controller::start();
    let none = [("authorization", "")];
    let refused = controller.call("GET", "/v1/metrics", &none, b"");
    refused.expect_problem(401, "unauthorised");
    controller.post("/v1/applications", &json!({"name": "shop"}));
    let body = json!({"name": "shop-prod", "application": "shop"});
    assert_eq!(controller.post("/v1/environments", &body).status, 202);
    let metrics = controller.get("/v1/metrics");
    assert_eq!(metrics.status, 200);
    let kind = metrics.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        assert!(series.starts_with("beanpole_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let wanted = r#"beanpole_environment_instances_wanted{environment="shop-prod"} 1"#;
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn a_url_is_explained_from_records_alone_where_no_load_balancer_says_more() {
    let controller = Controller::start();
    controller.post("/v1/applications", &json!({"name": "shop"}));
    let body = json!({"name": "shop-prod", "application": "shop"});
    assert_eq!(controller.post("/v1/environments", &body).status, 202);
    let explain = |url: &str| controller.get(&format!("/v1/explain?{url}")).json();
    let route = || explain("url=http://Shop-Prod.localhost:8080/cart")["route"].clone();
    let begun = std::time::Instant::now();
    while route().is_null() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "a turn makes the table"
        );
    }
    let found = explain("url=http://Shop-Prod.localhost:8080/cart&request=why-1");
    assert_eq!(found["host"], "shop-prod.localhost");
    assert_eq!(found["environment"]["name"], "shop-prod");
    assert_eq!(found["environment"]["release"], Value::Null);
    assert_eq!(found["targets"], json!([]));
    assert_eq!(found["request"]["asked"], json!([]));
    let near = explain("url=http://shop-prot.localhost/");
    assert_eq!(near["near"], json!(["shop-prod.localhost"]));
    for (query, code) in [
        ("url=shop-prod", "invalid-url"),
        ("url=http://a/&request=1", "invalid-request-id"),
        ("", "invalid-query"),
    ] {
        let refused = controller.get(&format!("/v1/explain?{query}"));
        refused.expect_problem(400, code);
    }
}

#[test]
fn every_error_is_a_problem_document_with_the_calls_id() {
    let controller = Controller::start();
    let id = "11111111-2222-3333-4444-555555555555";
    let reply = controller.call("GET", "/v1/applications/none", &[("x-request-id", id)], b"");
    reply.expect_problem(404, "application-not-found");
    assert_eq!(reply.header("x-request-id"), Some(id));
    assert_eq!(reply.json()["request_id"], id);

    let path = "/v1/applications";
    controller
        .get("/v1/nothing")
        .expect_problem(404, "path-not-found");
    controller
        .get("/nothing")
        .expect_problem(404, "path-not-found");
    controller
        .call("DELETE", path, &[], b"")
        .expect_problem(405, "method-not-allowed");
    controller
        .call("POST", path, &[], b"{")
        .expect_problem(400, "bad-json");
    controller
        .post(path, &json!({"name": "a/b"}))
        .expect_problem(400, "invalid-body");
    let slip = controller.post(path, &json!({"name": "shop", "descripton": "x"}));
    slip.expect_problem(400, "unknown-field");
    assert_eq!(slip.json()["hint"], "Did you mean `description`?");
    controller
        .call("POST", path, &[], &vec![b' '; 2 * 1024 * 1024])
        .expect_problem(413, "body-too-big");
    controller
        .get("/v1/applications?limit=0")
        .expect_problem(400, "invalid-limit");
    let slip = controller.get("/v1/applications?limt=5");
    slip.expect_problem(400, "invalid-query");
    assert_eq!(slip.json()["hint"], "Did you mean `limit`?");
    controller
        .get("/v1/environments/x")
        .expect_problem(400, "invalid-path");
    controller
        .get("/v1/environments/unknown")
        .expect_problem(404, "environment-not-found");
    let made_up = controller.get("/v1/applications");
    assert!(made_up.header("x-request-id").is_some());
}

#[test]
fn bundles_are_verified_bounded_and_uploaded_once() {
    let controller = Controller::start();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let content = bundle(&content);
    let size = content.len();
    let digest = sha256(&content);
    let path = format!("/v1/bundles/{digest}");
    assert_eq!(controller.call("HEAD", &path, &[], b"").status, 404);
    controller
        .call("PUT", &path, &[], b"something else")
        .expect_problem(422, "digest-mismatch");
    assert_eq!(controller.call("HEAD", &path, &[], b"").status, 404);

    let reply = controller.call("PUT", &path, &[], &content);
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!(reply.json()["size"], size);
    let head = controller.call("HEAD", &path, &[], b"");
    assert_eq!(head.status, 200);
    assert_eq!(
        head.header("content-length"),
        Some(size.to_string().as_str())
    );
    let again = controller.call("PUT", &path, &[], &content);
    assert_eq!(again.status, 200, "known content is not stored again");
    assert_eq!(controller.get(&path).body, content);

    let too_big = vec![7; 3 * 1024 * 1024];
    let path = format!("/v1/bundles/{}", sha256(&too_big));
    controller
        .call("PUT", &path, &[], &too_big)
        .expect_problem(413, "bundle-too-big");
    controller
        .call_chunked("PUT", &path, &too_big)
        .expect_problem(413, "bundle-too-big");
    controller
        .get("/v1/bundles/short")
        .expect_problem(400, "invalid-path");
}

#[test]
fn a_bundle_that_is_announced_as_too_big_is_refused_before_it_is_sent() {
    let controller = Controller::start();
    let path = format!("/v1/bundles/{}", sha256(b"whatever"));
    let asked = std::time::Instant::now();
    let reply = controller.announce("PUT", &path, 3 * 1024 * 1024 * 1024);
    reply.expect_problem(413, "bundle-too-big");
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_bundle_that_no_host_would_unpack_is_not_kept() {
    let controller = Controller::start();
    for (bundle, code, says) in [
        (
            b"no ZIP at all".to_vec(),
            "bundle-damaged",
            "not a readable ZIP",
        ),
        (
            bundle_with("/etc/passwd", b""),
            "bundle-unsafe",
            "`/etc/passwd`",
        ),
        (
            bundle_with("a/../../b", b""),
            "bundle-unsafe",
            "`a/../../b`",
        ),
        (
            bundle_with("a\u{1b}[2J", b""),
            "bundle-unsafe",
            "control character",
        ),
    ] {
        let path = format!("/v1/bundles/{}", sha256(&bundle));
        let reply = controller.call("PUT", &path, &[], &bundle);
        reply.expect_problem(422, code);
        let detail = reply.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(detail.contains(says), "{detail}");
        assert_eq!(controller.call("HEAD", &path, &[], b"").status, 404);
    }
}

#[test]
fn applications_and_versions_live_and_end() {
    let controller = Controller::start();
    let created = controller.post("/v1/applications", &json!({"name": "shop & co"}));
    assert_eq!(created.status, 201, "{created:?}");
    controller
        .post("/v1/applications", &json!({"name": "shop & co"}))
        .expect_problem(409, "application-exists");
    let shop = "/v1/applications/shop%20%26%20co";
    assert_eq!(controller.get(shop).json()["name"], "shop & co");

    let missing = json!({"label": "v1", "bundle": sha256(b"nothing")});
    controller
        .post(&format!("{shop}/versions"), &missing)
        .expect_problem(422, "bundle-missing");
    let digest = controller.upload(b"a bundle");
    let version = json!({"label": "v1", "bundle": digest, "description": "first"});
    let made = controller.post(&format!("{shop}/versions"), &version);
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["bundle_size"], bundle(b"a bundle").len());
    controller
        .post(&format!("{shop}/versions"), &version)
        .expect_problem(409, "version-exists");
    assert_eq!(
        controller.get(&format!("{shop}/versions/v1")).json()["description"],
        "first"
    );
    controller
        .get(&format!("{shop}/versions/v2"))
        .expect_problem(404, "version-not-found");
    let gone = controller.call("DELETE", &format!("{shop}/versions/v1"), &[], b"");
    assert_eq!(gone.status, 204);
    assert_eq!(controller.call("DELETE", shop, &[], b"").status, 204);
    controller
        .get(shop)
        .expect_problem(404, "application-not-found");
}

#[test]
fn an_application_with_an_environment_stays() {
    let controller = Controller::start();
    controller.application("shop");
    let id = "99999999-2222-3333-4444-555555555555";
    let created = controller.call(
        "POST",
        "/v1/environments",
        &[("x-request-id", id)],
        json!({"application": "shop", "name": "shop-prod"})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(created.status, 202, "{created:?}");
    assert_eq!(created.json()["request_id"], id);
    controller
        .call("DELETE", "/v1/applications/shop", &[], b"")
        .expect_problem(409, "application-in-use");
    let events = controller.get("/v1/environments/shop-prod/events").json();
    assert_eq!(events["items"][0]["request_id"], id, "{events}");
    let environments = controller.get("/v1/environments?application=shop").json();
    assert_eq!(environments["items"][0]["name"], "shop-prod");
    let other = controller.get("/v1/environments?application=other").json();
    assert_eq!(other["items"], json!([]));
    for path in ["releases", "health", "settings", "operations", "logs"] {
        let reply = controller.get(&format!("/v1/environments/shop-prod/{path}"));
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    let operation = created.json()["id"].as_str().expect("an id").to_owned();
    let found = controller.get(&format!("/v1/operations/{operation}"));
    assert_eq!(found.json()["id"], operation.as_str());
}

#[test]
fn options_of_a_bundle_are_an_environments_below_its_own_and_wrong_ones_are_refused() {
    let controller = Controller::start();
    controller.application("shop");
    let version = |label: &str, config: &str| {
        let mut bundle = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in [
            ("Procfile", "web: ./x\n"),
            (".ebextensions/a.config", config),
        ] {
            let options = zip::write::SimpleFileOptions::default();
            bundle.start_file(name, options).expect("an entry");
            std::io::Write::write_all(&mut bundle, content.as_bytes()).expect("written");
        }
        let bundle = bundle.finish().expect("a ZIP").into_inner();
        let body = json!({"label": label, "bundle": controller.upload_bundle(&bundle)});
        let made = controller.post("/v1/applications/shop/versions", &body);
        assert_eq!(made.status, 201, "{made:?}");
    };
    version(
        "wrong",
        "option_settings:\n  aws:elasticbeanstalk:command:\n    BatchSize: many\n",
    );
    let body = json!({"application": "shop", "name": "shop-prod"});
    assert_eq!(controller.post("/v1/environments", &body).status, 202);
    controller.until_ready("shop-prod");
    let deployments = "/v1/environments/shop-prod/deployments";
    let refused = controller.post(deployments, &json!({"version": "wrong"}));
    refused.expect_problem(422, "ebextensions-invalid");
    let problem = refused.json().to_string();
    assert!(
        problem.contains(".ebextensions/a.config, line 3"),
        "{problem}"
    );

    version(
        "fits-nowhere",
        "option_settings:\n  aws:autoscaling:asg: {MinSize: 3}\n  beanpole:instance: {MemoryMax: 64}\n  aws:ec2:vpc: {VPCId: v}\n",
    );
    let body = json!({"application": "shop", "name": "shop-test", "version": "fits-nowhere",
        "settings": {"aws:autoscaling:asg": {"MinSize": "2"}}});
    let planned = controller.post("/v1/environments?plan=true", &body);
    let told = planned.json().to_string();
    assert!(
        told.contains("2 more instances"),
        "the environment's own counts first: {told}"
    );
}

#[test]
fn a_bundle_that_asks_for_root_is_refused_until_its_application_may() {
    let controller = Controller::start();
    controller.application("shop");
    let shop = "/v1/applications/shop";
    assert_eq!(controller.get(shop).json()["root"], false);
    let mut bundle = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [
        ("Procfile", "web: ./x\n"),
        (
            ".ebextensions/a.config",
            "# more\npackages: {yum: {git: []}}\n",
        ),
    ] {
        let options = zip::write::SimpleFileOptions::default();
        bundle.start_file(name, options).expect("an entry");
        std::io::Write::write_all(&mut bundle, content.as_bytes()).expect("written");
    }
    let bundle = bundle.finish().expect("a ZIP").into_inner();
    let digest = controller.upload_bundle(&bundle);
    let body = json!({"label": "v1", "bundle": digest});
    let made = controller.post(&format!("{shop}/versions"), &body);
    assert_eq!(made.status, 201, "{made:?}");
    let body = json!({"application": "shop", "name": "shop-prod"});
    assert_eq!(controller.post("/v1/environments", &body).status, 202);
    controller.until_ready("shop-prod");
    let deploy = || {
        let path = "/v1/environments/shop-prod/deployments";
        controller.post(path, &json!({"version": "v1"}))
    };
    let refused = deploy();
    refused.expect_problem(422, "root-not-allowed");
    let problem = refused.json().to_string();
    for says in [
        "`packages` in .ebextensions/a.config, line 2",
        "beanpole app root allow shop",
    ] {
        assert!(problem.contains(says), "{problem}");
    }
    let patch = |body: &Value| {
        controller.call(
            "PATCH",
            shop,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    };
    assert_eq!(patch(&json!({"root": true})).json()["root"], true);
    // It has no host, which is said after that.
    deploy().expect_problem(409, "no-place");
    assert_eq!(patch(&json!({})).json()["root"], true);
    assert_eq!(patch(&json!({"root": false})).json()["root"], false);
    deploy().expect_problem(422, "root-not-allowed");
    let missing = "/v1/applications/other";
    let body = json!({"root": true}).to_string();
    let missing = controller.call(
        "PATCH",
        missing,
        &[("content-type", "application/json")],
        body.as_bytes(),
    );
    missing.expect_problem(404, "application-not-found");
    let events = controller.get("/v1/events?limit=1000").body;
    let events = String::from_utf8_lossy(&events).into_owned();
    assert_eq!(
        events.matches("application-root-allowed").count(),
        1,
        "{events}"
    );
}

#[test]
fn a_bundle_that_no_host_could_run_is_refused_before_anything_changes() {
    let controller = Controller::start();
    controller.application("shop");
    let versions = "/v1/applications/shop/versions";
    // A version has no platform, so it may be anything.
    for (label, name, content) in [
        ("good", "Procfile", "web: ./x\n"),
        ("bad-line", "Procfile", "web: ./x\nworker ./y\n"),
        ("no-web", "Procfile", "worker: ./y\n"),
        ("notes", "notes.txt", "hello"),
    ] {
        let digest = controller.upload_bundle(&bundle_with(name, content.as_bytes()));
        let body = json!({"label": label, "bundle": digest});
        assert_eq!(controller.post(versions, &body).status, 201, "{label}");
    }
    for (name, tier) in [("shop-prod", "web"), ("shop-jobs", "worker")] {
        let body = json!({"application": "shop", "name": name, "tier": tier});
        assert_eq!(controller.post("/v1/environments", &body).status, 202);
        controller.until_ready(name);
    }
    let before = controller.get("/v1/environments/shop-prod").json();
    let refusals = [
        ("bad-line", "procfile-invalid", "Line 2"),
        ("no-web", "procfile-without-web", "`worker`"),
        ("notes", "no-platform", "nothing says how to run it"),
    ];
    for (label, code, says) in refusals {
        for way in ["deployments", "deployments?plan=true"] {
            let path = format!("/v1/environments/shop-prod/{way}");
            let refused = controller.post(&path, &json!({"version": label}));
            refused.expect_problem(422, code);
            let detail = refused.json()["detail"].to_string();
            assert!(detail.contains(says), "{detail}");
            assert!(refused.json()["hint"].is_string(), "{refused:?}");
        }
        let body = json!({"application": "shop", "name": "shop-next", "version": label});
        controller
            .post("/v1/environments", &body)
            .expect_problem(422, code);
    }
    let served = json!({"aws:elasticbeanstalk:environment:proxy:staticfiles": {"/a": "static"}});
    let body = json!({"version": "good", "settings": served});
    let refused = controller.post("/v1/environments/shop-prod/deployments", &body);
    refused.expect_problem(422, "static-directory-missing");
    let body =
        json!({"application": "shop", "name": "shop-next", "version": "good", "settings": served});
    let refused = controller.post("/v1/environments", &body);
    refused.expect_problem(422, "static-directory-missing");
    let reply = controller.get("/v1/environments/shop-next");
    reply.expect_problem(404, "environment-not-found");
    assert_eq!(controller.get("/v1/environments/shop-prod").json(), before);
    // A worker gets no requests. (Here there is no host for it, which is said after this check.)
    for (name, label) in [("shop-jobs", "no-web"), ("shop-prod", "good")] {
        let path = format!("/v1/environments/{name}/deployments");
        let reply = controller.post(&path, &json!({"version": label}));
        reply.expect_problem(409, "no-place");
    }
}

#[test]
fn an_application_that_comes_with_an_environment_does_not_stay_without_it() {
    let controller = Controller::start();
    let body = |name: &str| {
        json!({"application": "shop", "new_application": "The shop", "name": "shop-prod",
            "cname": name})
    };
    controller.application("other");
    let taken = json!({"application": "other", "name": "other-prod", "cname": "shop"});
    assert_eq!(controller.post("/v1/environments", &taken).status, 202);
    controller
        .post("/v1/environments", &body("shop"))
        .expect_problem(409, "cname-taken");
    controller
        .post("/v1/environments?plan=true", &body("shop"))
        .expect_problem(409, "cname-taken");
    let planned = controller.post("/v1/environments?plan=true", &body("shop-2"));
    assert_eq!(planned.status, 200, "{planned:?}");
    controller
        .get("/v1/applications/shop")
        .expect_problem(404, "application-not-found");
    let created = controller.post("/v1/environments", &body("shop-2"));
    assert_eq!(created.status, 202, "{created:?}");
    let application = controller.get("/v1/applications/shop").json();
    assert_eq!(application["description"], "The shop");
}

#[test]
fn a_platform_or_name_that_cannot_be_is_refused_and_not_described() {
    let controller = Controller::start();
    controller.application("shop");
    let body = json!({"application": "shop", "name": "shop-prod", "platform": "podman"});
    let refused = controller.post("/v1/environments", &body);
    assert_eq!(refused.status, 400, "{refused:?}");
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("`procfile`"), "{detail}");
    let reserved = json!({"application": "shop", "name": "x-prod"});
    controller
        .post("/v1/environments", &reserved)
        .expect_problem(400, "environment-name-reserved");
    let schemas = &controller.get("/openapi.json").json()["components"]["schemas"];
    assert!(!schemas["Platform"].to_string().contains("podman"));
}

#[test]
fn lists_come_in_pages() {
    let controller = Controller::start();
    for number in 0..7 {
        controller.application(&format!("app-{number}"));
    }
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().expect("items");
        items
            .iter()
            .map(|item| item["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let first = controller.get("/v1/applications?limit=3").json();
    assert_eq!(names(&first), ["app-0", "app-1", "app-2"]);
    let next = first["next"].as_str().expect("there are more");
    let second = controller
        .get(&format!("/v1/applications?limit=4&after={next}"))
        .json();
    assert_eq!(names(&second), ["app-3", "app-4", "app-5", "app-6"]);
    assert_eq!(second.get("next"), None, "that was the last page");

    let events = controller.get("/v1/events?limit=2").json();
    assert_eq!(events["items"].as_array().map(Vec::len), Some(2));
    let next = events["next"].as_str().expect("there are more");
    let rest = controller.get(&format!("/v1/events?after={next}")).json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(5));
}

#[test]
fn the_event_stream_goes_on_where_it_was_left() {
    let controller = Controller::start();
    controller.application("one");
    let mut stream = controller.follow("/v1/events/stream?after=0", None);
    let first = stream.next_event();
    assert_eq!(first.event, "application-created");
    assert_eq!(first.data["application"], "one");
    controller.application("two");
    let second = stream.next_event();
    assert_eq!(second.data["application"], "two");
    drop(stream);
    controller.application("three");
    let mut resumed = controller.follow("/v1/events/stream", Some(&first.id));
    assert_eq!(resumed.next_event().id, second.id);
    assert_eq!(resumed.next_event().data["application"], "three");

    let mut fresh = controller.follow("/v1/events/stream", None);
    controller.application("four");
    assert_eq!(fresh.next_event().data["application"], "four");
    let mut ahead = controller.follow("/v1/events/stream", Some("999999"));
    controller.application("five");
    assert_eq!(ahead.next_event().data["application"], "five");
    controller
        .get("/v1/events/stream?after=soon")
        .expect_problem(400, "invalid-after");
    // The stop does not wait for those who listen.
    controller.stop();
    assert!(fresh.ends());
}

#[test]
fn everything_is_there_after_a_restart() {
    let controller = Controller::start();
    controller.application("shop");
    let digest = controller.upload(b"a bundle");
    let token = controller.token.clone();
    let controller = controller.restart();
    assert_eq!(controller.token, token);
    assert_eq!(controller.get("/v1/applications/shop").status, 200);
    assert_eq!(
        controller.get(&format!("/v1/bundles/{digest}")).body,
        bundle(b"a bundle")
    );
}

#[test]
fn a_controller_that_has_stopped_has_let_go_of_its_data() {
    let mut controller = Controller::start();
    for round in 0..5 {
        controller.application(&format!("shop-{round}"));
        controller.upload(format!("bundle {round}").as_bytes());
        let _follower = controller.follow("/v1/events/stream?after=0", None);
        // The next one starts at once, and must not find the records locked.
        controller = controller.restart();
    }
    assert_eq!(controller.get("/v1/applications/shop-4").status, 200);
}

#[test]
fn a_second_controller_is_told_who_has_the_data() {
    let controller = Controller::start();
    let error = controller.second().expect_err("refused");
    assert!(
        error.contains(&format!("process {}", std::process::id())),
        "{error}"
    );
}

#[test]
fn a_backup_is_whole_and_comes_back() {
    let controller = Controller::start();
    controller.application("shop");
    let digest = controller.upload(b"a bundle");
    let backup = controller.call("POST", "/v1/backup", &[], b"");
    assert_eq!(backup.status, 200);
    let summary = beanpole_store::backup::verify(&*backup.body).expect("whole");
    assert_eq!(summary.bundles, 1);
    let target = Controller::restored(&backup.body);
    assert_eq!(target.get("/v1/applications/shop").status, 200);
    assert_eq!(
        target.get(&format!("/v1/bundles/{digest}")).body,
        bundle(b"a bundle")
    );
}

#[test]
fn after_a_restore_whoever_follows_events_is_told_at_once_and_misses_none() {
    let controller = Controller::start();
    controller.application("shop");
    let environment = json!({"application": "shop", "name": "shop-prod"});
    assert_eq!(
        controller.post("/v1/environments", &environment).status,
        202
    );
    let backup = controller.call("POST", "/v1/backup", &[], b"");
    // What happens after the backup has numbers that the restored records know nothing of.
    for name in ["two", "three", "four"] {
        controller.application(name);
        let environment = json!({"application": name, "name": format!("{name}-prod")});
        assert_eq!(
            controller.post("/v1/environments", &environment).status,
            202
        );
    }
    let events = controller.get("/v1/events?limit=1000").json();
    let newest = events["items"].as_array().and_then(|all| all.last());
    let newest = newest
        .and_then(|event| event["id"].as_u64())
        .expect("an event");
    let target = Controller::restored(&backup.body);
    for path in [
        "/v1/events/stream",
        "/v1/events/stream?environment=shop-prod",
    ] {
        let mut stream = target.follow(path, Some(&newest.to_string()));
        let first = stream.next_event();
        assert_eq!(first.event, "records-restored", "{path}");
        let id: u64 = first.id.parse().expect("a number");
        assert!(id > newest, "{id} was given to another event before");
    }
    let restarted = target.restart();
    let events = restarted.get("/v1/events?environment=shop-prod&limit=1000");
    let restored = String::from_utf8_lossy(&events.body).into_owned();
    assert_eq!(restored.matches("records-restored").count(), 1, "told once");
}

/// An environment that runs its release 7; release N is of version vN.
fn seven_releases(store: &Store) {
    let environment: EnvironmentRecord = serde_json::from_value(json!({
        "id": "e-0000000001", "name": "shop-prod", "application": "shop", "description": "",
        "tier": "web", "platform": "auto", "cname": null, "status": "Ready", "settings": {},
        "live": 7, "last_release": 7, "operation": null, "hold": true,
        "created_at": Timestamp::EPOCH, "updated_at": Timestamp::EPOCH,
    }))
    .expect("an environment");
    store
        .update(|tx| {
            tx.put(&environment)?;
            for number in 1..=7_u8 {
                let at = Timestamp::from_millis(number.into());
                let release: ReleaseRecord = serde_json::from_value(json!({
                    "environment": environment.id, "number": number, "tree": number,
                    "version": format!("v{number}"), "bundle": sha256(&bundle(&[number])), "bundle_size": 1,
                    "platform": "auto", "settings": {}, "reason": "deploy",
                    "outcome": null, "live_at": at, "created_at": at,
                }))
                .expect("a release");
                tx.put(&release)?;
            }
            Ok::<_, StoreError>(())
        })
        .expect("update");
}

#[test]
fn a_version_goes_with_its_bundle_once_no_environment_needs_it() {
    let controller = Controller::freeing(seven_releases);
    controller.application("shop");
    let versions = "/v1/applications/shop/versions";
    for number in 1..=7_u8 {
        let digest = controller.upload(&[number]);
        let body = json!({"label": format!("v{number}"), "bundle": digest});
        assert_eq!(controller.post(versions, &body).status, 201);
    }
    let delete = |label: &str| controller.call("DELETE", &format!("{versions}/{label}"), &[], b"");
    delete("v7").expect_problem(409, "version-in-use");
    let kept = delete("v3");
    kept.expect_problem(409, "version-kept");
    assert!(
        kept.json()["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("5 later releases")),
        "{kept:?}"
    );
    delete("v8").expect_problem(404, "version-not-found");
    assert_eq!(delete("v2").status, 204);
    controller.until_freed(&sha256(&bundle(&[2])));
    for number in [1, 3, 7] {
        let path = format!("/v1/bundles/{}", sha256(&bundle(&[number])));
        assert_eq!(controller.get(&path).status, 200, "v{number} stays");
    }
    let releases = controller.get("/v1/environments/shop-prod/releases").json();
    let numbers: Vec<u64> = releases["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|release| release["number"].as_u64().expect("a number"))
        .collect();
    assert!(!numbers.contains(&2) && numbers.len() == 6, "{numbers:?}");
    let release =
        |number: &str| controller.get(&format!("/v1/environments/shop-prod/releases/{number}"));
    let seventh = release("7").json();
    assert_eq!(
        (&seventh["number"], &seventh["version"]),
        (&json!(7), &json!("v7"))
    );
    assert!(
        seventh["deployment"].is_null(),
        "nothing deployed it: {seventh}"
    );
    release("2").expect_problem(404, "release-not-found");
    release("last").expect_problem(400, "invalid-path");
    controller
        .post("/v1/environments/shop-prod/rollback", &json!({"to": 2}))
        .expect_problem(404, "release-not-found");
    let events = controller.get("/v1/events?limit=100").json();
    let freed = events["items"]
        .as_array()
        .expect("items")
        .iter()
        .find(|event| event["code"] == "bundles-freed")
        .expect("it is told");
    assert_eq!(freed["details"], json!([sha256(&bundle(&[2]))]));

    // An upload that nothing came of goes too, and the same content may come again.
    let orphan = controller.upload(b"nothing came of it");
    controller.until_freed(&orphan);
    assert_eq!(controller.upload(b"nothing came of it"), orphan);
    let body = json!({"label": "v9", "bundle": orphan});
    assert_eq!(controller.post(versions, &body).status, 201);
}

#[test]
fn an_empty_body_that_comes_late_does_not_cost_the_connection() {
    let controller = Controller::start();
    let mut slow = controller.begin("POST", "/v1/backup");
    assert!(
        slow.is_silent_for(Duration::from_millis(300)),
        "the answer waits for the body's end"
    );
    slow.send(b"0\r\n\r\n");
    let backup = slow.reply();
    beanpole_store::backup::verify(&*backup.body).expect("whole");
    // A connection that was closed over unread bytes would not take another call.
    slow.send(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n");
    assert_eq!(slow.reply().status, 200);
}

#[test]
fn a_refusal_is_read_by_a_caller_who_sends_on() {
    let controller = Controller::start();
    let body = vec![b'x'; 8 * 1024 * 1024];
    let wrong = [("authorization", "Bearer bp_wrong")];
    controller
        .call("POST", "/v1/applications", &wrong, &body)
        .expect_problem(401, "unauthorised");
    controller
        .call("DELETE", "/v1/applications/none", &[], &body)
        .expect_problem(404, "application-not-found");
}

#[test]
fn the_description_has_every_path_of_the_api() {
    let controller = Controller::start();
    let document = controller.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let expected = [
        ("/healthz", "get"),
        ("/openapi.json", "get"),
        ("/v1/applications", "get post"),
        ("/v1/applications/{application}", "delete get patch"),
        ("/v1/applications/{application}/versions", "get post"),
        (
            "/v1/applications/{application}/versions/{label}",
            "get delete",
        ),
        ("/v1/bundles/{digest}", "head get put"),
        ("/v1/certificates", "get post"),
        ("/v1/certificates/{certificate}", "get put patch delete"),
        ("/v1/certificates/{certificate}/renew", "post"),
        ("/v1/authority", "get post patch"),
        ("/v1/authority/certificates", "post"),
        ("/v1/acme-accounts", "get post"),
        ("/v1/acme-accounts/{account}", "delete"),
        ("/v1/environments", "get post"),
        ("/v1/environments/{environment}", "get delete"),
        ("/v1/environments/{environment}/settings", "get patch"),
        ("/v1/environments/{environment}/deployments", "post"),
        ("/v1/environments/{environment}/rollback", "post"),
        ("/v1/environments/{environment}/scale", "post"),
        ("/v1/environments/{environment}/restart", "post"),
        ("/v1/environments/{environment}/abort", "post"),
        ("/v1/environments/{environment}/lingering/end", "post"),
        ("/v1/environments/{environment}/promote", "post"),
        ("/v1/environments/{environment}/swap", "post"),
        ("/v1/environments/{environment}/domains", "delete get post"),
        ("/v1/environments/{environment}/maintenance", "delete post"),
        ("/v1/environments/{environment}/pages", "delete get post"),
        ("/v1/environments/{environment}/releases", "get"),
        ("/v1/environments/{environment}/releases/{release}", "get"),
        ("/v1/environments/{environment}/health", "get"),
        ("/v1/environments/{environment}/events", "get"),
        ("/v1/environments/{environment}/logs", "get"),
        ("/v1/environments/{environment}/operations", "get"),
        ("/v1/operations/{operation}", "get"),
        ("/v1/explain", "get"),
        ("/v1/events", "get"),
        ("/v1/events/stream", "get"),
        ("/v1/edges", "get"),
        ("/v1/edges/{host}", "get put delete"),
        ("/v1/edges/{host}/restart", "post"),
        ("/v1/edges/{host}/logs", "get"),
        ("/v1/hosts/probe", "post"),
        ("/v1/hosts", "get post"),
        ("/v1/hosts/{host}", "get delete"),
        ("/v1/hosts/{host}/labels", "patch"),
        ("/v1/hosts/{host}/drain", "post"),
        ("/v1/hosts/{host}/resume", "post"),
        ("/v1/hosts/{host}/upgrade", "post"),
        ("/v1/hosts/{host}/host-key", "post"),
        ("/v1/backup", "post"),
        ("/v1/metrics", "get"),
    ];
    let paths = document["paths"].as_object().expect("paths");
    let mut ids = std::collections::BTreeSet::new();
    assert_eq!(paths.len(), expected.len(), "{:?}", paths.keys());
    for (path, methods) in expected {
        for method in methods.split(' ') {
            let operation = &paths[path][method];
            assert!(operation.is_object(), "{method} {path}");
            assert!(operation["responses"]["default"].is_object());
            for (status, answer) in operation["responses"].as_object().expect("answers") {
                let text = answer["description"].as_str().unwrap_or_default();
                assert!(
                    !text.is_empty(),
                    "{method} {path}: {status} says what it is"
                );
            }
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} names one operation");
            assert_eq!(operation["security"].is_array(), path.starts_with("/v1/"));
            // Described means routed: nothing of it answers that there is no such path or method.
            let filled = path
                .replace("{application}", "none")
                .replace("{environment}", "none-such")
                .replace("{release}", "1")
                .replace("{host}", "none")
                .replace("{operation}", "op-000000000000")
                .replace("{digest}", &"0".repeat(64))
                .replace("{label}", "none");
            if path == "/v1/events/stream" || method == "head" {
                continue;
            }
            let reply: Reply = controller.call(&method.to_uppercase(), &filled, &[], b"{}");
            let code = reply.code();
            assert!(
                code != Some("path-not-found".to_owned())
                    && code != Some("method-not-allowed".to_owned()),
                "{method} {path}: {reply:?}"
            );
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} is not described"
        );
    }
}
