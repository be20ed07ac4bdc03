use super::*;
use crate::platform::Directory;
use std::fs;

/// A tree with these files.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    for (name, content) in files {
        let path = tree.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }
    tree
}

fn found(files: &[(&str, &str)]) -> Result<Containers, Refused> {
    let variables = BTreeMap::from([("TAG".to_owned(), "1.2".to_owned())]);
    read(&mut Directory(tree(files).path()), Some(&variables))
}

fn refusal(files: &[(&str, &str)]) -> String {
    let refused = found(files).expect_err("refused");
    assert!(
        [INVALID, "no-platform"].contains(&refused.code),
        "{refused}"
    );
    refused.message
}

const BUILT: &str = "FROM scratch\nCOPY app /app\nEXPOSE 8080\nCMD [\"/app\"]\n";

#[test]
fn a_dockerfile_alone_is_one_container_on_the_port_that_it_exposes() {
    let found = found(&[("Dockerfile", BUILT)]).expect("valid");
    let [web] = &found.containers[..] else {
        panic!("{found:?}");
    };
    assert_eq!((web.name.as_str(), web.port), (WEB, Some(8080)));
    assert!(matches!(&web.image, Image::Build { context, .. } if context.is_empty()));
    let says = refusal(&[("Dockerfile", "FROM scratch\n")]);
    assert!(says.contains("`EXPOSE 8080`"), "{says}");
}

#[test]
fn version_1_says_how_its_image_runs_and_a_dockerfile_builds_it_where_there_is_one() {
    let run = r#"{"AWSEBDockerrunVersion": "1",
        "Authentication": {"Bucket": "b", "Key": ".dockercfg"},
        "Image": {"Name": "registry.example.org/shop:1", "Update": "false"},
        "Ports": [{"ContainerPort": "80", "HostPort": 9000}, {"ContainerPort": 81}],
        "Volumes": [{"HostDirectory": "/var/app/current/conf", "ContainerDirectory": "/conf"}],
        "Logging": "/var/log/nginx", "Command": "-c 'a b'", "Entrypoint": "/run.sh"}"#;
    let one = found(&[("Dockerrun.aws.json", run)]).expect("valid");
    let web = &one.containers[0];
    let image = Image::Pull {
        name: "registry.example.org/shop:1".to_owned(),
        update: false,
    };
    assert_eq!((&web.image, web.port), (&image, Some(80)));
    assert_eq!(
        web.command.as_deref(),
        Some(&["-c".to_owned(), "a b".to_owned()][..])
    );
    assert_eq!(web.entrypoint.as_deref(), Some(&["/run.sh".to_owned()][..]));
    assert_eq!(web.mounts[0].from, From::Bundle("conf".to_owned()));
    assert!(web.mounts[0].read_only, "nobody changes a release");
    assert_eq!(one.volumes().into_iter().collect::<Vec<_>>(), ["logs"]);
    assert_eq!(one.needs_root, None);
    let told = one.passed_over.join("\n");
    for says in [
        "line 2: there is no bucket",
        "DOCKER_AUTH_CONFIG",
        "port 81",
    ] {
        assert!(told.contains(says), "{told}");
    }
    let both = found(&[("Dockerrun.aws.json", run), ("Dockerfile", BUILT)]).expect("valid");
    assert!(matches!(both.containers[0].image, Image::Build { .. }));
    assert_eq!(both.containers[0].port, Some(80), "it is said explicitly");

    for (text, says) in [
        (
            "{}",
            "Dockerrun.aws.json, line 1: AWSEBDockerrunVersion is missing",
        ),
        (r#"{"AWSEBDockerrunVersion": 4}"#, "is not 1, 2 or 3"),
        (
            r#"{"AWSEBDockerrunVersion": 3}"#,
            "stands beside a docker-compose.yml",
        ),
        (
            r#"{"AWSEBDockerrunVersion": 1}"#,
            "neither an `Image` nor a Dockerfile",
        ),
        (
            r#"{"AWSEBDockerrunVersion": 1, "Image": {"Name": "a"}}"#,
            "nothing says which port",
        ),
        (
            r#"{"AWSEBDockerrunVersion": 1, "Image": {"Name": "a b"}, "Ports": [{"ContainerPort": 1}]}"#,
            "is not the name of an image",
        ),
        (
            r#"{"AWSEBDockerrunVersion": 1, "Image": {"Name": "a"}, "Ports": [{"ContainerPort": 0}]}"#,
            "is not a number from 1 to 65535",
        ),
        (
            "{\"AWSEBDockerrunVersion\": 1,\n \"Volumes\": [{\"HostDirectory\": \"../x\", \"ContainerDirectory\": \"/x\"}]}",
            "line 2: `../x` is neither",
        ),
    ] {
        let told = refusal(&[("Dockerrun.aws.json", text)]);
        assert!(told.contains(says), "{text}: {told}");
    }
}

const TASK: &str = r#"{
  "AWSEBDockerrunVersion": 2,
  "volumes": [{"name": "data"}, {"name": "conf", "host": {"sourcePath": "/var/app/current/conf"}}],
  "containerDefinitions": [
    {"name": "php", "image": "php:8", "essential": true, "memory": 128, "user": "www",
     "environment": [{"name": "A", "value": "s3cret"}],
     "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"},
                     {"sourceVolume": "awseb-logs-php", "containerPath": "/logs"}]},
    {"name": "nginx", "image": "nginx", "essential": true, "memory": 64, "links": ["php:app"],
     "portMappings": [{"hostPort": 443, "containerPort": 8443}, {"hostPort": 80, "containerPort": 8080}],
     "mountPoints": [{"sourceVolume": "conf", "containerPath": "/etc/nginx/conf.d", "readOnly": true}]},
    {"name": "once", "image": "busybox", "essential": false, "memory": 16, "command": ["true"], "cpu": 512,
     "volumesFrom": [{"sourceContainer": "php", "readOnly": true}], "dockerSecurityOptions": ["x"]}
  ]
}"#;

#[test]
fn a_task_is_its_containers_and_the_one_behind_port_80_takes_the_requests() {
    let task = found(&[("Dockerrun.aws.json", TASK)]).expect("valid");
    let [php, web, once] = &task.containers[..] else {
        panic!("{task:?}");
    };
    assert_eq!((web.name.as_str(), web.port), (WEB, Some(8080)));
    assert_eq!(web.host_names, ["nginx"]);
    assert_eq!(web.after, ["php"]);
    assert_eq!(php.host_names, ["php", "app"]);
    assert_eq!(php.memory_bytes, Some(128 << 20));
    assert_eq!(
        php.mounts[1].from,
        From::Volume("awseb-logs-php".to_owned())
    );
    assert!(!once.essential);
    assert_eq!(once.cpu_millis, Some(500));
    assert!(once.mounts.iter().all(|mount| mount.read_only));
    assert_eq!(task.needs_root, None);
    let told = task.passed_over.join("\n");
    for says in [
        "port 8443 in Dockerrun.aws.json, line 10",
        "`dockerSecurityOptions` of the container `once`",
    ] {
        assert!(told.contains(says), "{told}");
    }
    assert!(!told.contains("s3cret"));
}

#[test]
fn what_could_break_out_of_a_container_asks_for_root() {
    for (from, to, what) in [
        (
            "\"essential\": true, \"memory\": 128",
            "\"privileged\": true",
            "`privileged` of `php`",
        ),
        (
            "/var/app/current/conf",
            "/etc",
            "the host's `/etc` in a container",
        ),
        (
            "/var/app/current/conf",
            "/var/run/docker.sock",
            "docker.sock",
        ),
        (
            "\"user\": \"www\"",
            "\"linuxParameters\": {\"capabilities\": {\"add\": [\"SYS_ADMIN\"]}}",
            "`capabilities`",
        ),
    ] {
        let text = TASK.replacen(from, to, 1);
        assert_ne!(text, TASK);
        let task = found(&[("Dockerrun.aws.json", &text)]).expect("valid");
        let needs = task.needs_root.expect(what).to_string();
        assert!(
            needs.contains(what) && needs.contains("Dockerrun.aws.json, line"),
            "{needs}"
        );
    }
    for (from, to, says) in [
        (
            "\"links\": [\"php:app\"]",
            "\"links\": [\"db\"]",
            "`links` names the container `db`",
        ),
        (
            "\"sourceVolume\": \"data\"",
            "\"sourceVolume\": \"dat\"",
            "names the volume `dat`",
        ),
        ("/etc/nginx/conf.d", "/etc/../../x", "without `..`"),
        (
            "\"name\": \"nginx\"",
            "\"name\": \"a b\"",
            "1 to 48 letters",
        ),
        (
            "\"name\": \"nginx\"",
            "\"name\": \"php\"",
            "two containers `php`",
        ),
    ] {
        let told = refusal(&[("Dockerrun.aws.json", &TASK.replacen(from, to, 1))]);
        assert!(told.contains(says), "{told}");
    }
}

const SERVICES: &str = "\
services:
  web:
    image: redis:${TAG}
    restart: always
  front:
    build:
      context: ./front
      args: [A=b]
    ports: [\"8443:8443\", \"80:8000\", \"53:53/udp\"]
    depends_on: {web: {condition: service_started}}
    env_file: [.env, front.env]
    environment: [B=$$x]
    volumes:
      - data:/data
      - ./conf:/conf
      - /own
      - ${EB_LOG_BASE_DIR}/front:/logs
    deploy: {resources: {limits: {memory: 64M, cpus: '0.5'}}}
    healthcheck: {test: true}
  job:
    image: busybox
    restart: 'no'
  debug:
    image: busybox
    profiles: [debug]
volumes: {data: }
";

#[test]
fn services_of_compose_are_containers_that_meet_by_their_names() {
    let files = [
        ("docker-compose.yml", SERVICES),
        ("front/Dockerfile", "FROM scratch\n"),
        ("front.env", "# more\nC = 'd e'\nexport D=1\n"),
    ];
    let found = found(&files).expect("valid");
    let [redis, front, job] = &found.containers[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        redis.name, "web-container",
        "that name is for what takes the requests"
    );
    assert_eq!(redis.host_names, ["web"]);
    assert!(matches!(&redis.image, Image::Pull { name, .. } if name == "redis:1.2"));
    assert_eq!((front.name.as_str(), front.port), (WEB, Some(8000)));
    assert_eq!(front.after, ["web-container"]);
    let all: Vec<(&str, &str)> = front
        .environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(all, [("B", "$x"), ("C", "d e"), ("D", "1")]);
    let mounts: Vec<&From> = front.mounts.iter().map(|mount| &mount.from).collect();
    assert_eq!(
        mounts,
        [
            &From::Volume("data".to_owned()),
            &From::Bundle("conf".to_owned()),
            &From::Own,
            &From::Volume("logs-front".to_owned()),
        ]
    );
    assert_eq!(
        (front.memory_bytes, front.cpu_millis),
        (Some(64 << 20), Some(500))
    );
    assert!(!job.essential);
    let told = found.passed_over.join("\n");
    for says in [
        "port 8443",
        "port 53/udp",
        "`healthcheck` of `front`",
        "the service `debug` of a profile",
    ] {
        assert!(told.contains(says), "{told}");
    }
    let of_ecs = [
        ("Dockerrun.aws.json", TASK),
        ("docker-compose.yml", SERVICES),
    ];
    assert_eq!(
        self::found(&of_ecs).expect("version 2 wins").containers[0].name,
        "php"
    );
}

#[test]
fn what_compose_has_and_cannot_be_had_here_is_refused_with_its_line() {
    for (text, says) in [
        ("services: {}\n", "it names no service"),
        (
            "services:\n  a:\n    command: x\n",
            "docker-compose.yml, line 2: the service `a` has neither",
        ),
        ("services:\n  a: {build: ../x}\n", "leads out of the bundle"),
        (
            "services:\n  a: {build: .}\n",
            "which the bundle does not have",
        ),
        (
            "services:\n  a:\n    image: b\n    network_mode: host\n",
            "line 4: `network_mode` of `a` would have",
        ),
        (
            "services:\n  a: {image: b, depends_on: [c]}\n",
            "after `c`, which is no service",
        ),
        (
            "services:\n  a: {image: b, volumes: ['x:/y']}\n",
            "a directory is written `./x`",
        ),
        (
            "services:\n  a: {image: b, env_file: no}\n",
            "names no, which the bundle does not have",
        ),
        (
            "services:\n  a: {image: 'b:${V:?}'}\n",
            "the variable `V` is needed",
        ),
        (
            "services:\n  a: {image: b, mem_limit: many}\n",
            "such as `512m`",
        ),
        (
            "services:\n  a: {image: b, command: 'x \"y'}\n",
            "a quote that does not end",
        ),
    ] {
        let told = refusal(&[("docker-compose.yml", text)]);
        assert!(told.contains(says), "{text}: {told}");
    }
    let found = found(&[(
        "docker-compose.yml",
        "services:\n  a: {image: b, ports: ['80:80'], volumes: ['/etc:/x'], cap_add: [NET_ADMIN]}\n",
    )])
    .expect("for some");
    assert!(
        found
            .needs_root
            .expect("asks")
            .to_string()
            .contains("line 2")
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(services:|volumes:|[a-c]: |\n|  |\\{|\\}|\\[|\\]|image: b|build: \\.|ports: |'80:80'|\\$\\{?A?:?-?\\}?|env_file|[&*!]a ){0,40}") {
        for name in ["docker-compose.yml", "Dockerrun.aws.json", "Dockerfile"] {
            let _ = read(&mut Directory(tree(&[(name, &text)]).path()), None);
        }
    }
}
