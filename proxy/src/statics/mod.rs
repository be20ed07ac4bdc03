//! Static files of releases: on disk by the digests of their content, in memory by the paths of their URLs.
//!
//! A set comes as a list of files and then as those of them that are lacking. It counts from when all are on disk and
//! its list with them, so that what is there after a loss of power is whole. What a table names and is not there yet
//! is asked of the application.

mod intake;
mod path;
mod ranges;
mod reply;

pub use intake::{Intake, NotTaken};
pub use reply::{About, Reply, reply};

use crate::asker::Headers;
use crate::compress::asked_for;
use arc_swap::ArcSwap;
use beanpole_daemon::files;
use beanpole_protocol::content::Encoding;
use beanpole_protocol::statics::{MOST_BYTES, MOST_FILES, StaticFile, StaticFiles, StaticSet};
use beanpole_protocol::{Digest, ReleaseNumber, Timestamp};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are other forms of the one beside them, by what their names end in. The one that clients like as well
/// as others is the first.
const FORMS: [(Encoding, &str); 3] = [
    (Encoding::Br, ".br"),
    (Encoding::Zstd, ".zst"),
    (Encoding::Gzip, ".gz"),
];
/// What a directory answers with.
const INDEX: &str = "/index.html";

/// All static files that are there.
pub struct Statics {
    sets: PathBuf,
    files: PathBuf,
    held: ArcSwap<HashMap<Digest, Arc<Set>>>,
    coming: Mutex<Coming>,
    /// There may be files that no set names.
    untidy: AtomicBool,
    /// How many files were begun, so that no two are written under one name.
    begun: AtomicU64,
}

/// What is not whole yet.
#[derive(Default)]
struct Coming {
    /// Sets of which files are lacking.
    sets: HashMap<Digest, StaticSet>,
    /// Files that came in this run of the proxy: of others nobody knows whether they are whole.
    files: HashSet<Digest>,
}

/// A set that is whole, made for lookups.
struct Set {
    by_path: HashMap<String, Arc<Served>>,
    /// What directories answer with, by their paths without the last `/`.
    indexes: HashMap<String, Arc<Served>>,
    files: BTreeSet<Digest>,
}

/// A file under its URL.
#[derive(Debug)]
pub struct Served {
    /// As it is.
    pub file: StaticFile,
    /// For `Content-Type`.
    pub content_type: String,
    /// The same in encodings.
    forms: Vec<(Encoding, StaticFile)>,
}

impl Served {
    /// What a client gets that sent these headers, and how that is encoded.
    pub fn form(&self, headers: Headers<'_>) -> (&StaticFile, Option<Encoding>) {
        let known: Vec<Encoding> = self.forms.iter().map(|(encoding, _)| *encoding).collect();
        let encoding = asked_for(headers, &known);
        let form = self.forms.iter().find(|(one, _)| Some(*one) == encoding);
        form.map_or((&self.file, None), |(encoding, file)| {
            (file, Some(*encoding))
        })
    }

    /// Whether others may get it in another form.
    pub fn varies(&self) -> bool {
        !self.forms.is_empty()
    }
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Hit {
    /// A file.
    File {
        /// Of which release.
        release: ReleaseNumber,
        /// When that was made.
        since: Timestamp,
        /// Which one.
        file: Arc<Served>,
    },
    /// A directory that answers under this path and a `/`.
    Directory,
}

impl Statics {
    /// Those of the last run. What is not whole is left out: the controller sends it again.
    pub fn restore(directory: &Path) -> io::Result<Self> {
        let (sets, files) = (directory.join("sets"), directory.join("files"));
        for directory in [&sets, &files] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            files::sweep(directory)?;
        }
        let statics = Self {
            sets,
            files,
            held: ArcSwap::default(),
            coming: Mutex::default(),
            untidy: AtomicBool::new(true),
            begun: AtomicU64::new(0),
        };
        statics.follow();
        Ok(statics)
    }

    /// Those that another process of this proxy has taken in since.
    pub fn follow(&self) {
        let names = names(&self.sets).unwrap_or_default();
        let held = names.into_iter().filter_map(|name| {
            let whole = self.whole_set(&name);
            if whole.is_none() {
                tracing::warn!(set = %name.short(), "static files are damaged: doing without them until the controller sends them");
            }
            Some((name, Arc::new(whole?)))
        });
        self.held.store(Arc::new(held.collect()));
    }

    /// A set of which every file is there.
    fn whole_set(&self, name: &Digest) -> Option<Set> {
        let set: StaticSet = files::read_json(&self.sets.join(name.as_str())).ok()??;
        let is_there = |file: &StaticFile| {
            let found = fs::metadata(self.path(&file.digest));
            found.is_ok_and(|found| found.len() == file.size)
        };
        set.files.values().all(is_there).then(|| Set::new(&set))
    }

    /// Where a file is.
    pub fn path(&self, file: &Digest) -> PathBuf {
        self.files.join(file.as_str())
    }

    /// The sets of which every file is there.
    pub fn sets(&self) -> Vec<Digest> {
        self.held.load().keys().cloned().collect()
    }

    /// What the path of a URL leads to in the first of these sets that has it and is in service.
    pub fn find(&self, named: &[StaticFiles], path: &str) -> Option<Hit> {
        if named.is_empty() {
            return None;
        }
        let path = path::decoded(path)?;
        let held = self.held.load();
        let mut named = named.iter().filter(|files| !files.coming);
        named.find_map(|files| {
            let set = held.get(&files.set)?;
            let of = |file: &Arc<Served>| Hit::File {
                release: files.release,
                since: files.since,
                file: file.clone(),
            };
            match path.strip_suffix('/') {
                Some(directory) => set.indexes.get(directory).map(of),
                None => {
                    let directory = || set.indexes.get(&*path).map(|_| Hit::Directory);
                    set.by_path.get(&*path).map(of).or_else(directory)
                }
            }
        })
    }

    fn coming(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a set in; gives the files that it lacks. It waits for the disk.
    pub fn begin(&self, name: Digest, set: StaticSet) -> Result<Vec<Digest>, NotTaken> {
        check(&set)?;
        if self.held.load().contains_key(&name) {
            return Ok(Vec::new());
        }
        self.coming().sets.insert(name.clone(), set);
        self.untidy.store(true, Relaxed);
        self.complete(&name)
    }

    /// Counts a set where no file of it is lacking; gives those that are.
    fn complete(&self, name: &Digest) -> Result<Vec<Digest>, NotTaken> {
        let lacking = self.lacking(&self.coming(), name)?;
        if !lacking.is_empty() {
            return Ok(lacking);
        }
        // All of them at once: a file at a time would take the disk seconds. This may take some as well, in which
        // tables are not to wait.
        File::open(&self.files)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .map_err(NotTaken::Disk)?;
        let mut coming = self.coming();
        let lacking = self.lacking(&coming, name)?;
        if lacking.is_empty()
            && let Some(set) = coming.sets.remove(name)
        {
            files::write_json(&self.sets.join(name.as_str()), &set, 0o600)
                .map_err(NotTaken::Disk)?;
            let mut all = HashMap::clone(&self.held.load());
            all.insert(name.clone(), Arc::new(Set::new(&set)));
            self.held.store(Arc::new(all));
        }
        Ok(lacking)
    }

    /// The files that a set lacks.
    fn lacking(&self, coming: &Coming, name: &Digest) -> Result<Vec<Digest>, NotTaken> {
        let held = self.held.load();
        if held.contains_key(name) {
            return Ok(Vec::new());
        }
        let set = coming.sets.get(name).ok_or(NotTaken::Unknown)?;
        let is_here = |digest: &Digest| {
            coming.files.contains(digest) || held.values().any(|set| set.files.contains(digest))
        };
        let wanted: BTreeSet<&Digest> = set.files.values().map(|file| &file.digest).collect();
        let lacking = wanted.into_iter().filter(|digest| !is_here(digest));
        Ok(lacking.cloned().collect())
    }

    /// Forgets all sets but these, and the files that no other one has. It waits for the disk.
    pub fn keep_only(&self, wanted: &BTreeSet<Digest>) {
        let mut coming = self.coming();
        let Coming { sets, files } = &mut *coming;
        let before = self.held.load_full();
        let known = before.keys().chain(sets.keys());
        let drops = known.into_iter().any(|name| !wanted.contains(name));
        if !self.untidy.swap(false, Relaxed) && !drops {
            return;
        }
        let mut held = HashMap::clone(&before);
        held.retain(|name, _| wanted.contains(name));
        sets.retain(|name, _| wanted.contains(name));
        let needed: HashSet<&Digest> = {
            let begun = sets.values().flat_map(|set| set.files.values());
            let held = held.values().flat_map(|set| &set.files);
            held.chain(begun.map(|file| &file.digest)).collect()
        };
        // What is left is forgotten after the next start. Whoever reads one has it open.
        for name in names(&self.sets).unwrap_or_default() {
            if !held.contains_key(&name) {
                let _ = fs::remove_file(self.sets.join(name.as_str()));
            }
        }
        for name in names(&self.files).unwrap_or_default() {
            if !needed.contains(&name) {
                let _ = fs::remove_file(self.path(&name));
            }
        }
        files.retain(|one| needed.contains(one));
        self.untidy.store(!sets.is_empty(), Relaxed);
        self.held.store(Arc::new(held));
    }
}

/// Refuses a set that is larger than one may be.
fn check(set: &StaticSet) -> Result<(), NotTaken> {
    let refused = |why: String| Err(NotTaken::Refused(why));
    if set.files.len() > MOST_FILES {
        return refused(format!(
            "It has {} files, and may have {MOST_FILES}.",
            set.files.len()
        ));
    }
    let sizes: HashMap<&Digest, u64> = set.files.values().map(|f| (&f.digest, f.size)).collect();
    let bytes = sizes
        .values()
        .fold(0_u64, |sum, size| sum.saturating_add(*size));
    if bytes > MOST_BYTES {
        return refused(format!("It has {bytes} bytes, and may have {MOST_BYTES}."));
    }
    if set
        .files
        .values()
        .any(|f| sizes.get(&f.digest) != Some(&f.size))
    {
        return refused("A file of it has two sizes.".to_owned());
    }
    Ok(())
}

impl Set {
    fn new(set: &StaticSet) -> Self {
        let by_path: HashMap<String, Arc<Served>> = set
            .files
            .iter()
            .map(|(path, file)| {
                let forms = FORMS.iter().filter_map(|(encoding, end)| {
                    let form = set.files.get(&format!("{path}{end}"))?;
                    Some((*encoding, form.clone()))
                });
                let served = Served {
                    file: file.clone(),
                    content_type: content_type(path),
                    forms: forms.collect(),
                };
                (path.clone(), Arc::new(served))
            })
            .collect();
        let indexes = by_path.iter().filter_map(|(path, file)| {
            let directory = path.strip_suffix(INDEX)?;
            Some((directory.to_owned(), file.clone()))
        });
        Self {
            indexes: indexes.collect(),
            files: set.files.values().map(|file| file.digest.clone()).collect(),
            by_path,
        }
    }
}

/// What a file is, by what its name ends in. Text is taken for UTF-8.
fn content_type(path: &str) -> String {
    let guess = mime_guess::from_path(path);
    let found = guess.first_raw().unwrap_or("application/octet-stream");
    if found.starts_with("text/") {
        format!("{found}; charset=utf-8")
    } else {
        found.to_owned()
    }
}

/// What is called by a digest in a directory.
fn names(directory: &Path) -> io::Result<Vec<Digest>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| Digest::new(name).ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
