//! Which allocator this process has. The one that carries traffic makes and frees a few dozen pieces of memory for each
//! request, and mimalloc is quicker at that; all others are small and many, one for each instance, and the system's own
//! keeps them small.
//!
//! It is decided at the first allocation and never again: what one allocator gave goes back to the same.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

#[global_allocator]
static ALLOCATOR: ByProcess = ByProcess;

/// The command of the process that carries traffic.
const CARRIES_TRAFFIC: &[u8] = b"proxy-process";

const UNKNOWN: u8 = 0;
const SYSTEM: u8 = 1;
const MIMALLOC: u8 = 2;

static DECIDED: AtomicU8 = AtomicU8::new(UNKNOWN);

struct ByProcess;

/// Whether this process has mimalloc.
#[inline]
fn is_mimalloc() -> bool {
    match DECIDED.load(Relaxed) {
        UNKNOWN => decide(),
        decided => decided == MIMALLOC,
    }
}

/// Looks at how this process was started, without allocating. The first one does, before there is a second thread.
#[cold]
fn decide() -> bool {
    let carries = started_as(CARRIES_TRAFFIC);
    DECIDED.store(if carries { MIMALLOC } else { SYSTEM }, Relaxed);
    carries
}

/// Whether that is the first word of this process's command line, the options before it aside.
fn started_as(command: &[u8]) -> bool {
    let mut line = [0; 1024];
    let Ok(file) = rustix::fs::open(
        c"/proc/self/cmdline",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) else {
        return false;
    };
    let read = rustix::io::read(&file, &mut line).unwrap_or(0);
    command_of(&line[..read]) == Some(command)
}

/// The first word after the executable that is no option.
fn command_of(line: &[u8]) -> Option<&[u8]> {
    let mut words = line.split(|byte| *byte == 0).skip(1);
    words.find(|word| !word.is_empty() && !word.starts_with(b"-"))
}

#[expect(unsafe_code, reason = "an allocator is one by its contract")]
// SAFETY: each call goes to one of two allocators that keep the contract, and to the same one for the life of the process.
unsafe impl GlobalAlloc for ByProcess {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe {
            if is_mimalloc() {
                MiMalloc.alloc(layout)
            } else {
                System.alloc(layout)
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller, and the piece came from there.
        unsafe {
            if is_mimalloc() {
                MiMalloc.dealloc(piece, layout);
            } else {
                System.dealloc(piece, layout);
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe {
            if is_mimalloc() {
                MiMalloc.alloc_zeroed(layout)
            } else {
                System.alloc_zeroed(layout)
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as promised by the caller, and the piece came from there.
        unsafe {
            if is_mimalloc() {
                MiMalloc.realloc(piece, layout, size)
            } else {
                System.realloc(piece, layout, size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_carries_traffic_is_known_by_its_command() {
        let carries = |line: &[u8]| command_of(line) == Some(CARRIES_TRAFFIC);
        assert!(carries(b"/usr/bin/beanpole\0proxy-process\0--data\0/d\0"));
        assert!(carries(b"beanpole\0--json\0proxy-process\0"));
        assert!(!carries(b"beanpole\0proxy\0--data\0proxy-process\0"));
        assert!(!carries(b"proxy-process\0agent\0"));
        assert!(!carries(b"beanpole\0"));
        assert!(!carries(b""));
    }
}
