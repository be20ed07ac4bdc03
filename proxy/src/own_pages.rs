//! Pages that environments have of their own: in memory for answers, on disk for the next run. They are called by
//! the SHA-256 of their text, so that one is right or is not there.

use arc_swap::ArcSwap;
use beanpole_daemon::files;
use beanpole_protocol::Digest;
use beanpole_protocol::content::LARGEST_PAGE;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All pages that are there.
pub struct OwnPages {
    directory: PathBuf,
    held: ArcSwap<BTreeMap<Digest, Arc<str>>>,
}

impl OwnPages {
    /// Those of the last run. What is damaged is left out: the controller sends it again.
    pub fn restore(directory: PathBuf) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        files::sweep(&directory)?;
        let mut held = BTreeMap::new();
        for path in paths(&directory)? {
            match read(&path) {
                Some((digest, html)) => {
                    held.insert(digest, html);
                }
                None => {
                    tracing::warn!(path = %path.display(), "a page is damaged: doing without it until the controller sends it");
                    // It may be no file; then nothing is lost.
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(Self {
            directory,
            held: ArcSwap::from_pointee(held),
        })
    }

    /// Those that another process of this proxy has taken in since.
    pub fn follow(&self) {
        let paths = paths(&self.directory).unwrap_or_default();
        let held = paths.iter().filter_map(|path| read(path)).collect();
        self.held.store(Arc::new(held));
    }

    /// A page, if it is there.
    pub fn get(&self, digest: &Digest) -> Option<Arc<str>> {
        self.held.load().get(digest).cloned()
    }

    /// The digests of all.
    pub fn digests(&self) -> Vec<Digest> {
        self.held.load().keys().cloned().collect()
    }

    /// Takes a page in. One after the other; it waits for the disk. The error is a sentence for people where the
    /// page is none.
    pub fn add(&self, digest: Digest, html: String) -> Result<(), NotAdded> {
        if html.len() > LARGEST_PAGE {
            let text = format!("It has {} bytes, and may have {LARGEST_PAGE}.", html.len());
            return Err(NotAdded::Refused(text));
        }
        if digest_of(html.as_bytes()) != digest.as_str() {
            return Err(NotAdded::Refused(
                "It is not what its digest says.".to_owned(),
            ));
        }
        let path = self.directory.join(digest.as_str());
        files::write_atomically(&path, html.as_bytes(), 0o600).map_err(NotAdded::Disk)?;
        let mut held = BTreeMap::clone(&self.held.load());
        held.insert(digest, html.into());
        self.held.store(Arc::new(held));
        Ok(())
    }

    /// Forgets all but these. It waits for the disk.
    pub fn keep_only(&self, wanted: &BTreeSet<Digest>) {
        let before = self.held.load_full();
        let gone: Vec<&Digest> = before.keys().filter(|one| !wanted.contains(one)).collect();
        if gone.is_empty() {
            return;
        }
        let mut held = BTreeMap::clone(&before);
        for digest in gone {
            held.remove(digest);
            // What is left is forgotten after the next start.
            let _ = std::fs::remove_file(self.directory.join(digest.as_str()));
        }
        self.held.store(Arc::new(held));
    }
}

/// Why a page was not taken in.
pub enum NotAdded {
    /// It is none.
    Refused(String),
    /// It could not be written.
    Disk(io::Error),
}

fn paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn read(path: &Path) -> Option<(Digest, Arc<str>)> {
    let digest = Digest::new(path.file_name()?.to_str()?).ok()?;
    let html = std::fs::read_to_string(path).ok()?;
    (digest_of(html.as_bytes()) == digest.as_str()).then(|| (digest, html.into()))
}

fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold(String::new(), |mut text, byte| {
        // Writing to memory does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_last_until_they_are_damaged_or_unwanted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let pages = || OwnPages::restore(directory.path().join("pages")).expect("pages");
        let digest = |html: &str| Digest::new(digest_of(html.as_bytes())).expect("a digest");
        let (one, other) = (digest("one"), digest("other"));
        let held = pages();
        assert!(held.add(one.clone(), "one".to_owned()).is_ok());
        assert!(held.add(other.clone(), "other".to_owned()).is_ok());
        assert!(held.add(one.clone(), "another".to_owned()).is_err());
        let long = "x".repeat(LARGEST_PAGE + 1);
        assert!(held.add(digest(&long), long).is_err());
        let held = pages();
        assert_eq!(held.get(&one).as_deref(), Some("one"));
        held.keep_only(&BTreeSet::from([other.clone()]));
        assert_eq!(held.get(&one), None);
        let held = pages();
        assert_eq!(held.digests(), std::slice::from_ref(&other));
        let file = directory.path().join("pages").join(other.as_str());
        std::fs::write(&file, "changed").expect("write");
        assert!(pages().digests().is_empty() && !file.exists());
    }
}
