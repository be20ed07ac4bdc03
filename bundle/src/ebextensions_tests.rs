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
    Ok(found.commands.into_iter().next().expect("one"))
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
    let found = one(text).expect("valid").commands;
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
    let names: Vec<_> = found.commands.iter().map(|c| c.name.as_str()).collect();
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
        "packages:\n  yum: {git: []}\nResources:\n  A: &a {B: !Ref C, D: !GetAtt x.y}\n  E: *a\n  <<: *a\n\
         option_settings:\n  - value: '`{\"Ref\": \"T\"}`'\npackages: {}\n",
    )
    .expect("valid");
    assert!(found.commands.is_empty());
    let over = PassedOver {
        file: ".ebextensions/01.config".to_owned(),
        keys: ["packages", "Resources", "option_settings"]
            .map(str::to_owned)
            .to_vec(),
    };
    assert_eq!(found.passed_over, [over]);
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
        one(many(MOST_COMMANDS)).expect("most").commands.len(),
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
                "x".repeat(LONGEST_COMMAND + 1)
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
    assert_eq!(one(bomb).expect("valid").commands, []);
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
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = one(bytes);
    }
}
