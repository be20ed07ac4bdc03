//! Telling systemd that a service is ready (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that this service is ready, where it was started with `Type=notify`.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = tell(&socket, b"READY=1") {
        tracing::warn!(%error, "systemd cannot be told that this service is ready");
    }
}

fn tell(socket: &OsString, state: &[u8]) -> io::Result<()> {
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(bytes))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_hear_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("notify");
        let named = UnixDatagram::bind(&path).expect("bind");
        tell(&path.into(), b"READY=1").expect("told");
        let name = format!("beanpole-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let hidden = UnixDatagram::bind_addr(&address).expect("bind");
        tell(&format!("@{name}").into(), b"READY=1").expect("told");
        for socket in [named, hidden] {
            let mut heard = [0; 16];
            let count = socket.recv(&mut heard).expect("heard");
            assert_eq!(&heard[..count], b"READY=1");
        }
    }
}
