//! Whose fault it is that there is no connection.

use rustix::io::Errno;
use std::io;

/// Whether this machine is short of something that a connection takes, whoever is at its other end.
pub fn is_ours(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.kind() == io::ErrorKind::OutOfMemory
        || error
            .raw_os_error()
            .is_some_and(|number| SHORT.contains(&Errno::from_raw_os_error(number)))
}

/// Descriptors of the process, of the machine; buffers; memory.
const SHORT: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];

/// What the other side did that there is no connection, for people.
pub fn of_connecting(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::TimedOut => "no connection in time",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "host unreachable",
        _ => "no connection",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_is_ours_and_a_refusal_is_not() {
        assert!(is_ours(&Errno::MFILE.into()));
        assert!(is_ours(&Errno::NFILE.into()));
        assert!(is_ours(&Errno::ADDRNOTAVAIL.into()));
        for theirs in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH] {
            assert!(!is_ours(&theirs.into()), "{theirs}");
        }
    }
}
