//! The same files as git lists, whatever the ignore files say.

use super::list;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Cases per run; each starts git twice.
const CASES: u32 = 150;
const NAMES: [&str; 8] = ["a", "b", "ab", "a.log", ".a", "a b", "dist", "#x"];
const SEGMENTS: [&str; 14] = [
    "a", "b", "ab", "*", "*.log", "a*", "?", "[ab]", "[!a]", ".*", "**", "a\\ b", "dist", "#x",
];

fn file() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 1..=4).prop_map(|parts| parts.join("/"))
}

fn pattern() -> impl Strategy<Value = String> {
    let segments = prop::collection::vec(prop::sample::select(&SEGMENTS[..]), 1..=3);
    let starts = prop::sample::select(&["", "", "!", "/", "!/", "\\", "# "][..]);
    let ends = prop::sample::select(&["", "", "/", "/**", " ", "  "][..]);
    (starts, segments, ends)
        .prop_map(|(start, segments, end)| format!("{start}{}{end}", segments.join("/")))
}

fn ignore_file() -> impl Strategy<Value = String> {
    let patterns = prop::collection::vec(pattern(), 0..=5);
    let line_ends = prop::sample::select(&["\n", "\r\n"][..]);
    (patterns, line_ends, any::<bool>()).prop_map(|(patterns, end, last)| {
        let mut text = patterns.join(end);
        if last {
            text.push_str(end);
        }
        text
    })
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    // A name that is a file already cannot be a directory as well: such a case has one file less.
    if path
        .parent()
        .is_some_and(|parent| fs::create_dir_all(parent).is_ok())
    {
        let _ = fs::write(path, text);
    }
}

/// What git would add of the directory `root`, a repository without commits.
fn by_git(root: &Path) -> BTreeSet<String> {
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .current_dir(root)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "core.excludesFile=/dev/null"])
            .args(arguments)
            .output()
            .expect("git runs");
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        done.stdout
    };
    git(&["init", "--quiet"]);
    let names = git(&["ls-files", "-z", "--others", "--exclude-standard"]);
    names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn by_us(root: &Path) -> BTreeSet<String> {
    list(root, &[])
        .expect("list")
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_gitignore_leaves_is_what_git_would_add(
        files in prop::collection::vec(file(), 1..=12),
        rules in ignore_file(),
        nested in prop::option::of((file(), ignore_file())),
    ) {
        let root = tempfile::tempdir().expect("temporary directory");
        for name in &files {
            write(root.path(), name, "");
        }
        write(root.path(), ".gitignore", &rules);
        if let Some((place, rules)) = &nested {
            write(root.path(), &format!("{place}/.gitignore"), rules);
        }
        prop_assert_eq!(by_us(root.path()), by_git(root.path()), "{:?} {:?}", rules, nested);
    }

    #[test]
    fn an_ebignore_means_what_the_same_gitignore_means(
        files in prop::collection::vec(file(), 1..=12),
        rules in ignore_file(),
    ) {
        let root = tempfile::tempdir().expect("temporary directory");
        for name in &files {
            write(root.path(), name, "");
        }
        write(root.path(), ".ebignore", &rules);
        let ours = by_us(root.path());
        fs::rename(root.path().join(".ebignore"), root.path().join(".gitignore")).expect("rename");
        let gits: BTreeSet<String> = by_git(root.path());
        // The rules' own file has another name, which they may match otherwise.
        let without = |names: BTreeSet<String>| -> BTreeSet<String> {
            names.into_iter().filter(|name| name != ".ebignore" && name != ".gitignore").collect()
        };
        prop_assert_eq!(without(ours), without(gits), "{:?}", rules);
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_rule() {
    let root = tempfile::tempdir().expect("temporary directory");
    write(root.path(), ".gitignore", "\u{feff}a\n");
    write(root.path(), "a", "");
    write(root.path(), "b", "");
    assert_eq!(by_us(root.path()), by_git(root.path()));
}
