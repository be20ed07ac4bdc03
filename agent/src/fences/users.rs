//! A system user for each application: `bp-` and a short hash of its name.

use super::FenceError;
use beanpole_protocol::ApplicationName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// The name of an application's user; at most 32 characters, as useradd wants.
pub fn name_for(application: &ApplicationName) -> String {
    let hash = Sha256::digest(application.as_str().as_bytes());
    format!("{PREFIX}{}", hex::encode(&hash[..6]))
}

/// Finds the application's user, or makes it. Needs root.
pub fn ensure(application: &ApplicationName) -> Result<User, FenceError> {
    ensure_in(Path::new("/etc"), &name_for(application), true)
}

fn ensure_in(etc: &Path, name: &str, tool: bool) -> Result<User, FenceError> {
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

fn lock(etc: &Path) -> Result<File, FenceError> {
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
    locked.map_err(|source| FenceError::Io { path, source })
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

/// Removes every user of ours. Returns their names; needs root.
pub fn remove_all() -> Result<Vec<String>, FenceError> {
    remove_all_in(Path::new("/etc"))
}

fn remove_all_in(etc: &Path) -> Result<Vec<String>, FenceError> {
    let _lock = lock(etc)?;
    let passwd = etc.join("passwd");
    let users = read(&passwd)?;
    let ours: Vec<String> = users
        .lines()
        .filter(|line| line.starts_with(PREFIX) && line.split(':').nth(4) == Some(COMMENT))
        .filter_map(|line| line.split(':').next())
        .map(str::to_owned)
        .collect();
    if ours.is_empty() {
        return Ok(ours);
    }
    for file in ["passwd", "group", "shadow", "gshadow"] {
        let path = etc.join(file);
        if !path.exists() {
            continue;
        }
        let kept: String = read(&path)?
            .lines()
            .filter(|line| !ours.iter().any(|name| line.split(':').next() == Some(name)))
            .fold(String::new(), |text, line| text + line + "\n");
        rewrite(&path, &kept)?;
    }
    Ok(ours)
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
        assert_eq!(remove_all_in(etc.path()).expect("removed"), [user.name]);
        let left = fs::read_to_string(etc.path().join("passwd")).expect("passwd");
        assert_eq!(left, passwd);
        let groups = fs::read_to_string(etc.path().join("group")).expect("group");
        assert_eq!(groups, "root:x:0:\nzed:x:999:\n");
    }

    #[test]
    fn names_are_short_and_differ() {
        let name = |text: &str| name_for(&ApplicationName::new(text).expect("name"));
        assert_eq!(name("shop").len(), 15);
        assert_ne!(name("shop"), name("shop2"));
    }
}
