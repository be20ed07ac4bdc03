//! What a bundle's configuration files have done on a host, as root and without.

use crate::world::{World, bundle, release};
use beanpole_protocol::EnvironmentId;
use beanpole_protocol::agent::{HostReport, ReleasePhase};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PROCFILE: (&str, &str) = ("Procfile", "web: sleep 1000\n");
const CONFIG: &str = ".ebextensions/01.config";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn tree(world: &World, number: u64) -> PathBuf {
    let environment = EnvironmentId::from_bits(7);
    world
        .data()
        .join(format!("agent/releases/{environment}/{number}/app"))
}

fn ready(report: &HostReport, number: u64) -> bool {
    let mut releases = report.releases.iter();
    let release = releases.find(|release| release.key.number.0 == number);
    release.is_some_and(|release| release.phase == ReleasePhase::Ready && release.set_up)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn a_host_is_set_up_as_root_in_order_and_once() {
    if !is_root() {
        return;
    }
    let top = tempfile::tempdir().expect("temporary directory");
    let at = top.path().display();
    let config = format!(
        "files:\n  {at}/etc/motd:\n    mode: '000640'\n    group: 12345\n    content: |\n      hello\n  {at}/link:\n    \
         mode: '120777'\n    content: etc/motd\n\
         commands:\n  01_who:\n    command: echo $(id -u) $A $GREETING. $(pwd) $(cat {at}/etc/motd) >>who\n    cwd: {at}\n    env: {{A: b}}\n  \
         02_not: {{command: touch {at}/not, test: 'false'}}\n  03_fails: {{command: [sh, -c, exit 3], ignoreErrors: true}}\n\
         container_commands:\n  c: {{command: id -u >made}}\n"
    );
    let app = bundle(&[
        PROCFILE,
        (CONFIG, &config),
        (
            ".platform/hooks/prebuild/1.sh",
            "#!/bin/sh\nid -u >hook\numask 077\necho x >private\n",
        ),
    ]);
    let mut world = World::new();
    world.send(&app).await.expect("blob");
    let mut one = release(1, &app);
    one.root = true;
    world.order(std::slice::from_ref(&one), &[]).await;
    world.until("a release", |report| ready(report, 1)).await;
    let motd = fs::metadata(top.path().join("etc/motd")).expect("there");
    assert_eq!((motd.mode() & 0o7777, motd.gid()), (0o640, 12345));
    assert_eq!(text(&top.path().join("link")), "hello\n");
    // Properties are not for what sets a host up.
    let line = format!("0 b . {at} hello\n");
    assert_eq!(text(&top.path().join("who")), line);
    assert!(!top.path().join("not").exists());
    let tree_of_one = tree(&world, 1);
    assert_eq!(text(&tree_of_one.join("hook")), "0\n");
    assert_eq!(text(&tree_of_one.join("made")), "0\n");
    // What root made in it is for the application, too.
    let private = fs::metadata(tree_of_one.join("private")).expect("there");
    assert_eq!(private.mode() & 0o777, 0o644);

    let mut two = release(2, &app);
    two.root = true;
    world.order(&[one, two], &[]).await;
    world.until("another", |report| ready(report, 2)).await;
    // Commands run for each, and what is as it is wanted is left alone.
    assert_eq!(text(&top.path().join("who")), line.repeat(2));
    assert!(!top.path().join("etc/motd.bak").exists());
    let again = fs::metadata(top.path().join("etc/motd")).expect("there");
    assert_eq!(again.ino(), motd.ino());
}

#[tokio::test]
async fn without_permission_nothing_is_done_and_the_refusal_names_the_place() {
    let top = tempfile::tempdir().expect("temporary directory");
    let at = top.path().display();
    let config = format!(
        "container_commands:\n  c: {{command: touch {at}/ran}}\nfiles:\n  {at}/motd: {{content: x}}\n"
    );
    let app = bundle(&[PROCFILE, (CONFIG, &config)]);
    let mut world = World::new();
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "root-not-allowed");
    for says in [
        format!("the file `{at}/motd` in .ebextensions/01.config, line 4"),
        "beanpole app root allow shop".to_owned(),
    ] {
        assert!(failure.message.contains(&says), "{failure:?}");
    }
    assert_eq!(fs::read_dir(top.path()).expect("readable").count(), 0);
}

#[tokio::test]
async fn what_lies_in_the_release_is_written_without_permission() {
    let config = "files:\n  /var/app/current/config/a.yml: {content: x, mode: '000600', owner: root}\n  \
                  /var/app/staging/run.sh: {content: 'true', mode: '000700'}\n\
                  container_commands:\n  c: {command: id -u >made}\n";
    let app = bundle(&[PROCFILE, (CONFIG, config), ("config/b.yml", "")]);
    let mut world = World::new();
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    world.until("a release", |report| ready(report, 1)).await;
    let tree = tree(&world, 1);
    let mode = |name: &str| fs::metadata(tree.join(name)).expect("there").mode() & 0o777;
    assert_eq!(text(&tree.join("config/a.yml")), "x");
    assert_eq!((mode("config/a.yml"), mode("run.sh")), (0o644, 0o755));
    if is_root()
        && world
            .fences()
            .report()
            .iter()
            .any(|fence| fence.name == "own user" && fence.active)
    {
        assert_ne!(text(&tree.join("made")), "0\n");
    }
}

#[tokio::test]
async fn a_command_that_fails_ends_the_preparation_with_its_last_lines() {
    if !is_root() {
        return;
    }
    let top = tempfile::tempdir().expect("temporary directory");
    let at = top.path().display();
    let config = format!(
        "commands:\n  1: {{command: 'echo no such thing; exit 7'}}\n  2: {{command: touch {at}/ran}}\n"
    );
    let app = bundle(&[PROCFILE, (CONFIG, &config)]);
    let mut world = World::new();
    world.send(&app).await.expect("blob");
    let mut order = release(1, &app);
    order.root = true;
    world.order(&[order], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "setup-failed");
    assert!(failure.message.contains("exit status: 7"), "{failure:?}");
    assert!(
        failure.log.iter().any(|line| line == "no such thing"),
        "{failure:?}"
    );
    assert!(!top.path().join("ran").exists());
}

#[tokio::test]
async fn confighooks_take_the_place_of_hooks_where_only_settings_change() {
    let hook = "#!/bin/sh\necho $0 >>ran\n";
    let app = bundle(&[
        PROCFILE,
        (".platform/hooks/prebuild/1", hook),
        (".platform/hooks/predeploy/1", hook),
        (".platform/confighooks/prebuild/1", hook),
        (".platform/confighooks/predeploy/1", hook),
    ]);
    let ran = |world: &World, number| -> Vec<bool> {
        let text = text(&tree(world, number).join("ran"));
        text.lines()
            .map(|line| line.contains("confighooks"))
            .collect()
    };
    let mut world = World::new();
    world.send(&app).await.expect("blob");
    // A host that has nothing of it is set up, whatever changed.
    let mut one = release(1, &app);
    one.configures = true;
    world.order(std::slice::from_ref(&one), &[]).await;
    world.until("a release", |report| ready(report, 1)).await;
    assert_eq!(ran(&world, 1), [false, false]);
    let mut two = release(2, &app);
    two.configures = true;
    world.order(&[one.clone(), two.clone()], &[]).await;
    world.until("another", |report| ready(report, 2)).await;
    assert_eq!(ran(&world, 2), [true, true]);
    world.order(&[one, two, release(3, &app)], &[]).await;
    world.until("a third", |report| ready(report, 3)).await;
    assert_eq!(ran(&world, 3), [false, false]);
}

/// Answers one request with an archive of `directory`; gives its URL.
fn serve_archive_of(directory: &Path) -> String {
    let made = std::process::Command::new("tar")
        .args(["-czf", "-", "-C"])
        .args([directory, Path::new(".")])
        .output()
        .expect("tar runs");
    assert!(made.status.success(), "{made:?}");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a request");
        let mut reader = BufReader::new(stream.try_clone().expect("the same"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).expect("a line");
        }
        let length = made.stdout.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).expect("answered");
        stream.write_all(&made.stdout).expect("answered");
    });
    format!("http://{address}/a.tar.gz")
}

#[tokio::test]
async fn an_archive_goes_into_the_release_and_leads_nothing_out_of_it() {
    let top = tempfile::tempdir().expect("temporary directory");
    let (content, outside) = (top.path().join("content"), top.path().join("outside"));
    fs::create_dir_all(&content).expect("make");
    fs::create_dir_all(&outside).expect("make");
    fs::write(content.join("text"), "hello").expect("write");
    std::os::unix::fs::symlink(&outside, content.join("out")).expect("link");
    let config = |url: &str, file: &str| {
        let config = format!(
            "sources: {{/var/app/current/vendor: '{url}'}}\nfiles: {{/var/app/current/vendor/{file}: {{content: x}}}}\n"
        );
        bundle(&[PROCFILE, (CONFIG, &config), ("vendor/before", "")])
    };
    let mut world = World::new();
    let app = config(&serve_archive_of(&content), "more");
    world.send(&app).await.expect("blob");
    let one = release(1, &app);
    world.order(std::slice::from_ref(&one), &[]).await;
    world.until("a release", |report| ready(report, 1)).await;
    let tree = tree(&world, 1);
    assert_eq!(text(&tree.join("vendor/text")), "hello");
    assert_eq!(text(&tree.join("vendor/more")), "x");
    assert!(!tree.join("vendor/before").exists());
    let mut left: Vec<String> = fs::read_dir(tree.parent().expect("the release"))
        .expect("readable")
        .map(|entry| {
            entry
                .expect("there")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name != "synced")
        .collect();
    left.sort();
    assert_eq!(left, ["app", "release.json"]);

    let app = config(&serve_archive_of(&content), "out/motd");
    world.send(&app).await.expect("blob");
    world.order(&[release(2, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "setup-failed", "{failure:?}");
    assert!(
        failure
            .message
            .contains("is not in the release's directory"),
        "{failure:?}"
    );
    assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
}
