//! Archives of a bundle's `sources`: fetched, unpacked beside the directory that they are for, then put in its place
//! at once.

use super::super::build::{self, Step};
use super::super::programs::{self, quoted};
use super::super::{blocking, commands, tree, unpack};
use super::changed::Changed;
use super::files::beside;
use super::{CODES, FETCHED, Fault, Host, fetch};
use crate::remove;
use beanpole_bundle::ebextensions::{Source, Target};
use beanpole_daemon::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a directory was filled with, so that it is not filled again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Filled {
    /// SHA-256 of the URL, which may hold a secret.
    url: String,
    /// SHA-256 of the archive.
    archive: String,
    /// As the other side tells it apart.
    tag: Option<String>,
}

/// By their directories.
type All = BTreeMap<PathBuf, Filled>;

impl Host<'_> {
    /// Fills the directories whose archive is another than the last time, or that are not there.
    pub(super) async fn sources(
        &self,
        sources: &[Source],
        changed: &mut Changed,
    ) -> Result<(), Fault> {
        for (index, source) in sources.iter().enumerate() {
            let archive = self.fetched().await?.join(format!("source-{index}"));
            match &source.target {
                Target::Host(directory) => {
                    self.fill(source, directory, &archive, changed).await?;
                }
                Target::Tree(_) => self.fill_in_tree(source, &archive, index).await?,
            }
        }
        Ok(())
    }

    async fn fill(
        &self,
        source: &Source,
        directory: &Path,
        archive: &Path,
        changed: &mut Changed,
    ) -> Result<(), Fault> {
        let record = self.workshop.layout.sources();
        let mut all: All = files::read_json(&record).ok().flatten().unwrap_or_default();
        let url = hex::encode(Sha256::digest(source.url.as_bytes()));
        let last = all
            .get(directory)
            .filter(|last| last.url == url && directory.is_dir())
            .cloned();
        let tag = last.as_ref().and_then(|last| last.tag.clone());
        let Some(fetched) = self.get(source, tag, archive).await? else {
            return Ok(());
        };
        let filled = Filled {
            url,
            archive: fetched.digest,
            tag: fetched.tag,
        };
        if last.is_none_or(|last| last.archive != filled.archive) {
            changed.add(Changed::source(&source.target))?;
            let shown = format!("unpack into {}", source.target.shown());
            self.note(shown.clone()).await;
            let fresh = beside(directory, ".beanpole-new");
            let made = fresh.clone();
            blocking(move || make(&made)).await?;
            if is_zip(archive)? {
                self.unzip(archive, &fresh).await?;
            } else {
                let script = format!(
                    "tar -xof {} -C {}",
                    quoted(&archive.to_string_lossy()),
                    quoted(&fresh.to_string_lossy())
                );
                self.script(&shown, script).await?;
            }
            let directory = directory.to_owned();
            blocking(move || exchange(&fresh, &directory)).await?;
        }
        all.insert(directory.to_owned(), filled);
        blocking(move || {
            let failed = |error: io::Error| Fault::io("write", &record, &error);
            if let Some(above) = record.parent() {
                fs::create_dir_all(above).map_err(failed)?;
            }
            files::write_json(&record, &all, 0o600).map_err(failed)
        })
        .await
    }

    /// The same in a release's tree, as the application's user: the tree is new, and so is what is in it.
    async fn fill_in_tree(
        &self,
        source: &Source,
        archive: &Path,
        index: usize,
    ) -> Result<(), Fault> {
        self.get(source, None, archive).await?;
        let directory = self.place(&source.target).await?;
        let shown = format!("unpack into {}", source.target.shown());
        let fresh = self.site.work.join(format!("source-{index}"));
        let made = fresh.clone();
        blocking(move || make(&made)).await?;
        if is_zip(archive)? {
            self.unzip(archive, &fresh).await?;
        } else {
            // Where its user may read it.
            let open = self.site.work.join(format!("{FETCHED}-{index}"));
            let (from, to, given) = (archive.to_owned(), open.clone(), fresh.clone());
            let user = self.site.user.clone();
            blocking(move || {
                fs::rename(&from, &to)
                    .and_then(|()| fs::set_permissions(&to, fs::Permissions::from_mode(0o644)))
                    .map_err(|error| Fault::io("hand over", &to, &error))?;
                user.map_or(Ok(()), |user| tree::give(&given, &user))
            })
            .await?;
            let arguments = [
                "-c".to_owned(),
                "exec tar -xof \"$0\" -C \"$1\"".to_owned(),
                open.to_string_lossy().into_owned(),
                fresh.to_string_lossy().into_owned(),
            ];
            let path = programs::path_with([]);
            let step = Step {
                program: Path::new(commands::SHELL),
                arguments: &arguments,
                directory: &fresh,
                path: &path,
            };
            let nothing = BTreeMap::new();
            let (workshop, site) = (self.workshop, self.site);
            workshop
                .run_as(site, &step, &shown, &CODES, &nothing)
                .await?;
            let (sealed, user) = (fresh.clone(), self.site.user.clone());
            blocking(move || {
                // The release keeps what came of it alone.
                fs::remove_file(&open).map_err(|error| Fault::io("remove", &open, &error))?;
                user.map_or(Ok(()), |user| tree::seal(&sealed, &user, false))
            })
            .await?;
        }
        blocking(move || exchange(&fresh, &directory)).await
    }

    async fn get(
        &self,
        source: &Source,
        tag: Option<String>,
        archive: &Path,
    ) -> Result<Option<fetch::Fetched>, Fault> {
        let what = format!("the directory `{}` of `sources`", source.target.shown());
        self.fetch(&source.url, tag, what, archive).await
    }

    /// By the rules of bundles.
    async fn unzip(&self, archive: &Path, directory: &Path) -> Result<(), Fault> {
        let (archive, directory) = (archive.to_owned(), directory.to_owned());
        let (limits, reserve) = (self.workshop.limits, self.workshop.reserve_bytes);
        let cancelled = self.cancelled.clone();
        blocking(move || {
            let room = |bytes| {
                crate::blobs::check_space(&directory, bytes, reserve).map_err(|error| {
                    Fault::new(
                        "disk-full",
                        format!("What `sources` unpacks does not fit on this host: {error}."),
                    )
                })
            };
            unpack::unpack(&archive, &directory, &limits, room, &cancelled)
                .map(|_| ())
                .map_err(|fault| {
                    Fault::new(
                        build::CODES.failed,
                        format!("An archive of `sources` is refused. {}", fault.0.message),
                    )
                })
        })
        .await
    }
}

/// A new, empty directory.
fn make(directory: &Path) -> Result<(), Fault> {
    remove::tree(directory)
        .and_then(|()| fs::create_dir_all(directory))
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
        .map_err(|error| Fault::io("make", directory, &error))
}

fn is_zip(archive: &Path) -> Result<bool, Fault> {
    let mut head = [0; 4];
    let read = File::open(archive).and_then(|mut file| file.read(&mut head));
    read.map(|read| head[..read] == *b"PK\x03\x04")
        .map_err(|error| Fault::io("read", archive, &error))
}

/// Puts `fresh` into the place of `directory`, whose content goes.
fn exchange(fresh: &Path, directory: &Path) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::io("replace", directory, &error);
    let old = beside(directory, ".beanpole-old");
    remove::tree(&old).map_err(failed)?;
    match fs::symlink_metadata(directory) {
        Ok(_) => fs::rename(directory, &old).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    fs::rename(fresh, directory).map_err(failed)?;
    match fs::symlink_metadata(&old) {
        Ok(there) if there.is_dir() => remove::tree(&old).map_err(failed),
        Ok(_) => fs::remove_file(&old).map_err(failed),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_replaced_whole() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (fresh, directory) = (top.path().join("d.beanpole-new"), top.path().join("d"));
        for text in ["one", "two"] {
            make(&fresh).expect("made");
            fs::write(fresh.join(text), text).expect("write");
            exchange(&fresh, &directory).expect("exchanged");
        }
        assert!(directory.join("two").exists() && !directory.join("one").exists());
        assert_eq!(fs::read_dir(top.path()).expect("readable").count(), 1);
        // What is there may be a link: it goes, and what it leads to stays.
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).expect("link");
        make(&fresh).expect("made");
        exchange(&fresh, &link).expect("exchanged");
        assert!(directory.join("two").exists());
        assert!(!fs::symlink_metadata(&link).expect("there").is_symlink());
    }
}
