//! Which files of a directory belong into its bundle.
//!
//! `.ebignore` decides where there is one, `.gitignore` otherwise (EB CLI's rule), each by git's own
//! syntax, also in sub-directories. Dot files and folders are included, because `.ebextensions` and
//! `.platform` are some. `.git` and `.beanpole` never are.

#[cfg(test)]
mod against_git;

use crate::output::errors::Failure;
use ignore::WalkBuilder;
use ignore::overrides::OverrideBuilder;
use std::path::{Path, PathBuf};

/// Never part of a bundle, at any depth.
const NEVER: [&str; 2] = [".git", ".beanpole"];

/// Every file and symbolic link below `root` that belongs into the bundle, relative to it, sorted
/// by the bytes of its path. `extra` are patterns to leave out besides.
pub fn list(root: &Path, extra: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let own_rules = if root.join(".ebignore").is_file() {
        ".ebignore"
    } else {
        ".gitignore"
    };
    let mut overrides = OverrideBuilder::new(root);
    for pattern in extra {
        // An override's `!` means "leave out"; a pattern that begins with it takes back in.
        let turned = match pattern.strip_prefix('!') {
            Some(pattern) => pattern.to_owned(),
            None => format!("!{pattern}"),
        };
        overrides.add(&turned).map_err(|error| {
            Failure::caused(
                format!("`{pattern}` is no valid pattern to ignore."),
                &error,
            )
            .into_misuse()
        })?;
    }
    let overrides = overrides.build().map_err(|error| {
        Failure::caused("The patterns to ignore cannot be used.", &error).into_misuse()
    })?;
    let walk = WalkBuilder::new(root)
        .standard_filters(false)
        .hidden(false)
        .parents(false)
        .follow_links(false)
        .overrides(overrides)
        .add_custom_ignore_filename(own_rules)
        .filter_entry(|entry| {
            entry.depth() == 0 || !NEVER.iter().any(|name| entry.file_name() == *name)
        })
        .build();
    let mut files = Vec::new();
    for entry in walk {
        let entry = entry.map_err(|error| {
            Failure::caused(
                format!("Cannot read everything in {}.", root.display()),
                &error,
            )
        })?;
        let Some(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_file() || kind.is_symlink() {
            let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
            files.push(path.to_owned());
        } else if !kind.is_dir() {
            return Err(Failure::new(format!(
                "{} is neither a file nor a directory nor a link, and cannot be part of a bundle.",
                entry.path().display()
            ))
            .hint(format!(
                "Remove it, or leave it out by a line in {own_rules} or `source.ignore` of deploy.toml"
            )));
        }
    }
    files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("write");
        }
        root
    }

    fn names(root: &tempfile::TempDir, extra: &[&str]) -> Vec<String> {
        let extra: Vec<String> = extra.iter().map(|e| (*e).to_owned()).collect();
        list(root.path(), &extra)
            .expect("list")
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn gitignore_decides_and_dot_folders_are_included() {
        let root = tree(&[
            (".gitignore", "node_modules/\n*.log\n!keep.log\n"),
            (".git/config", ""),
            (".beanpole/x", ""),
            (".ebextensions/a.config", ""),
            ("app.js", ""),
            ("a.log", ""),
            ("keep.log", ""),
            ("node_modules/x/index.js", ""),
            ("lib/.gitignore", "/local\n"),
            ("lib/local", ""),
            ("lib/code", ""),
        ]);
        assert_eq!(
            names(&root, &[]),
            [
                ".ebextensions/a.config",
                ".gitignore",
                "app.js",
                "keep.log",
                "lib/.gitignore",
                "lib/code"
            ]
        );
    }

    #[test]
    fn an_ebignore_replaces_the_gitignore() {
        let root = tree(&[
            (".ebignore", "tests/\n"),
            (".gitignore", "dist/\n"),
            ("dist/app.js", ""),
            ("tests/a", ""),
        ]);
        assert_eq!(
            names(&root, &[]),
            [".ebignore", ".gitignore", "dist/app.js"]
        );
    }

    #[test]
    fn what_is_no_file_is_named_unless_it_is_left_out() {
        let root = tree(&[("a", "")]);
        let socket = root.path().join("app.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
        let error = list(root.path(), &[]).expect_err("refused");
        assert!(error.message.contains("app.sock is neither"), "{error:?}");
        assert_eq!(names(&root, &["*.sock"]), ["a"]);
    }

    #[test]
    fn patterns_of_deploy_toml_are_left_out_besides() {
        let root = tree(&[("a.md", ""), ("docs/b.md", ""), ("c.txt", "")]);
        assert_eq!(names(&root, &["*.md"]), ["c.txt"]);
    }
}
