use super::*;
use proptest::prelude::*;
use std::io::{Cursor, Seek, SeekFrom};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.seek(SeekFrom::Start(0)).expect("at its beginning");
    file
}

/// Bytes that zstd can do nothing about.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn applied(delta: &[u8], base: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    apply(Cursor::new(delta), &file(base), size, &mut out)?;
    Ok(out)
}

fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(name, SimpleFileOptions::default())
            .expect("an entry");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("a ZIP").into_inner()
}

#[test]
fn of_a_bundle_with_many_files_only_what_changed_travels() {
    let files = |changed: u64| -> Vec<(String, Vec<u8>)> {
        let content = |n: u64| {
            noise(
                if n == 500 { n + changed } else { n },
                2_000 + (n as usize % 7) * 300,
            )
        };
        let mut all: Vec<_> = (0..1_000)
            .map(|n| (format!("src/{n}.bin"), content(n)))
            .collect();
        if changed > 0 {
            all.insert(0, ("a-new-one".to_owned(), noise(9_999, 1_000)));
        }
        all
    };
    let (base, new) = (zip(&files(0)), zip(&files(1)));
    let delta = make(&file(&base), &file(&new))
        .expect("readable")
        .expect("worth it");
    // A changed file, a new one, and where 1,000 entries are by now.
    assert!(delta.len() < 20_000, "{} of {}", delta.len(), new.len());
    assert_eq!(
        applied(&delta, &base, new.len() as u64).expect("applied"),
        new
    );
}

#[test]
fn entries_are_found_wherever_they_went_and_whatever_lies_before_them() {
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|n| (format!("{n}.bin"), noise(n, 50_000)))
        .collect();
    let turned: Vec<(String, Vec<u8>)> = files
        .iter()
        .rev()
        .map(|(name, bytes)| (format!("moved/{name}"), bytes.clone()))
        .collect();
    let base = zip(&files);
    // As one that unpacks itself is.
    let new = [noise(77, 500), zip(&turned)].concat();
    let delta = make(&file(&base), &file(&new))
        .expect("readable")
        .expect("worth it");
    assert!(delta.len() < 4_000, "{}", delta.len());
    assert_eq!(
        applied(&delta, &base, new.len() as u64).expect("applied"),
        new
    );
}

#[test]
fn a_directory_that_lies_is_found_out_by_the_digest_and_no_sooner() {
    let base = zip(&[("a".to_owned(), noise(1, 50_000))]);
    let mut new = base.clone();
    // A byte of the entry, whose CRC stays.
    new[20_000] ^= 1;
    let delta = make(&file(&base), &file(&new)).expect("readable");
    let made = applied(&delta.expect("worth it"), &base, new.len() as u64).expect("applied");
    assert_eq!(made, base, "of the right length, and not the new one");
}

#[test]
fn within_a_large_entry_only_the_changed_piece_travels() {
    let base = noise(1, 4 << 20);
    let mut new = base.clone();
    new.splice(2_000_000..2_000_010, *b"a few bytes more");
    let delta = make(&file(&base), &file(&new))
        .expect("readable")
        .expect("worth it");
    assert!(delta.len() < 1_000, "{}", delta.len());
    assert_eq!(
        applied(&delta, &base, new.len() as u64).expect("applied"),
        new
    );
}

#[test]
fn what_has_nothing_in_common_is_not_worth_a_delta() {
    let delta = make(&file(&noise(1, 1 << 20)), &file(&noise(2, 1 << 20)));
    assert_eq!(delta.expect("readable"), None);
}

#[test]
fn what_is_no_delta_of_this_bundle_is_told_and_makes_nothing_more_than_it_says() {
    let (base, new) = (
        noise(1, 100_000),
        [noise(1, 90_000), b"end".repeat(9)].concat(),
    );
    let delta = make(&file(&base), &file(&new))
        .expect("readable")
        .expect("worth it");
    let size = new.len() as u64;
    for (delta, base, size, says) in [
        (&b"no"[..], &base[..], size, "breaks off"),
        (b"PK\x03\x04 and more than that", &base, size, "no delta"),
        (&delta, &base[1..], size, "of another bundle"),
        (&delta, &base, size + 1, "of another size"),
        (&delta[..delta.len() - 4], &base, size, "breaks off"),
    ] {
        let error = applied(delta, base, size).expect_err(says);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_was_changed_the_very_bytes_come_out(
        seed in 0_u64..9, length in 0_usize..300_000, cuts in prop::collection::vec((0_usize..300_000, 0_usize..40_000, 0_usize..9_000), 0..5)
    ) {
        let base = noise(seed, length);
        let mut new = base.clone();
        for (at, gone, more) in cuts {
            let at = at.min(new.len());
            let end = (at + gone).min(new.len());
            new.splice(at..end, noise(seed + 7, more));
        }
        if let Some(delta) = make(&file(&base), &file(&new)).expect("readable") {
            prop_assert_eq!(applied(&delta, &base, new.len() as u64).expect("applied"), new);
        }
    }

    #[test]
    fn a_damaged_delta_never_makes_more_than_its_size(at in 0_usize..3_000, with in 0_u8..255, cut in 0_usize..3_000) {
        let (base, new) = (noise(1, 60_000), [noise(3, 500), noise(1, 50_000), noise(2, 2_000)].concat());
        let mut delta = make(&file(&base), &file(&new)).expect("readable").expect("worth it");
        let place = at % delta.len();
        delta[place] ^= with;
        delta.truncate(delta.len() - cut.min(delta.len()));
        let mut out = Vec::new();
        let _ = apply(Cursor::new(&delta), &file(&base), new.len() as u64, &mut out);
        prop_assert!(out.len() <= new.len());
    }
}
