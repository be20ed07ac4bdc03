//! Honest bundles and hostile ones.

use super::*;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use zip::write::{SimpleFileOptions, ZipWriter};

struct Bundle(ZipWriter<Cursor<Vec<u8>>>);

impl Bundle {
    fn new() -> Self {
        Self(ZipWriter::new(Cursor::new(Vec::new())))
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.with_mode(name, content, 0o644)
    }

    fn with_mode(mut self, name: &str, content: &[u8], mode: u32) -> Self {
        let options = SimpleFileOptions::default().unix_permissions(mode);
        self.0.start_file(name, options).expect("start");
        self.0.write_all(content).expect("write");
        self
    }

    fn link(mut self, name: &str, target: &str) -> Self {
        self.0
            .add_symlink(name, target, SimpleFileOptions::default())
            .expect("link");
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.finish().expect("finish").into_inner()
    }
}

/// Replaces a name everywhere by another of the same length, as an attacker's tool would write it.
fn renamed(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

/// Changes the Unix mode of the only entry, in the directory of the ZIP.
fn with_raw_mode(mut bytes: Vec<u8>, mode: u32) -> Vec<u8> {
    let at = bytes
        .windows(4)
        .position(|window| window == b"PK\x01\x02")
        .expect("directory");
    bytes[at + 38..at + 42].copy_from_slice(&(mode << 16).to_le_bytes());
    bytes
}

fn try_unpack(bytes: &[u8], limits: &UnpackLimits) -> (tempfile::TempDir, Result<Unpacked, Fault>) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let bundle = directory.path().join("bundle.zip");
    fs::write(&bundle, bytes).expect("write");
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).expect("make");
    let outcome = unpack(&bundle, &tree, limits, |_| Ok(()), &AtomicBool::new(false));
    (directory, outcome)
}

fn refusal(bytes: &[u8]) -> Fault {
    refusal_within(bytes, &UnpackLimits::default())
}

fn refusal_within(bytes: &[u8], limits: &UnpackLimits) -> Fault {
    let (directory, outcome) = try_unpack(bytes, limits);
    let fault = outcome.expect_err("must be refused");
    assert!(!Path::new("/tmp/beanpole-evil").exists());
    let written = fs::read_dir(directory.path().join("tree")).expect("list");
    if fault.0.code == "bundle-unsafe" && !fault.0.message.contains("link") {
        assert_eq!(
            written.count(),
            0,
            "a refused bundle leaves nothing: {fault}"
        );
    }
    fault
}

#[test]
fn an_honest_bundle_comes_out_as_it_went_in() {
    let mut bundle = Bundle::new();
    for number in 0..300 {
        bundle = bundle.file(&format!("src/deep/{number}.txt"), &[b'x'; 3000]);
    }
    let bytes = bundle
        .with_mode("bin/run", b"#!/bin/sh\n", 0o4700)
        .file("./dotted/a", b"a")
        .link("current", "src/deep")
        .link("src/up", "../bin/run")
        .bytes();
    let (directory, outcome) = try_unpack(&bytes, &UnpackLimits::default());
    assert_eq!(outcome.expect("unpacks").files, 302);
    let tree = directory.path().join("tree");
    assert_eq!(
        fs::read(tree.join("current/299.txt")).expect("read").len(),
        3000
    );
    assert_eq!(fs::read(tree.join("src/up")).expect("read"), b"#!/bin/sh\n");
    let mode = |name: &str| {
        fs::metadata(tree.join(name))
            .expect(name)
            .permissions()
            .mode()
    };
    assert_eq!(mode("bin/run") & 0o7777, 0o755);
    assert_eq!(mode("src/deep/0.txt") & 0o7777, 0o644);
}

#[test]
fn names_that_lead_out_are_refused() {
    let long_part = "x".repeat(256);
    for (name, why) in [
        ("/tmp/beanpole-evil", "absolute path"),
        ("../beanpole-evil", "`..`"),
        ("a/../../evil", "`..`"),
        ("a\\..\\evil", "backslash"),
        ("nul\0name", "NUL"),
        ("clear\u{1b}[2J", "control character"),
        ("two\nlines", "control character"),
        (long_part.as_str(), "more than 255 bytes"),
    ] {
        let plain = "q".repeat(name.len());
        let bytes = Bundle::new().file(&plain, b"x").bytes();
        let fault = refusal(&renamed(bytes, plain.as_bytes(), name.as_bytes()));
        assert_eq!(fault.0.code, "bundle-unsafe", "{name:?}: {fault}");
        assert!(fault.0.message.contains(why), "{name:?}: {fault}");
    }
    let long = "n".repeat(2000);
    assert!(
        refusal(&Bundle::new().file(&long, b"x").bytes())
            .0
            .message
            .contains("2000 bytes")
    );
}

#[test]
fn links_that_lead_out_are_refused() {
    let bundles = vec![
        Bundle::new().link("evil", "/etc/passwd"),
        Bundle::new().link("evil", "../../etc/passwd"),
        Bundle::new().file("a/b/c", b"").link("evil", "a/../../x"),
        Bundle::new().link("here", ".").link("evil", "here/../x"),
        Bundle::new()
            .file("a/b/c", b"")
            .link("deep", "a/b")
            .link("evil", "deep/../../../x"),
    ];
    for bundle in bundles {
        let fault = refusal(&bundle.bytes());
        assert!(fault.0.message.contains("leaves the bundle"), "{fault}");
        assert!(fault.0.message.contains("`evil`"), "{fault}");
    }
}

#[test]
fn a_link_cannot_be_written_through() {
    let fault = refusal(&Bundle::new().link("out", "dir").file("out/x", b"x").bytes());
    assert!(fault.0.message.contains("not a directory"), "{fault}");
    let clash = Bundle::new().file("a", b"x").file("a/b", b"x").bytes();
    assert!(refusal(&clash).0.message.contains("not a directory"));
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000] {
        let bytes = Bundle::new().file("dev", b"").bytes();
        let fault = refusal(&with_raw_mode(bytes, kind | 0o644));
        assert!(fault.0.message.contains("neither a file"), "{fault}");
    }
}

#[test]
fn two_entries_of_one_name_are_refused() {
    let bytes = Bundle::new().file("aaaa", b"1").file("bbbb", b"2").bytes();
    let fault = refusal(&renamed(bytes, b"bbbb", b"aaaa"));
    assert_eq!(fault.0.code, "bundle-unsafe", "{fault}");
    assert!(fault.0.message.contains("`aaaa` is there twice"), "{fault}");
    let bytes = Bundle::new().file("ccccc", b"1").file("bbb", b"2").bytes();
    let bytes = renamed(renamed(bytes, b"ccccc", b"x/./a"), b"bbb", b"x/a");
    let fault = refusal(&bytes);
    assert!(fault.0.message.contains("same path"), "{fault}");
}

#[test]
fn bombs_are_refused() {
    let zeros = vec![0; 8 << 20];
    let fault = refusal(&Bundle::new().file("bomb", &zeros).bytes());
    assert!(fault.0.message.contains("more than 200 times"), "{fault}");
    let limits = UnpackLimits {
        entries: 3,
        total_bytes: 100,
        ..UnpackLimits::default()
    };
    let many = (0..4).fold(Bundle::new(), |b, n| b.file(&n.to_string(), b"x"));
    assert!(
        refusal_within(&many.bytes(), &limits)
            .0
            .message
            .contains("4 entries")
    );
    let large = Bundle::new().file("large", &[1; 101]);
    assert!(
        refusal_within(&large.bytes(), &limits)
            .0
            .message
            .contains("100 bytes allowed")
    );
}

#[test]
fn what_is_no_zip_is_damaged() {
    assert_eq!(refusal(b"hello").0.code, "bundle-damaged");
    assert_eq!(refusal(&Bundle::new().bytes()).0.code, "bundle-damaged");
    let bytes = Bundle::new().file("a", &[7; 5000]).bytes();
    assert_eq!(refusal(&bytes[..bytes.len() / 2]).0.code, "bundle-damaged");
    let noise: Vec<u8> = (0..5000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut bytes = Bundle::new().file("a", &noise).bytes();
    bytes[100] ^= 0xff;
    assert_eq!(refusal(&bytes).0.code, "bundle-damaged");
}

#[test]
fn an_encrypted_entry_is_refused() {
    let mut bytes = Bundle::new().file("secret", b"x").bytes();
    for signature in [&b"PK\x03\x04"[..], &b"PK\x01\x02"[..]] {
        let at = bytes
            .windows(4)
            .position(|w| w == signature)
            .expect("header");
        let flags = if signature[2] == 3 { at + 6 } else { at + 8 };
        bytes[flags] |= 1;
    }
    assert!(refusal(&bytes).0.message.contains("encrypted"));
}

#[test]
fn a_full_disk_is_found_before_anything_is_written() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let bundle = directory.path().join("bundle.zip");
    fs::write(&bundle, Bundle::new().file("a", b"12345").bytes()).expect("write");
    let full = |bytes| Err(Fault::new("disk-full", format!("{bytes} bytes")));
    let outcome = unpack(
        &bundle,
        directory.path(),
        &UnpackLimits::default(),
        full,
        &AtomicBool::new(false),
    );
    assert_eq!(outcome.expect_err("full").0.message, "5 bytes");
}
