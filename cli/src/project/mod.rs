//! A project directory: its `deploy.toml`, and how its source becomes a bundle.

pub mod envfile;
pub mod git;
pub mod ignored;
pub mod pack;
pub mod settings;

use crate::output::errors::Failure;
use settings::Settings;
use std::path::{Path, PathBuf};

/// The name of the settings file.
pub const FILE: &str = "deploy.toml";

/// A project: where it is and what its `deploy.toml` says.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// The directory that holds `deploy.toml`; none without one.
    pub root: Option<PathBuf>,
    /// What it says.
    pub settings: Settings,
}

impl Project {
    /// Looks for `deploy.toml` in `start` and upwards. A project without one is empty.
    pub fn find(start: &Path) -> Result<Self, Failure> {
        for directory in start.ancestors() {
            let path = directory.join(FILE);
            if path.is_file() {
                return Self::read(&path);
            }
        }
        Ok(Self::default())
    }

    /// Reads the settings file at `path`.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::caused(format!("Cannot read {}.", path.display()), &error))?;
        let settings = settings::parse(&text).map_err(|wrong| wrong.into_failure(path))?;
        Ok(Self {
            root: path.parent().map(Path::to_owned),
            settings,
        })
    }
}
