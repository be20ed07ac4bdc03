//! Free space on the disk that holds the records and bundles.
//!
//! sled does not survive a full disk: after one write that found no room it refuses everything, reads
//! too, until it is opened anew. So there is a look at the free space before each write, and some is
//! left: more by bundles than by records, so that one large upload does not stop everything else.

use std::io;
use std::os::fd::AsFd;

/// What writing a record leaves free, in bytes. sled writes segments of 512 KiB.
pub(crate) const LEFT_BY_RECORDS: u64 = 8 << 20;
/// What writing a bundle leaves free, in bytes.
pub(crate) const LEFT_BY_BUNDLES: u64 = 32 << 20;

/// Bytes that may still be written to the file system that holds `file`.
pub(crate) fn free(file: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
