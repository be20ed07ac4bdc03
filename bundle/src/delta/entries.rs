//! What a ZIP's directory says of its entries: enough to find the same compressed bytes in two bundles without reading them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Longest directory that is read, in bytes: of 400,000 entries. Bundles have fewer.
const LONGEST: u64 = 64 << 20;
const END: &[u8] = b"PK\x05\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
const HEADER: &[u8] = b"PK\x03\x04";
/// Bytes of their parts of a fixed length.
const END_LENGTH: usize = 22;
const ENTRY_LENGTH: usize = 46;
const HEADER_LENGTH: usize = 30;

/// What the compressed bytes of an entry are known by: the CRC of the file, how it is compressed, and to how many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    crc: u32,
    method: u16,
    length: u64,
}

/// The compressed bytes of entries, in their order and without overlap. None where the file is no ZIP, or one that takes
/// more than its first form to describe; entries that make no sense are left out.
pub(super) fn entries(file: &File) -> io::Result<Vec<(Key, Range<u64>)>> {
    let size = file.metadata()?.len();
    let Some(directory) = directory(file, size)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let mut rest = &directory.bytes[..];
    while rest.starts_with(ENTRY) && rest.len() >= ENTRY_LENGTH {
        let lengths = [28, 30, 32].map(|at| usize::from(u16_at(rest, at)));
        let length = u64::from(u32_at(rest, 20));
        let key = Key {
            crc: u32_at(rest, 16),
            method: u16_at(rest, 10),
            length,
        };
        let header = directory.shift + u64::from(u32_at(rest, 42));
        let mut fixed = [0; HEADER_LENGTH];
        if header + HEADER_LENGTH as u64 <= size && length > 0 {
            file.read_exact_at(&mut fixed, header)?;
            let names = u64::from(u16_at(&fixed, 26)) + u64::from(u16_at(&fixed, 28));
            let begins = header + HEADER_LENGTH as u64 + names;
            if fixed.starts_with(HEADER) && begins + length <= size {
                found.push((key, begins..begins + length));
            }
        }
        let next = ENTRY_LENGTH + lengths.iter().sum::<usize>();
        rest = rest.get(next..).unwrap_or_default();
    }
    found.sort_by_key(|(_, range)| range.start);
    let mut end = 0;
    found.retain(|(_, range)| {
        let is_apart = range.start >= end;
        end = end.max(range.end);
        is_apart
    });
    Ok(found)
}

struct Directory {
    bytes: Vec<u8>,
    /// What lies before the ZIP in its file, in bytes: offsets do not count it.
    shift: u64,
}

fn directory(file: &File, size: u64) -> io::Result<Option<Directory>> {
    let tail_length = size.min((END_LENGTH + usize::from(u16::MAX)) as u64);
    let mut tail = vec![0; tail_length as usize];
    file.read_exact_at(&mut tail, size - tail_length)?;
    let Some(at) = tail.windows(END.len()).rposition(|four| four == END) else {
        return Ok(None);
    };
    let end = &tail[at..];
    if end.len() < END_LENGTH {
        return Ok(None);
    }
    let (length, begins) = (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
    let ends = size - tail_length + at as u64;
    // Where a number says that it stands elsewhere, the directory would lie behind its end.
    let shift = ends
        .checked_sub(length)
        .and_then(|really| really.checked_sub(begins));
    let Some(shift) = shift.filter(|_| length <= LONGEST) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, ends - length)?;
    Ok(Some(Directory { bytes, shift }))
}

/// Callers have checked that it is that long.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
