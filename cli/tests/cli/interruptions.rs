//! What is stopped, breaks off or goes on without the command.

use crate::deploying::app;
use crate::deploying::deployment;
use crate::script::{Script, environment, operation};
use crate::{Ran, beanpole};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

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
