//! A private Unix socket that speaks HTTP: how the controller reaches an agent or a proxy.

use axum::Router;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// The longest path that the kernel takes for a socket, less the final NUL (`sun_path`, unix(7)).
const LONGEST_PATH: usize = 107;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error("another process already listens on {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path does not fit into the kernel's structure.
    #[error("the path {} is too long for a Unix socket: use a data directory whose path has at most {LONGEST_PATH} bytes with `/agent/agent.sock` added", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot listen on {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens on `path` with permissions `mode` (`0o600`: this user only). A socket left behind by a
/// dead process is replaced; one that answers is not.
pub async fn bind(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    let path_buf = || path.to_owned();
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(BindError::TooLong { path: path_buf() });
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::InUse { path: path_buf() });
    }
    let failed = |source| BindError::Io {
        path: path_buf(),
        source,
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Bound under a private name first, so that nobody can connect before the mode is set.
    let hidden = path.with_extension("new");
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(mode)).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

/// Serves `router` on `listener` until `stop`, then lets calls in flight finish.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}
