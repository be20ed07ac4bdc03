//! Deployments, forwards and back, as they are told.

use crate::beanpole;
use crate::script::{Script, environment, operation, problem, receipt};
use serde_json::json;

#[test]
fn a_rollback_can_be_planned_only() {
    let script = going_back();
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["rollback", "shop-prod", "--plan"],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.out
            .starts_with("Plan for shop-prod: back to release 3 (v1)\n  Rolling"),
        "{}",
        ran.out
    );
    let posts: Vec<String> = script
        .requests()
        .iter()
        .filter(|r| r.method == "POST")
        .map(|r| r.path.clone())
        .collect();
    assert_eq!(posts, ["/v1/environments/shop-prod/rollback?plan=true"]);
}

/// A controller that takes an environment back from release 5 to 3, as release 6.
fn going_back() -> Script {
    Script::start(|request, _| {
        let release = |number: u32, version: &str, reason: &str| {
            json!({"number": number, "version": version, "created_at": "2026-01-02T03:04:05.678Z",
                "reason": reason, "outcome": "succeeded", "live": number == 5, "settings": {}})
        };
        let mut operation = operation("succeeded", "done");
        operation["kind"] = json!("rollback");
        operation["from"] = json!(5);
        operation["to"] = json!(6);
        operation["version"] = json!("v1");
        match request.path.as_str() {
            "/v1/environments/shop-prod/releases" => (
                200,
                json!({"next": null, "items": [release(6, "v1", "rollback to 3"),
                    release(5, "v2", "deploy"), release(3, "v1", "deploy")]}),
            ),
            "/v1/environments/shop-prod" => (200, environment("v1", 6)),
            path if path.ends_with("?plan=true") => {
                let mut plan = operation["plan"].clone();
                plan["back_to"] = json!({"release": 3, "version": "v1"});
                (200, plan)
            }
            path if path.starts_with("/v1/events/stream") => problem(404, "none", "none"),
            _ => (200, operation),
        }
    })
}

#[test]
fn a_rollback_says_which_release_it_goes_back_to() {
    let script = going_back();
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["rollback", "shop-prod"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.err
            .starts_with("Plan for shop-prod: back to release 3 (v1)\n  Rolling"),
        "{}",
        ran.err
    );
}

#[test]
fn a_busy_environment_is_noticed_before_a_version_is_made() {
    let script = Script::start(|_, _| {
        let mut busy = environment("v1", 1);
        busy["operation"] = operation("running", "draining");
        (200, busy)
    });
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "t4"],
    );
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 1
    --- stdout
    --- stderr
    error: Another operation (deploy, op-000000000001) is under way on `shop-prod`.
    hint: Wait for it to end, have this begin then with `--queue`, or give the other up: `beanpole abort shop-prod`.
    ");
    assert!(script.requests().iter().all(|r| r.method == "GET"));
}

#[test]
fn a_deployment_that_is_queued_says_what_it_waits_for_and_how_to_take_it_out() {
    let script = Script::start(|request, _| {
        let mut queued = operation("queued", "pending");
        queued["plan"]["lines"] = json!([]);
        queued["instances"] = json!([]);
        queued["waiting"] = json!(["It begins when the scale (op-000000000002) has ended."]);
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", path) if path.ends_with("?plan=true") => {
                problem(409, "operation-in-progress", "Busy.")
            }
            ("POST", path) if path.ends_with("/deployments") => (202, queued),
            ("GET", "/v1/environments/shop-prod") => {
                let mut busy = environment("v1", 1);
                busy["operation"] = operation("running", "draining");
                (200, busy)
            }
            _ => (200, json!({})),
        }
    });
    let app = app();
    let words = [
        "deploy",
        "shop-prod",
        "--version",
        "v2",
        "--queue",
        "--detach",
    ];
    let ran = beanpole(app.path(), &script.url(), &words);
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 0
    --- stdout
    The deploy of shop-prod is queued. It begins when the scale (op-000000000002) has ended.
    Follow it: beanpole attach op-000000000001
    --- stderr
    ");
    let sent = script.requests();
    let body: serde_json::Value =
        serde_json::from_slice(&sent.last().expect("requests").body).expect("JSON");
    assert_eq!(body["queue"], true);
}

#[test]
fn a_version_that_is_refused_leaves_no_new_application_behind() {
    let script = Script::start(|request, _| {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/environments?plan=true") => {
                (200, operation("running", "pending")["plan"].clone())
            }
            ("POST", "/v1/applications") => (
                201,
                json!({"name": "shop", "description": "", "created_at": "2026-01-02T03:04:05.678Z"}),
            ),
            ("HEAD", _) => (200, json!(null)),
            ("GET", _) => problem(404, "application-not-found", "There is none."),
            ("DELETE", _) => (200, json!(null)),
            _ => problem(422, "nothing-to-run", "Nothing says how to run it."),
        }
    });
    let app = app();
    let arguments = ["create", "shop-prod", "-a", "shop", "--from", "."];
    let ran = beanpole(app.path(), &script.url(), &arguments);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.err.contains("Nothing says how"), "{}", ran.err);
    let requests = script.requests();
    let last = requests.last().expect("requests");
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("DELETE", "/v1/applications/shop")
    );
}

#[test]
fn a_deployment_that_is_refused_leaves_no_version_behind() {
    let script = Script::start(|request, _| {
        let path = request.path.as_str();
        match (request.method.as_str(), path) {
            ("GET", "/v1/environments/shop-prod") => (200, environment("v1", 1)),
            ("GET", path) if path.contains("/versions/") => {
                problem(404, "version-not-found", "There is no version.")
            }
            ("POST", path) if path.ends_with("/versions") => {
                let body: serde_json::Value =
                    serde_json::from_slice(&request.body).unwrap_or_default();
                (
                    201,
                    json!({"application": "shop", "label": body["label"], "description": "",
                        "bundle": body["bundle"], "bundle_size": 1,
                        "created_at": "2026-01-02T03:04:05.678Z"}),
                )
            }
            ("POST", _) => problem(409, "operation-in-progress", "Busy by now."),
            _ => (200, json!(null)),
        }
    });
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "t4"],
    );
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.err.contains("error: Busy by now."), "{}", ran.err);
    let requests = script.requests();
    let last = requests.last().expect("requests");
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("DELETE", "/v1/applications/shop/versions/t4")
    );
}

#[test]
fn versions_are_those_of_the_directory_s_application() {
    let script = Script::start(|_, _| {
        problem(
            404,
            "application-not-found",
            "There is no application `shop`.",
        )
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let shop = directory.path().join("shop");
    std::fs::create_dir(&shop).expect("directory");
    let ran = beanpole(&shop, &script.url(), &["versions", "list"]);
    assert_eq!(
        ran.err,
        "error: There is no application `shop`.\nhint: Name another with --application. List them: beanpole app list\n"
    );
    let paths: Vec<String> = script.requests().iter().map(|r| r.path.clone()).collect();
    assert_eq!(paths, ["/v1/applications/shop/versions"]);
}

/// The settings of a deployment as its plan tells of them, where none was there before.
fn all_new(body: &[u8]) -> serde_json::Value {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let namespaces = body["settings"].as_object().into_iter().flatten();
    let all = namespaces.flat_map(|(namespace, options)| {
        let options = options.as_object().into_iter().flatten();
        options.map(move |(option, value)| {
            let secret = namespace.ends_with("application:environment");
            let to = if secret { &json!(null) } else { value };
            json!({"namespace": namespace, "option": option, "from": null, "to": to,
                "how": "set", "needs": "restart"})
        })
    });
    all.collect()
}

/// A controller that takes a deployment, which ends as `ending` says after two looks.
pub(crate) fn deployment(known: bool, ending: fn() -> serde_json::Value) -> Script {
    Script::start(move |request, seen| {
        let path = request.path.as_str();
        let bundle = json!({"digest": "0".repeat(64), "size": 1});
        match (request.method.as_str(), path) {
            ("HEAD", _) => (if known { 200 } else { 404 }, json!(null)),
            ("PUT", _) => {
                let digest = path.rsplit('/').next().unwrap_or_default();
                (201, json!({"digest": digest, "size": request.body.len()}))
            }
            ("GET", "/v1/environments/shop-prod") => (200, environment("v1", 1)),
            ("GET", path) if path.contains("/settings") => (200, json!({})),
            ("GET", path) if path.contains("/versions/") => {
                problem(404, "version-not-found", "There is no version.")
            }
            ("POST", path) if path.ends_with("/versions") => {
                let body: serde_json::Value =
                    serde_json::from_slice(&request.body).unwrap_or_default();
                (
                    201,
                    json!({"application": "shop", "label": body["label"], "description": "",
                        "bundle": body["bundle"], "bundle_size": 1,
                        "created_at": "2026-01-02T03:04:05.678Z"}),
                )
            }
            ("POST", path) if path.ends_with("?plan=true") => {
                let mut plan = operation("running", "pending")["plan"].clone();
                plan["settings"] = all_new(&request.body);
                (200, plan)
            }
            ("POST", path) if path.ends_with("/deployments") => {
                (202, operation("running", "pending"))
            }
            ("GET", path) if path.starts_with("/v1/operations/") => {
                let looks = seen.iter().filter(|r| r.path == path).count();
                match looks {
                    0 | 1 => (200, operation("running", "draining")),
                    2 => (200, operation("running", "checking")),
                    _ => (200, ending()),
                }
            }
            ("GET", path) if path.starts_with("/v1/events/stream") => problem(404, "none", "none"),
            _ => (200, bundle),
        }
    })
}

pub(crate) fn app() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("Procfile"), "web: ./run\n").expect("write");
    directory
}

#[test]
fn a_deployment_is_shown_from_the_plan_to_the_url() {
    let script = deployment(false, || {
        let mut ended = operation("succeeded", "done");
        ended["receipt"] = receipt(false);
        ended
    });
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "v2", "--batch", "1"],
    );
    insta::assert_snapshot!("deploy", ran.all());
    let requests = script.requests();
    let put = requests.iter().find(|r| r.method == "PUT").expect("upload");
    assert!(put.body.starts_with(b"PK\x03\x04"));
    let deploy = requests
        .iter()
        .find(|r| r.path.ends_with("/deployments"))
        .expect("deployment");
    let body: serde_json::Value = serde_json::from_slice(&deploy.body).expect("JSON");
    assert_eq!(body["batch"], "1");
    assert_eq!(body["version"], "v2");
}

#[test]
fn what_deploy_toml_says_of_an_environment_that_is_otherwise_is_told() {
    let script = deployment(false, || operation("succeeded", "done"));
    let app = app();
    std::fs::write(app.path().join("deploy.toml"), "tier = \"worker\"\n").expect("write");
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "v2"],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    let told = "deploy.toml has tier = \"worker\", which counts when an environment is created; shop-prod has \"web\".";
    assert!(ran.err.contains(told), "{}", ran.err);
}

#[test]
fn a_bundle_that_is_known_is_not_sent_again() {
    let script = deployment(true, || operation("succeeded", "done"));
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "v2", "--json"],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(!script.requests().iter().any(|r| r.method == "PUT"));
    let result: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(result["status"], "succeeded");
    assert_eq!(result["url"], "http://shop-prod.localhost:8080/");
}

#[test]
fn a_deployment_that_fails_names_instance_probe_answer_and_log() {
    let script = deployment(false, || {
        let mut ended = operation("rolled-back", "failed");
        ended["failure"] = json!({
            "code": "unhealthy",
            "message": "Instance i-00000000000000001 did not become healthy in time.",
            "instance": "i-00000000000000001", "host": "web-1",
            "probe": "GET /", "answer": "500 in 3 ms",
            "log": ["listening on 20001", "Error: no database"],
        });
        ended
    });
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &["deploy", "shop-prod", "--label", "v2"],
    );
    insta::assert_snapshot!("deploy-failed", ran.all());
}

#[test]
fn detached_deployments_say_how_to_follow() {
    let script = deployment(false, || operation("succeeded", "done"));
    let app = app();
    let ran = beanpole(
        app.path(),
        &script.url(),
        &[
            "deploy",
            "shop-prod",
            "--label",
            "v2",
            "--detach",
            "--quiet",
        ],
    );
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 0
    --- stdout
    The deploy of shop-prod has begun.
    Follow it: beanpole attach op-000000000001
    --- stderr
    ");
}

#[test]
fn deploy_toml_stands_in_for_every_argument() {
    let script = deployment(false, || operation("succeeded", "done"));
    let app = app();
    std::fs::write(
        app.path().join("deploy.toml"),
        "application = \"shop\"\nenvironment = \"shop-prod\"\nbatch = 1\n[env]\nLOG = \"debug\"\n",
    )
    .expect("write");
    let below = app.path().join("src");
    std::fs::create_dir(&below).expect("directory");
    let ran = beanpole(&below, &script.url(), &["deploy"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let requests = script.requests();
    let deploy = requests
        .iter()
        .find(|r| r.path.ends_with("/deployments"))
        .expect("deployment");
    let body: serde_json::Value = serde_json::from_slice(&deploy.body).expect("JSON");
    assert_eq!(
        body["settings"],
        json!({
            "aws:elasticbeanstalk:application:environment": {"LOG": "debug"},
            "aws:elasticbeanstalk:command": {"BatchSize": "1", "BatchSizeType": "Fixed"},
        })
    );
    assert!(
        ran.err.contains("sets environment property LOG"),
        "{}",
        ran.err
    );
    assert!(
        !ran.err.contains("debug"),
        "values stay private: {}",
        ran.err
    );
}

#[test]
fn a_typo_in_deploy_toml_is_refused_before_anything_is_sent() {
    let script = deployment(false, || operation("succeeded", "done"));
    let app = app();
    std::fs::write(
        app.path().join("deploy.toml"),
        "x-note = \"free\"\naplication = \"shop\"\n",
    )
    .expect("write");
    let ran = beanpole(app.path(), &script.url(), &["deploy", "shop-prod"]);
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 2
    --- stdout
    --- stderr
    error: DIR/deploy.toml:2: There is no setting `aplication`.
    hint: Did you mean `application`? Keys that begin with `x-` are free.
    ");
}

#[test]
fn a_plan_shows_capacity_time_and_settings() {
    let script = Script::start(|request, _| {
        let step = |batch: serde_json::Value, change: &str, host: &str, lowest: u32, ms: u64| {
            json!({"batch": batch, "changes": [{"change": change, "host": host,
                    "instances": u32::from(change != "prepare")}],
                "serving_before": 2, "serving_lowest": lowest, "serving_after": 2,
                "running_most": 2, "running_after": 2,
                "expected_ms": ms, "at_most_ms": 600_000})
        };
        let setting = |option: &str,
                       from: serde_json::Value,
                       to: serde_json::Value,
                       needs: &str| {
            let namespace = if option == "SECRET" {
                "aws:elasticbeanstalk:application:environment"
            } else {
                "aws:elasticbeanstalk:command"
            };
            json!({"namespace": namespace, "option": option, "from": from, "to": to, "how": "set",
                "needs": needs})
        };
        match request.path.as_str() {
            "/v1/environments/shop-prod" => (200, environment("v1", 1)),
            path if path.ends_with("?plan=true") => {
                let mut plan = operation("running", "pending")["plan"].clone();
                plan["steps"] = json!([
                    step(json!(null), "prepare", "web-1", 2, 1_400),
                    step(json!(1), "replace", "web-1", 1, 2_400),
                    step(json!(2), "replace", "web-2", 1, 2_400),
                ]);
                plan["time"] =
                    json!({"expected_ms": 6_200, "at_most_ms": 1_800_000, "measured": 3});
                plan["settings"] = json!([
                    setting("SECRET", json!(null), json!(null), "restart"),
                    setting("BatchSize", json!("30"), json!("50"), "nothing"),
                ]);
                (200, plan)
            }
            _ => problem(404, "none", "none"),
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["deploy", "shop-prod", "--version", "v2", "--plan"],
    );
    insta::assert_snapshot!("plan", ran.all());
}

#[test]
fn a_new_application_comes_with_its_environment_or_not_at_all() {
    let script = Script::start(|request, _| match request.path.as_str() {
        "/v1/environments" => problem(409, "port-taken", "Port 5432 belongs to environment `db`."),
        _ => problem(404, "application-not-found", "There is none."),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let arguments = ["create", "shop-db", "--application", "shop"];
    let ran = beanpole(directory.path(), &script.url(), &arguments);
    assert_eq!(ran.code, 1, "{}", ran.all());
    let requests = script.requests();
    let sent: Vec<&str> = requests
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.path.as_str())
        .collect();
    assert_eq!(sent, ["/v1/environments"]);
    let body: serde_json::Value =
        serde_json::from_slice(&requests.last().expect("one").body).expect("JSON");
    assert_eq!(body["new_application"], "");
}

#[test]
fn an_environment_of_no_instances_is_said_to_sleep() {
    let script = Script::start(|request, _| {
        let mut scaled = operation("succeeded", "done");
        scaled["kind"] = json!("scale");
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/environments/shop-prod/scale") => (202, scaled),
            ("GET", "/v1/environments/shop-prod/settings") => {
                let sleeps = json!({"aws:autoscaling:asg": {"MinSize": "0"},
                    "beanpole:proxy": {"IdleTime": "300"}});
                (200, sleeps)
            }
            ("GET", "/v1/environments/shop-prod") => (200, environment("v1", 1)),
            ("GET", path) if path.starts_with("/v1/operations/") => (200, scaled),
            _ => problem(404, "path-not-found", "The API has no such path."),
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let words = ["scale", "shop-prod", "0"];
    let ran = beanpole(directory.path(), &script.url(), &words);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let said = "It sleeps, without any, after 5 min 0 s without a request (IdleTime)";
    assert!(ran.out.contains(said), "{}", ran.all());
}
