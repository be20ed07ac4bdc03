//! Deltas: how a bundle is made of another one that a host has, so that only what it lacks travels.
//!
//! Entries that both have, by what the directories of the ZIPs say, become copies: tools that make ZIPs compress the same
//! file to the same bytes. What lies between is cut where its content says so (FastCDC), so that what moved is found again; a
//! piece that the older bundle has as well becomes a copy, too, and everything else goes along. All of it is one stream of
//! zstd, which knows the end of the older bundle, where a ZIP's directory is.
//!
//! What [`apply`] makes has the very bytes of the new bundle, or is found not to by its digest, which whoever applies it checks.
//!
//! Layout, numbers little-endian: the four bytes [`MAGIC`]; the sizes of the older and the new bundle, 8 bytes each; then,
//! compressed, pieces: 0 with 4 bytes of length and as many bytes; 1 with 8 bytes of offset and 8 of length; at last 2.

mod entries;
#[cfg(test)]
mod tests;

use fastcdc::v2020::StreamCDC;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// How a delta begins.
pub const MAGIC: [u8; 4] = *b"BPD1";
/// Shortest, usual and longest piece, in bytes.
const SHORTEST: u32 = 2 * 1024;
const USUAL: u32 = 8 * 1024;
const LONGEST: u32 = 64 * 1024;
/// As much of the end of the older bundle zstd knows, in bytes: the directories of 40,000 entries.
const KNOWN_END: u64 = 4 << 20;
/// zstd's level: the link is mostly slower than the controller.
const LEVEL: i32 = 3;
/// zstd's window, as a power of two: covers [`KNOWN_END`], and bounds the memory of who applies a delta.
const WINDOW: u32 = 23;
/// What copying reads at once, in bytes.
const PART: usize = 256 * 1024;
/// What is compared at once where a copy is stretched, in bytes.
const STEP: usize = 4096;
/// A delta that is longer than this share of the new bundle, in per cent, is not worth its making.
const WORTH: u64 = 75;

const LITERAL: u8 = 0;
const COPY: u8 = 1;
const END: u8 = 2;

/// Makes the delta that leads from `base` to `new`; none where it would not be worth it. Reads of both what entries that
/// they have in common leave.
///
/// # Errors
/// A file cannot be read.
pub fn make(base: &File, new: &File) -> io::Result<Option<Vec<u8>>> {
    let (base_size, new_size) = (base.metadata()?.len(), new.metadata()?.len());
    let pieces = compared(base, new)?;
    let lacking: u64 = pieces
        .iter()
        .filter(|piece| piece.from.is_none())
        .map(|piece| piece.length)
        .sum();
    // Bundles are compressed: zstd does little for what they do not have in common.
    if lacking > share_of(new_size) {
        return Ok(None);
    }
    let known = end_of(base, base_size)?;
    let mut delta = Vec::new();
    delta.extend_from_slice(&MAGIC);
    delta.extend_from_slice(&base_size.to_le_bytes());
    delta.extend_from_slice(&new_size.to_le_bytes());
    let mut encoder = zstd::stream::Encoder::with_ref_prefix(delta, LEVEL, &known)?;
    encoder.window_log(WINDOW)?;
    let mut out = BufWriter::with_capacity(PART, encoder);
    let mut buffer = vec![0; PART];
    for piece in &pieces {
        if let Some(from) = piece.from {
            out.write_all(&[COPY])?;
            out.write_all(&from.to_le_bytes())?;
            out.write_all(&piece.length.to_le_bytes())?;
            continue;
        }
        let mut at = piece.at;
        while at < piece.at + piece.length {
            let left = usize::try_from(piece.at + piece.length - at).unwrap_or(PART);
            let part = &mut buffer[..PART.min(left)];
            new.read_exact_at(part, at)?;
            out.write_all(&[LITERAL])?;
            out.write_all(&(part.len() as u32).to_le_bytes())?;
            out.write_all(part)?;
            at += part.len() as u64;
        }
    }
    out.write_all(&[END])?;
    let encoder = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let delta = encoder.finish()?;
    let is_worth_it = delta.len() as u64 <= share_of(new_size);
    Ok(is_worth_it.then_some(delta))
}

/// How long a delta to a bundle of that size may be.
fn share_of(size: u64) -> u64 {
    size.saturating_mul(WORTH) / 100
}

/// A piece of the new bundle, and where the older one has it.
struct Piece {
    at: u64,
    length: u64,
    from: Option<u64>,
}

/// The new bundle in pieces. That an entry is the same is what the directories say: where they are wrong, the digest of what
/// is made is.
fn compared(base: &File, new: &File) -> io::Result<Vec<Piece>> {
    let (base_size, new_size) = (base.metadata()?.len(), new.metadata()?.len());
    let in_base: HashMap<entries::Key, Range<u64>> = entries::entries(base)?.into_iter().collect();
    let (mut copies, mut taken) = (Vec::new(), Vec::new());
    for (key, range) in entries::entries(new)? {
        if let Some(twin) = in_base.get(&key) {
            taken.push(twin.clone());
            copies.push(Piece {
                at: range.start,
                length: range.end - range.start,
                from: Some(twin.start),
            });
        }
    }
    taken.sort_by_key(|range| range.start);
    let others = between(
        copies.iter().map(|copy| copy.at..copy.at + copy.length),
        new_size,
    );
    let (older, newer) = std::thread::scope(|scope| {
        let older = scope.spawn(|| cut(base, &between(taken.into_iter(), base_size)));
        (older.join(), cut(new, &others))
    });
    let older = older.unwrap_or_else(|_| Err(io::Error::other("comparing broke off")))?;
    let mut found: HashMap<u64, Cut> = HashMap::with_capacity(older.len());
    for piece in older {
        found.entry(piece.key).or_insert(piece);
    }
    let mut pieces = copies;
    pieces.extend(found_again(base, new, newer?, &found)?);
    pieces.sort_by_key(|piece| piece.at);
    let mut pieces = joined(pieces);
    stretch(base, new, &mut pieces)?;
    Ok(joined(pieces))
}

/// What ranges, which are in order, leave of a file.
fn between(ranges: impl Iterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = 0;
    for range in ranges.chain(std::iter::once(size..size)) {
        if range.start > at {
            left.push(at..range.start);
        }
        at = at.max(range.end);
    }
    left
}

/// The cuts as pieces: copies, where the older bundle has the same bytes.
fn found_again(
    base: &File,
    new: &File,
    cuts: Vec<Cut>,
    found: &HashMap<u64, Cut>,
) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::with_capacity(cuts.len());
    let (mut one, mut other) = (vec![0; LONGEST as usize], vec![0; LONGEST as usize]);
    for cut in cuts {
        let from = match found.get(&cut.key) {
            Some(twin) if twin.length == cut.length => {
                let (one, other) = (&mut one[..cut.length], &mut other[..cut.length]);
                base.read_exact_at(one, twin.offset)?;
                new.read_exact_at(other, cut.offset)?;
                (one == other).then_some(twin.offset)
            }
            _ => None,
        };
        pieces.push(Piece {
            at: cut.offset,
            length: cut.length as u64,
            from,
        });
    }
    Ok(pieces)
}

/// Pieces in which neighbours that go on where the one before ends are one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let goes_on = |last: &Piece| match (last.from, piece.from) {
            (Some(from), Some(next)) => from + last.length == next,
            (None, None) => true,
            _ => false,
        };
        match joined.last_mut().filter(|last| goes_on(last)) {
            Some(last) => last.length += piece.length,
            None => joined.push(piece),
        }
    }
    joined
}

/// Stretches copies into what lies between them, as far as the bytes are the same: a change seldom begins where a piece does.
fn stretch(base: &File, new: &File, pieces: &mut Vec<Piece>) -> io::Result<()> {
    let base_size = base.metadata()?.len();
    for at in 0..pieces.len() {
        if pieces[at].from.is_some() {
            continue;
        }
        // Pieces that are not copies have been joined: both neighbours are, where there are any.
        if at > 0
            && let Some(from) = pieces[at - 1].from
        {
            let ends = from + pieces[at - 1].length;
            let most = pieces[at].length.min(base_size - ends);
            let same = same_from(base, ends, new, pieces[at].at, most)?;
            pieces[at - 1].length += same;
            pieces[at].at += same;
            pieces[at].length -= same;
        }
        if let Some(from) = pieces.get(at + 1).and_then(|next| next.from) {
            let most = pieces[at].length.min(from);
            let end = pieces[at].at + pieces[at].length;
            let same = same_before(base, from, new, end, most)?;
            pieces[at].length -= same;
            let next = &mut pieces[at + 1];
            next.at -= same;
            next.length += same;
            next.from = Some(from - same);
        }
    }
    pieces.retain(|piece| piece.length > 0);
    Ok(())
}

/// How many bytes are the same from these places on, `most` at most.
fn same_from(base: &File, from: u64, new: &File, at: u64, most: u64) -> io::Result<u64> {
    let (mut one, mut other) = ([0; STEP], [0; STEP]);
    let mut same = 0;
    while same < most {
        let length = STEP.min(usize::try_from(most - same).unwrap_or(STEP));
        base.read_exact_at(&mut one[..length], from + same)?;
        new.read_exact_at(&mut other[..length], at + same)?;
        let differs = (0..length).find(|place| one[*place] != other[*place]);
        same += differs.unwrap_or(length) as u64;
        if differs.is_some() {
            break;
        }
    }
    Ok(same)
}

/// How many bytes are the same before these places, `most` at most.
fn same_before(base: &File, from: u64, new: &File, at: u64, most: u64) -> io::Result<u64> {
    let (mut one, mut other) = ([0; STEP], [0; STEP]);
    let mut same = 0;
    while same < most {
        let length = STEP.min(usize::try_from(most - same).unwrap_or(STEP));
        let before = same + length as u64;
        base.read_exact_at(&mut one[..length], from - before)?;
        new.read_exact_at(&mut other[..length], at - before)?;
        let differs = (0..length).rev().find(|place| one[*place] != other[*place]);
        same += differs.map_or(length, |place| length - 1 - place) as u64;
        if differs.is_some() {
            break;
        }
    }
    Ok(same)
}

/// Where a file is cut.
struct Cut {
    /// Two pieces with the same one are compared before one is taken for the other.
    key: u64,
    offset: u64,
    length: usize,
}

/// Cuts these ranges of a file where their content says so.
fn cut(file: &File, ranges: &[Range<u64>]) -> io::Result<Vec<Cut>> {
    let mut cuts = Vec::new();
    for range in ranges {
        let length = range.end - range.start;
        let bytes = At {
            file,
            offset: range.start,
        };
        if length <= u64::from(SHORTEST) {
            let mut data = vec![0; length as usize];
            file.read_exact_at(&mut data, range.start)?;
            cuts.push(Cut {
                key: key(0, &data),
                offset: range.start,
                length: data.len(),
            });
            continue;
        }
        for piece in StreamCDC::new(bytes.take(length), SHORTEST, USUAL, LONGEST) {
            let piece = piece?;
            cuts.push(Cut {
                key: key(piece.hash, &piece.data),
                offset: range.start + piece.offset,
                length: piece.data.len(),
            });
        }
    }
    Ok(cuts)
}

/// Reads a file from a place on, wherever others read it.
struct At<'f> {
    file: &'f File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// What a piece is known by: how it ends, which is what it was cut by, its length, and a few of its bytes.
fn key(end: u64, data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(end);
    hasher.write_usize(data.len());
    for place in [0, data.len() / 3, data.len() / 3 * 2] {
        hasher.write(&data[place..data.len().min(place + 16)]);
    }
    hasher.finish()
}

fn end_of(base: &File, size: u64) -> io::Result<Vec<u8>> {
    let length = size.min(KNOWN_END);
    let mut end = vec![0; length as usize];
    base.read_exact_at(&mut end, size - length)?;
    Ok(end)
}

/// Writes to `out` what `delta` makes of `base`; `size` bytes in all, or fewer where it fails. Gives their number.
///
/// # Errors
/// `InvalidData` where the delta is none, is of another `base`, or makes something of another size; else what reading and
/// writing say.
pub fn apply(
    mut delta: impl Read,
    base: &File,
    size: u64,
    out: &mut impl Write,
) -> io::Result<u64> {
    let base_size = base.metadata()?.len();
    if read_array::<4>(&mut delta)? != MAGIC {
        return Err(wrong("it is no delta"));
    }
    if u64::from_le_bytes(read_array(&mut delta)?) != base_size {
        return Err(wrong("it is of another bundle"));
    }
    if u64::from_le_bytes(read_array(&mut delta)?) != size {
        return Err(wrong("it makes a bundle of another size"));
    }
    let known = end_of(base, base_size)?;
    let mut decoder = zstd::stream::Decoder::with_ref_prefix(BufReader::new(delta), &known)?;
    decoder.window_log_max(WINDOW)?;
    let mut pieces = BufReader::with_capacity(PART, decoder);
    let mut buffer = vec![0; PART];
    let mut written = 0_u64;
    loop {
        match read_array::<1>(&mut pieces)?[0] {
            LITERAL => {
                let length = u64::from(u32::from_le_bytes(read_array(&mut pieces)?));
                written = more(written, length, size)?;
                let copied = io::copy(&mut (&mut pieces).take(length), out).map_err(of_delta)?;
                if copied != length {
                    return Err(wrong("it breaks off"));
                }
            }
            COPY => {
                let offset = u64::from_le_bytes(read_array(&mut pieces)?);
                let length = u64::from_le_bytes(read_array(&mut pieces)?);
                written = more(written, length, size)?;
                let ends = offset.checked_add(length).filter(|end| *end <= base_size);
                let ends =
                    ends.ok_or_else(|| wrong("it copies what the other bundle does not have"))?;
                let mut at = offset;
                while at < ends {
                    let part = &mut buffer[..PART.min(usize::try_from(ends - at).unwrap_or(PART))];
                    base.read_exact_at(part, at)?;
                    out.write_all(part)?;
                    at += part.len() as u64;
                }
            }
            END if written == size => return Ok(written),
            _ => return Err(wrong("it breaks off")),
        }
    }
}

/// The bytes so far with `length` more, of `size` at most.
fn more(written: u64, length: u64, size: u64) -> io::Result<u64> {
    let after = written.checked_add(length).filter(|after| *after <= size);
    after.ok_or_else(|| wrong("it makes more than it says"))
}

fn read_array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut array = [0; N];
    from.read_exact(&mut array).map_err(of_delta)?;
    Ok(array)
}

/// What reading a delta says: what does not come of the system comes of the delta.
fn of_delta(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => wrong("it breaks off"),
        _ if error.raw_os_error().is_none() => wrong("it is damaged"),
        _ => error,
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the delta is of no use: {why}"),
    )
}
