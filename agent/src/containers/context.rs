//! What an image is built of: a directory of the release as a tar, less what `.dockerignore` leaves out. Symbolic links go
//! along as they are, none is followed.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes the tar of `root`. `dockerfile` is part of it whatever is ignored, with `text` in place of a file where that is given.
pub(super) fn write(
    root: &Path,
    dockerfile: &str,
    text: Option<&str>,
    out: impl Write,
) -> io::Result<()> {
    let ignored = ignored(root, dockerfile)?;
    let mut tar = tar::Builder::new(out);
    tar.follow_symlinks(false);
    // Built twice of the same files, steps are taken from the Engine's cache.
    tar.mode(tar::HeaderMode::Deterministic);
    add(&mut tar, root, Path::new(""), &ignored, dockerfile)?;
    if let Some(text) = text {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, dockerfile, text.as_bytes())?;
    }
    tar.into_inner()?.flush()
}

fn ignored(root: &Path, dockerfile: &str) -> io::Result<Gitignore> {
    let mut builder = GitignoreBuilder::new(root);
    let own = format!("{dockerfile}.dockerignore");
    // A link may lead anywhere by now.
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|data| data.is_file());
    let text = [own.as_str(), ".dockerignore"]
        .iter()
        .map(|name| root.join(name))
        .filter(is_file)
        .find_map(|path| fs::read_to_string(path).ok());
    for line in text.as_deref().unwrap_or_default().lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // Unlike git's, every pattern begins at the top.
        let (not, pattern) = match line.strip_prefix('!') {
            Some(pattern) => ("!", pattern.trim()),
            None => ("", line),
        };
        let pattern = pattern.trim_start_matches("./").trim_matches('/');
        let pattern = if pattern == "." { "*" } else { pattern };
        builder
            .add_line(None, &format!("{not}/{pattern}"))
            .map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(".dockerignore: {error}"),
                )
            })?;
    }
    builder.build().map_err(io::Error::other)
}

fn add(
    tar: &mut tar::Builder<impl Write>,
    root: &Path,
    below: &Path,
    ignored: &Gitignore,
    dockerfile: &str,
) -> io::Result<()> {
    let mut names: Vec<PathBuf> = fs::read_dir(root.join(below))?
        .map(|entry| Ok(below.join(entry?.file_name())))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = root.join(&name);
        let kind = fs::symlink_metadata(&path)?.file_type();
        let out = ignored
            .matched_path_or_any_parents(&name, kind.is_dir())
            .is_ignore();
        if kind.is_dir() {
            // Something in it may come back.
            if !out {
                tar.append_dir(&name, &path)?;
            }
            add(tar, root, &name, ignored, dockerfile)?;
        } else if (kind.is_file() || kind.is_symlink()) && (!out || name == Path::new(dockerfile)) {
            tar.append_path_with_name(&path, &name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_dockerignore_names_stays_behind_and_links_stay_links() {
        let root = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("Dockerfile", "FROM scratch"),
            (
                ".dockerignore",
                "# more\nDockerfile\nnode_modules\n*.log\n!keep.log\nsub/*.txt\n",
            ),
            ("app.js", ""),
            ("a.log", ""),
            ("keep.log", ""),
            ("sub/a.log", "only at the top"),
            ("sub/b.txt", ""),
            ("node_modules/x/index.js", ""),
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).expect("a link");
        let mut bytes = Vec::new();
        write(root.path(), "Dockerfile", None, &mut bytes).expect("written");
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut names = BTreeSet::new();
        for entry in archive.entries().expect("a tar") {
            let entry = entry.expect("an entry");
            let name = entry.path().expect("a path").to_string_lossy().into_owned();
            if name == "link" {
                assert!(entry.header().entry_type().is_symlink());
            }
            names.insert(name);
        }
        let expected = [
            ".dockerignore",
            "Dockerfile",
            "app.js",
            "keep.log",
            "link",
            "sub",
            "sub/a.log",
        ];
        let names: BTreeSet<&str> = names
            .iter()
            .map(|name| name.trim_end_matches('/'))
            .collect();
        assert_eq!(names, BTreeSet::from(expected));
    }
}
