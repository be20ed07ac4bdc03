//! How it is asked: help, mistakes, completion, variables.

use crate::deploying::app;
use crate::script::{Script, environment, problem};
use crate::{beanpole, offline};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

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
    &["edge"],
    &["edge", "add"],
    &["edge", "list"],
    &["edge", "logs"],
    &["edge", "restart"],
    &["edge", "remove"],
    &["init"],
    &["create"],
    &["deploy"],
    &["status"],
    &["health"],
    &["why"],
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
        &["config", "shop-prod", "aws:elbv2:listener:443:Protocol=TLS"],
        &["config", "MemoryMax=512"],
        &["why", "tcp://shop-db.localhost"],
        &["why", "udp://shop-db.localhost:53"],
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
        &["create", "shop-prod", "--platform", "podman"],
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
