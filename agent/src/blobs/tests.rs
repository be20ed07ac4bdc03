use super::*;
use futures::stream;
use std::convert::Infallible;

fn blobs(reserve: u64) -> (tempfile::TempDir, Blobs) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let blobs = Blobs::open(directory.path().join("blobs"), reserve).expect("open");
    (directory, blobs)
}

fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
    let chunks: Vec<_> = bytes
        .chunks(7000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    stream::iter(chunks)
}

fn content() -> (Vec<u8>, Digest) {
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::new(digest_of_bytes(&bytes)).expect("digest");
    (bytes, digest)
}

/// The bytes with some more in their midst, their digest, and the delta that leads there.
async fn changed(blobs: &Blobs) -> (Digest, Vec<u8>, Digest, Vec<u8>) {
    let (base, base_digest) = content();
    let size = base.len() as u64;
    let whole = blobs.append(&base_digest, 0, size, body(&base)).await;
    assert!(whole.expect("room").complete);
    let mut new = base;
    new.splice(700_000..700_000, *b"something new");
    let digest = Digest::new(digest_of_bytes(&new)).expect("digest");
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &new).expect("written");
    let base = File::open(blobs.path(&base_digest)).expect("there");
    let delta = beanpole_bundle::delta::make(&base, &file);
    let delta = delta.expect("readable").expect("worth it");
    (base_digest, new, digest, delta)
}

#[tokio::test]
async fn a_blob_is_made_of_another_one_and_what_it_lacks() {
    let (_directory, blobs) = blobs(0);
    let (base, new, digest, delta) = changed(&blobs).await;
    let made = blobs.make(&digest, &base, new.len() as u64, body(&delta));
    assert!(made.await.expect("made").complete);
    assert_eq!(fs::read(blobs.path(&digest)).expect("read"), new);
    assert_eq!(
        fs::read_dir(&blobs.directory).expect("list").count(),
        2,
        "nothing is left beside"
    );
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing_and_says_why() {
    let (_directory, blobs) = blobs(0);
    let (base, new, digest, delta) = changed(&blobs).await;
    let size = new.len() as u64;
    let cut = &delta[..delta.len() / 2];
    let refused = blobs
        .make(&digest, &base, size, body(cut))
        .await
        .expect_err("cut");
    assert_eq!(refused.code, "delta-of-no-use");
    let none = Digest::new("0".repeat(64)).expect("digest");
    let refused = blobs
        .make(&digest, &none, size, body(&delta))
        .await
        .expect_err("none");
    assert_eq!(refused.status, 404);
    // A disk that forgot: as long as before, and not the same.
    let path = blobs.path(&base);
    let length = fs::metadata(&path).expect("there").len();
    fs::write(&path, vec![0; length as usize]).expect("written");
    let refused = blobs
        .make(&digest, &base, size, body(&delta))
        .await
        .expect_err("damaged");
    assert!(
        ["digest-mismatch", "delta-of-no-use"].contains(&refused.code.as_str()),
        "{refused:?}"
    );
    assert_eq!(blobs.status(&digest).have, 0, "all of it can be sent");
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let (_directory, blobs) = blobs(0);
    let (bytes, digest) = content();
    let size = bytes.len() as u64;
    let cut = stream::iter([
        Ok(Bytes::copy_from_slice(&bytes[..600_000])),
        Err("connection reset"),
    ]);
    let problem = blobs
        .append(&digest, 0, size, cut)
        .await
        .expect_err("broken");
    assert_eq!(problem.code, "body-broken");
    assert_eq!(blobs.status(&digest).have, 600_000);
    let problem = blobs
        .append(&digest, 0, size, body(&bytes))
        .await
        .expect_err("wrong offset");
    assert_eq!(problem.code, "wrong-offset");
    let status = blobs
        .append(&digest, 600_000, size, body(&bytes[600_000..]))
        .await
        .expect("the rest");
    assert!(status.complete);
    assert_eq!(fs::read(blobs.path(&digest)).expect("read"), bytes);
}

#[tokio::test]
async fn wrong_content_is_dropped() {
    let (_directory, blobs) = blobs(0);
    let (mut bytes, digest) = content();
    bytes[1000] ^= 1;
    let size = bytes.len() as u64;
    let problem = blobs
        .append(&digest, 0, size, body(&bytes))
        .await
        .expect_err("mismatch");
    assert_eq!((problem.status, &*problem.code), (422, "digest-mismatch"));
    assert_eq!(blobs.status(&digest).have, 0);
}

#[tokio::test]
async fn a_blob_that_went_bad_is_asked_for_again() {
    let (_directory, blobs) = blobs(0);
    let (bytes, digest) = content();
    let size = bytes.len() as u64;
    let sent = blobs.append(&digest, 0, size, body(&bytes)).await;
    assert!(sent.expect("all of it").complete);
    assert!(!blobs.remove_damaged(&digest).expect("read"), "it is well");
    assert!(blobs.status(&digest).complete);
    let mut bad = bytes.clone();
    bad[1000] ^= 1;
    fs::write(blobs.path(&digest), bad).expect("damage");
    assert!(blobs.remove_damaged(&digest).expect("read"));
    assert_eq!(blobs.status(&digest).have, 0);
    let sent = blobs.append(&digest, 0, size, body(&bytes)).await;
    assert!(sent.expect("again").complete);
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_numbers() {
    let (_directory, blobs) = blobs(u64::MAX / 2);
    let (bytes, digest) = content();
    let problem = blobs
        .append(&digest, 0, bytes.len() as u64, body(&bytes))
        .await
        .expect_err("full");
    assert_eq!((problem.status, &*problem.code), (507, "disk-full"));
    assert!(problem.detail.contains("1500000 are needed"), "{problem}");
}

#[tokio::test]
async fn what_no_order_names_is_swept_only_when_old() {
    let (_directory, blobs) = blobs(0);
    let (bytes, digest) = content();
    blobs
        .append(&digest, 0, bytes.len() as u64, body(&bytes))
        .await
        .expect("append");
    assert_eq!(blobs.sweep(&BTreeSet::new()).expect("sweep"), 0);
    let old = std::time::SystemTime::now() - 2 * GRACE;
    File::options()
        .write(true)
        .open(blobs.path(&digest))
        .and_then(|file| file.set_modified(old))
        .expect("age");
    let used = BTreeSet::from([digest.clone()]);
    assert_eq!(blobs.sweep(&used).expect("sweep"), 0);
    assert_eq!(blobs.sweep(&BTreeSet::new()).expect("sweep"), 1);
    assert!(!blobs.status(&digest).complete);
}
