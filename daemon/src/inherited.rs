//! File descriptors that a process got from whoever started it, beyond the three standard ones.
//!
//! A lock, a pipe or a socket among them would live on in applications that outlive every daemon: a
//! script's `flock` would never be free again. Everything that we open ourselves closes at an exec,
//! so it is enough to see to what was there before `main`.
#![expect(
    unsafe_code,
    reason = "close_range and fcntl on numbers that nobody owns, and SIG_IGN, have no safe interface"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::RawFd;

/// The first descriptor that is not a standard stream.
const FIRST: RawFd = 3;
/// How far to look where neither the kernel nor `/proc` tells what is open.
const FAR: RawFd = 65_536;

/// Has every inherited descriptor close when this process starts a program. For a process in whose
/// command line the user may name one, as `/dev/fd/63`.
pub fn keep_from_children() {
    // SAFETY: changes nothing but a flag that Rust sets on all descriptors it opens itself.
    unsafe { close_between(FIRST, RawFd::MAX, true) };
}

/// Closes every inherited descriptor: for a process that goes on when its starter has gone.
///
/// # Safety
///
/// To be called first thing in `main`: nothing in this process may own a descriptor yet.
pub unsafe fn close() {
    // SAFETY: the caller says so.
    unsafe { close_between(FIRST, RawFd::MAX, false) };
}

/// Closes every inherited descriptor but those that `arguments` name (`/dev/fd/63`): for a daemon,
/// which would keep a lock of the script that started it.
///
/// # Safety
///
/// As [`close`].
pub unsafe fn close_unnamed(arguments: impl Iterator<Item = OsString>) {
    let mut first = FIRST;
    for kept in named(arguments) {
        if kept > first {
            // SAFETY: the caller says so.
            unsafe { close_between(first, kept - 1, false) };
        }
        first = kept.saturating_add(1);
    }
    // SAFETY: as above.
    unsafe { close_between(first, RawFd::MAX, false) };
}

/// Has SIGHUP change nothing until somebody listens for it again: it would end a process that has just become
/// another executable.
pub fn ignore_hang_up() {
    // SAFETY: sets no handler of ours.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

/// The descriptors that words of a command line name, in order.
fn named(words: impl Iterator<Item = OsString>) -> BTreeSet<RawFd> {
    let in_word = |word: OsString| {
        let word = word.into_string().ok()?;
        let value = word
            .split_once('=')
            .map_or(word.as_str(), |(_, value)| value);
        ["/dev/fd/", "/proc/self/fd/"]
            .iter()
            .find_map(|prefix| value.strip_prefix(prefix)?.parse().ok())
            .filter(|fd| *fd >= FIRST)
    };
    words.filter_map(in_word).collect()
}

/// # Safety
///
/// Without `mark_only`, nothing may own a descriptor from `first` to `last`.
unsafe fn close_between(first: RawFd, last: RawFd, mark_only: bool) {
    let flags = if mark_only {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: takes no pointers; the caller vouches for the descriptors.
    // By its number: older C libraries lack the function. Linux 5.9, the flag 5.11.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done != 0 {
        // SAFETY: as above.
        unsafe { one_by_one(first, last, mark_only) };
    }
}

/// # Safety
///
/// As [`close_between`].
unsafe fn one_by_one(first: RawFd, last: RawFd, mark_only: bool) {
    let range = first..=last;
    for fd in open_now().into_iter().filter(|fd| range.contains(fd)) {
        // SAFETY: takes no pointers; a number that is not open is refused.
        unsafe {
            if mark_only {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            } else {
                libc::close(fd);
            }
        }
    }
}

/// What is open, as `/proc` tells it; everything that might be where it does not.
fn open_now() -> Vec<RawFd> {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else {
        return (FIRST..FAR).collect();
    };
    // The list's own descriptor is among them, and closed by the time this returns.
    list.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// A descriptor that would pass an exec, with a number from `first` up.
    fn leaked(first: RawFd) -> RawFd {
        let file = File::open("/dev/null").expect("open");
        // SAFETY: makes a new descriptor, closed by the test.
        let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, first) };
        assert!(fd >= first);
        fd
    }

    fn closes_at_exec(fd: RawFd) -> bool {
        // SAFETY: takes no pointers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert!(flags >= 0, "it is open");
        flags & libc::FD_CLOEXEC != 0
    }

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: takes no pointers.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn what_is_open_closes_at_the_next_exec() {
        let fd = leaked(700);
        assert!(!closes_at_exec(fd));
        keep_from_children();
        assert!(closes_at_exec(fd));
        // SAFETY: this test's own.
        unsafe { libc::close(fd) };
    }

    #[test]
    fn an_older_kernel_is_served_from_proc() {
        let fd = leaked(900);
        // SAFETY: marks only.
        unsafe { one_by_one(900, 999, true) };
        assert!(closes_at_exec(fd));
        // SAFETY: nothing else in this process opens so many files.
        unsafe { one_by_one(900, 999, false) };
        assert!(!is_open(fd));
    }

    #[test]
    fn descriptors_are_found_in_a_command_line() {
        let words =
            "agent --data /dev/fd --tls-key /dev/fd/63 --a=/proc/self/fd/9 /dev/fd/1 /dev/fd/x";
        let found = named(words.split(' ').map(OsString::from));
        assert_eq!(found, BTreeSet::from([9, 63]));
    }

    #[test]
    fn descriptors_around_those_that_are_kept_are_closed() {
        let (before, kept, after) = (leaked(1000), leaked(1100), leaked(1200));
        // SAFETY: nothing else in this process opens so many files.
        unsafe {
            close_between(1000, kept - 1, false);
            close_between(kept + 1, 1300, false);
        }
        assert!(!is_open(before) && is_open(kept) && !is_open(after));
        // SAFETY: this test's own.
        unsafe { libc::close(kept) };
    }
}
