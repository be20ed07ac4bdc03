//! Applications in containers, on a real host with a real Docker Engine, which the agent installs.

use crate::changes::assert_live;
use crate::over_ssh::hosts;
use crate::platforms::{bed_on_h1, deployed};
use beanpole_tests::apps::App;
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use beanpole_tests::wait;
use std::fs;
use std::time::Duration;

const WEB: &str = "shop-prod";

/// An image to begin with, without a registry: a shell, and what the test application is linked with.
fn make_base() {
    Hosts::on(
        "h1",
        "cd / && tar -chf - lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/libc.so.6 lib/x86_64-linux-gnu/libm.so.6 \
         lib/x86_64-linux-gnu/libgcc_s.so.1 bin/sh bin/sleep bin/cat | docker import - base:1",
    );
}

/// Process 1 hears no signal that it does not ask for.
fn runs(version: &str) -> String {
    format!("trap 'exit 0' TERM; echo hello from {version}; /app/testapp {version} & wait")
}

fn with_dockerfile(app: App, version: &str) -> App {
    let _ = fs::remove_file(app.dir.join("Procfile"));
    let text = format!(
        "FROM base:1\nCOPY . /app\nENV PORT=8080\nEXPOSE $PORT\nCMD [\"/bin/sh\", \"-c\", \"{}\"]\n",
        runs(version)
    );
    app.file("Dockerfile", text.as_bytes())
        .file(".dockerignore", b"secret\n")
        .file("secret", b"not in the image")
}

/// What the Engine lists.
fn listed(what: &str) -> Vec<String> {
    let text = Hosts::on("h1", what);
    text.lines().map(str::to_owned).collect()
}

fn answers(bed: &Bed, environment: &str, version: &str) {
    wait::until_true("it answers", Duration::from_mins(1), || {
        let answer = bed.get(environment, "/");
        answer.status == 200 && answer.text().starts_with(version)
    });
}

fn a_dockerfile_is_built_and_its_container_is_kept_within_bounds(bed: &Bed, app: App) -> App {
    let app = with_dockerfile(app, "v1");
    bed.run_in(
        &app.dir,
        &[
            "create",
            WEB,
            "--instances",
            "1",
            "--env",
            "A=b",
            "--env",
            "DOCKER_AUTH_CONFIG={}",
            "--option",
            "MemoryMax=200",
        ],
    )
    .ok();
    // The Engine is installed, and has no such image.
    bed.deploy(&app, WEB, "early")
        .exits(1)
        .says("The image of the container web");
    make_base();
    bed.deploy(&app, WEB, "v1").ok();
    assert_live(bed, WEB, "v1", 1);
    answers(bed, WEB, "v1");
    for (variable, value) in [
        ("A", "b"),
        ("PORT", "8080"),
        ("DOCKER_AUTH_CONFIG", ""),
        ("HOME", "/root"),
    ] {
        let found = bed.get(WEB, &format!("/env?{variable}")).text();
        assert!(
            found.trim() == value || variable == "HOME" && found.trim() == "/",
            "{variable}: {found}"
        );
    }
    bed.run(&["logs", WEB]).ok().says("hello from v1");
    let seen = Hosts::on(
        "h1",
        "docker inspect --format '{{.HostConfig.Memory}} {{.HostConfig.Privileged}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} \
         {{.Config.Labels}} {{.HostConfig.Binds}}' $(docker ps -q)",
    );
    for says in [
        "209715200 false",
        "NET_RAW",
        "no-new-privileges",
        "beanpole.instance:i-",
        "[]",
    ] {
        assert!(seen.contains(says), "{says}: {seen}");
    }
    assert!(Hosts::try_on("h1", "docker exec $(docker ps -q) /bin/cat /app/secret").is_err());
    let users = Hosts::on(
        "h1",
        "ps -eo user:32,args | grep '[b]eanpole container run'",
    );
    assert!(
        users.starts_with("root ") && !users.contains("A=b"),
        "{users}"
    );
    app
}

fn what_is_killed_comes_back(bed: &Bed) {
    for (what, line) in [
        ("the container", "docker kill $(docker ps -q)"),
        ("its process", "pkill -KILL -f '[b]eanpole container run'"),
        ("its supervisor", "pkill -KILL -f '[b]eanpole shim'"),
        ("the Engine", "systemctl restart docker"),
    ] {
        let before = listed("docker ps -q --no-trunc");
        Hosts::on("h1", line);
        wait::until_true(what, Duration::from_mins(1), || {
            let now = listed("docker ps -q --no-trunc");
            now.len() == 1 && now != before
        });
        answers(bed, WEB, "v2");
    }
    assert_eq!(listed("docker ps -aq").len(), 1, "none is left beside");
}

fn an_image_that_somebody_removed_is_made_again(bed: &Bed) {
    Hosts::on(
        "h1",
        "docker rmi -f $(docker images -q 'beanpole-*/*') || true",
    );
    bed.run(&["rollback", WEB, "--to", "2"]).ok();
    answers(bed, WEB, "v1");
    assert_eq!(bed.status(WEB)["version"], "v1");
}

/// A task whose parts meet by their names, and a volume that outlives it.
fn with_task(app: App, version: &str) -> App {
    let _ = fs::remove_file(app.dir.join("Dockerfile"));
    let front = runs(version);
    let text = format!(
        r#"{{"AWSEBDockerrunVersion": 2,
        "volumes": [{{"name": "data"}}, {{"name": "app", "host": {{"sourcePath": "/var/app/current"}}}}],
        "containerDefinitions": [
          {{"name": "front", "image": "base:1", "essential": true, "memory": 64, "links": ["store:db"],
            "command": ["/bin/sh", "-c", "{front}"], "environment": [{{"name": "PART", "value": "front"}}],
            "portMappings": [{{"hostPort": 80, "containerPort": 5000}}],
            "mountPoints": [{{"sourceVolume": "app", "containerPath": "/app"}}]}},
          {{"name": "store", "image": "base:1", "essential": true, "memory": 32,
            "command": ["/bin/sh", "-c", "echo {version} >>/data/seen; trap 'exit 0' TERM; while :; do sleep 1; done"],
            "mountPoints": [{{"sourceVolume": "data", "containerPath": "/data"}}]}},
          {{"name": "once", "image": "base:1", "essential": false, "memory": 16, "command": ["/bin/cat", "/etc/hosts"]}}
        ]}}"#
    );
    app.file("Dockerrun.aws.json", text.as_bytes())
}

fn several_containers_live_and_die_together(bed: &Bed) {
    const TASK: &str = "task-prod";
    let app = with_task(bed.app("task"), "v1");
    let _ = fs::remove_file(app.dir.join("Procfile"));
    bed.run_in(&app.dir, &["create", TASK, "--instances", "1"])
        .ok();
    bed.deploy(&app, TASK, "v1").ok();
    answers(bed, TASK, "v1");
    assert_eq!(bed.get(TASK, "/env?PART").text().trim(), "front");
    let of_task = "docker ps --filter name=-store --filter name=-web --format '{{.Names}} {{.ID}}' --filter network=$(docker network ls -q \
                   --filter label=beanpole.instance)";
    let before = listed(of_task);
    assert_eq!(before.len(), 2, "{before:?}");
    Hosts::on("h1", "docker kill $(docker ps -q --filter name=-store)");
    wait::until_true("both were started again", Duration::from_mins(1), || {
        let now = listed(of_task);
        now.len() == 2 && now.iter().all(|line| !before.contains(line))
    });
    answers(bed, TASK, "v1");
    let app = with_task(app, "v2");
    bed.deploy(&app, TASK, "v2").ok();
    answers(bed, TASK, "v2");
    let seen = Hosts::on(
        "h1",
        "docker run --rm -v $(docker volume ls -q --filter label=beanpole.environment):/data base:1 /bin/cat /data/seen",
    );
    assert!(
        seen.starts_with("v1") && seen.trim().ends_with("v2"),
        "the volume stayed: {seen}"
    );

    // The same by Compose, built and not pulled.
    let _ = fs::remove_file(app.dir.join("Dockerrun.aws.json"));
    let app = app
        .file("front/Dockerfile", b"FROM base:1\nCOPY testapp /app/testapp\n")
        .file(
            "docker-compose.yml",
            format!(
                "services:\n  front:\n    build: front\n    command: [\"/bin/sh\", \"-c\", \"{}\"]\n    ports: ['80:5000']\n    depends_on: [store]\n  \
                 store:\n    image: base:${{TAG:-1}}\n    command: ['/bin/sleep', '100000']\n    stop_signal: SIGKILL\n    volumes: ['data:/data']\nvolumes: {{data: }}\n",
                runs("v3")
            )
            .as_bytes(),
        );
    fs::copy(app.dir.join("testapp"), app.dir.join("front/testapp")).expect("copied");
    bed.deploy(&app, TASK, "v3").ok();
    answers(bed, TASK, "v3");

    // What could break out is root's to allow.
    let app = app.file(
        "docker-compose.yml",
        b"services:\n  front: {image: 'base:1', ports: ['80:5000'], volumes: ['/etc:/host']}\n",
    );
    bed.deploy(&app, TASK, "v4")
        .exits(1)
        .says("the host's `/etc` in a container in docker-compose.yml, line 2")
        .says("beanpole app root allow task");
    answers(bed, TASK, "v3");
    bed.run(&["terminate", TASK, "--yes"]).ok();
}

/// What a Procfile starts, in an image that has what it needs.
fn an_application_is_added_to_a_base_image(bed: &Bed) {
    let procfile = format!("web: {}\n", runs("v1").replace("/app/", "./"));
    let app = bed.app("made").procfile(&procfile);
    let create = [
        "create",
        "made-prod",
        "--instances",
        "1",
        "--option",
        "BaseImage=base:1",
    ];
    bed.run_in(&app.dir, &create).ok();
    bed.deploy(&app, "made-prod", "v1").ok();
    answers(bed, "made-prod", "v1");
    assert_eq!(bed.get("made-prod", "/env?PORT").text().trim(), "8080");
    bed.run(&["terminate", "made-prod", "--yes"]).ok();
}

/// The example, from an image with Python that is this host's own.
fn the_example_is_built_and_answers(bed: &Bed) {
    Hosts::on(
        "h1",
        "cd / && tar -cf - bin lib lib64 usr/lib64 usr/bin/python3 usr/bin/python3.11 usr/lib/python3.11 usr/lib/x86_64-linux-gnu \
         | docker import - python:3.12-slim",
    );
    let text = deployed(bed, "docker-hello", &[]);
    assert!(text.contains("Hello from Docker, version one"), "{text}");
    bed.run(&["terminate", "docker-hello-prod", "--yes"]).ok();
}

#[test]
fn applications_in_containers_are_built_run_healed_and_rolled_back() {
    let Some(_hosts) = hosts("containers", &["h1"]) else {
        return;
    };
    let bed = bed_on_h1();
    let app = bed.app("shop");
    let app = a_dockerfile_is_built_and_its_container_is_kept_within_bounds(&bed, app);
    let app = with_dockerfile(app, "v2");
    bed.deploy(&app, WEB, "v2").ok();
    answers(&bed, WEB, "v2");
    what_is_killed_comes_back(&bed);
    bed.run(&["rollback", WEB]).ok();
    answers(&bed, WEB, "v1");
    // It was killed too often to be gone back to unless somebody says so.
    bed.run(&["rollback", WEB, "--to", "3"]).ok();
    answers(&bed, WEB, "v2");
    an_image_that_somebody_removed_is_made_again(&bed);
    bed.run(&["terminate", WEB, "--yes"]).ok();
    an_application_is_added_to_a_base_image(&bed);
    the_example_is_built_and_answers(&bed);
    several_containers_live_and_die_together(&bed);
    wait::until_true("nothing runs any more", Duration::from_secs(30), || {
        listed("docker ps -aq").is_empty()
            && listed("docker network ls -q --filter label=beanpole.instance").is_empty()
    });
    assert_eq!(listed("docker volume ls -q").len(), 1, "volumes are data");
}
