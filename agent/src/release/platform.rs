//! Finds out how an unpacked bundle runs, by the rules that look into packed ones, too.

use super::Fault;
use beanpole_bundle::ebextensions::{self, ContainerCommand};
use beanpole_bundle::platform::{self, Top};
use beanpole_protocol::agent::Platform;
use std::fs;
use std::io::Read;
use std::path::Path;

pub use beanpole_bundle::platform::Plan;

/// An unpacked bundle. Links are followed only because unpacking made sure that they stay inside.
pub struct Tree<'p>(pub &'p Path);

impl Top for Tree<'_> {
    type Error = Fault;

    fn has_file(&self, name: &str) -> bool {
        self.0.join(name).is_file()
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Fault> {
        let path = self.0.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(longest).read_to_end(&mut bytes))
            .map_err(|error| Fault::io("read", &path, &error))?;
        Ok(Some(bytes))
    }

    fn names(&self) -> Vec<(String, bool)> {
        let entries = fs::read_dir(self.0).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                (entry.file_name().to_string_lossy().into_owned(), directory)
            })
            .collect()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(name)).into_iter().flatten();
        entries
            .flatten()
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

/// The container commands of the bundle in `tree`, which was just unpacked: once something of the
/// application's has run there, a file may lead elsewhere.
pub fn container_commands(tree: &Path) -> Result<Vec<ContainerCommand>, Fault> {
    Ok(ebextensions::read(&mut Tree(tree))?.commands)
}

/// Finds how the bundle in `tree` runs on `platform`.
pub fn find(tree: &Path, platform: Platform) -> Result<Plan, Fault> {
    platform::find(&mut Tree(tree), platform)
}
