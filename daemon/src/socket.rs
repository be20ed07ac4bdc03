//! A private Unix socket that speaks HTTP: how the controller reaches an agent or a proxy.

use axum::Router;
use std::ffi::OsStr;
use std::fs;
use std::future::IntoFuture;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// The longest path that the kernel takes for a socket, less the final NUL (`sun_path`, unix(7)).
const LONGEST_PATH: usize = 107;

/// How often it is looked whether a socket is still where it is to be found.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

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

/// A socket that is listened on.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    place: Place,
}

/// Where a socket is in the file system. Ends with the value, unless somebody else's is there by then.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    mode: u32,
    group: Option<u32>,
    /// Device and number of the file, which no other one gets as long as the socket is held.
    file: (u64, u64),
    _held: OwnedFd,
}

/// Listens on `path` with permissions `mode` (`0o600`: this user only), for a `group` besides if one is given. A
/// socket left behind by a dead process, or by one that is stopping, is replaced; one that answers is not.
pub async fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Socket, BindError> {
    let path_buf = || path.to_owned();
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(BindError::TooLong { path: path_buf() });
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(BindError::InUse { path: path_buf() });
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(BindError::Io {
                path: path_buf(),
                source,
            });
        }
        _ => {}
    }
    bind_over(path, mode, group)
}

/// The same in the place of one that still listens and knows that it is replaced: there is always somebody who does.
pub fn bind_over(path: &Path, mode: u32, group: Option<u32>) -> Result<Socket, BindError> {
    let path_buf = || path.to_owned();
    let failed = |source| BindError::Io {
        path: path_buf(),
        source,
    };
    // Bound under a private name first, so that nobody can connect before the mode is set.
    let hidden = hidden(path);
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    if group.is_some() {
        std::os::unix::fs::chown(&hidden, None, group).map_err(failed)?;
    }
    fs::set_permissions(&hidden, fs::Permissions::from_mode(mode)).map_err(failed)?;
    let file = number_of(&hidden).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    let place = Place {
        path: path_buf(),
        mode,
        group,
        file,
        _held: listener.as_fd().try_clone_to_owned().map_err(failed)?,
    };
    Ok(Socket { listener, place })
}

/// A name beside `path` that is as long and that no other socket there has.
fn hidden(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().as_bytes().to_vec();
    name.pop();
    name.push(b'~');
    path.with_file_name(OsStr::from_bytes(&name))
}

/// Serves `router` on `socket` until `stop`, then lets calls in flight finish: nobody else finds it from then on.
/// A socket that was taken out of the file system is made again.
pub async fn serve(socket: Socket, router: Router, stop: CancellationToken) -> io::Result<()> {
    let mut next = socket;
    loop {
        let Socket { listener, place } = next;
        let serving = axum::serve(listener, router.clone())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        next = tokio::select! {
            served = serving.into_future() => return served,
            again = place.keep(&stop) => again?,
        };
    }
}

impl Place {
    /// Sees to it that the socket is found: done with another one, once it is not, or when another process
    /// listens in its place.
    async fn keep(self, stop: &CancellationToken) -> io::Result<Socket> {
        let place = self;
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK_AGAIN))
            .await
            .is_some()
        {
            if place.is_ours() {
                continue;
            }
            match bind(&place.path, place.mode, place.group).await {
                Ok(socket) => {
                    tracing::warn!(path = %place.path.display(), "the socket was gone, and is made again");
                    return Ok(socket);
                }
                Err(error @ BindError::InUse { .. }) => return Err(io::Error::other(error)),
                Err(error) => tracing::warn!(%error, "the socket is gone"),
            }
        }
        drop(place);
        std::future::pending().await
    }

    fn is_ours(&self) -> bool {
        number_of(&self.path).is_ok_and(|file| file == self.file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn number_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    async fn answers(path: &Path) {
        let start = Instant::now();
        while UnixStream::connect(path).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody listens");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn start(socket: Socket) -> (tokio::task::JoinHandle<io::Result<()>>, CancellationToken) {
        let stop = CancellationToken::new();
        let serving = serve(socket, Router::new(), stop.clone());
        (tokio::spawn(serving), stop)
    }

    #[tokio::test]
    async fn a_second_listener_on_a_live_socket_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let socket = bind(&path, 0o600, None).await.expect("bind");
        let error = bind(&path, 0o600, None).await.expect_err("in use");
        assert!(error.to_string().contains("already listens"), "{error}");
        drop(socket);
        assert!(!path.exists());
        // A process that was killed leaves its own behind.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        let _next = bind(&path, 0o600, None).await.expect("it is replaced");
        answers(&path).await;
    }

    #[tokio::test]
    async fn a_successor_takes_the_place_and_keeps_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let before = bind(&path, 0o600, None).await.expect("bind");
        let _next = bind_over(&path, 0o600, None).expect("bind");
        drop(before);
        answers(&path).await;
    }

    #[tokio::test]
    async fn one_that_stops_leaves_its_successor_alone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let (serving, stop) = start(bind(&path, 0o600, None).await.expect("bind"));
        // A call that does not end.
        let _call = UnixStream::connect(&path).await.expect("connect");
        stop.cancel();
        let start = Instant::now();
        let next = loop {
            match bind(&path, 0o600, None).await {
                Ok(next) => break next,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::task::yield_now().await;
        };
        serving.abort();
        let _ = serving.await;
        answers(&path).await;
        drop(next);
    }

    #[tokio::test]
    async fn a_socket_that_somebody_removed_is_made_again() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let (serving, stop) = start(bind(&path, 0o600, None).await.expect("bind"));
        answers(&path).await;
        fs::remove_file(&path).expect("removed");
        answers(&path).await;
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        stop.cancel();
        serving.await.expect("no panic").expect("it served");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn one_whose_place_another_has_taken_ends() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("test.sock");
        let (serving, _stop) = start(bind(&path, 0o600, None).await.expect("bind"));
        fs::remove_file(&path).expect("removed");
        let _other = bind(&path, 0o600, None).await.expect("bind");
        let ended = serving.await.expect("no panic").expect_err("superseded");
        assert!(ended.to_string().contains("already listens"), "{ended}");
        answers(&path).await;
    }
}
