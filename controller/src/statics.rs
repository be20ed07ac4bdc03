//! Static files of releases, out of their bundles, for load balancers.

use beanpole_bundle::{Refused, open, served};
use beanpole_fleet::StaticSource;
use beanpole_protocol::Digest;
use beanpole_protocol::statics::{FileHead, StaticFile, StaticFiles, StaticSet};
use beanpole_store::blobs::{BlobError, Blobs};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// How many sets are remembered: making one means reading all its files.
const REMEMBERED: usize = 8;
/// How much is read at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// Opens a bundle; `NotFound` where there is none.
pub(crate) fn bundle(blobs: &Blobs, digest: &Digest) -> io::Result<(File, u64)> {
    match blobs.file(digest) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(io::ErrorKind::NotFound.into()),
        Err(BlobError::Io { source, .. }) => Err(source),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// A set and where its files are in their bundle.
struct Made {
    set: Arc<StaticSet>,
    entries: BTreeMap<Digest, (usize, u64)>,
}

/// The files of all bundles.
pub(crate) struct Statics {
    blobs: Arc<Blobs>,
    /// One is made after the other: most are asked for by several links at the same time.
    made: Mutex<VecDeque<(Digest, Arc<Made>)>>,
}

impl Statics {
    pub(crate) fn new(blobs: Arc<Blobs>) -> Self {
        Self {
            blobs,
            made: Mutex::default(),
        }
    }

    fn made(&self, files: &StaticFiles) -> io::Result<Arc<Made>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = made.iter().find(|(set, _)| *set == files.set) {
            return Ok(Arc::clone(known));
        }
        let (bundle, _) = bundle(&self.blobs, &files.bundle)?;
        let new = Arc::new(make(bundle, &files.paths)?);
        if made.len() >= REMEMBERED {
            made.pop_front();
        }
        made.push_back((files.set.clone(), Arc::clone(&new)));
        Ok(new)
    }
}

fn make(bundle: File, paths: &BTreeMap<String, String>) -> io::Result<Made> {
    let (mut archive, found) = served(bundle, paths).map_err(unreadable)?;
    let mut digests: BTreeMap<usize, Digest> = BTreeMap::new();
    let mut entries = BTreeMap::new();
    let mut set = StaticSet::default();
    for (path, entry) in found {
        let size = entry.size;
        let digest = match digests.get(&entry.index) {
            Some(known) => known.clone(),
            None => {
                let mut hasher = Sha256::new();
                let content = archive.by_index(entry.index).map_err(io::Error::other)?;
                copy(content, size, &mut |piece| {
                    hasher.update(piece);
                    Ok(())
                })?;
                Digest::finished(hasher)
            }
        };
        digests.insert(entry.index, digest.clone());
        entries.insert(digest.clone(), (entry.index, size));
        set.files.insert(path, StaticFile { digest, size });
    }
    Ok(Made {
        set: Arc::new(set),
        entries,
    })
}

impl StaticSource for Statics {
    fn set(&self, files: &StaticFiles) -> io::Result<Arc<StaticSet>> {
        Ok(Arc::clone(&self.made(files)?.set))
    }

    fn write(
        &self,
        files: &StaticFiles,
        wanted: &BTreeSet<Digest>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let made = self.made(files)?;
        let (bundle, _) = bundle(&self.blobs, &files.bundle)?;
        let mut archive = open(bundle).map_err(unreadable)?;
        for digest in wanted {
            let Some((index, size)) = made.entries.get(digest).copied() else {
                continue;
            };
            let file = StaticFile {
                digest: digest.clone(),
                size,
            };
            out.write_all(&FileHead(file).bytes())?;
            let content = archive.by_index(index).map_err(io::Error::other)?;
            copy(content, size, &mut |piece| out.write_all(piece))?;
        }
        Ok(())
    }
}

/// Gives `content` to `out`, and fails where it has another size than the bundle's directory says.
fn copy(
    content: impl Read,
    size: u64,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut content = content.take(size.saturating_add(1));
    let mut piece = vec![0; PIECE];
    let mut seen = 0;
    loop {
        let count = content.read(&mut piece)?;
        if count == 0 {
            break;
        }
        seen += count as u64;
        if seen > size {
            break;
        }
        out(&piece[..count])?;
    }
    if seen == size {
        return Ok(());
    }
    let text = "a file of the bundle has another size than its directory says";
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn unreadable(refused: Refused) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::{ReleaseNumber, Timestamp};
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    struct Scene {
        _directory: tempfile::TempDir,
        statics: Statics,
        files: StaticFiles,
    }

    /// A bundle with these files, of which those in `static` are served at `/s`.
    fn scene(contents: &[(&str, &str)]) -> Scene {
        let directory = tempfile::tempdir().expect("temporary directory");
        let blobs = Arc::new(Blobs::open(directory.path(), 1 << 20).expect("blobs"));
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, content) in contents {
            let plain = SimpleFileOptions::default();
            zip.start_file(*name, plain).expect("an entry");
            zip.write_all(content.as_bytes()).expect("content");
        }
        let bytes = zip.finish().expect("a ZIP").into_inner();
        let mut writer = blobs.writer().expect("a writer");
        writer.write(&bytes).expect("written");
        let (bundle, _) = writer.finish(None).expect("kept");
        let paths = BTreeMap::from([("/s".to_owned(), "static".to_owned())]);
        Scene {
            statics: Statics::new(blobs),
            files: StaticFiles::new(ReleaseNumber(1), Timestamp::EPOCH, bundle, paths),
            _directory: directory,
        }
    }

    #[test]
    fn files_of_a_bundle_come_by_their_digests() {
        let long = "long ".repeat(40_000);
        let scene = scene(&[
            ("static/a.js", &long),
            ("static/same.js", &long),
            ("static/b/c.css", "short"),
            ("Procfile", "web: ./x"),
        ]);
        let set = scene.statics.set(&scene.files).expect("a set");
        let paths: Vec<&String> = set.files.keys().collect();
        assert_eq!(paths, ["/s/a.js", "/s/b/c.css", "/s/same.js"]);
        let (long_one, short) = (&set.files["/s/a.js"], &set.files["/s/b/c.css"]);
        assert_eq!(long_one.digest, Digest::of(long.as_bytes()));
        assert_eq!(*long_one, set.files["/s/same.js"]);
        assert_eq!((long_one.size, short.size), (200_000, 5));
        for wanted in [vec![short], vec![long_one, short]] {
            let digests: BTreeSet<Digest> = wanted.iter().map(|file| file.digest.clone()).collect();
            let mut out = Vec::new();
            let written = scene.statics.write(&scene.files, &digests, &mut out);
            written.expect("written");
            let mut rest = &out[..];
            let mut seen = BTreeSet::new();
            while let Some((head, content)) = rest.split_first_chunk::<{ FileHead::LENGTH }>() {
                let FileHead(file) = FileHead::read(head).expect("a head");
                let (content, next) = content.split_at(file.size as usize);
                assert_eq!(Digest::of(content), file.digest);
                seen.insert(file.digest);
                rest = next;
            }
            assert!(rest.is_empty());
            assert_eq!(seen, digests);
        }
    }

    #[test]
    fn a_bundle_that_is_gone_or_lacks_the_directory_says_so() {
        let scene = scene(&[("Procfile", "web: ./x")]);
        let error = scene.statics.set(&scene.files).expect_err("no directory");
        assert!(
            error.to_string().contains("no directory `static`"),
            "{error}"
        );
        let gone = StaticFiles {
            bundle: Digest::of(b"gone"),
            set: Digest::of(b"another"),
            ..scene.files
        };
        let error = scene.statics.set(&gone).expect_err("no bundle");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
