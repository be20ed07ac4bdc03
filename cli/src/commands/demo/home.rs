//! Where the demo's files are, and the executable that its applications may run.

use crate::output::errors::Failure;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The demo's directory, with the executable where every user can run it.
pub(super) struct Home {
    pub(super) temporary: Option<tempfile::TempDir>,
    pub(super) data: PathBuf,
}

impl Home {
    pub(super) fn make(given: Option<&Path>) -> Result<Self, Failure> {
        let cannot =
            |error: std::io::Error| Failure::caused("The demo's directory cannot be made.", &error);
        if let Some(data) = given {
            fs::create_dir_all(data).map_err(cannot)?;
            return Ok(Self {
                temporary: None,
                data: data.canonicalize().map_err(cannot)?,
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix("beanpole-demo-")
            .tempdir_in(temporary_base())
            .map_err(cannot)?;
        // Under root, applications run as users of their own and must get to their files.
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711)).map_err(cannot)?;
        let data = temporary.path().to_owned();
        Ok(Self {
            temporary: Some(temporary),
            data,
        })
    }
}

/// Where temporary files go: the usual place, unless applications with users of their own could
/// not get there.
fn temporary_base() -> PathBuf {
    let usual = std::env::temp_dir();
    if !rustix::process::geteuid().is_root() || is_open(&usual) {
        return usual;
    }
    ["/tmp", "/var/tmp"]
        .iter()
        .map(PathBuf::from)
        .find(|base| is_open(base))
        .unwrap_or(usual)
}

/// Whether every user can get to `path`.
fn is_open(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| {
        path.ancestors().all(|part| {
            fs::metadata(part).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
        })
    })
}

/// This executable at a path where every user can run it: a copy, where it lies in a home that is
/// closed to others.
pub(super) fn open_executable(home: &Path) -> Result<PathBuf, Failure> {
    let own = executable()?;
    if !rustix::process::geteuid().is_root() || is_open(&own) {
        return Ok(own);
    }
    let copy = home.join("beanpole");
    fs::copy(&own, &copy)
        .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))
        .map_err(|error| Failure::caused("The demo's application cannot be copied.", &error))?;
    Ok(copy)
}

/// This executable.
pub(super) fn executable() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::caused("This executable cannot be found.", &error))
}
