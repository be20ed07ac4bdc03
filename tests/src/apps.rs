//! Applications to deploy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A source directory of an application.
pub struct App {
    /// Where it is. Its last component is the application's name.
    pub dir: PathBuf,
}

/// Beside the running test or benchmark: `target/PROFILE/NAME`.
///
/// # Panics
/// When nobody built it.
pub fn executable(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("this program has a path");
    let found = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not built: run these tests with `./dev e2e`, which builds it first")
    })
}

impl App {
    /// A web application that answers `VERSION INSTANCE PID`, below `parent`.
    pub fn web(parent: &Path, name: &str, version: &str) -> Self {
        let app = Self {
            dir: parent.join(name),
        };
        fs::create_dir_all(&app.dir).expect("a temporary directory can be made");
        let to = app.dir.join("testapp");
        fs::copy(executable("testapp"), &to).expect("the test application can be copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
        app.version(version)
    }

    /// The same at another version: one file changes.
    pub fn version(self, version: &str) -> Self {
        self.procfile(&format!("web: ./testapp {version}\n"))
    }

    /// The same, run by another Procfile.
    pub fn procfile(self, text: &str) -> Self {
        self.file("Procfile", text.as_bytes())
    }

    /// With one more file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(self, name: &str, bytes: &[u8]) -> Self {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a directory can be made");
        }
        fs::write(path, bytes).expect("a file can be written");
        self
    }
}
