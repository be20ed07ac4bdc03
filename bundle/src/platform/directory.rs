//! An unpacked bundle, or a directory that one is to be made of.

use super::Top;
use crate::Refused;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A directory. Links are followed as long as they stay inside: what runs while a release is prepared may have put others
/// there, and root reads.
pub struct Directory<'p>(pub &'p Path);

impl Directory<'_> {
    /// Where `name` leads; none where it leads nowhere or out of the directory.
    fn inside(&self, name: &str) -> Option<PathBuf> {
        let root = self.0.canonicalize().ok()?;
        let path = root.join(name).canonicalize().ok()?;
        path.starts_with(&root).then_some(path)
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.inside(name).filter(|path| path.is_file())
    }
}

impl Top for Directory<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        self.file(name).is_some()
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let Some(path) = self.file(name) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(longest).read_to_end(&mut bytes))
            .map_err(|error| {
                Refused::new(
                    "host-io",
                    format!("{} cannot be read: {error}.", path.display()),
                )
            })?;
        Ok(Some(bytes))
    }

    fn names(&self) -> Vec<(String, bool)> {
        let entries = fs::read_dir(self.0).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                (entry.file_name().to_string_lossy().into_owned(), directory)
            })
            .collect()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        let entries = self.inside(name).and_then(|path| fs::read_dir(path).ok());
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|file| self.has_file(&Path::new(name).join(file).to_string_lossy()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_leads_out_of_the_directory_is_not_there() {
        let outside = tempfile::tempdir().expect("a directory");
        fs::write(outside.path().join("secret"), "A=b").expect("written");
        let tree = tempfile::tempdir().expect("a directory");
        let path = tree.path();
        fs::create_dir(path.join("conf")).expect("made");
        fs::write(path.join("conf/own"), "own").expect("written");
        symlink(outside.path().join("secret"), path.join(".env")).expect("linked");
        symlink(outside.path(), path.join("out")).expect("linked");
        symlink("conf/own", path.join("Procfile")).expect("linked");
        symlink("nowhere", path.join("conf/dangling")).expect("linked");
        let mut top = Directory(path);
        assert!(!top.has_file(".env") && !top.has_file("out/secret"));
        assert_eq!(top.head(".env", 9), Ok(None));
        assert_eq!(top.head("Procfile", 9), Ok(Some(b"own".to_vec())));
        assert_eq!(top.files_in("out"), Vec::<String>::new());
        assert_eq!(top.files_in("conf"), ["own"]);
        assert_eq!(top.files_in(""), ["Procfile"]);
    }
}
