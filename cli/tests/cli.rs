//! The command line as a user meets it: standard output, standard error and exit code, against a
//! scripted controller.

mod script;

use script::{Script, environment, operation, problem, receipt};
use serde_json::json;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One run.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// All of it, for a snapshot.
    fn all(&self) -> String {
        format!(
            "exit code: {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.out, self.err
        )
    }
}

fn beanpole(directory: &Path, url: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_beanpole"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .env("BEANPOLE_URL", url)
        .env("BEANPOLE_TOKEN", "secret")
        .stdin(Stdio::null())
        .output()
        .expect("beanpole runs");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr)
            .replace(&directory.display().to_string(), "DIR")
            .replace(url, "URL"),
    }
}

fn offline(arguments: &[&str]) -> Ran {
    let directory = tempfile::tempdir().expect("temporary directory");
    beanpole(directory.path(), "http://127.0.0.1:1", arguments)
}

const COMMANDS: &[&[&str]] = &[
    &[],
    &["demo"],
    &["up"],
    &["host"],
    &["host", "add"],
    &["host", "list"],
    &["host", "show"],
    &["host", "drain"],
    &["host", "resume"],
    &["host", "upgrade"],
    &["host", "remove"],
    &["host", "accept-key"],
    &["init"],
    &["create"],
    &["deploy"],
    &["status"],
    &["health"],
    &["events"],
    &["logs"],
    &["open"],
    &["list"],
    &["scale"],
    &["setenv"],
    &["printenv"],
    &["config"],
    &["restart"],
    &["rollback"],
    &["releases"],
    &["show"],
    &["abort"],
    &["cut"],
    &["attach"],
    &["terminate"],
    &["app"],
    &["versions"],
    &["backup"],
    &["restore"],
    &["version"],
    &["completions"],
    &["controller"],
    &["agent"],
    &["proxy"],
];

#[test]
fn every_command_has_help_with_examples() {
    let mut all = String::new();
    for command in COMMANDS {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let ran = offline(&arguments);
        assert_eq!(ran.code, 0, "{command:?}: {}", ran.err);
        assert!(
            ran.out.contains("Example") || command.is_empty(),
            "{command:?} shows no example:\n{}",
            ran.out
        );
        // What stands under every command is shown once.
        let own = match (command.is_empty(), ran.out.find("Everywhere:")) {
            (false, Some(start)) => {
                let rest = &ran.out[start..];
                let end = rest.find("\n\n").map_or(rest.len(), |end| end + 2);
                format!("{}{}", &ran.out[..start], &rest[end..])
            }
            _ => ran.out.clone(),
        };
        all.push_str(&format!("$ beanpole {}\n{own}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn misuse_exits_2_and_says_what_to_write() {
    let cases: &[&[&str]] = &[
        &["frobnicate"],
        &["deploi"],
        &["status"],
        &["scale", "shop-prod"],
        &["scale", "shop-prod", "many"],
        &["create", "x"],
        &["create", "x-prod"],
        &["create", "shop-prod", "--cname", "-x"],
        &["create", "shop-prod", "--instances", "0"],
        &["create", "shop-prod", "--env", "A=1", "--env", "A=2"],
        &["rollback", "shop-prod", "--to", "last"],
        &["config", "shop-prod", "--set", "MemoryMax=1"],
        &["logs", "shop-prod", "--tail", "99999999"],
        &["host"],
        &["host", "ad"],
        &["host", "add", "web-1", "--agent", "--host-key", "SHA256:x"],
        &["help", "nope"],
        &["events", "shop-prod", "--limit", "3"],
        &["list", "--url", "http://127.0.0.1:99999"],
        &["up", "--api", "localhost:7700"],
        &["attach", "x"],
        &["show", "shop-prod", "live"],
        &["show", "shop-prod", "1", "2"],
        &["show", "1"],
        &["deploy", "shop-prod", "--batch", "0"],
        &["deploy", "shop-prod", "--policy", "Immutible"],
        &["create", "shop-prod", "--platform", "pyton"],
        &["create", "shop-prod", "--platform", "docker"],
        &["setenv", "shop-prod", "1A=x"],
        &["setenv", "shop-prod", "PORT=80"],
        &["list", "--token", "bp_secret\nsecond"],
        &["terminate", "shop-prod"],
        &["host", "remove", "web-1"],
        &["host", "add", "a b"],
        &["setenv", "shop-prod", "A"],
        &["config", "shop-prod", "--set", "BatchSise=3"],
        &["up", "--data", "x", "--api", "0.0.0.0:0"],
        &["controller", "--data", "x", "--api", "0.0.0.0:7700"],
        &[
            "controller",
            "--data",
            "x",
            "--tls-cert",
            "c",
            "--tls-key",
            "k",
        ],
        &["events", "shop-prod", "--last", "0"],
        &["deploy", "shop-prod", "--from", "nowhere"],
        &[
            "create",
            "shop-prod",
            "--application",
            "shop",
            "--from",
            "nowhere",
        ],
        &["setenv", "shop-prod", "--file", "nowhere"],
        &["host", "add", "web-1", "--identity", "nowhere"],
        &["restore", "nowhere", "--data", "x"],
        &["backup", "nowhere/file"],
        &["list", "--ca", "nowhere"],
        &["list", "--token-file", "nowhere"],
    ];
    let mut all = String::new();
    for case in cases {
        let ran = offline(case);
        assert_eq!(ran.code, 2, "{case:?}: {}", ran.all());
        assert!(ran.out.is_empty(), "{case:?}: {}", ran.out);
        assert!(ran.err.starts_with("error: "), "{case:?}: {}", ran.err);
        all.push_str(&format!("$ beanpole {}\n{}\n", case.join(" "), ran.err));
    }
    insta::assert_snapshot!("misuse", all);
}

#[test]
fn an_error_under_json_is_one_value_on_standard_output() {
    for (arguments, code) in [
        (&["frobnicate"][..], 2),
        (&["create", "x"], 2),
        (&["host"], 2),
        (&["deploy"], 2),
        (&["list"], 1),
        (&["restore", "nowhere", "--data", "x"], 2),
    ] {
        let ran = offline(&[&["--json"], arguments].concat());
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.all());
        let told: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
        let error = told["error"].as_object().expect("an error");
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["causes", "code", "details", "hint", "message", "request_id"]
        );
        assert!(ran.err.starts_with("error: "), "{}", ran.all());
    }
    for arguments in [&["completions", "bash"][..], &["init", "--explain"]] {
        let ran = offline(&[&["--json"], arguments].concat());
        serde_json::from_str::<serde_json::Value>(&ran.out).expect("JSON");
    }
}

/// What bash completes the last of `words` to, asked as it asks.
fn completed(directory: &Path, url: &str, words: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_beanpole"));
    let ask = format!(
        "source <(beanpole completions bash); COMP_WORDS=({}); COMP_CWORD={}; \
         _beanpole beanpole '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", &ask])
        .current_dir(directory)
        .env(
            "PATH",
            format!("{}:{path}", program.parent().expect("directory").display()),
        )
        .env("BEANPOLE_URL", url)
        .env("BEANPOLE_TOKEN", "secret")
        .output()
        .expect("bash runs");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_shell_completes_the_names_of_environments() {
    let script =
        Script::start(|_, _| (200, json!({"items": [environment("v1", 1)], "next": null})));
    let directory = tempfile::tempdir().expect("temporary directory");
    let at = directory.path();
    for command in [
        "status",
        "deploy",
        "scale",
        "setenv",
        "attach",
        "show",
        "terminate",
    ] {
        let words = completed(at, &script.url(), &["beanpole", command, "sh"]);
        assert_eq!(words, ["shop-prod"], "{command}");
    }
    let create = completed(at, &script.url(), &["beanpole", "create", "sh"]);
    assert!(!create.contains(&"shop-prod".to_owned()), "{create:?}");
    // Nobody is asked for an option, and nobody who is not there gets a word in.
    let asked = script.requests().len();
    let options = completed(at, &script.url(), &["beanpole", "status", "--js"]);
    assert_eq!(options, ["--json"]);
    assert_eq!(script.requests().len(), asked);
    let away = completed(at, "http://127.0.0.1:1", &["beanpole", "status", "sh"]);
    assert!(away.iter().all(String::is_empty), "{away:?}");
}

#[test]
fn a_controller_that_does_not_answer_keeps_no_shell_waiting() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("address"));
    let directory = tempfile::tempdir().expect("temporary directory");
    let began = Instant::now();
    let ran = beanpole(directory.path(), &url, &["__complete", "environments"]);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
}

#[test]
fn an_empty_variable_says_nothing() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_beanpole"));
    command
        .arg("list")
        .current_dir(directory.path())
        .env_clear();
    for name in ["URL", "TOKEN", "TOKEN_FILE", "DATA", "CA"] {
        command.env(format!("BEANPOLE_{name}"), "");
    }
    let output = command.output().expect("beanpole runs");
    let text = String::from_utf8_lossy(&output.stderr);
    // Another controller may run on this machine, whose token is not found here.
    assert!(
        text.contains("Cannot reach the controller at http://127.0.0.1:7700")
            || text.contains("carries no token"),
        "{text}"
    );
}

#[test]
fn help_is_a_command_and_keeps_internal_commands_to_itself() {
    for arguments in [&["help"][..], &["--help"], &[]] {
        let ran = offline(arguments);
        let text = format!("{}{}", ran.out, ran.err);
        assert!(text.contains("\n  deploy "), "{arguments:?}: {text}");
        for internal in ["shim", "demo-app"] {
            assert!(!text.contains(internal), "{arguments:?}: {text}");
        }
        assert!(!text.contains("error:"), "{arguments:?}: {text}");
        assert_eq!(ran.code, if arguments.is_empty() { 2 } else { 0 });
    }
    assert_eq!(
        offline(&["help", "deploy"]).out,
        offline(&["deploy", "--help"]).out
    );
    assert_eq!(
        offline(&["help", "host", "add"]).out,
        offline(&["host", "add", "--help"]).out
    );
}

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
fn a_mistyped_environment_is_told_with_the_one_that_was_meant() {
    let script = Script::start(|request, _| match request.path.as_str() {
        "/v1/environments" => (200, json!({"items": [environment("v1", 1)], "next": null})),
        _ => problem(
            404,
            "environment-not-found",
            "There is no environment `shop-prdo`.",
        ),
    });
    let app = app();
    let deployed = beanpole(app.path(), &script.url(), &["deploy", "shop-prdo"]);
    assert!(
        deployed
            .err
            .ends_with("hint: Did you mean `shop-prod`? Create it: beanpole create shop-prdo\n"),
        "{}",
        deployed.err
    );
    for arguments in [
        &["status"][..],
        &["health"],
        &["events"],
        &["logs"],
        &["open"],
        &["scale", "3"],
        &["setenv", "A=1"],
        &["printenv"],
        &["config"],
        &["restart"],
        &["rollback"],
        &["releases"],
        &["show"],
        &["abort"],
        &["cut"],
        &["attach"],
        &["terminate", "--yes"],
    ] {
        let mut words = arguments.to_vec();
        words.insert(1, "shop-prdo");
        let ran = beanpole(app.path(), &script.url(), &words);
        assert_eq!(ran.code, 1, "{}", ran.all());
        assert!(
            ran.err.contains("hint: Did you mean `shop-prod`?"),
            "{words:?}: {}",
            ran.err
        );
    }
    let far = beanpole(app.path(), &script.url(), &["status", "other-thing"]);
    assert!(!far.err.contains("Did you mean"), "{}", far.err);
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

/// A daemon that ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A controller without agent and proxy, and its address.
fn controller(data: &Path, more: &[&str]) -> (Running, String) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("address").to_string();
    drop(free);
    let child = Command::new(env!("CARGO_BIN_EXE_beanpole"))
        .args(["controller", "--api", &address, "--data"])
        .arg(data)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("beanpole runs");
    let running = Running(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "the controller does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (running, address)
}

#[test]
fn a_controller_that_was_reached_is_not_said_to_be_away() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let data = directory.path().join("data");
    let (_running, address) = controller(&data, &["--tls-self-signed"]);
    let list = |url: &str, ca: Option<&str>| {
        let more = ca.map_or(vec![], |ca| vec!["--ca", ca]);
        beanpole(
            directory.path(),
            url,
            &[&["list"], more.as_slice()].concat(),
        )
    };
    let ran = list(&format!("https://{address}"), None);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(
        ran.err
            .starts_with("error: The certificate of the controller at URL is not trusted.\n"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("--ca FILE or BEANPOLE_CA"), "{}", ran.err);
    assert!(
        ran.err.contains("DIR/controller/api-cert.pem"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("beanpole up"), "{}", ran.err);

    let own = data.join("controller/api-cert.pem");
    let ran = list(&format!("https://{address}"), own.to_str());
    assert!(ran.err.contains("token"), "it is asked: {}", ran.err);

    let ran = list(&format!("http://{address}"), None);
    assert!(
        ran.err
            .starts_with("error: What answers at URL speaks no plain HTTP.\n"),
        "{}",
        ran.err
    );
    let hint = format!("--url https://{address}\n");
    assert!(ran.err.ends_with(&hint), "{}", ran.err);

    let other = directory.path().join("other");
    let (_plain, plain) = controller(&other, &[]);
    let ran = list(&format!("https://{plain}"), None);
    assert!(
        ran.err
            .starts_with("error: What answers at URL speaks no TLS.\n"),
        "{}",
        ran.err
    );
    let hint = format!("--url http://{plain}\n");
    assert!(ran.err.ends_with(&hint), "{}", ran.err);
    let (_other, address) = controller(&directory.path().join("third"), &["--tls-self-signed"]);
    let ran = list(&format!("https://{address}"), own.to_str());
    assert!(
        ran.err.contains("is not the certificate that it shows"),
        "{}",
        ran.err
    );
}

/// Starts the command against a controller that answers the call at `stalls` never, sends it SIGINT when
/// that has come, and says how it ended.
fn interrupted(directory: &Path, stalls: &'static str, arguments: &[&str]) -> Ran {
    let (sender, arrived) = std::sync::mpsc::channel();
    let script = Script::start(move |request, _| {
        if request.path.starts_with(stalls) {
            let _ = sender.send(());
            loop {
                std::thread::park();
            }
        }
        (200, environment("v1", 1))
    });
    let child = Command::new(env!("CARGO_BIN_EXE_beanpole"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("BEANPOLE_URL", script.url())
        .env("BEANPOLE_TOKEN", "secret")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("beanpole runs");
    arrived
        .recv_timeout(Duration::from_secs(30))
        .expect("the call comes");
    let told = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(told.success());
    let output = child.wait_with_output().expect("it ends");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_backup_that_is_stopped_leaves_nothing_unfinished() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = interrupted(directory.path(), "/v1/backup", &["backup", "b"]);
    assert_eq!(ran.code, 130, "{}", ran.all());
    assert!(ran.err.contains("Stopped before the end"), "{}", ran.err);
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("directory")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_deployment_that_is_stopped_early_says_that_nothing_began() {
    let app = app();
    let ran = interrupted(
        app.path(),
        "/v1/bundles/",
        &["deploy", "shop-prod", "--label", "v2"],
    );
    assert_eq!(ran.code, 130, "{}", ran.all());
    assert!(
        ran.err.ends_with(
            "error: Stopped before the deploy of shop-prod began; what it runs stays as it is.\n"
        ),
        "{}",
        ran.err
    );
}

#[test]
fn ctrl_c_leaves_nothing_of_the_redrawn_lines() {
    use std::io::{Read, Write};
    let script = deployment(true, || operation("running", "checking"));
    let app = app();
    let command = format!(
        "exec {} deploy shop-prod --label v2",
        env!("CARGO_BIN_EXE_beanpole")
    );
    // A terminal, as far as the command can see.
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--echo", "always", "--command"])
        .arg(&command)
        .arg("/dev/null")
        .current_dir(app.path())
        .env("BEANPOLE_URL", script.url())
        .env("BEANPOLE_TOKEN", "secret")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script runs");
    let mut keys = terminal.stdin.take().expect("input");
    let mut screen = terminal.stdout.take().expect("output");
    let mut shown = String::new();
    let mut piece = [0; 4096];
    let mut pressed = false;
    while let Ok(count @ 1..) = screen.read(&mut piece) {
        shown.push_str(&String::from_utf8_lossy(&piece[..count]));
        if !pressed && shown.contains("deploy running") {
            keys.write_all(b"\x03").expect("write");
            pressed = true;
        }
    }
    assert_eq!(terminal.wait().expect("wait").code(), Some(130), "{shown}");
    assert!(shown.contains("Stopped watching"), "{shown}");
    // It would stand below the lines, which are cleared from where the cursor then is.
    assert!(!shown.contains("^C"), "{shown}");
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
fn what_a_terminal_would_obey_never_reaches_it() {
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J";
    let script = Script::start(move |_, _| problem(409, "evil", &format!("The host said: {evil}")));
    let directory = tempfile::tempdir().expect("temporary directory");
    for arguments in [
        &["status", "shop-prod"][..],
        &["status", "shop-prod", "--json"],
    ] {
        let ran = beanpole(directory.path(), &script.url(), arguments);
        assert!(
            !ran.all().chars().any(|c| c.is_control() && c != '\n'),
            "{:?}",
            ran.all()
        );
        assert!(ran.err.contains("owned"), "{:?}", ran.err);
    }
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let ran = offline(&["list"]);
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 1
    --- stdout
    --- stderr
    error: Cannot reach the controller at URL.
    caused by: Connection refused (os error 111)
    hint: Start one on this machine with `beanpole up`, or say where it is: --url URL or BEANPOLE_URL
    ");
}

#[test]
fn a_problem_is_shown_with_its_hint() {
    let script = Script::start(|_, _| {
        problem(
            404,
            "environment-not-found",
            "There is no environment `shop-prod`.",
        )
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let ran = beanpole(directory.path(), &script.url(), &["status", "shop-prod"]);
    insta::assert_snapshot!(ran.all(), @r"
    exit code: 1
    --- stdout
    --- stderr
    error: There is no environment `shop-prod`.
    hint: Create it: beanpole create shop-prod
    ");
    let ran = beanpole(
        directory.path(),
        &script.url(),
        &["status", "shop-prod", "--json"],
    );
    let error: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(error["error"]["code"], "environment-not-found");
    assert!(ran.err.starts_with("error: There is no env"), "{}", ran.err);
    assert!(
        script.requests().iter().all(|r| r.token == "Bearer secret"),
        "the token is sent"
    );
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
fn deployment(known: bool, ending: fn() -> serde_json::Value) -> Script {
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

fn app() -> tempfile::TempDir {
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

/// A controller whose backup ends in the middle, without its last chunk.
fn breaking_off() -> String {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                line.clear();
            }
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_backup_that_breaks_off_fails_and_leaves_what_was_there() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let url = breaking_off();
    let file = dir.path().join("b");
    let before = "{\"beanpole_backup\":1, and so on";
    std::fs::write(&file, before).expect("write");
    let ran = beanpole(dir.path(), &url, &["backup", "b"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("The backup broke off"), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), before);
    assert!(!dir.path().join("b.part").exists());

    let ran = beanpole(dir.path(), &url, &["backup", "-"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("The backup broke off"), "{}", ran.err);
}

#[test]
fn a_backup_replaces_no_file_but_an_older_backup() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("passwd");
    std::fs::write(&file, "root:x:0:0").expect("write");
    let ran = beanpole(dir.path(), "http://127.0.0.1:1", &["backup", "passwd"]);
    assert_eq!(ran.code, 2, "{}", ran.all());
    assert!(ran.err.contains("is no backup"), "{}", ran.err);
    let left = std::fs::read_to_string(&file).expect("read");
    assert_eq!(left, "root:x:0:0");
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

#[test]
fn a_daemon_keeps_no_lock_of_the_script_that_started_it() {
    for supervise in [&[][..], &["--supervise"]] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        // As in a script: `exec 9>lock; flock 9; beanpole agent … &`.
        let mut daemon = Command::new("sh")
            .args(["-c", "exec 9>\"$0\"; flock -n 9 && exec \"$@\""])
            .arg(at("lock"))
            .args([env!("CARGO_BIN_EXE_beanpole"), "agent"])
            .args(supervise)
            .arg("--data")
            .arg(at("data"))
            .arg("--socket")
            .arg(at("agent.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let deadline = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(at("agent.sock")).is_err() {
            assert!(Instant::now() < deadline, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        let lock = std::fs::File::open(at("lock")).expect("the shell made it");
        let free = lock.try_lock().is_ok();
        let pid = daemon.id().to_string();
        let told = Command::new("kill").arg(&pid).status().expect("kill runs");
        assert!(told.success());
        assert!(daemon.wait().expect("wait").success(), "{supervise:?}");
        assert!(free, "{supervise:?}");
    }
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
