//! Who owns what in a release's tree.
//!
//! A build runs as the application's user and owns the tree meanwhile; afterwards the tree goes
//! back to root. The walk goes from the top down and through file descriptors: once a directory
//! is root's, nobody can swap what lies in it, so that a process which outlived its build cannot
//! lead the walk astray. A file that is not the build's own is left as it is: it may be a hard link
//! to any file of the system, which kernels without `fs.protected_hardlinks` let everybody make.

use super::Fault;
use crate::fences::users::User;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Deepest directory: far more than any build needs, and two descriptors for each.
const DEEPEST: usize = 128;

/// Makes `directory`, which only root and the application's group may enter.
pub fn make_private(directory: &Path, user: Option<&User>) -> Result<(), Fault> {
    let failed = |error: io::Error| Fault::io("make", directory, &error);
    let mode = if user.is_some() { 0o750 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(directory)
        .map_err(failed)?;
    if let Some(user) = user {
        std::os::unix::fs::chown(directory, Some(0), Some(user.gid)).map_err(failed)?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Gives a tree to the user that builds in it.
pub fn give(directory: &Path, user: &User) -> Result<(), Fault> {
    walk(directory, &Walk::Giving(user)).map_err(|error| Fault::io("hand over", directory, &error))
}

/// Takes a tree back from the user that built in it: root's, readable for all who can reach it,
/// writable for root alone.
///
/// With `roots_own`, files that root made there meanwhile become readable, too: those of hooks that run as root.
pub fn seal(directory: &Path, user: &User, roots_own: bool) -> Result<(), Fault> {
    walk(directory, &Walk::Sealing(user, roots_own))
        .map_err(|error| Fault::io("take back", directory, &error))
}

enum Walk<'a> {
    Giving(&'a User),
    Sealing(&'a User, bool),
}

fn walk(directory: &Path, walk: &Walk<'_>) -> io::Result<()> {
    let top = rustix::fs::open(
        directory,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    walk_open(top, walk, 0)
}

fn walk_open(directory: OwnedFd, walk: &Walk<'_>, depth: usize) -> io::Result<()> {
    if depth > DEEPEST {
        return Err(io::Error::other("the directories are nested too deeply"));
    }
    let (sealing, uid, gid) = match walk {
        Walk::Giving(user) => (false, user.uid, user.gid),
        Walk::Sealing(..) => (true, 0, 0),
    };
    let owner = rustix::fs::Uid::from_raw(uid);
    let group = rustix::fs::Gid::from_raw(gid);
    let take = |file: &OwnedFd, mode: u32| -> io::Result<()> {
        rustix::fs::fchown(file, Some(owner), Some(group))?;
        if sealing {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    };
    if sealing {
        take(&directory, 0o755)?;
    }
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = rustix::fs::openat(
                    directory.as_fd(),
                    name,
                    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                walk_open(below, walk, depth + 1)?;
            }
            FileType::RegularFile => {
                let file = rustix::fs::openat(
                    directory.as_fd(),
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                if let Walk::Sealing(user, roots_own) = walk {
                    let found = rustix::fs::fstat(&file)?;
                    // With another name it may be any file of the system.
                    let by_root = *roots_own && found.st_uid == 0 && found.st_nlink == 1;
                    if found.st_uid != user.uid && !by_root {
                        continue;
                    }
                }
                let mode = if stat.st_mode & 0o111 == 0 {
                    0o644
                } else {
                    0o755
                };
                take(&file, mode)?;
            }
            FileType::Symlink => rustix::fs::chownat(
                &directory,
                name,
                Some(owner),
                Some(group),
                AtFlags::SYMLINK_NOFOLLOW,
            )?,
            // Sockets and pipes that a build left are of no use to anybody.
            _ => rustix::fs::unlinkat(&directory, name, AtFlags::empty())?,
        }
    }
    if !sealing {
        take(&directory, 0)?;
    }
    Ok(())
}

/// Copies a tree by hard links: the same files under another name, new directories and links.
pub fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else {
            fs::hard_link(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn user() -> User {
        User {
            name: "nobody".to_owned(),
            uid: 65534,
            gid: 65534,
        }
    }

    #[test]
    fn a_link_to_a_file_of_the_system_is_not_sealed_with_the_tree() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let top = tempfile::tempdir().expect("temporary directory");
        let secret = top.path().join("secret");
        fs::write(&secret, "root's").expect("write");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
        let tree = top.path().join("tree");
        fs::create_dir_all(tree.join("below")).expect("make");
        fs::write(tree.join("below/own"), "theirs").expect("write");
        give(&tree, &user()).expect("give");
        assert_eq!(
            fs::metadata(tree.join("below/own")).expect("there").uid(),
            65534
        );
        // What a build can do where the kernel does not protect hard links.
        fs::hard_link(&secret, tree.join("below/link")).expect("link");
        let made = tree.join("below/made");
        fs::write(&made, "a hook's").expect("write");
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600)).expect("mode");
        seal(&tree, &user(), false).expect("seal");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!(mode(&made), 0o600);
        give(&tree, &user()).expect("give");
        std::os::unix::fs::chown(&made, Some(0), Some(0)).expect("root's");
        std::os::unix::fs::chown(&secret, Some(0), Some(0)).expect("root's");
        seal(&tree, &user(), true).expect("seal");
        assert_eq!(mode(&made), 0o644);
        let own = fs::metadata(tree.join("below/own")).expect("there");
        assert_eq!((own.uid(), own.mode() & 0o777), (0, 0o644));
        let left = fs::metadata(&secret).expect("there");
        assert_eq!((left.uid(), left.mode() & 0o777), (0, 0o600));
    }
}
