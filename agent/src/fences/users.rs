//! A system user for each application of an agent: `bp-`, a tag of the agent, a short hash of the
//! application's name.
//!
//! The tag keeps agents on one machine (`beanpole up` beside the one of a fleet) apart: each removes the
//! users that it made, and never one that the other still needs.

use super::FenceError;
use beanpole_protocol::ApplicationName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What our users' names begin with.
const PREFIX: &str = "bp-";
/// Marks our users in the passwd file, so that only they are ever removed.
const COMMENT: &str = "Beanpole application";
/// System users, from the top: distributions count theirs downwards from 999, too, and both look
/// for a free one.
const IDS: std::ops::RangeInclusive<u32> = 600..=999;

/// A user and group of the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// The tag of the agent whose files are in `data`.
pub fn tag_of(data: &Path) -> String {
    hex::encode(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..3])
}

/// The name of an application's user; at most 32 characters, as useradd wants.
pub fn name_for(tag: &str, application: &ApplicationName) -> String {
    let hash = Sha256::digest(application.as_str().as_bytes());
    format!("{PREFIX}{tag}-{}", hex::encode(&hash[..6]))
}

/// The name of the load balancer's user. Never that of an application, which ends in more digits.
pub fn edge_name(tag: &str) -> String {
    format!("{PREFIX}{tag}-edge")
}

/// Finds the load balancer's user, or makes it. Needs root.
pub fn ensure_edge(tag: &str) -> Result<User, FenceError> {
    ensure_in(Path::new("/etc"), &edge_name(tag), true)
}

/// As earlier builds named it. Where it is there, releases on disk are readable for it alone.
fn earlier_name_for(application: &ApplicationName) -> String {
    let hash = Sha256::digest(application.as_str().as_bytes());
    format!("{PREFIX}{}", hex::encode(&hash[..6]))
}

/// Finds the application's user, or makes it. Needs root.
pub fn ensure(tag: &str, application: &ApplicationName) -> Result<User, FenceError> {
    let etc = Path::new("/etc");
    if let Some(user) = find(etc, &earlier_name_for(application))? {
        return Ok(user);
    }
    ensure_in(etc, &name_for(tag, application), true)
}

fn ensure_in(etc: &Path, name: &str, tool: bool) -> Result<User, FenceError> {
    // Two releases of one application may be prepared at once. useradd looks whether a name is there
    // before it takes its lock: the second makes the user anew, and the files of the first belong to
    // numbers that the next application gets.
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(user) = find(etc, name)? {
        return Ok(user);
    }
    if tool && let Err(why) = useradd(name) {
        tracing::debug!(%why, "useradd did not work: writing the files");
    }
    if let Some(user) = find(etc, name)? {
        return Ok(user);
    }
    append(etc, name)?;
    find(etc, name)?.ok_or_else(|| FenceError::User(format!("{name} did not appear")))
}

fn find(etc: &Path, name: &str) -> Result<Option<User>, FenceError> {
    Ok(read(&etc.join("passwd"))?.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        Some(User {
            name: name.to_owned(),
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }))
}

fn read(path: &Path) -> Result<String, FenceError> {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| FenceError::Io {
            path: path.to_owned(),
            source,
        })
}

fn useradd(name: &str) -> Result<(), String> {
    let output = Command::new("useradd")
        .args(["--system", "--user-group", "--no-create-home"])
        .args(["--home-dir", "/nonexistent", "--shell", nologin()])
        .args(["--comment", COMMENT, name])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn nologin() -> &'static str {
    ["/usr/sbin/nologin", "/sbin/nologin"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/bin/false")
}

/// Writes the user into the files, under the lock that useradd and its like take (lckpwdf(3)).
fn append(etc: &Path, name: &str) -> Result<(), FenceError> {
    let _lock = lock(etc)?;
    let (passwd, group) = (etc.join("passwd"), etc.join("group"));
    let (users, groups) = (read(&passwd)?, read(&group)?);
    let taken = |text: &str, id: u32| {
        let id = id.to_string();
        text.lines().any(|line| line.split(':').nth(2) == Some(&id))
    };
    let id = IDS
        .rev()
        .find(|id| !taken(&users, *id) && !taken(&groups, *id))
        .ok_or_else(|| FenceError::User(format!("no free number in {IDS:?}")))?;
    let has_group = groups
        .lines()
        .any(|line| line.split(':').next() == Some(name));
    if !has_group {
        rewrite(&group, &with_line(&groups, &format!("{name}:x:{id}:")))?;
    }
    let shell = nologin();
    let line = format!("{name}:x:{id}:{id}:{COMMENT}:/nonexistent:{shell}");
    rewrite(&passwd, &with_line(&users, &line))?;
    let shadow = etc.join("shadow");
    if shadow.exists() {
        let text = read(&shadow)?;
        rewrite(&shadow, &with_line(&text, &format!("{name}:!:::::::")))?;
    }
    Ok(())
}

fn with_line(text: &str, line: &str) -> String {
    let gap = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{text}{gap}{line}\n")
}

/// What keeps others from the files. The system's lock belongs to a process, whose threads it does
/// not keep apart.
struct Lock {
    _file: File,
    _thread: MutexGuard<'static, ()>,
}

fn lock(etc: &Path) -> Result<Lock, FenceError> {
    static THREADS: Mutex<()> = Mutex::new(());
    let thread = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    let path = etc.join(".pwd.lock");
    let locked = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .and_then(|file| {
            rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        });
    let file = locked.map_err(|source| FenceError::Io { path, source })?;
    Ok(Lock {
        _file: file,
        _thread: thread,
    })
}

/// Replaces a file whole, keeping owner and mode.
fn rewrite(path: &Path, text: &str) -> Result<(), FenceError> {
    let failed = |source| FenceError::Io {
        path: path.to_owned(),
        source,
    };
    let old = fs::metadata(path).map_err(failed)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".beanpole");
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary);
    let written: io::Result<()> = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(old.mode() & 0o777)
            .open(&temporary)?;
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(failed)
}

/// What became of users that are not needed, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Gone.
    pub removed: Vec<String>,
    /// A process of theirs lives, or something that they left cannot be removed.
    pub left: Vec<String>,
}

/// Removes the users of the agent with this tag whose names are not in `needed`, but for those with a
/// process. Needs root.
pub fn remove_others(tag: &str, needed: &BTreeSet<String>) -> Result<Removal, FenceError> {
    remove_others_in(Path::new("/etc"), tag, needed)
}

fn remove_others_in(
    etc: &Path,
    tag: &str,
    needed: &BTreeSet<String>,
) -> Result<Removal, FenceError> {
    let own = format!("{PREFIX}{tag}-");
    let superfluous = |user: &User| user.name.starts_with(&own) && !needed.contains(&user.name);
    let candidates: Vec<User> = ours(etc)?.into_iter().filter(superfluous).collect();
    if candidates.is_empty() {
        return Ok(Removal::default());
    }
    let busy = uids_in_use();
    let removed = remove_in(etc, |user| {
        // The next user with this number must not inherit what this one left.
        superfluous(user) && !busy.contains(&user.uid) && remove_strays(user.uid)
    })?;
    let left = candidates.into_iter().map(|user| user.name);
    let left = left.filter(|name| !removed.contains(name)).collect();
    Ok(Removal { removed, left })
}

/// Every user that some process has, in any of the ways to have one.
fn uids_in_use() -> BTreeSet<u32> {
    procfs::process::all_processes()
        .into_iter()
        .flatten()
        .filter_map(|process| process.ok()?.status().ok())
        .flat_map(|status| [status.ruid, status.euid, status.suid, status.fuid])
        .collect()
}

/// Removes what a user left where everybody may write; whether nothing of it is left.
fn remove_strays(uid: u32) -> bool {
    let mut all = true;
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/run/lock"] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|stray| stray.uid() == uid)
                && let Err(error) = crate::remove::tree(&entry.path())
            {
                all = false;
                tracing::warn!(path = %entry.path().display(), %error, "a file that its user left stays, and with it the user");
            }
        }
    }
    all
}

/// The users that carry our mark.
fn ours(etc: &Path) -> Result<Vec<User>, FenceError> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, comment, ..] = fields[..] else {
            return None;
        };
        (name.starts_with(PREFIX) && comment == COMMENT).then_some(())?;
        Some(User {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        })
    };
    let users = read(&etc.join("passwd"))?;
    Ok(users.lines().filter_map(parse).collect())
}

fn remove_in(etc: &Path, goes: impl Fn(&User) -> bool) -> Result<Vec<String>, FenceError> {
    let _lock = lock(etc)?;
    let leaving: Vec<String> = ours(etc)?
        .into_iter()
        .filter(goes)
        .map(|user| user.name)
        .collect();
    if leaving.is_empty() {
        return Ok(leaving);
    }
    for file in ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"] {
        let path = etc.join(file);
        if !path.exists() {
            continue;
        }
        let text = read(&path)?;
        let kept: String = text
            .lines()
            .filter(|line| {
                !leaving
                    .iter()
                    .any(|name| line.split(':').next() == Some(name))
            })
            .fold(String::new(), |text, line| text + line + "\n");
        if kept != text {
            rewrite(&path, &kept)?;
        }
    }
    Ok(leaving)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_useradd_a_user_is_written_and_removed_again() {
        let etc = tempfile::tempdir().expect("directory");
        let passwd = "root:x:0:0:root:/root:/bin/bash\nzed:x:999:999::/:/bin/false\n";
        fs::write(etc.path().join("passwd"), passwd).expect("passwd");
        fs::write(etc.path().join("group"), "root:x:0:\nzed:x:999:").expect("group");
        fs::write(etc.path().join("shadow"), "root:!:::::::\n").expect("shadow");
        let user = ensure_in(etc.path(), "bp-0123456789ab", false).expect("made");
        assert_eq!((user.uid, user.gid), (998, 998));
        let again = ensure_in(etc.path(), "bp-0123456789ab", false).expect("found");
        assert_eq!(again, user);
        let stays = remove_in(etc.path(), |user| user.uid != 998).expect("none to remove");
        assert!(stays.is_empty(), "{stays:?}");
        let gone = remove_in(etc.path(), |_| true).expect("removed");
        assert_eq!(gone, [user.name]);
        let left = fs::read_to_string(etc.path().join("passwd")).expect("passwd");
        assert_eq!(left, passwd);
        let groups = fs::read_to_string(etc.path().join("group")).expect("group");
        assert_eq!(groups, "root:x:0:\nzed:x:999:\n");
    }

    #[test]
    fn a_user_that_several_want_at_once_is_made_once() {
        let etc = tempfile::tempdir().expect("directory");
        fs::write(
            etc.path().join("passwd"),
            "root:x:0:0:root:/root:/bin/bash\n",
        )
        .expect("passwd");
        fs::write(etc.path().join("group"), "root:x:0:\n").expect("group");
        let all: Vec<User> = std::thread::scope(|scope| {
            let wanted: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| ensure_in(etc.path(), "bp-aaaaaa-0", false)))
                .collect();
            wanted
                .into_iter()
                .map(|one| one.join().expect("no panic").expect("made or found"))
                .collect()
        });
        assert!(all.iter().all(|user| *user == all[0]), "{all:?}");
        let users = fs::read_to_string(etc.path().join("passwd")).expect("passwd");
        assert_eq!(users.matches("bp-aaaaaa-0").count(), 1, "{users}");
    }

    #[test]
    fn an_agent_that_leaves_takes_its_own_users_along_and_no_others() {
        let etc = tempfile::tempdir().expect("directory");
        // A number that nothing has, on no machine, and the one of this process.
        let idle = 3_999_999_999_u32;
        let busy = rustix::process::geteuid().as_raw();
        let line = |name: &str, id: u32| format!("{name}:x:{id}:{id}:{COMMENT}:/:/bin/false\n");
        let (own, live, other, old) = (
            line("bp-aaaaaa-0", idle),
            line("bp-aaaaaa-1", busy),
            line("bp-bbbbbb-0", idle),
            line("bp-0123456789ab", idle),
        );
        let others = format!("bp-aaaaaa-2:x:{idle}:{idle}:somebody:/:/bin/sh\n{other}{old}");
        let passwd = format!("{own}{live}{others}");
        fs::write(etc.path().join("passwd"), passwd).expect("passwd");
        let gone = remove_others_in(etc.path(), "aaaaaa", &BTreeSet::new()).expect("removed");
        assert_eq!(gone.removed, ["bp-aaaaaa-0"]);
        assert_eq!(gone.left, ["bp-aaaaaa-1"]);
        let left = fs::read_to_string(etc.path().join("passwd")).expect("passwd");
        assert_eq!(left, format!("{live}{others}"));
    }

    #[test]
    fn names_are_short_and_differ() {
        let name = |text: &str| name_for("0a1b2c", &ApplicationName::new(text).expect("name"));
        assert_eq!(name("shop").len(), 22);
        assert_ne!(name("shop"), name("shop2"));
        let other = name_for("0a1b2d", &ApplicationName::new("shop").expect("name"));
        assert_ne!(name("shop"), other);
    }
}
