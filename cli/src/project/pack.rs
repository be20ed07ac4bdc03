//! Packs a directory into a ZIP: the same content gives the same bytes, hence the same digest.
//!
//! Entries are sorted, times fixed, modes reduced to "executable or not". Symbolic links are kept
//! when they stay inside; one that leads out is an error, because it would lead elsewhere on a host.

use super::ignored;
use crate::commands::source::RunsAs;
use crate::output::errors::Failure;
use beanpole_bundle::ebextensions::NeedsRoot;
use beanpole_bundle::{NotRun, Refused, UnpackLimits};
use beanpole_protocol::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Bundles above this are refused, in bytes, unless `deploy.toml` says otherwise (EB's limit).
pub const DEFAULT_LIMIT: u64 = 512 * 1024 * 1024;

/// A bundle on this machine, ready to send.
#[derive(Debug)]
pub struct Packed {
    /// The ZIP.
    pub file: File,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How many files it holds; none for a ZIP that was given.
    pub files: Option<u64>,
    /// Where it comes from, for people.
    pub from: String,
}

impl Packed {
    /// Refuses what the hosts of an environment could not run, before it is sent. Gives the first thing in it that only
    /// root may do there.
    pub fn check_runs(&self, as_what: &RunsAs) -> Result<Option<NeedsRoot>, Failure> {
        let RunsAs {
            platform,
            options,
            tier,
        } = as_what;
        beanpole_bundle::check_runs(self.reader()?, *platform, options, *tier)
            .map_err(|refused| self.refused(&refused))
    }

    /// What Elastic Beanstalk would do for the bundle and hosts do not.
    pub fn not_run(&self, as_what: &RunsAs) -> Result<NotRun, Failure> {
        beanpole_bundle::not_run(self.reader()?, as_what.platform)
            .map_err(|refused| self.refused(&refused))
    }

    fn reader(&self) -> Result<File, Failure> {
        self.file
            .try_clone()
            .map_err(|error| Failure::caused("Cannot read the bundle back.", &error))
    }

    fn refused(&self, refused: &Refused) -> Failure {
        Failure {
            code: Some(refused.code.to_owned()),
            ..Failure::new(format!("{}: {}", self.from, refused.message)).hint(refused.hint())
        }
    }
}

/// Packs the directory `root`, leaving out what its ignore files and `extra` say.
pub fn directory(root: &Path, extra: &[String], limit: u64) -> Result<Packed, Failure> {
    let files = ignored::list(root, extra)?;
    if files.is_empty() {
        return Err(
            Failure::misuse(format!("{} holds no file to deploy.", root.display())).hint(
                "Deploy another directory with --from DIR, or look at .ebignore and .gitignore",
            ),
        );
    }
    let file = private_file()?;
    let mut zip = ZipWriter::new(io::BufWriter::new(file));
    let mut read = 0_u64;
    for path in &files {
        let cannot = |error: &dyn std::error::Error| {
            Failure::caused(format!("Cannot pack {}.", root.join(path).display()), error)
        };
        read += add(&mut zip, root, path).map_err(|error| match error {
            AddError::Io(error) => cannot(&error),
            AddError::Refused(failure) => failure,
        })?;
        // Nothing compresses a directory of ten times the limit below it in practice; stop early.
        if read > limit.saturating_mul(10) {
            return Err(too_large(root, read, limit));
        }
    }
    let written = zip
        .finish()
        .map_err(|error| Failure::caused("Cannot finish the bundle.", &error))?
        .into_inner()
        .map_err(|error| Failure::caused("Cannot write the bundle.", error.error()))?;
    let mut packed = measure(written, format!("{}", root.display()))?;
    packed.files = Some(files.len() as u64);
    check_size(&packed, root, limit)?;
    examine(&packed)?;
    Ok(packed)
}

/// Takes a ZIP as it is.
pub fn archive(path: &Path, limit: u64) -> Result<Packed, Failure> {
    let cannot = |error: io::Error| {
        Failure::caused(format!("Cannot read {}.", path.display()), &error).into_misuse()
    };
    let mut file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if size > limit {
        return Err(too_large(path, size, limit));
    }
    let mut magic = [0; 4];
    // An empty one has no entry to begin with.
    let is_zip =
        file.read_exact(&mut magic).is_ok() && (magic == *b"PK\x03\x04" || magic == *b"PK\x05\x06");
    if !is_zip {
        return Err(Failure::misuse(format!("{} is not a ZIP.", path.display()))
            .hint("Give a directory or a ZIP: beanpole deploy --from DIR|ZIP"));
    }
    let packed = measure(file, path.display().to_string())?;
    examine(&packed)?;
    Ok(packed)
}

/// Refuses what the controller and the hosts would refuse, before it is sent.
fn examine(packed: &Packed) -> Result<(), Failure> {
    beanpole_bundle::check(packed.reader()?, &UnpackLimits::default())
        .map_err(|refused| packed.refused(&refused))
}

/// Takes a ZIP that another program wrote into `file`.
pub fn measured(file: File, from: String, limit: u64) -> Result<Packed, Failure> {
    let packed = measure(file, from)?;
    check_size(&packed, Path::new(&packed.from), limit)?;
    examine(&packed)?;
    Ok(packed)
}

/// A file that only this process knows and that goes away with it.
pub fn private_file() -> Result<File, Failure> {
    tempfile::tempfile().map_err(|error| {
        Failure::caused("Cannot make a temporary file for the bundle.", &error)
            .hint("Is there room in the temporary directory? Another one is used with TMPDIR=DIR")
    })
}

fn check_size(packed: &Packed, root: &Path, limit: u64) -> Result<(), Failure> {
    if packed.size > limit {
        return Err(too_large(root, packed.size, limit));
    }
    Ok(())
}

fn too_large(path: &Path, size: u64, limit: u64) -> Failure {
    Failure::new(format!(
        "The bundle of {} has {}, more than the limit of {}.",
        path.display(),
        crate::output::bytes(size),
        crate::output::bytes(limit),
    ))
    .hint("Leave files out with .ebignore, or raise source.size-limit-mib in deploy.toml and the controller's limit")
}

enum AddError {
    Io(io::Error),
    Refused(Failure),
}

impl From<io::Error> for AddError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<zip::result::ZipError> for AddError {
    fn from(error: zip::result::ZipError) -> Self {
        Self::Io(error.into())
    }
}

/// Adds one file or link and returns its size.
fn add<W: Write + Seek>(zip: &mut ZipWriter<W>, root: &Path, path: &Path) -> Result<u64, AddError> {
    let name = path.to_str().ok_or_else(|| {
        AddError::Refused(
            Failure::new(format!("The file name {} is not UTF-8.", path.display()))
                .hint("Rename it, or leave it out with .ebignore"),
        )
    })?;
    let full = root.join(path);
    let about = fs::symlink_metadata(&full)?;
    // 1980-01-01, the earliest that a ZIP knows.
    let options = SimpleFileOptions::default().last_modified_time(DateTime::DEFAULT);
    if about.is_symlink() {
        let target = fs::read_link(&full)?;
        if !stays_inside(path, &target) {
            return Err(AddError::Refused(
                Failure::new(format!(
                    "The link {} leads out of the bundle, to {}.",
                    path.display(),
                    target.display()
                ))
                .hint("Replace it by a copy, or leave it out with .ebignore"),
            ));
        }
        let target = target
            .to_str()
            .ok_or(io::ErrorKind::InvalidData)
            .map_err(io::Error::from)?;
        zip.add_symlink(name, target, options.unix_permissions(0o777))?;
        return Ok(0);
    }
    let mode = if about.permissions().mode() & 0o111 == 0 {
        0o644
    } else {
        0o755
    };
    zip.start_file(
        name,
        options
            .compression_method(CompressionMethod::Deflated)
            .large_file(about.len() >= u64::from(u32::MAX))
            .unix_permissions(mode),
    )?;
    let mut file = File::open(&full)?;
    Ok(io::copy(&mut file, zip)?)
}

/// Whether a link at `path` to `target` stays below the root of the bundle.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth: i64 = path.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

fn measure(mut file: File, from: String) -> Result<Packed, Failure> {
    let cannot = |error: io::Error| Failure::caused("Cannot read the bundle back.", &error);
    file.rewind().map_err(cannot)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0_u64;
    loop {
        let count = file.read(&mut buffer).map_err(cannot)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
    file.rewind().map_err(cannot)?;
    let digest = Digest::new(hex::encode(hash.finalize()))
        .map_err(|error| Failure::caused("Cannot name the bundle.", &error))?;
    Ok(Packed {
        file,
        digest,
        size,
        files: None,
        from,
    })
}

/// Where a source given on the command line lies.
pub fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|error| {
        Failure::caused(format!("Cannot deploy from {}.", path.display()), &error)
            .hint("Name a directory or a ZIP that is there: --from DIR|ZIP")
            .into_misuse()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn sample(shift: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path();
        fs::create_dir(path.join("bin")).expect("directory");
        fs::write(path.join("bin/run"), "#!/bin/sh\n").expect("write");
        fs::set_permissions(path.join("bin/run"), fs::Permissions::from_mode(0o750)).expect("mode");
        fs::write(path.join("b.txt"), "b".repeat(1000)).expect("write");
        fs::write(path.join("a.txt"), "a").expect("write");
        symlink("bin/run", path.join("run")).expect("link");
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + shift);
        File::open(path.join("a.txt"))
            .expect("open")
            .set_modified(time)
            .expect("time");
        root
    }

    #[test]
    fn the_same_content_is_the_same_digest() {
        let (one, two) = (sample(0), sample(5_000));
        let one = directory(one.path(), &[], DEFAULT_LIMIT).expect("pack");
        let two = directory(two.path(), &[], DEFAULT_LIMIT).expect("pack");
        assert_eq!(one.digest, two.digest);
        assert_eq!(one.files, Some(4));
    }

    #[test]
    fn entries_are_sorted_and_keep_links_and_executable_bits() {
        let root = sample(0);
        let packed = directory(root.path(), &[], DEFAULT_LIMIT).expect("pack");
        let mut zip = zip::ZipArchive::new(packed.file).expect("zip");
        let mut seen = Vec::new();
        for index in 0..zip.len() {
            let entry = zip.by_index(index).expect("entry");
            let name = entry.name().expect("name").to_string();
            seen.push((name, entry.unix_mode().expect("mode")));
        }
        assert_eq!(
            seen,
            [
                ("a.txt".to_owned(), 0o100_644),
                ("b.txt".to_owned(), 0o100_644),
                ("bin/run".to_owned(), 0o100_755),
                ("run".to_owned(), 0o120_777),
            ]
        );
    }

    #[test]
    fn a_link_that_leads_out_is_refused() {
        for (target, name) in [("/etc/passwd", "a"), ("../x", "b"), ("x/../../y", "c")] {
            let root = tempfile::tempdir().expect("temporary directory");
            symlink(target, root.path().join(name)).expect("link");
            let error = directory(root.path(), &[], DEFAULT_LIMIT).expect_err("refused");
            assert!(
                error.message.contains("leads out of the bundle"),
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn a_bundle_above_the_limit_and_an_empty_one_are_refused() {
        let root = sample(0);
        let error = directory(root.path(), &[], 100).expect_err("too large");
        assert!(
            error.message.contains("more than the limit of 100 B"),
            "{}",
            error.message
        );
        let empty = tempfile::tempdir().expect("temporary directory");
        let error = directory(empty.path(), &[], DEFAULT_LIMIT).expect_err("empty");
        assert!(error.message.contains("holds no file"), "{}", error.message);
    }

    #[test]
    fn a_link_that_leads_out_by_way_of_another_is_refused() {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("a")).expect("directory");
        symlink("..", root.path().join("a/up")).expect("link");
        symlink("a/up/../x", root.path().join("out")).expect("link");
        let error = directory(root.path(), &[], DEFAULT_LIMIT).expect_err("refused");
        assert!(
            error
                .message
                .contains("`out` is a symbolic link that leaves"),
            "{error:?}"
        );
        assert_eq!(error.code.as_deref(), Some("bundle-unsafe"));
    }

    #[test]
    fn a_zip_that_no_host_would_unpack_is_refused_by_its_entry() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("bad.zip");
        for name in ["../x", "a/../../x", "a\u{1b}[2J"] {
            let mut zip = ZipWriter::new(File::create(&path).expect("create"));
            zip.start_file(name, SimpleFileOptions::default())
                .expect("start");
            zip.finish().expect("finish");
            let error = archive(&path, DEFAULT_LIMIT).expect_err(name);
            assert_eq!(error.code.as_deref(), Some("bundle-unsafe"), "{error:?}");
            assert!(!error.message.contains('\u{1b}'), "{error:?}");
        }
        fs::write(&path, b"PK\x03\x04 and no more").expect("write");
        let error = archive(&path, DEFAULT_LIMIT).expect_err("torn");
        assert_eq!(error.code.as_deref(), Some("bundle-damaged"), "{error:?}");
    }

    #[test]
    fn what_is_not_a_zip_is_refused() {
        let root = sample(0);
        let error = archive(&root.path().join("a.txt"), DEFAULT_LIMIT).expect_err("no zip");
        assert!(
            error.message.ends_with("is not a ZIP."),
            "{}",
            error.message
        );
    }
}
