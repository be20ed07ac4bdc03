//! Which files of a bundle a load balancer serves itself.

use crate::packed::{Packed, look_into};
use crate::{Archive, Entry, Refused, follow, shown};
use beanpole_protocol::statics::{MOST_BYTES, MOST_FILES};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The files below directories of a bundle (`paths`, as `OptionSettings::static_files` has them) by the paths of their
/// URLs. Where directories have the same one, that of the longest path counts. Left out are symbolic links, and what
/// is called by a name that begins with a dot, or is below it, but for `.well-known`.
pub fn served(
    file: File,
    paths: &BTreeMap<String, String>,
) -> Result<(Archive, BTreeMap<String, Entry>), Refused> {
    look_into(file, |packed| {
        let mut found = BTreeMap::new();
        // In their order, a longer path comes after the one that it begins with.
        for (path, directory) in paths {
            add(packed, path, directory, &mut found)?;
        }
        Ok((packed.archive.clone(), found))
    })
}

pub(crate) fn add(
    packed: &Packed<'_>,
    path: &str,
    directory: &str,
    found: &mut BTreeMap<String, Entry>,
) -> Result<(), Refused> {
    let contents = packed.contents;
    let root = follow(PathBuf::new(), Path::new(directory), &packed.links)
        .filter(|root| contents.directories.binary_search(root).is_ok());
    let Some(root) = root else {
        let message = format!(
            "The bundle has no directory `{}`, which is to be served at `{}`.",
            shown(directory),
            if path.is_empty() { "/" } else { path }
        );
        return Err(Refused::new("static-directory-missing", message));
    };
    for (file, entry) in &contents.files {
        let Ok(below) = file.strip_prefix(&root) else {
            continue;
        };
        if let Some(url) = url(path, below) {
            found.insert(url, *entry);
        }
    }
    if found.len() > MOST_FILES {
        let message = format!(
            "The load balancer is to serve {} files of the bundle; it serves {MOST_FILES} at most.",
            found.len()
        );
        return Err(Refused::new("static-files-too-many", message));
    }
    let mut seen = BTreeSet::new();
    let once = found.values().filter(|entry| seen.insert(entry.index));
    let bytes: u64 = once.map(|entry| entry.size).sum();
    if bytes > MOST_BYTES {
        let message = format!(
            "The load balancer is to serve files of the bundle that have {} MiB together; it serves {} MiB at most.",
            bytes >> 20,
            MOST_BYTES >> 20
        );
        return Err(Refused::new("static-files-too-large", message));
    }
    Ok(())
}

/// The path of a file's URL; none where it is not served.
fn url(path: &str, below: &Path) -> Option<String> {
    let mut url = path.to_owned();
    for part in below {
        let part = part.to_str()?;
        if part.starts_with('.') && part != ".well-known" {
            return None;
        }
        url.push('/');
        url.push_str(part);
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn zip(names: &[&str]) -> File {
        let mut zip = ZipWriter::new(tempfile::tempfile().expect("a file"));
        for name in names {
            let plain = SimpleFileOptions::default();
            if let Some((name, target)) = name.split_once(" -> ") {
                zip.add_symlink(name, target, plain).expect("a link");
            } else {
                zip.start_file(*name, plain).expect("an entry");
                zip.write_all(name.as_bytes()).expect("content");
            }
        }
        let mut file = zip.finish().expect("a ZIP");
        file.rewind().expect("rewind");
        file
    }

    fn urls(names: &[&str], paths: &[(&str, &str)]) -> Result<Vec<(String, usize)>, Refused> {
        let paths = paths.iter().map(|(a, b)| ((*a).into(), (*b).into()));
        let (_, found) = served(zip(names), &paths.collect())?;
        let found = found.into_iter();
        Ok(found.map(|(url, entry)| (url, entry.index)).collect())
    }

    #[test]
    fn files_have_the_urls_of_the_longest_path() {
        let names = [
            "public/index.html",
            "public/a/x.css",
            "built/x.css",
            "built/y/z.js",
            "publicity.txt",
            "Procfile",
        ];
        let found = urls(&names, &[("", "public"), ("/a", "built")]).expect("files");
        let wanted = [("/a/x.css", 2), ("/a/y/z.js", 3), ("/index.html", 0)];
        assert_eq!(found, wanted.map(|(url, index)| (url.to_owned(), index)));
    }

    #[test]
    fn what_is_hidden_and_links_to_files_are_not_served() {
        let names = [
            "s/.env",
            "s/.git/config",
            "s/.well-known/security.txt",
            "s/link -> ../Procfile",
            "Procfile",
            "linked -> s",
        ];
        let wanted = [("/s/.well-known/security.txt".to_owned(), 2)];
        assert_eq!(urls(&names, &[("/s", "s")]).expect("files"), wanted);
        assert_eq!(urls(&names, &[("/s", "linked")]).expect("files"), wanted);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        for directory in ["static", "Procfile", "s"] {
            let refused = urls(&["Procfile", "st/a"], &[("/x", directory)]).expect_err(directory);
            assert_eq!(refused.code, "static-directory-missing");
            let said = format!("no directory `{directory}`, which is to be served at `/x`");
            assert!(refused.message.contains(&said), "{refused}");
        }
    }
}
