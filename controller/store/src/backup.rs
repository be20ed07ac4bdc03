//! Backups: everything in one checksummed stream, and the way back.
//!
//! ```text
//! {"beanpole_backup":1,"schema":1,"created_at":"…","bundles":true}
//! {"table":"applications","key":"73686f70","value":{…}}                one line per record
//! {"bundle":"<sha256>","size":N}                                      followed by N raw bytes and a line feed
//! {"end":true,"records":R,"bundles":B,"sha256":"<of all bytes before this line>"}
//! ```
//!
//! Records come from one moment; bundles never change, so that reading them afterwards does no harm.
//! A torn or changed backup is found out before anything is replaced: the last line is missing or its
//! digest differs.
//!
//! After a restore the generations of orders and tables are 0, as of what was never given out: agents and
//! proxies may have seen later ones, and are given nothing before they have said what they hold. The
//! numbers of events leap ahead: whoever follows them may have seen later ones, and would wait for what
//! comes after those.

use crate::backend::Write as Change;
use crate::backend::sled::Sled;
use crate::blobs::{BlobError, BlobWriter, Blobs, digest_of};
use crate::lock::Lock;
use crate::migrate::{META, SCHEMA_KEY};
use crate::model::RestoredRecord;
use crate::store::{
    COUNTERS, EVENTS, JSON, Record as _, Store, full_key, private_directory, remove_tree,
};
use crate::{SCHEMA, StoreError, recover};
use beanpole_protocol::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The format of the stream.
const FORMAT: u64 = 1;
/// Records restored in one batch.
const BATCH: usize = 256;
/// The longest line that is read, in bytes. Far above any record.
const LONGEST_LINE: u64 = 256 * 1024 * 1024;
/// How far the numbers of events leap in a restore.
const LEAP: u64 = 1 << 20;
/// Automatic backups that are kept.
const AUTOMATIC_KEPT: usize = 24;
/// Where a restore is while it is read.
pub(crate) const RESTORING: &str = "restoring";
/// Pieces in which bundles are copied, in bytes.
const PIECE: usize = 256 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    beanpole_backup: u64,
    schema: u64,
    created_at: String,
    bundles: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Footer {
    end: bool,
    records: u64,
    bundles: u64,
    sha256: Digest,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Record {
        table: String,
        key: String,
        value: Value,
    },
    Bundle {
        bundle: Digest,
        size: u64,
    },
    Footer(Footer),
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Bundles.
    pub bundles: u64,
}

fn broken(why: impl std::fmt::Display) -> StoreError {
    StoreError::Backup(why.to_string())
}

/// Whether a file begins as backups do, whole or not.
pub fn begins_as_one(path: &Path) -> io::Result<bool> {
    const BEGINNING: &[u8] = br#"{"beanpole_backup":"#;
    let mut start = Vec::new();
    File::open(path)?
        .take(BEGINNING.len() as u64)
        .read_to_end(&mut start)?;
    Ok(start == BEGINNING)
}

/// Hashes and counts what goes through.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes all records and bundles to `out` while the store is in use. Writers wait only while the
/// records are copied to a temporary file.
pub fn write(store: &Store, blobs: &Blobs, out: &mut dyn Write) -> Result<Summary, StoreError> {
    write_some(store, Some(blobs), out)
}

fn write_some(
    store: &Store,
    blobs: Option<&Blobs>,
    out: &mut dyn Write,
) -> Result<Summary, StoreError> {
    let failed = |error: io::Error| broken(format!("it could not be written: {error}"));
    // No bundle that these records refer to may go before it is copied.
    let _hold = blobs.map(Blobs::hold);
    let (mut spool, schema, records) = spool(store)?;
    let mut out = Hashing {
        inner: BufWriter::new(out),
        hash: Sha256::new(),
    };
    let header = Header {
        beanpole_backup: FORMAT,
        schema,
        created_at: jiff::Timestamp::now().to_string(),
        bundles: blobs.is_some(),
    };
    line(&mut out, &header).map_err(failed)?;
    io::copy(&mut spool, &mut out).map_err(failed)?;
    let mut bundles = 0;
    if let Some(blobs) = blobs {
        for (digest, size) in blobs.list().map_err(broken)? {
            // Removed by hand.
            let Some(mut reader) = blobs.reader(&digest).map_err(broken)? else {
                continue;
            };
            line(
                &mut out,
                &serde_json::json!({"bundle": digest, "size": size}),
            )
            .map_err(failed)?;
            let copied = io::copy(&mut reader, &mut out).map_err(failed)?;
            if copied != size {
                return Err(broken(format!("the stored bundle {digest} is damaged")));
            }
            out.write_all(b"\n").map_err(failed)?;
            bundles += 1;
        }
    }
    let footer = Footer {
        end: true,
        records,
        bundles,
        sha256: digest_of(out.hash.clone()),
    };
    line(&mut out, &footer).map_err(failed)?;
    out.flush().map_err(failed)?;
    Ok(Summary { records, bundles })
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    out.write_all(&text)
}

/// All records of one moment, as lines, in an unnamed file (or in memory for a store there).
fn spool(store: &Store) -> Result<(Box<dyn Read>, u64, u64), StoreError> {
    let failed = |error: io::Error| broken(format!("the records could not be copied: {error}"));
    let mut schema = SCHEMA;
    let mut records = 0;
    let mut copy = |out: &mut dyn Write| {
        let _writers = store.hold_writers();
        store.visit(|full, value| {
            let (table, key) = split(full)?;
            let Some((&JSON, json)) = value.split_first() else {
                return Err(broken(format!(
                    "a record of `{table}` has an unknown format"
                )));
            };
            if table == META && key == SCHEMA_KEY {
                schema = serde_json::from_slice(json).map_err(broken)?;
                return Ok(());
            }
            records += 1;
            let head = format!(
                r#"{{"table":"{table}","key":"{}","value":"#,
                hex::encode(key)
            );
            out.write_all(head.as_bytes())
                .and_then(|()| out.write_all(json))
                .and_then(|()| out.write_all(b"}\n"))
                .map_err(failed)
        })
    };
    let spool: Box<dyn Read> = match store.dir() {
        None => {
            let mut lines = Vec::new();
            copy(&mut lines)?;
            Box::new(io::Cursor::new(lines))
        }
        Some(dir) => {
            let path = dir.join(format!(
                "spool-{:?}-{}",
                std::thread::current().id(),
                jiff::Timestamp::now().as_nanosecond()
            ));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            fs::remove_file(&path).map_err(failed)?;
            let mut out = BufWriter::new(file);
            copy(&mut out)?;
            let mut file = out
                .into_inner()
                .map_err(|error| failed(error.into_error()))?;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            Box::new(file)
        }
    };
    Ok((spool, schema, records))
}

fn split(full: &[u8]) -> Result<(&str, &[u8]), StoreError> {
    let end = full.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| broken("there is a key without a table"))?;
    let table = std::str::from_utf8(&full[..end]).map_err(broken)?;
    Ok((table, &full[end + 1..]))
}

/// Writes an automatic backup of the records (without bundles) into the store's own directory and
/// removes the oldest ones beyond a bounded number. `reason` is part of its name: `hourly`.
pub fn automatic(store: &Store, reason: &str) -> Result<PathBuf, StoreError> {
    let store_dir = store
        .dir()
        .ok_or_else(|| broken("a store in memory has no place for it"))?;
    let dir = store_dir.join("backups");
    fs::create_dir_all(&dir).map_err(|error| StoreError::io(&dir, error))?;
    // After all that are there, whatever the clock says now or said then: the newest is the last.
    let last = automatic_backups(store_dir)?
        .last()
        .map_or(0, |path| number(path));
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let at = now.max(last.saturating_add(1));
    let path = dir.join(format!("{at:014}-{reason}.backup"));
    let hidden = dir.join(format!(".{at:014}.tmp"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&hidden)
            .map_err(|error| StoreError::io(&hidden, error))?;
        write_some(store, None, &mut file)?;
        file.sync_all()
            .and_then(|()| fs::rename(&hidden, &path))
            .and_then(|()| File::open(&dir)?.sync_all())
            .map_err(|error| StoreError::io(&path, error))
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&hidden);
        return Err(error);
    }
    let all = automatic_backups(store_dir)?;
    for old in all.iter().rev().skip(AUTOMATIC_KEPT) {
        fs::remove_file(old).map_err(|error| StoreError::io(old, error))?;
    }
    Ok(path)
}

/// The automatic backups of the store in `dir`, oldest first.
pub fn automatic_backups(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let dir = dir.join("backups");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(&dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| StoreError::io(&dir, error))?.path();
        if path.extension().is_some_and(|end| end == "backup") {
            found.push(path);
        }
    }
    found.sort_by_cached_key(|path| (number(path), path.clone()));
    Ok(found)
}

/// The number by which an automatic backup is named: when it was written, in milliseconds, unless the
/// clock was set back since the one before.
fn number(path: &Path) -> u64 {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split('-').next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// Whether there are records in the store's directory that a restore would replace.
pub fn replaces_records(store_dir: &Path) -> bool {
    recover::database(store_dir).exists()
}

/// Reads a backup and puts it in the place of the store in `store_dir`; its bundles go to
/// `blobs_dir`, beside those that are there. It is read and verified in full first. The records that
/// it replaces are kept, in `before-restore-…` in the store's directory. Refused while another
/// process has the store open ([`StoreError::Locked`] says which).
pub fn restore(
    input: impl Read,
    store_dir: &Path,
    blobs_dir: &Path,
) -> Result<Summary, StoreError> {
    private_directory(store_dir)?;
    let _lock = Lock::take(store_dir)?;
    let database = store_dir.join(RESTORING);
    let incoming = blobs_dir.with_extension(RESTORING);
    let clean = || {
        remove_tree(&database)?;
        remove_tree(&store_dir.join(recover::MENDING))?;
        remove_tree(&incoming)
    };
    clean()?;
    let result = (|| {
        let blobs = Blobs::open(&incoming, u64::MAX).map_err(broken)?;
        let summary = read(input, &database, Some(&blobs))?;
        let target = Blobs::open(blobs_dir, u64::MAX).map_err(broken)?;
        for (digest, _) in blobs.list().map_err(broken)? {
            if target.size(&digest).map_err(broken)?.is_none() {
                adopt(&blobs, &target, &digest)?;
            }
        }
        let present = recover::database(store_dir);
        if present.exists() {
            let kept = store_dir.join(format!(
                "{}{}",
                recover::REPLACED,
                jiff::Timestamp::now().as_millisecond()
            ));
            fs::rename(&present, &kept).map_err(|error| StoreError::io(&present, error))?;
        }
        fs::rename(&database, &present)
            .and_then(|()| File::open(store_dir)?.sync_all())
            .map_err(|error| StoreError::io(&present, error))?;
        Ok(summary)
    })();
    clean()?;
    result
}

/// Removes what a process that was killed left half made: a backup, a restore, an attempt to mend.
/// The caller has the store open, so that nobody else is at it.
pub fn sweep(store: &Store, blobs_dir: &Path) -> Result<(), StoreError> {
    let Some(dir) = store.dir() else {
        return Ok(());
    };
    remove_tree(&dir.join(RESTORING))?;
    remove_tree(&dir.join(recover::MENDING))?;
    remove_tree(&blobs_dir.with_extension(RESTORING))?;
    for (dir, prefix, suffix) in [
        (dir.join("backups"), ".", ".tmp"),
        (dir.to_owned(), "spool-", ""),
    ] {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io(&dir, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| StoreError::io(&dir, error))?;
            let name = entry.file_name();
            let ours = name
                .to_str()
                .is_some_and(|name| name.starts_with(prefix) && name.ends_with(suffix));
            if ours {
                fs::remove_file(entry.path())
                    .map_err(|error| StoreError::io(&entry.path(), error))?;
            }
        }
    }
    Ok(())
}

/// Copies a blob, verified.
fn adopt(from: &Blobs, to: &Blobs, digest: &Digest) -> Result<(), StoreError> {
    let Some(mut reader) = from.reader(digest).map_err(broken)? else {
        return Ok(());
    };
    let mut writer = to.writer().map_err(broken)?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = reader.read(&mut piece).map_err(broken)?;
        if count == 0 {
            break;
        }
        writer.write(&piece[..count]).map_err(broken)?;
    }
    writer.finish(Some(digest)).map_err(broken)?;
    Ok(())
}

/// Reads a whole backup without keeping anything: is it whole?
pub fn verify(input: impl Read) -> Result<Summary, StoreError> {
    parse(input, |_, _, _| Ok(()), None)
}

fn read(input: impl Read, database: &Path, blobs: Option<&Blobs>) -> Result<Summary, StoreError> {
    use crate::backend::Backend;
    let sled = Sled::open(database)?;
    let mut batch = Vec::with_capacity(BATCH);
    let put = |table: &str, key: &[u8], mut value: Value| {
        as_restored(table, key, &mut value);
        let mut bytes = vec![JSON];
        serde_json::to_writer(&mut bytes, &value).map_err(broken)?;
        batch.push(Change {
            key: full_key(table, key),
            value: Some(bytes),
        });
        if batch.len() == BATCH {
            sled.commit(std::mem::take(&mut batch))?;
        }
        Ok(())
    };
    let summary = parse(input, put, blobs)?;
    sled.commit(batch)?;
    Ok(summary)
}

/// Takes the generations of orders and of the table back to nothing given out, and moves the number of
/// the last event ahead of any that was seen.
fn as_restored(table: &str, key: &[u8], value: &mut Value) {
    let (place, leaps) = match table {
        "host_orders" => ("/orders/generation", false),
        "routing_table" => ("/table/generation", false),
        COUNTERS if key == EVENTS.as_bytes() => ("", true),
        _ => return,
    };
    if let Some(number) = value.pointer_mut(place)
        && let Some(last) = number.as_u64()
    {
        *number = Value::from(if leaps { last.saturating_add(LEAP) } else { 0 });
    }
}

/// Reads a backup to its end and checks all of it. Records go to `put`, the schema among them,
/// bundles to `blobs`.
fn parse(
    input: impl Read,
    mut put: impl FnMut(&str, &[u8], Value) -> Result<(), StoreError>,
    blobs: Option<&Blobs>,
) -> Result<Summary, StoreError> {
    let mut input = Hashed {
        inner: BufReader::with_capacity(PIECE, input),
        hash: Sha256::new(),
    };
    let (text, _) = input.line()?;
    let header: Header = serde_json::from_slice(&text)
        .map_err(|_| broken("this is not a Beanpole backup (its first line is something else)"))?;
    if header.beanpole_backup != FORMAT {
        return Err(broken(format!(
            "its format is {}, and this version of Beanpole reads {FORMAT}",
            header.beanpole_backup
        )));
    }
    if header.schema > SCHEMA {
        return Err(StoreError::NewerSchema {
            found: header.schema,
            known: SCHEMA,
        });
    }
    put(META, SCHEMA_KEY, Value::from(header.schema))?;
    let restored = RestoredRecord {
        backup_of: header.created_at,
    };
    let value = serde_json::to_value(&restored).map_err(broken)?;
    put(RestoredRecord::TABLE, &restored.key(), value)?;
    let mut seen = Summary {
        records: 0,
        bundles: 0,
    };
    loop {
        let (text, before) = input.line()?;
        let parsed: Line = serde_json::from_slice(&text)
            .map_err(|error| broken(format!("line {} is damaged: {error}", seen.records + 2)))?;
        match parsed {
            Line::Record { table, key, value } => {
                let key = hex::decode(&key).map_err(broken)?;
                if table.is_empty() || table.contains('\0') {
                    return Err(broken("a record names no table"));
                }
                put(&table, &key, value)?;
                seen.records += 1;
            }
            Line::Bundle { bundle, size } => {
                let mut writer = blobs.map(Blobs::writer).transpose().map_err(broken)?;
                input.piece(size, &bundle, writer.as_mut())?;
                if let Some(writer) = writer {
                    writer.finish(Some(&bundle)).map_err(broken)?;
                }
                seen.bundles += 1;
            }
            Line::Footer(footer) => {
                let found = digest_of(before);
                if footer.sha256 != found {
                    return Err(broken("its checksum does not match: it was changed"));
                }
                if footer.records != seen.records || footer.bundles != seen.bundles {
                    return Err(broken("it does not hold what its last line says"));
                }
                return Ok(seen);
            }
        }
    }
}

struct Hashed<R> {
    inner: BufReader<R>,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    /// The next line, and the hash of everything before it.
    fn line(&mut self) -> Result<(Vec<u8>, Sha256), StoreError> {
        let before = self.hash.clone();
        let mut text = Vec::new();
        (&mut self.inner)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut text)
            .map_err(|error| broken(format!("it cannot be read: {error}")))?;
        self.hash.update(&text);
        if text.pop() != Some(b'\n') {
            return Err(broken("it is torn: its last line is missing"));
        }
        Ok((text, before))
    }

    fn piece(
        &mut self,
        size: u64,
        digest: &Digest,
        mut writer: Option<&mut BlobWriter<'_>>,
    ) -> Result<(), StoreError> {
        let torn = || broken(format!("it is torn within the bundle {digest}"));
        let mut left = size;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let most = usize::try_from(left.min(PIECE as u64)).unwrap_or(PIECE);
            let count = self.inner.read(&mut piece[..most]).map_err(broken)?;
            if count == 0 {
                return Err(torn());
            }
            self.hash.update(&piece[..count]);
            if let Some(writer) = writer.as_deref_mut() {
                writer.write(&piece[..count]).map_err(broken)?;
            }
            left -= count as u64;
        }
        let mut end = [0];
        self.inner.read_exact(&mut end).map_err(|_| torn())?;
        self.hash.update(end);
        if end != *b"\n" {
            return Err(torn());
        }
        Ok(())
    }
}

impl From<BlobError> for StoreError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Io { path, source } => Self::Io { path, source },
            other => Self::Backup(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
