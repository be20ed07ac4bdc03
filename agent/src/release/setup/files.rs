//! Files of a host and of a release's tree: written whole or not at all, and only where they differ.

use super::super::blocking;
use super::changed::Changed;
use super::{Fault, Host};
use beanpole_bundle::ebextensions::{Content, HostFile, Target};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};

/// Of a file that nobody says it of.
const MODE: u32 = 0o644;

impl Host<'_> {
    /// Writes the files that are not as they are wanted, in the order of their paths.
    pub(super) async fn files(
        &self,
        files: &[HostFile],
        changed: &mut Changed,
    ) -> Result<(), Fault> {
        for (index, file) in files.iter().enumerate() {
            let fetched = self.fetched().await?.join(format!("file-{index}"));
            let what = format!("the file `{}`", file.target.shown());
            if let Content::Url(url) = &file.content {
                self.fetch(url, None, what.clone(), &fetched).await?;
            }
            let owner = match &file.target {
                Target::Tree(_) => None,
                Target::Host(_) => Some(self.owner(file).await?),
            };
            let wanted = Wanted {
                path: self.place(&file.target).await?,
                content: match &file.content {
                    Content::Bytes(bytes) => Source::Bytes(bytes.clone()),
                    Content::Url(_) => Source::File(fetched),
                    Content::Link(to) => Source::Link(to.clone()),
                },
                mode: file.mode,
                owner,
            };
            let (wanted, differs) = blocking(move || {
                let differs = wanted.differs()?;
                Ok((wanted, differs))
            })
            .await?;
            if differs {
                changed.add(Changed::file(&file.target))?;
                self.note(format!("writes {what}")).await;
                blocking(move || wanted.write()).await?;
            }
        }
        Ok(())
    }

    async fn owner(&self, file: &HostFile) -> Result<(u32, u32), Fault> {
        let unknown = |kind: &str, name: &str| {
            Fault::new(
                "setup-failed",
                format!(
                    "The file `{}` is to belong to the {kind} `{name}`, which is not on this host: name it in \
                     `{kind}s`, too.",
                    file.target.shown()
                ),
            )
        };
        let uid = match &file.owner {
            None => 0,
            Some(name) => self.uid(name).await.ok_or_else(|| unknown("user", name))?,
        };
        let gid = match &file.group {
            None => 0,
            Some(name) => self.gid(name).await.ok_or_else(|| unknown("group", name))?,
        };
        Ok((uid, gid))
    }

    /// The path of something; of what is in the tree, one that is in there wherever links of the bundle lead.
    pub(super) async fn place(&self, target: &Target) -> Result<PathBuf, Fault> {
        let below = match target {
            Target::Host(path) => return Ok(path.clone()),
            Target::Tree(below) => below.clone(),
        };
        let tree = self.site.tree.clone();
        blocking(move || {
            let whole = tree.join(&below);
            let parent = whole.parent().unwrap_or(&tree);
            let leads_out = || {
                Fault::new(
                    "setup-failed",
                    format!(
                        "`/var/app/staging/{}` is not in the release's directory.",
                        below.display()
                    ),
                )
            };
            // What is there already tells where the rest would go.
            let there = parent
                .ancestors()
                .find_map(|step| step.canonicalize().ok())
                .ok_or_else(leads_out)?;
            let tree = tree
                .canonicalize()
                .map_err(|error| Fault::io("read", &tree, &error))?;
            if !there.starts_with(&tree) {
                return Err(leads_out());
            }
            fs::create_dir_all(parent).map_err(|error| Fault::io("make", parent, &error))?;
            Ok(whole)
        })
        .await
    }
}

/// What a file is to be.
struct Wanted {
    path: PathBuf,
    content: Source,
    mode: Option<u32>,
    /// Its user and group; none: as the tree it is in has them.
    owner: Option<(u32, u32)>,
}

enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
    Link(PathBuf),
}

impl Wanted {
    fn failed(&self, action: &str, error: &io::Error) -> Fault {
        Fault::io(action, &self.path, error)
    }

    /// What is there now, links not followed.
    fn there(&self) -> Result<Option<Metadata>, Fault> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_dir() => Err(Fault::new(
                "setup-failed",
                format!(
                    "The file `{}` of `files` is a directory on this host.",
                    self.path.display()
                ),
            )),
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("look at", &error)),
        }
    }

    /// Whether what is there is anything else.
    fn differs(&self) -> Result<bool, Fault> {
        let Some(found) = self.there()? else {
            return Ok(true);
        };
        let owned = self
            .owner
            .is_none_or(|owner| owner == (found.uid(), found.gid()));
        let permitted = self
            .mode
            .is_none_or(|mode| found.is_symlink() || found.mode() & 0o7777 == mode);
        Ok(!owned || !permitted || self.content_differs(&found)?)
    }

    fn content_differs(&self, found: &Metadata) -> Result<bool, Fault> {
        let differs = match &self.content {
            Source::Link(to) => {
                !found.is_symlink() || fs::read_link(&self.path).ok().as_ref() != Some(to)
            }
            _ if !found.is_file() => true,
            Source::Bytes(bytes) => {
                found.len() != bytes.len() as u64
                    || fs::read(&self.path).map_err(|error| self.failed("read", &error))? != *bytes
            }
            Source::File(from) => {
                !same(&self.path, from).map_err(|error| self.failed("read", &error))?
            }
        };
        Ok(differs)
    }

    /// Puts it there, in the place of what is there: that stays as `.bak`, where its content is another.
    fn write(&self) -> Result<(), Fault> {
        let found = self.there()?;
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| self.failed("make the directory of", &error))?;
        }
        let temporary = beside(&self.path, ".beanpole-new");
        let _ = fs::remove_file(&temporary);
        let mode = self
            .mode
            .or(found
                .as_ref()
                .filter(|found| found.is_file())
                .map(|found| found.mode() & 0o7777))
            .unwrap_or(MODE);
        self.write_to(&temporary, mode)
            .map_err(|error| self.failed("write", &error))?;
        // The release's own directory is new: what is there is of the bundle.
        if let Some(found) = found.as_ref().filter(|_| self.owner.is_some())
            && self.content_differs(found)?
        {
            // Both names at once: the file is missing at no time.
            let backup = beside(&self.path, ".bak");
            let _ = fs::remove_file(&backup);
            fs::hard_link(&self.path, &backup)
                .or_else(|_| fs::rename(&self.path, &backup))
                .map_err(|error| self.failed("keep", &error))?;
        }
        fs::rename(&temporary, &self.path).map_err(|error| self.failed("write", &error))
    }

    fn write_to(&self, path: &Path, mode: u32) -> io::Result<()> {
        if let Source::Link(to) = &self.content {
            symlink(to, path)?;
            return match self.owner {
                Some((uid, gid)) => lchown(path, Some(uid), Some(gid)),
                None => Ok(()),
            };
        }
        // Nobody else's before it is whole.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        match &self.content {
            Source::Bytes(bytes) => io::copy(&mut bytes.as_slice(), &mut file)?,
            Source::File(from) => io::copy(&mut File::open(from)?, &mut file)?,
            Source::Link(_) => 0,
        };
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        // In the tree every file is readable, or can be run: what seals it knows no more.
        let mode = match (self.owner, mode & 0o111) {
            (Some(_), _) => mode,
            (None, 0) => 0o644,
            (None, _) => 0o755,
        };
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    }
}

/// `path` with `ending` behind its name.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Whether two files have the same content.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        if other.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: &Path, content: &str, mode: Option<u32>) -> Wanted {
        let own = fs::metadata(path.parent().expect("a directory")).expect("there");
        Wanted {
            path: path.to_owned(),
            content: Source::Bytes(content.as_bytes().to_owned()),
            mode,
            owner: Some((own.uid(), own.gid())),
        }
    }

    #[test]
    fn a_file_is_written_once_and_what_was_there_is_kept() {
        let top = tempfile::tempdir().expect("temporary directory");
        let path = top.path().join("motd");
        fs::write(&path, "before").expect("write");
        let first = wanted(&path, "after", Some(0o4750));
        assert!(first.differs().expect("readable"));
        first.write().expect("written");
        assert!(!first.differs().expect("readable"));
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(mode(&path), 0o4750);
        let backup = top.path().join("motd.bak");
        assert_eq!(fs::read_to_string(&backup).expect("kept"), "before");
        // Other permissions alone are no other content.
        let closed = wanted(&path, "after", Some(0o600));
        assert!(closed.differs().expect("readable"));
        closed.write().expect("written");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_to_string(&backup).expect("kept"), "before");
        let again = wanted(&path, "last", None);
        again.write().expect("written");
        assert_eq!(
            (
                fs::read_to_string(&path).expect("there").as_str(),
                mode(&path)
            ),
            ("last", 0o600)
        );
        assert_eq!(fs::read_to_string(&backup).expect("kept"), "after");
        assert_eq!(fs::read_dir(top.path()).expect("readable").count(), 2);
    }

    #[test]
    fn links_are_links_and_directories_are_left() {
        let top = tempfile::tempdir().expect("temporary directory");
        let link = Wanted {
            content: Source::Link("elsewhere".into()),
            ..wanted(&top.path().join("link"), "", Some(0o777))
        };
        assert!(link.differs().expect("nothing there"));
        link.write().expect("made");
        link.write().expect("made again");
        assert!(!link.differs().expect("readable"));
        assert_eq!(
            fs::read_link(&link.path).expect("a link"),
            Path::new("elsewhere")
        );
        // A file in the place of a link does not go through it.
        let plain = wanted(&link.path, "x", None);
        plain.write().expect("written");
        assert!(!top.path().join("elsewhere").exists());
        assert!(fs::symlink_metadata(&link.path).expect("there").is_file());
        fs::create_dir(top.path().join("d")).expect("made");
        let fault = wanted(&top.path().join("d"), "x", None)
            .differs()
            .expect_err("a directory");
        assert!(fault.0.message.contains("is a directory"), "{fault}");
    }
}
