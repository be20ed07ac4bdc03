//! As much of the ELF header as tells which machine an executable is for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The architecture of the executable at `path`, as `uname -m` names it; none if it is no ELF file
/// or for a machine without a name here.
pub(super) fn architecture(path: &Path) -> io::Result<Option<&'static str>> {
    let mut header = [0; 20];
    match File::open(path)?.read_exact(&mut header) {
        Ok(()) => Ok(machine(&header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn machine(header: &[u8; 20]) -> Option<&'static str> {
    if header[..4] != *b"\x7fELF" {
        return None;
    }
    let little = header[5] == 1;
    let bytes = [header[18], header[19]];
    let number = if little {
        u16::from_le_bytes(bytes)
    } else {
        u16::from_be_bytes(bytes)
    };
    // e_machine, elf(5).
    match number {
        3 => Some("i686"),
        21 => Some("ppc64le"),
        22 => Some("s390x"),
        40 => Some("armv7l"),
        62 => Some("x86_64"),
        183 => Some("aarch64"),
        243 => Some("riscv64"),
        _ => None,
    }
}

/// `arch` as `uname -m` says it, with names that mean the same made one.
pub(super) fn normalised(arch: &str) -> &str {
    match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "i386" | "i486" | "i586" => "i686",
        "armv8l" | "armv6l" | "armhf" => "armv7l",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_executable_is_for_this_machine() {
        let path = std::env::current_exe().expect("path");
        let arch = architecture(&path).expect("read");
        assert_eq!(arch, Some(std::env::consts::ARCH));
    }

    #[test]
    fn other_files_have_no_architecture() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("script");
        std::fs::write(&path, "#!/bin/sh\necho a long enough script\n").expect("write");
        assert_eq!(architecture(&path).expect("read"), None);
        std::fs::write(&path, "x").expect("write");
        assert_eq!(architecture(&path).expect("read"), None);
    }
}
