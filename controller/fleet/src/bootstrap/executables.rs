//! Which executable a host gets: the controller's own, or one from a directory of builds for other
//! architectures.

use super::elf;
use crate::client::Executable;
use beanpole_protocol::Digest;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why there is no executable for a host.
#[derive(Debug, thiserror::Error)]
pub enum ExecutablesError {
    /// None is for this architecture.
    #[error("there is no executable for {kernel} on {arch}: the controller's own is for {own}")]
    NoneFor {
        /// `uname -s` of the host.
        kernel: String,
        /// `uname -m` of the host.
        arch: String,
        /// The architecture of the controller's own executable.
        own: String,
        /// Where a build for it would be looked for.
        wanted: Option<PathBuf>,
    },
    /// One cannot be read.
    #[error("cannot read the executable {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ExecutablesError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoneFor {
                wanted: Some(path), ..
            } => format!("Put a build for it at {}.", path.display()),
            Self::NoneFor { arch, .. } => format!(
                "Start the controller with `--builds DIR` and put a build for it at DIR/beanpole-{arch}."
            ),
            Self::Unreadable { .. } => "Check that the file is there and readable.".to_owned(),
        }
    }
}

/// The executables at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executables {
    /// The controller's own: `/proc/self/exe`, resolved.
    pub own: PathBuf,
    /// Its version. Builds for other architectures are of the same.
    pub version: String,
    /// Builds for other architectures, named `beanpole-ARCH` with `uname -m`'s word.
    pub builds: Option<PathBuf>,
}

impl Executables {
    /// The executable for a machine that calls itself `kernel` (`uname -s`) and `arch`
    /// (`uname -m`). One in the directory of builds goes before the controller's own.
    pub async fn find(&self, kernel: &str, arch: &str) -> Result<Executable, ExecutablesError> {
        let (this, kernel, arch) = (self.clone(), kernel.to_owned(), arch.to_owned());
        let own = self.own.clone();
        tokio::task::spawn_blocking(move || this.find_blocking(&kernel, &arch))
            .await
            .unwrap_or_else(|error| {
                Err(ExecutablesError::Unreadable {
                    path: own,
                    source: io::Error::other(error),
                })
            })
    }

    fn find_blocking(&self, kernel: &str, arch: &str) -> Result<Executable, ExecutablesError> {
        let arch = elf::normalised(arch);
        let wanted = self
            .builds
            .as_ref()
            .map(|directory| directory.join(format!("beanpole-{arch}")));
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| ExecutablesError::Unreadable { path, source }
        };
        let own = elf::architecture(&self.own).map_err(unreadable(&self.own))?;
        let path = match &wanted {
            Some(build) if build.is_file() && kernel == "Linux" => build.clone(),
            // What is no ELF file (a script) runs wherever its interpreter does.
            _ if kernel == "Linux" && own.is_none_or(|own| own == arch) => self.own.clone(),
            _ => {
                return Err(ExecutablesError::NoneFor {
                    kernel: kernel.to_owned(),
                    arch: arch.to_owned(),
                    own: format!("Linux on {}", own.unwrap_or("any machine")),
                    wanted,
                });
            }
        };
        let digest = digest_of(&path).map_err(unreadable(&path))?;
        Ok(Executable {
            path,
            digest,
            version: self.version.clone(),
        })
    }
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
    }
    Digest::new(hex::encode(hash.finalize())).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executables(builds: Option<PathBuf>) -> Executables {
        Executables {
            own: std::env::current_exe().expect("path"),
            version: "0.1.0".to_owned(),
            builds,
        }
    }

    #[tokio::test]
    async fn the_controllers_own_goes_to_machines_of_its_kind() {
        let executables = executables(None);
        let found = executables
            .find("Linux", std::env::consts::ARCH)
            .await
            .expect("own");
        assert_eq!(found.path, executables.own);
    }

    #[tokio::test]
    async fn another_architecture_is_named_with_the_place_for_its_build() {
        let error = executables(None)
            .find("Linux", "riscv64")
            .await
            .expect_err("no build");
        assert!(error.to_string().contains("riscv64"), "{error}");
        assert!(error.hint().contains("--builds DIR"), "{}", error.hint());

        let builds = tempfile::tempdir().expect("temporary directory");
        let with = executables(Some(builds.path().to_owned()));
        let error = with.find("Linux", "arm64").await.expect_err("no build yet");
        assert!(
            error.hint().contains("beanpole-aarch64"),
            "{}",
            error.hint()
        );
        std::fs::write(builds.path().join("beanpole-aarch64"), "x").expect("write");
        let found = with.find("Linux", "arm64").await.expect("build");
        assert!(found.path.ends_with("beanpole-aarch64"));
    }
}
