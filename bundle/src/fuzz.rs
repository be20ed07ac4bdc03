//! What has to hold for whatever files a bundle brings along: the bodies of the fuzz targets in `fuzz/`, which tests run
//! here as well, with bytes made up of what such files are made of.

use crate::ebextensions::{self, Content, DIRECTORY, Extensions, Target};
use crate::platform::Top;
use crate::{Refused, containers, cron, delta, env_yaml, procfile};
use std::fs::File;
use std::io::Write;
use std::path::Component;

/// One configuration file and nothing else.
struct One<'b>(&'b [u8]);

impl Top for One<'_> {
    type Error = Refused;

    fn has_file(&self, _: &str) -> bool {
        false
    }

    fn head(&mut self, _: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        Ok(Some(self.0[..self.0.len().min(longest)].to_owned()))
    }

    fn names(&self) -> Vec<(String, bool)> {
        Vec::new()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        assert_eq!(name, DIRECTORY);
        vec!["1.config".to_owned()]
    }
}

/// A refusal is a sentence that a terminal can show.
fn sane(refused: &Refused) {
    assert!(refused.message.len() < 4000, "{}", refused.message.len());
    assert!(!refused.message.contains(char::is_control), "{refused:?}");
    assert!(!refused.message.is_empty() && !refused.code.is_empty());
}

/// A configuration file of `.ebextensions`: what is taken stays where it may be, and nothing needs root in silence.
pub fn config(bytes: &[u8]) {
    let found = ebextensions::read(&mut One(bytes));
    assert_eq!(found, ebextensions::read(&mut One(bytes)), "another time");
    match found {
        Ok(found) => may_be(&found),
        Err(refused) => {
            assert_eq!(refused.code, "ebextensions-invalid");
            sane(&refused);
        }
    }
}

fn may_be(found: &Extensions) {
    let targets = || {
        let files = found.files.iter().map(|file| &file.target);
        files.chain(found.sources.iter().map(|source| &source.target))
    };
    for target in targets() {
        let (path, in_tree) = match target {
            Target::Host(path) => (path, false),
            Target::Tree(path) => (path, true),
        };
        assert_eq!(path.is_relative(), in_tree, "{target:?}");
        assert!(!path.components().any(|part| part == Component::ParentDir));
    }
    for file in &found.files {
        assert!(file.mode.unwrap_or(0) <= 0o7777);
        if let (Target::Tree(_), Content::Link(to)) = (&file.target, &file.content) {
            assert!(to.is_relative() && !to.components().any(|part| part == Component::ParentDir));
        }
    }
    let on_host = targets().any(|target| matches!(target, Target::Host(_)));
    let root = on_host
        || !found.packages.is_empty()
        || !found.groups.is_empty()
        || !found.users.is_empty()
        || !found.commands.is_empty()
        || !found.services.is_empty();
    assert_eq!(found.needs_root.is_some(), root);
    for package in &found.packages {
        assert!(!package.name.starts_with('-'));
        assert!(
            package
                .versions
                .iter()
                .all(|version| !version.starts_with('-'))
        );
    }
    for command in &found.container_commands {
        assert!(command.cwd.is_relative());
        assert!(
            !command
                .cwd
                .components()
                .any(|part| part == Component::ParentDir)
        );
    }
}

/// A `Procfile`: names are names, each there once, and commands are something.
pub fn procfile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match procfile::parse(text) {
        Err(refused) => sane(&refused),
        Ok(processes) => {
            assert!(processes.len() <= procfile::MOST_PROCESSES);
            for (index, (name, command)) in processes.iter().enumerate() {
                assert!(!name.is_empty() && !command.trim().is_empty());
                assert!(
                    processes[..index]
                        .iter()
                        .all(|(earlier, _)| earlier != name)
                );
            }
        }
    }
}

/// A `cron.yaml`: each task has a name of its own, a path, and five fields.
pub fn cron(bytes: &[u8]) {
    match cron::parse(bytes) {
        Err(refused) => sane(&refused),
        Ok(tasks) => {
            for (index, task) in tasks.iter().enumerate() {
                assert!(
                    tasks[..index]
                        .iter()
                        .all(|earlier| earlier.name != task.name)
                );
                assert!(task.url.starts_with('/'));
                assert_eq!(task.schedule.split_whitespace().count(), 5);
            }
        }
    }
}

/// An `env.yaml`.
pub fn env_yaml(bytes: &[u8]) {
    if let Err(refused) = env_yaml::parse(bytes) {
        sane(&refused);
    }
}

/// Two bundles, as the halves of the bytes: what the delta between them makes is as long as the second. And a delta, as it
/// comes and behind a head that is right: it never makes more than it says.
pub fn deltas(bytes: &[u8]) {
    const SIZE: u64 = 70_000;
    let made_of = |delta: &[u8], base: &File, size: u64| {
        let mut out = Vec::new();
        let made = delta::apply(delta, base, size, &mut out);
        assert!(out.len() as u64 <= size);
        made
    };
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let base = file(one);
    if let Ok(Some(delta)) = delta::make(&base, &file(other)) {
        let made = made_of(&delta, &base, other.len() as u64);
        assert_eq!(made.expect("it was just made"), other.len() as u64);
    }
    let _ = made_of(bytes, &base, SIZE);
    let mut delta = delta::MAGIC.to_vec();
    delta.extend_from_slice(&(one.len() as u64).to_le_bytes());
    delta.extend_from_slice(&SIZE.to_le_bytes());
    delta.extend(zstd::encode_all(other, 1).expect("there is memory"));
    let _ = made_of(&delta, &base, SIZE);
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a place for files");
    file.write_all(bytes).expect("room");
    file
}

/// A bundle whose files of that name all hold the same.
struct Named<'b>(&'static str, &'b [u8]);

impl Top for Named<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        name == self.0 || name.ends_with("Dockerfile")
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        let bytes = match name {
            _ if name == self.0 || name == ".env" => self.1,
            _ if name.ends_with("Dockerfile") => b"FROM scratch\nEXPOSE 1\n",
            _ => return Ok(None),
        };
        Ok(Some(bytes[..bytes.len().min(longest)].to_owned()))
    }

    fn names(&self) -> Vec<(String, bool)> {
        Vec::new()
    }

    fn files_in(&self, _: &str) -> Vec<String> {
        Vec::new()
    }
}

/// A `Dockerfile`, a `Dockerrun.aws.json` and a `docker-compose.yml`: nothing of the host without root, nothing of the
/// bundle that leads out of it, and names that are names of processes, images and files.
pub fn containers(bytes: &[u8]) {
    for name in ["Dockerfile", "Dockerrun.aws.json", "docker-compose.yml"] {
        match containers::read(&mut Named(name, bytes), None) {
            Ok(found) => contained(&found),
            Err(refused) => sane(&refused),
        }
    }
}

fn contained(found: &containers::Containers) {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let inside = |path: &str| !path.starts_with('/') && !path.split('/').any(|part| part == "..");
    let mut names: Vec<&str> = Vec::new();
    for one in &found.containers {
        assert!(
            is_name(&one.name) && !names.contains(&one.name.as_str()),
            "{}",
            one.name
        );
        names.push(&one.name);
        assert!(one.host_names.iter().all(|name| is_name(name)));
        match &one.image {
            containers::Image::Build { context, file, .. } => {
                assert!(inside(context) && inside(file));
            }
            containers::Image::Made { .. } => unreachable!("no file asks for it"),
            containers::Image::Pull { name, .. } => {
                assert!(!name.is_empty() && !name.contains(char::is_whitespace));
            }
        }
        for mount in &one.mounts {
            assert!(mount.to.starts_with('/') && !mount.to.split('/').any(|part| part == ".."));
            match &mount.from {
                containers::From::Volume(name) => assert!(is_name(name), "{name}"),
                containers::From::Bundle(path) => assert!(inside(path) && mount.read_only),
                containers::From::Host(path) => {
                    assert!(found.needs_root.is_some() && path.starts_with('/'));
                }
                containers::From::Own => {}
            }
        }
        let has_rights = one.rights.privileged || !one.rights.capabilities.is_empty();
        assert!(!has_rights || found.needs_root.is_some());
    }
    let web = found.containers.iter().filter(|one| one.port.is_some());
    assert!(web.count() <= 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// What such files are made of, and what attacks on their readers are.
    const WORDS: [&str; 64] = [
        "packages:",
        "groups:",
        "users:",
        "sources:",
        "files:",
        "commands:",
        "services:",
        "container_commands:",
        "option_settings:",
        "Resources:",
        " yum:",
        " rpm:",
        " sysvinit:",
        " windows:",
        " \"/etc/x\":",
        " /var/app/current/x:",
        " /srv/../x:",
        " a:",
        " b: {}",
        "  command: x",
        "  command: [a, 1]",
        "  cwd: ..",
        "  test: \"\"",
        "  ignoreErrors: yes",
        "  leader_only: true",
        "  env: {A: b}",
        "  mode: \"000644\"",
        "  mode: \"120777\"",
        "  content: |",
        "  content: a",
        "  source: https://a/b",
        "  encoding: base64",
        "  owner: root",
        "  gid: \"1\"",
        "  uid: 0",
        "  homeDir: /a",
        "  enabled: true",
        "  files: [/a]",
        "\n",
        "\n",
        "\n",
        "\n",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "!Ref x",
        "<<: *a",
        "---\n",
        "\t",
        "\"",
        "'",
        "version: 1\n",
        "cron:\n",
        " - name: a\n",
        "   url: /a\n",
        "   schedule: \"0 0 * * *\"\n",
        "web: ./x\n",
        "AWSConfigurationTemplateVersion: 1.1.0.0\n",
        "Tags: {a: b}\n",
    ];

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            12 => select(&WORDS[..]).prop_map(|word| word.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(word, 0..32).prop_map(|words| words.concat())
    }

    /// Files that are whole, so that what is in them is looked at.
    fn json() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            select(
                &[
                    "x",
                    "/etc/x",
                    "/var/app/staging/y",
                    "..",
                    "000644",
                    "120777",
                    "https://a/b",
                    "1",
                    "yes",
                    ""
                ][..]
            )
            .prop_map(|text| format!("{text:?}")),
            select(&["1", "null", "true", "[]", "{}"][..]).prop_map(str::to_owned),
        ];
        let keys = select(
            &[
                "yum",
                "deb",
                "sysvinit",
                "/etc/x",
                "/var/app/current/z",
                "a",
                "command",
                "cwd",
                "env",
                "test",
                "mode",
                "content",
                "source",
                "encoding",
                "owner",
                "gid",
                "uid",
                "groups",
                "files",
                "packages",
                "namespace",
                "option_name",
                "value",
                "Type",
            ][..],
        );
        let tree = leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                3 => prop::collection::vec((keys.clone(), inner.clone()), 0..4).prop_map(|pairs| {
                    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
                    format!("{{{}}}", pairs.join(", "))
                }),
                1 => prop::collection::vec(inner, 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
            ]
        });
        let top = select(
            &[
                "packages",
                "groups",
                "users",
                "sources",
                "files",
                "commands",
                "services",
                "container_commands",
                "option_settings",
                "Resources",
            ][..],
        );
        prop::collection::vec((top, tree), 0..4).prop_map(|pairs| {
            let pairs: Vec<_> = pairs
                .iter()
                .map(|(key, value)| format!("{key:?}: {value}"))
                .collect();
            format!("{{{}}}", pairs.join(", ")).into_bytes()
        })
    }

    /// What files of containers are made of.
    fn containers_words() -> impl Strategy<Value = Vec<u8>> {
        let words = select(
            &[
                "services:\n",
                "  a:\n",
                "  b:\n",
                "  web:\n",
                "    image: x\n",
                "    build: .\n",
                "    build: ../x\n",
                "    ports: ['80:1', '2', '3/udp']\n",
                "    volumes: ['v:/v', './x:/x', '/etc:/e:ro', '/own']\n",
                "volumes: {v: }\n",
                "    privileged: true\n",
                "    cap_add: [A]\n",
                "    env_file: [.env]\n",
                "    depends_on: [a]\n",
                "    command: x ${A:-b} 'c'\n",
                "    restart: 'no'\n",
                "\u{feff}",
                "A=b\n",
                "{\"AWSEBDockerrunVersion\": 2,",
                "{\"AWSEBDockerrunVersion\": \"1\",",
                "\"Image\": {\"Name\": \"a\"},",
                "\"Ports\": [{\"ContainerPort\": 1}]",
                "\"Volumes\": [{\"HostDirectory\": \"/etc\", \"ContainerDirectory\": \"/e\"}],",
                "\"containerDefinitions\": [",
                "{\"name\": \"a\", \"image\": \"b\"}",
                ",",
                "]",
                "}",
                "\"volumes\": [{\"name\": \"v\", \"host\": {\"sourcePath\": \"/var/app/current/../x\"}}],",
                "FROM a\n",
                "EXPOSE $P\n",
                "RUN --mount x\n",
                "\\\n",
                "ENV P=1\n",
            ][..],
        );
        prop::collection::vec(words, 0..12).prop_map(|words| words.concat().into_bytes())
    }

    /// What ZIPs and deltas are made of, with numbers that lie.
    fn zips() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop_oneof![
            Just(b"PK\x05\x06".to_vec()),
            Just(b"PK\x01\x02".to_vec()),
            Just(b"PK\x03\x04".to_vec()),
            (0_u32..100).prop_map(|number| number.to_le_bytes().to_vec()),
            (0_usize..60).prop_map(|length| vec![0; length]),
            prop::collection::vec(0_u8..3, 0..12),
            Just(vec![0xff; 8]),
            (0_u64..90_000).prop_map(|length| [&[1][..], &[0; 8], &length.to_le_bytes()].concat()),
            Just(b"\x00\x05\x00\x00\x00hello\x02".to_vec()),
        ];
        let half = prop::collection::vec(parts, 0..24).prop_map(|parts| parts.concat());
        (half.clone(), half).prop_map(|(mut one, mut other)| {
            let length = one.len().max(other.len());
            one.splice(0..0, vec![0; length - one.len()]);
            other.splice(0..0, vec![0; length - other.len()]);
            [one, other].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.saturating_mul(8), ..ProptestConfig::default() })]

        #[test]
        fn configuration_files_hold(bytes in prop_oneof![bytes(), json()]) {
            config(&bytes);
        }

        #[test]
        fn procfiles_hold(bytes in bytes()) {
            procfile(&bytes);
        }

        #[test]
        fn crontabs_hold(bytes in bytes()) {
            cron(&bytes);
        }

        #[test]
        fn bundles_made_of_others_hold(bytes in prop_oneof![bytes(), zips()]) {
            deltas(&bytes);
        }

        #[test]
        fn files_of_containers_hold(bytes in prop_oneof![bytes(), containers_words()]) {
            containers(&bytes);
        }

        #[test]
        fn manifests_hold(bytes in bytes()) {
            env_yaml(&bytes);
        }
    }
}
