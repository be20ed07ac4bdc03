//! An unpacked bundle, or a directory that one is to be made of.

use super::Top;
use crate::Refused;
use std::fs;
use std::io::Read;
use std::path::Path;

/// A directory. Links are followed: of an unpacked bundle it was made sure that they stay inside.
pub struct Directory<'p>(pub &'p Path);

impl Top for Directory<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        self.0.join(name).is_file()
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let path = self.0.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(longest).read_to_end(&mut bytes))
            .map_err(|error| {
                Refused::new(
                    "host-io",
                    format!("{} cannot be read: {error}.", path.display()),
                )
            })?;
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
