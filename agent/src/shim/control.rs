//! The shim's end of the control socket. A client that does not read is dropped, never waited for.

use super::wire::{LONGEST_LINE, Request};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// More are refused; the agent needs two.
const MOST_CLIENTS: usize = 16;

/// Listens on `name` in the current directory: a relative path, as a full one may be too long for
/// the kernel.
pub(super) fn listen(name: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(name);
    let hidden = format!("{name}.new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, Path::new(name))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Somebody connected.
pub(super) struct Client {
    pub stream: UnixStream,
    pub watches: bool,
    pub gone: bool,
    received: Vec<u8>,
}

impl Client {
    /// Takes what was asked so far.
    pub fn requests(&mut self) -> Vec<Result<Request, String>> {
        let mut buffer = [0_u8; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone |= error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
            if self.received.len() > LONGEST_LINE {
                self.gone = true;
                break;
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let request: Result<Request, _> = serde_json::from_slice(&line);
            requests.push(match request {
                Ok(request) if request.v == super::spec::VERSION => Ok(request),
                Ok(request) => Err(format!("version {} is not spoken here", request.v)),
                Err(error) => Err(error.to_string()),
            });
        }
        requests
    }

    /// Sends a line, or drops the client if it takes none.
    pub fn send(&mut self, line: &str) {
        let sent = self.stream.write(line.as_bytes());
        self.gone |= !matches!(sent, Ok(length) if length == line.len());
    }
}

/// Everybody who waits at the socket.
pub(super) fn accept(listener: &UnixListener, clients: &mut Vec<Client>) {
    while let Ok((stream, _)) = listener.accept() {
        if clients.len() < MOST_CLIENTS && stream.set_nonblocking(true).is_ok() {
            clients.push(Client {
                stream,
                watches: false,
                gone: false,
                received: Vec::new(),
            });
        }
    }
}
