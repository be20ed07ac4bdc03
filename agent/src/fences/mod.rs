//! What keeps instances apart from each other and from the host.

use std::path::PathBuf;

/// Why a fence could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// No user could be made for an application.
    #[error("cannot make a system user for the application: {0}")]
    User(String),
    /// A file of the system could not be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}
