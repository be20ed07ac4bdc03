//! Removes directory trees that applications and builds made. They may be hostile: nested a hundred
//! thousand directories deep, which overflows a stack and uses up descriptors in a walk that goes down
//! step by step, and changed while they are removed, so that a path may lead elsewhere from one moment
//! to the next.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How far to go down; two descriptors for each. What lies deeper is moved up first.
const DEEPEST: u32 = 24;
/// Looks at one directory that is never found empty: somebody still writes into it.
const LOOKS: u32 = 8;

/// Removes what is at `path`, links not followed. Nothing there is fine.
///
/// # Errors
/// The first thing that cannot be removed. What could be removed before is gone.
pub fn tree(path: &Path) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What it says of a directory differs with the file system and with root.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut removal = Removal {
        top: top.as_fd(),
        moved_up: 0,
    };
    let mut looks = 0;
    loop {
        let before = removal.moved_up;
        removal.empty(top.as_fd(), 0)?;
        if removal.moved_up > before {
            continue;
        }
        match rustix::fs::rmdir(path) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if looks < LOOKS => looks += 1,
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Part of the names of what was set aside.
const ASIDE: &str = ".trash-";

/// Gives what is at `path` another name beside it, under which [`aside`] finds it: out of the way at
/// once, however long its removal may take, and removed by the next agent if this one ends meanwhile.
/// Nothing there is fine; else says under which.
pub fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    let bits = beanpole_daemon::clock::random_bits() as u64;
    name.push(format!("{ASIDE}{bits:x}"));
    let aside = path.with_file_name(name);
    match std::fs::rename(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether that was set aside.
pub fn is_aside(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().contains(ASIDE)
}

/// Removes everything that was set aside in `directory`.
///
/// # Errors
/// The first thing that cannot be removed, after everything else is.
pub fn aside(directory: &Path) -> io::Result<()> {
    let mut outcome = Ok(());
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if is_aside(&path)
            && let Err(error) = tree(&path)
        {
            tracing::warn!(path = %path.display(), %error, "something removed is still on disk");
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

struct Removal<'t> {
    top: BorrowedFd<'t>,
    /// How many directories were moved into the top one, for names that no other has.
    moved_up: u64,
}

impl Removal<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => {
                    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
                    stat.is_ok_and(|stat| {
                        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    })
                }
                _ => false,
            };
            if !is_directory {
                gone(rustix::fs::unlinkat(directory, name, AtFlags::empty()))?;
            } else if depth >= DEEPEST {
                self.move_up(directory, name)?;
            } else {
                self.remove(directory, name, depth)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, above: BorrowedFd<'_>, name: &CStr, depth: u32) -> io::Result<()> {
        let below = match open(above, name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        for _ in 0..LOOKS {
            self.empty(below.as_fd(), depth + 1)?;
            match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
                // A writer that was just told to stop may add one more file.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return gone(other).map_err(io::Error::from),
            }
        }
        Err(Errno::NOTEMPTY.into())
    }

    /// Makes a directory one of the top one's, to be removed from there.
    fn move_up(&mut self, above: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        for _ in 0..LOOKS {
            self.moved_up += 1;
            let up = format!(".moved-up-{}-{}", std::process::id(), self.moved_up);
            match rustix::fs::renameat(above, name, self.top, &*up) {
                // Something has that name already.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                other => return gone(other).map_err(io::Error::from),
            }
        }
        Err(Errno::EXIST.into())
    }
}

/// Somebody else may have removed it meanwhile.
fn gone(outcome: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match outcome {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Opens a directory, and sees to it that its entries may be removed: builds leave read-only ones.
fn open<P: rustix::path::Arg + Copy>(
    above: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let all = Mode::RWXU;
    let opened = match rustix::fs::openat(above, name, flags, Mode::empty()) {
        // Never as root, who may open everything: only there could somebody else make this a link.
        Err(Errno::ACCESS) if !rustix::process::geteuid().is_root() => {
            rustix::fs::chmodat(above, name, all, AtFlags::empty())?;
            rustix::fs::openat(above, name, flags, Mode::empty())?
        }
        other => other?,
    };
    if !rustix::process::geteuid().is_root() {
        let _ = rustix::fs::fchmod(&opened, all);
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// `levels` directories in each other, which no path reaches.
    fn nest(top: &Path, levels: u32) {
        let mut at = open(CWD, top).expect("open");
        for level in 0..levels {
            rustix::fs::mkdirat(&at, "a", Mode::RWXU).expect("make");
            if level % 100 == 0 {
                rustix::fs::openat(
                    &at,
                    "file",
                    OFlags::CREATE | OFlags::WRONLY,
                    Mode::from_raw_mode(0o400),
                )
                .expect("write");
            }
            at = open(at.as_fd(), "a").expect("open");
        }
    }

    #[test]
    fn directories_nested_deeper_than_descriptors_and_paths_go_are_removed() {
        let home = tempfile::tempdir().expect("temporary directory");
        let top = home.path().join("top");
        fs::create_dir_all(top.join("beside/below")).expect("make");
        nest(&top, 5000);
        tree(&top).expect("removed");
        assert!(!top.exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let home = tempfile::tempdir().expect("temporary directory");
        let kept = home.path().join("kept");
        fs::create_dir(&kept).expect("make");
        fs::write(kept.join("file"), "stays").expect("write");
        let top = home.path().join("top");
        fs::create_dir(&top).expect("make");
        symlink(&kept, top.join("link")).expect("link");
        symlink("/nowhere", top.join("dangling")).expect("link");
        tree(&top).expect("removed");
        let link = home.path().join("link");
        symlink(&kept, &link).expect("link");
        tree(&link).expect("removed");
        assert!(!top.exists() && !link.is_symlink());
        assert_eq!(
            fs::read_to_string(kept.join("file")).expect("there"),
            "stays"
        );
    }

    #[test]
    fn read_only_directories_files_and_nothing_are_removed() {
        let home = tempfile::tempdir().expect("temporary directory");
        let top = home.path().join("top");
        fs::create_dir_all(top.join("closed/below")).expect("make");
        fs::write(top.join("closed/below/file"), "").expect("write");
        for (path, mode) in [("closed/below", 0o500), ("closed", 0o000)] {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).expect("mode");
        }
        tree(&top).expect("removed");
        tree(&top).expect("nothing there");
        fs::write(&top, "a file").expect("write");
        tree(&top).expect("removed");
        assert!(!top.exists());
    }
}
