//! Finds interpreters on the host, as the user who will run them.

use super::build::Site;
use super::install::Packages;
use super::{Fault, Workshop, runtimes};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Where programs are looked for, whatever the agent's own `PATH` says.
const STANDARD: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long an interpreter may take to tell its version.
const VERSION_WAIT: Duration = Duration::from_secs(10);

/// A program found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its absolute path.
    pub path: PathBuf,
    /// The directory that it was found in.
    pub directory: PathBuf,
}

/// The directories to look in.
pub fn search_path() -> Vec<PathBuf> {
    let own = std::env::var("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in own.split(':').chain(STANDARD.split(':')).map(PathBuf::from) {
        if directory.is_absolute() && !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
}

/// `PATH` with `first` in front of the standard directories.
pub fn path_with<'a>(first: impl IntoIterator<Item = &'a Path>) -> String {
    let mut text = String::new();
    for directory in first {
        let directory = directory.to_string_lossy();
        if !STANDARD.split(':').any(|known| known == directory) {
            text.push_str(&directory);
            text.push(':');
        }
    }
    text.push_str(STANDARD);
    text
}

/// Finds the program `name`. With `for_others` only what every user may reach and run counts:
/// something below `/root` is of no use to an application's user.
pub fn find(name: &str, for_others: bool) -> Option<Program> {
    search_path().into_iter().find_map(|directory| {
        let path = directory.join(name);
        let usable = is_program(&path) && (!for_others || open_to_others(&path));
        usable.then_some(Program { path, directory })
    })
}

/// Whether this process may run a file.
pub fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether every user may reach and run a file.
pub fn open_to_others(path: &Path) -> bool {
    let Ok(real) = path.canonicalize() else {
        return false;
    };
    // Both ways have to be open: the one named and the one that links lead to.
    [path, &real].iter().all(|way| {
        way.ancestors().all(|step| {
            step.metadata()
                .is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
        })
    })
}

/// `text` as one word for a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a program says to one argument, trimmed, at most 100 characters.
pub async fn version(program: &Path, argument: &str) -> Option<String> {
    let mut command = Command::new(program);
    command
        .arg(argument)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_WAIT, command.output())
        .await
        .ok()?
        .ok()?;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let text = String::from_utf8_lossy(&text);
    output
        .status
        .success()
        .then(|| text.trim().chars().take(100).collect())
}

impl Workshop {
    /// The program `name` for a release, installed where the host has none.
    pub async fn require(
        &self,
        site: &Site<'_>,
        name: &str,
        packages: &Packages,
    ) -> Result<Program, Fault> {
        let for_others = site.user.is_some();
        if let Some(program) = find(name, for_others) {
            return Ok(program);
        }
        self.install_packages(site, name, packages).await?;
        find(name, for_others).ok_or_else(|| runtimes::missing(name, for_others, packages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_each_directory_once_with_ours_first() {
        let first = [Path::new("/srv/venv/bin"), Path::new("/usr/bin")];
        assert_eq!(path_with(first), format!("/srv/venv/bin:{STANDARD}"));
    }

    #[test]
    fn the_shell_is_open_to_others() {
        assert!(find("sh", true).is_some());
        assert!(find("no-such-program-here", false).is_none());
    }
}
