use super::*;
use proptest::prelude::*;

/// Files by their paths.
struct Files<'f>(Vec<(&'f str, Vec<u8>)>);

impl Top for Files<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        self.0.iter().any(|(path, _)| *path == name)
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let found = self.0.iter().find(|(path, _)| *path == name);
        let longest = usize::try_from(longest).expect("small");
        Ok(found.map(|(_, bytes)| bytes[..bytes.len().min(longest)].to_owned()))
    }

    fn names(&self) -> Vec<(String, bool)> {
        Vec::new()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        let inside = |(path, _): &(&str, _)| {
            let below = path.strip_prefix(name)?.strip_prefix('/')?;
            (!below.contains('/')).then(|| below.to_owned())
        };
        self.0.iter().filter_map(inside).collect()
    }
}

fn files(files: &[(&'static str, &str)]) -> Result<Extensions, Refused> {
    let bytes = |(path, text): &(&'static str, &str)| (*path, text.as_bytes().to_owned());
    read(&mut Files(files.iter().map(bytes).collect()))
}

fn one(text: impl AsRef<[u8]>) -> Result<Extensions, Refused> {
    let file = (".ebextensions/01.config", text.as_ref().to_owned());
    read(&mut Files(vec![file]))
}

/// `body` is of one command, `c`.
fn command(body: &str) -> Result<ContainerCommand, Refused> {
    let lines = body.replace('\n', "\n    ");
    let found = one(format!("container_commands:\n  c:\n    {lines}\n"))?;
    Ok(found.container_commands.into_iter().next().expect("one"))
}

fn shell(text: &str) -> CommandLine {
    CommandLine::Shell(text.to_owned())
}

#[test]
fn everything_that_a_command_may_say_is_read() {
    let found = command(
        "command: |\n  first\n  second\ncwd: ./assets/js\nenv:\n  PORT: 8080\n  DEBUG: no\n  NONE:\n\
         test: '[ -e x ]'\nignoreErrors: \"True\"\n",
    )
    .expect("valid");
    assert_eq!(found.command, shell("first\nsecond\n"));
    assert_eq!(found.cwd, Path::new("assets/js"));
    let env: Vec<_> = found.env.0.iter().collect();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        env,
        [
            (&text("DEBUG"), &text("no")),
            (&text("NONE"), &text("")),
            (&text("PORT"), &text("8080")),
        ]
    );
    assert_eq!(found.test, Some(shell("[ -e x ]")));
    assert!(found.ignore_errors && !found.leader_only);
}

#[test]
fn an_array_is_a_program_with_its_arguments() {
    let found = command("command: [sleep, 1, \"a b\"]").expect("valid");
    let words = ["sleep", "1", "a b"].map(str::to_owned);
    assert_eq!(found.command, CommandLine::Program(words.to_vec()));
}

#[test]
fn json_is_read_with_tabs_and_a_byte_order_mark() {
    let text = "\u{feff}{\r\n\t\"container_commands\": {\r\n\t\t\"01\":\t{\"command\": \"a\\/b \\ud83d\\ude00\", \
                \"leader_only\": true}}}";
    let found = one(text).expect("valid").container_commands;
    assert_eq!(found[0].name, "01");
    assert_eq!(found[0].command, shell("a/b 😀"));
    assert!(found[0].leader_only);
}

#[test]
fn commands_of_all_files_come_in_the_order_of_their_names() {
    let found = files(&[
        (
            ".ebextensions/b.config",
            "container_commands:\n  02: {command: b}\n  10_x: {command: d}\n",
        ),
        (
            ".ebextensions/a.config",
            "container_commands:\n  03: {command: c}\n  01: {command: a}\n",
        ),
        (".ebextensions/lib/c.config", "container_commands: [broken"),
        (".ebextensions/.hidden.config", "[broken"),
        (".ebextensions/notes.yml", "[broken"),
    ])
    .expect("valid");
    let names: Vec<_> = found
        .container_commands
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["01", "02", "03", "10_x"]);
    assert!(found.passed_over.is_empty());
}

#[test]
fn leader_only_wins_over_test() {
    let found = command("command: x\ntest: false\nleader_only: yes").expect("valid");
    assert!(found.leader_only);
    assert_eq!(found.test, None);
}

#[test]
fn a_name_that_two_files_have_is_refused_with_both_places() {
    let refused = files(&[
        (
            ".ebextensions/a.config",
            "container_commands: {x: {command: a}}",
        ),
        (
            ".ebextensions/b.config",
            "# again\ncontainer_commands:\n  x: {command: b}\n",
        ),
    ])
    .expect_err("twice");
    assert_eq!(refused.code, "ebextensions-invalid");
    for says in ["b.config, line 3", "`x`", "a.config, line 1"] {
        assert!(refused.message.contains(says), "{refused}");
    }
}

#[test]
fn other_keys_are_passed_over_and_told_whatever_is_in_them() {
    let found = one(
        "Outputs:\n  A: &a {B: !Ref C, D: !GetAtt x.y}\n  E: *a\n  <<: *a\n\
         option_settings:\n  - option_name: T\n    value: '`{\"Ref\": \"T\"}`'\nMappings: [a]\nOutputs: {}\n\
         packages: {msi: {x: y}}\nservices: {windows: {x: {}}}\n",
    )
    .expect("valid");
    let over = PassedOver {
        file: ".ebextensions/01.config".to_owned(),
        keys: ["Outputs", "Mappings", "packages.msi", "services.windows"]
            .map(str::to_owned)
            .to_vec(),
    };
    assert_eq!(found.passed_over, [over]);
    assert_eq!(found.needs_root, None);
    assert!(!found.sets_up());
}

#[test]
fn everything_that_a_host_is_told_is_read() {
    let found = one(
        "packages:\n  yum:\n    git: []\n    jq: 1.6\n  python: {requests: ['2.31.0']}\n  rpm: {epel: 'https://e.x/a.rpm'}\n\
         groups:\n  web:\n    gid: \"4500\"\n  other: []\n\
         users:\n  job:\n    uid: 4501\n    groups: [web, other]\n    homeDir: /srv/job\n\
         sources:\n  /srv/data: https://e.x/a.tar.gz\n\
         files:\n  \"/etc/motd\":\n    mode: \"000600\"\n    owner: job\n    group: 4500\n    content: |\n      hello\n\
         commands:\n  b: {command: x, cwd: srv, env: {A: b}, test: y, ignoreErrors: yes, waitAfterCompletion: 5}\n  a: {command: [x]}\n\
         services:\n  sysvinit:\n    cron: {enabled: true, ensureRunning: \"false\", files: [/etc/motd], sources: [/srv/data], \
         packages: {yum: [git]}, commands: [a]}\n",
    )
    .expect("valid");
    let packages: Vec<_> = found
        .packages
        .iter()
        .map(|one| {
            (
                one.manager.as_str(),
                one.name.as_str(),
                one.versions.join(","),
            )
        })
        .collect();
    assert_eq!(
        packages,
        [
            ("rpm", "epel", "https://e.x/a.rpm".to_owned()),
            ("yum", "git", String::new()),
            ("yum", "jq", "1.6".to_owned()),
            ("python", "requests", "2.31.0".to_owned()),
        ]
    );
    let groups: Vec<_> = found
        .groups
        .iter()
        .map(|one| (one.name.as_str(), one.gid))
        .collect();
    assert_eq!(groups, [("other", None), ("web", Some(4500))]);
    assert_eq!(found.users[0].uid, Some(4501));
    assert_eq!(found.users[0].groups, ["web", "other"]);
    assert_eq!(found.users[0].home.as_deref(), Some(Path::new("/srv/job")));
    assert_eq!(found.sources[0].target, Target::Host("/srv/data".into()));
    let file = &found.files[0];
    assert_eq!(file.target, Target::Host("/etc/motd".into()));
    assert_eq!(file.content, Content::Bytes(b"hello\n".to_vec()));
    assert_eq!(file.mode, Some(0o600));
    assert_eq!(file.owner.as_deref(), Some("job"));
    assert_eq!(file.group.as_deref(), Some("4500"));
    let names: Vec<_> = found.commands.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(found.commands[0].cwd, Path::new("/"));
    assert_eq!(found.commands[1].cwd, Path::new("/srv"));
    assert!(found.commands[1].ignore_errors && found.commands[1].test.is_some());
    let service = &found.services[0];
    assert_eq!(
        (service.enabled, service.ensure_running),
        (Some(true), Some(false))
    );
    assert_eq!(service.files, [Target::Host("/etc/motd".into())]);
    assert_eq!(service.packages, [(PackageManager::Yum, "git".to_owned())]);
    assert_eq!(service.commands, ["a"]);
    assert_eq!(found.passed_over[0].keys, ["commands.waitAfterCompletion"]);
    let needs = found.needs_root.expect("root");
    assert_eq!(
        needs.to_string(),
        "`packages` in .ebextensions/01.config, line 1"
    );
}

#[test]
fn several_files_are_put_together() {
    let found = files(&[
        (
            ".ebextensions/a.config",
            "packages: {yum: {git: [], jq: 1.6}}\nfiles:\n  /etc/a: {content: first}\n  /etc/b: {content: b}\n\
             groups: {web: {gid: 1}}\n",
        ),
        (
            ".ebextensions/b.config",
            "packages: {yum: {jq: [], make: []}, apt: {curl: ''}}\nfiles: {/etc//./a: {content: second}}\n\
             groups: {web: {gid: 2}}\n",
        ),
    ])
    .expect("valid");
    let packages: Vec<_> = found
        .packages
        .iter()
        .map(|one| (one.name.as_str(), one.versions.len()))
        .collect();
    assert_eq!(packages, [("git", 0), ("jq", 1), ("make", 0), ("curl", 0)]);
    assert_eq!(found.files.len(), 2);
    assert_eq!(found.files[0].content, Content::Bytes(b"second".to_vec()));
    assert_eq!(found.groups[0].gid, Some(2));
    let twice = files(&[
        (".ebextensions/a.config", "commands: {x: {command: a}}"),
        (".ebextensions/b.config", "commands: {x: {command: b}}"),
    ])
    .expect_err("twice");
    assert!(
        twice
            .message
            .contains("the command `x` is in .ebextensions/a.config, line 1"),
        "{twice}"
    );
    // Each kind has names of its own.
    one("commands: {x: {command: a}}\ncontainer_commands: {x: {command: b}}").expect("valid");
}

#[test]
fn what_lies_in_the_release_needs_no_root() {
    let found = one(
        "files:\n  /var/app/current/config/a.yml: {content: x, mode: \"000755\"}\n  /var/app/staging/b: {content: a, mode: '120777'}\n\
         sources: {/var/app/current/vendor: 'https://e.x/a.zip'}\n\
         container_commands: {a: {command: x, cwd: /var/app/staging/c}}\n",
    )
    .expect("valid");
    assert_eq!(found.needs_root, None);
    assert!(found.sets_up());
    assert_eq!(found.files[0].target, Target::Tree("b".into()));
    assert_eq!(found.files[0].content, Content::Link("a".into()));
    assert_eq!(found.files[1].target, Target::Tree("config/a.yml".into()));
    assert_eq!(found.container_commands[0].cwd, Path::new("c"));
    for text in [
        "files: {/var/app/current: {content: x}}",
        "files: {/var/app/current/../x: {content: x}}",
        "sources: {/var/app/staging: 'https://e.x/a.zip'}",
        "files: {/var/app/staging/a: {mode: '120777', content: ../../../etc/shadow}}",
        "files: {/var/app/staging/a: {mode: '120777', content: /etc/shadow}}",
    ] {
        assert_eq!(one(text).expect_err(text).code, "ebextensions-invalid");
    }
}

#[test]
fn contents_are_plain_base64_or_json() {
    let content = |body: &str| {
        one(format!("files: {{/a: {{{body}}}}}")).map(|found| found.files[0].content.clone())
    };
    let bytes = |text: &str| Ok(Content::Bytes(text.as_bytes().to_vec()));
    assert_eq!(content("content: aGkK, encoding: base64"), bytes("hi\n"));
    assert_eq!(content("content: 0123"), bytes("0123"));
    assert_eq!(content("content:"), bytes(""));
    assert_eq!(
        content("content: {a: [1, yes, true, ~, \"2\", 1.5]}"),
        bytes(r#"{"a":[1,"yes",true,null,"2",1.5]}"#)
    );
    assert_eq!(
        content("source: 'https://e.x/y'"),
        Ok(Content::Url("https://e.x/y".to_owned()))
    );
}

#[test]
fn options_are_read_in_both_shapes_with_their_text() {
    let settings = |text: &str| one(text).expect("valid").settings;
    let pairs = |text: &str| -> Vec<String> {
        settings(text)
            .iter()
            .map(|one| format!("{} {} {} {}", one.namespace, one.name, one.value, one.line))
            .collect()
    };
    assert_eq!(
        pairs("option_settings:\n  aws:autoscaling:asg:\n    MinSize: 0123\n    Yes: yes\n  a:\n"),
        [
            "aws:autoscaling:asg MinSize 0123 3",
            "aws:autoscaling:asg Yes yes 4"
        ]
    );
    assert_eq!(
        pairs(
            "option_settings:\n  - namespace: a:b\n    option_name: c\n    value: 1.10\n  - option_name: D\n    value:\n"
        ),
        [
            "a:b c 1.10 2",
            "aws:elasticbeanstalk:application:environment D  5"
        ]
    );
    let found =
        settings("option_settings: [{namespace: a, option_name: b, resource_name: r, value: v}]");
    assert_eq!(found[0].resource.as_deref(), Some("r"));
    assert!(!format!("{found:?}").contains("\"v\""));
    for (text, says) in [
        ("option_settings: x", "a mapping of namespaces, or a list"),
        ("option_settings: [x]", "is not a mapping"),
        ("option_settings: [{value: s3cret}]", "has no `option_name`"),
        ("option_settings: [{option_name: a}]", "has no `value`"),
        ("option_settings: {a: {b: [s3cret]}}", "is not text"),
        ("option_settings: {a: s3cret}", "is not a mapping"),
        (
            "option_settings: [{option_name: a, valeu: s3cret}]",
            "has a key `valeu`",
        ),
    ] {
        let refused = one(text).expect_err(text);
        assert!(refused.message.contains(says), "{refused}");
        assert!(!refused.message.contains("s3cret"), "{refused}");
    }
}

#[test]
fn resources_are_collected_with_their_types() {
    let found = one(
        "Resources:\n  Q:\n    Type: AWS::SQS::Queue\n    Properties: {A: !Ref B}\n  C: {Type: AWS::ElastiCache::CacheCluster}\n  \
         K: {Type: AWS::Kinesis::Stream}\n  N: !Ref x\n",
    )
    .expect("valid");
    let told: Vec<_> = found
        .resources
        .iter()
        .map(|one| (one.name.as_str(), one.is_known(), one.line))
        .collect();
    assert_eq!(
        told,
        [
            ("Q", true, 2),
            ("C", true, 5),
            ("K", false, 6),
            ("N", false, 7)
        ]
    );
    assert_eq!(found.needs_root, None);
}

#[test]
fn what_a_host_cannot_be_told_is_refused_with_its_line() {
    for (text, line, says) in [
        ("packages: [git]", 1, "`packages` is not a mapping"),
        (
            "packages:\n  npm: {a: b}",
            2,
            "has a key `npm`; there are rpm, deb",
        ),
        ("packages:\n  yum: {'-y': []}", 2, "no name of a package"),
        ("packages:\n  yum: {'a;b': []}", 2, "no name of a package"),
        ("packages:\n  yum: {a: '-x'}", 2, "a version that is none"),
        ("packages:\n  yum: {a: 'x y'}", 2, "a version that is none"),
        (
            "packages:\n  rpm: {a: ftp://s3cret}",
            2,
            "not a URL of https or http",
        ),
        (
            "packages:\n  deb: {a: /root/s3cret}",
            2,
            "not a URL of https or http",
        ),
        ("groups:\n  a: {gid: -1}", 2, "not a number from 0"),
        ("groups:\n  'a:b': {}", 2, "no name of a group"),
        ("groups:\n  a: {id: 1}", 2, "has a key `id`; there is gid"),
        ("users:\n  bp-x: {}", 2, "no name of a user"),
        ("users:\n  x: {homeDir: 'a:b'}", 2, "not an absolute path"),
        ("users:\n  x: {groups: ['a b']}", 2, "no group"),
        ("sources:\n  /: 'https://e.x/'", 2, "may replace"),
        ("sources:\n  /etc: 'https://e.x/'", 2, "may replace"),
        ("sources:\n  /usr/lib/: 'https://e.x/'", 2, "may replace"),
        ("sources:\n  /proc/x: 'https://e.x/'", 2, "may replace"),
        (
            "sources:\n  ../x: 'https://e.x/'",
            2,
            "not an absolute path",
        ),
        ("sources:\n  /srv/x: s3://s3cret/x", 2, "not a URL"),
        ("files:\n  etc/x: {content: a}", 2, "not an absolute path"),
        (
            "files:\n  /etc/../x: {content: a}",
            2,
            "not an absolute path",
        ),
        ("files:\n  /etc/x/: {content: a}", 2, "not an absolute path"),
        (
            "files:\n  /etc/x: {content: a}\n  /etc//x: {content: a}",
            3,
            "there twice",
        ),
        ("files:\n  /etc/x: {}", 2, "neither `content` nor `source`"),
        (
            "files:\n  /x: {content: s3cret, source: 'https://e.x/'}",
            2,
            "both `content` and",
        ),
        (
            "files:\n  /x: {content: s3cret%, encoding: base64}",
            2,
            "not text in base64",
        ),
        (
            "files:\n  /x: {content: a, encoding: utf8}",
            2,
            "`plain` or `base64`",
        ),
        (
            "files:\n  /x: {content: a, mode: 888}",
            2,
            "six octal digits",
        ),
        (
            "files:\n  /x: {content: a, mode: '040755'}",
            2,
            "six octal digits",
        ),
        (
            "files:\n  /x: {content: a, mode: rwx}",
            2,
            "six octal digits",
        ),
        (
            "files:\n  /x: {content: a, owner: 'a b'}",
            2,
            "a name or a number",
        ),
        (
            "files:\n  /x: {mode: '120777', source: 'https://e.x/'}",
            2,
            "symbolic link",
        ),
        (
            "files:\n  /x: {content: a, context: {}}",
            2,
            "has a key `context`",
        ),
        ("commands:\n  a: x", 2, "the command `a` is not a mapping"),
        (
            "commands:\n  a: {command: x, leader_only: true}",
            2,
            "has a key `leader_only`",
        ),
        ("services:\n  upstart: {a: {}}", 2, "has a key `upstart`"),
        ("services:\n  sysvinit: {-a: {}}", 2, "no name of a service"),
        (
            "services:\n  sysvinit: {a: {enabled: maybe}}",
            2,
            "`true` or `false`",
        ),
        (
            "services:\n  sysvinit: {a: {files: [x]}}",
            2,
            "absolute paths",
        ),
        (
            "services:\n  sysvinit: {a: {packages: {npm: [x]}}}",
            2,
            "packages by package manager",
        ),
        (
            "services:\n  sysvinit: {a: {reload: true}}",
            2,
            "has a key `reload`",
        ),
        ("files: {}\nfiles: {}", 2, "`files` is there twice"),
        ("Resources: [a]", 1, "`Resources` is not a mapping"),
    ] {
        let refused = one(text).expect_err(text);
        assert_eq!(refused.code, "ebextensions-invalid");
        let place = format!(".ebextensions/01.config, line {line}: ");
        assert!(refused.message.starts_with(&place), "{text:?}: {refused}");
        assert!(refused.message.contains(says), "{text:?}: {refused}");
        assert!(!refused.message.contains("s3cret"), "{refused}");
    }
}

#[test]
fn a_file_that_says_nothing_is_none() {
    for text in [
        "",
        "# later\n",
        "---\n",
        "~",
        "container_commands:\n",
        "container_commands: {}",
    ] {
        assert_eq!(one(text), Ok(Extensions::default()), "{text:?}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_file_and_line() {
    for (text, line, says) in [
        ("container_commands:\n\tc: x\n", 2, "YAML or JSON: tabs"),
        ("a: b\nc: [d\n", 2, "YAML or JSON"),
        ("a: *nothing\n", 1, "YAML or JSON"),
        ("a: b\n---\nc: d\n", 3, "second document"),
        ("- a\n", 1, "a configuration file is not a mapping"),
        ("just text", 1, "not a mapping"),
        ("[a]: b\n", 1, "a key in a configuration file is not text"),
        (
            "container_commands: {}\ncontainer_commands: {}\n",
            2,
            "there twice",
        ),
        (
            "container_commands: x\n",
            1,
            "`container_commands` is not a mapping",
        ),
        (
            "container_commands:\n  - command: x\n",
            2,
            "is not a mapping",
        ),
        (
            "container_commands:\n  c: ./run\n",
            2,
            "command `c` is not a mapping",
        ),
        (
            "container_commands:\n  c: {command: a}\n  c: {command: b}\n",
            3,
            "line 2, too",
        ),
        (
            "container_commands:\n  \"\": {command: a}\n",
            2,
            "the name `` of",
        ),
        (
            "container_commands:\n  \"a\\nb\": {command: a}\n",
            2,
            "control characters",
        ),
        (
            "x: &x {command: a}\ncontainer_commands:\n  c: *x\n",
            3,
            "are not followed",
        ),
        (
            "x: &x {a: b}\ncontainer_commands:\n  <<: *x\n",
            3,
            "are not followed",
        ),
        (
            "container_commands:\n  c: !Ref x\n",
            2,
            "tags such as `!Ref`",
        ),
    ] {
        let refused = one(text).expect_err(text);
        assert_eq!(refused.code, "ebextensions-invalid");
        let place = format!(".ebextensions/01.config, line {line}: ");
        assert!(refused.message.starts_with(&place), "{text:?}: {refused}");
        assert!(refused.message.contains(says), "{text:?}: {refused}");
    }
    let refused = one(b"a: b\nc: \xff\n").expect_err("bytes");
    assert!(
        refused.message.contains("line 2: is not UTF-8"),
        "{refused}"
    );
}

#[test]
fn what_is_wrong_in_a_command_is_named() {
    for (body, says) in [
        ("cwd: x", "`c` has no `command`"),
        (
            "command: x\ncommand: y",
            "`command` of the container command `c` is there twice",
        ),
        ("command:", "is empty"),
        ("command: ''", "is empty"),
        ("command: \"  \"", "is empty"),
        ("command: 5", "is a number"),
        ("command: 1e3", "is a number"),
        ("command: {a: b}", "is not text, or an array"),
        ("command: []", "names no program"),
        ("command: ['']", "names no program"),
        ("command: [a, [b]]", "an argument in `command`"),
        ("command: [a, ~]", "an argument in `command`"),
        ("command: !Sub '${X}'", "tags such as `!Ref`"),
        ("command: \"a\\0\"", "NUL"),
        (
            "command: x\ncwd: /tmp",
            "leads out of the release's directory",
        ),
        ("command: x\ncwd: a/../../b", "leads out"),
        (
            "command: x\ncwd: [a]",
            "`cwd` of the container command `c` is not text",
        ),
        (
            "command: x\nenv: [A=b]",
            "`env` of the container command `c` is not a mapping",
        ),
        ("command: x\nenv: {A=B: c}", "no name of a variable"),
        (
            "command: x\nenv: {A: b, A: c}",
            "`A` in `env` of the container command `c` is there twice",
        ),
        ("command: x\nenv: {A: [b]}", "no text"),
        (
            "command: x\ntest: 0",
            "`test` of the container command `c` is a number",
        ),
        (
            "command: x\nignoreErrors: maybe",
            "is not `true` or `false`",
        ),
        ("command: x\nleader_only: 1", "is not `true` or `false`"),
        (
            "command: x\nignore_errors: true",
            "has a key `ignore_errors`; there are command, cwd",
        ),
        ("command: x\nwaitAfterCompletion: 5", "has a key"),
    ] {
        let refused = command(body).expect_err(body);
        assert_eq!(refused.code, "ebextensions-invalid");
        assert!(refused.message.contains(says), "{body:?}: {refused}");
    }
}

#[test]
fn values_of_the_environment_are_in_no_message() {
    for body in [
        "command: x\nenv: s3cret",
        "command: x\nenv: {A: [s3cret]}",
        "command: x\nenv: {A: !Ref s3cret}",
        "command: x\nenv: {A: s3cret, A: s3cret}",
        "command: x\nenv: {A: \"s3cret\\0\"}",
        "command: x\nenv: {A: s3cret",
        "command: x\nenv:\n\tA: s3cret",
    ] {
        let refused = command(body).expect_err(body);
        assert!(!refused.message.contains("s3cret"), "{refused}");
    }
    let found = command("command: x\nenv: {A: s3cret}").expect("valid");
    assert!(!format!("{found:?}").contains("s3cret"));
}

#[test]
fn sizes_are_bounded() {
    let long = usize::try_from(LONGEST).expect("small") + 1;
    let many = |count: usize| -> String {
        let lines: Vec<String> = (0..count)
            .map(|n| format!("  c{n}: {{command: x}}\n"))
            .collect();
        format!("container_commands:\n{}", lines.concat())
    };
    assert_eq!(
        one(many(MOST_COMMANDS))
            .expect("most")
            .container_commands
            .len(),
        MOST_COMMANDS
    );
    for (text, says) in [
        ("#".repeat(long), "is longer than"),
        (many(MOST_COMMANDS + 1), "more than 100 container commands"),
        (
            format!("a: {}{}", "[".repeat(60), "]".repeat(60)),
            "deeper than 50",
        ),
        ("[".repeat(200_000), "YAML or JSON"),
        ("{a: ".repeat(60_000), "YAML or JSON"),
        ("- ".repeat(100_000), "deeper than 50"),
        ("? ".repeat(100_000), "deeper than 50"),
        (
            format!(
                "container_commands: {{c: {{command: {}}}}}",
                "x".repeat(65536 + 1)
            ),
            "`command` of the container command `c` is longer than",
        ),
        (
            format!(
                "container_commands: {{{}: {{command: x}}}}",
                "x".repeat(200)
            ),
            "not 1 to 128 characters",
        ),
    ] {
        let refused = one(&text).expect_err(says);
        assert!(refused.message.contains(says), "{says}: {refused}");
        assert!(refused.message.len() < 1000, "{}", refused.message.len());
    }
    // What would unfold to billions stays what it is.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..40 {
        let before = format!("*a{}", n - 1);
        bomb.push_str(&format!(
            "a{n}: &a{n} [{}]\n",
            [before.as_str(); 9].join(", ")
        ));
    }
    assert_eq!(one(bomb).expect("valid").container_commands, []);
    let names: Vec<String> = (0..=MOST_FILES)
        .map(|n| format!(".ebextensions/{n}.config"))
        .collect();
    let all = names
        .iter()
        .map(|name| (name.as_str(), Vec::new()))
        .collect();
    assert!(read(&mut Files(all)).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(container_commands:\n|  [a-c]: |\\{|\\}|\\[|\\]|command: |env: |cwd: |test: |[&*!][ab] |\n|\t| {1,6}|\"|'|\\||>|- |\\? |: |,|~|[a-z0-9]{1,3}|\u{feff}|#|<<|%|---\n){0,40}") {
        let _ = one(text);
    }

    #[test]
    fn no_host_keys_make_it_panic(text in "(packages:|groups:|users:|sources:|files:|services:|option_settings:|Resources:|\n|  [/a-c]{1,3}: |    [a-z]{1,3}: |  (yum|rpm|sysvinit|windows): |(content|mode|source|gid|uid|enabled|files|packages): |\\{|\\}|\\[|\\]|[&*!][ab] |[0-7]{6}|https://a|'|[a-z0-9]{1,3}|, ){0,40}") {
        let _ = one(text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = one(bytes);
    }
}
