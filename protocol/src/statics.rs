//! Static files: what of a release's bundle a proxy answers with itself.
//!
//! A table names sets of files, and a set names files by the digests of their content, so that a proxy is given what
//! it lacks and nothing twice. What is in a set follows from the bundle and the directories alone: it can be named
//! before anybody has looked into the bundle.

use crate::{Digest, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many files a release may have served.
pub const MOST_FILES: usize = 10_000;
/// How large they may be together, in bytes.
pub const MOST_BYTES: u64 = 1 << 30;
/// By which rules sets are made. Others would give the same set another content.
const RULES: &str = "static files, 1";

/// The static files of a release, as a table names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticFiles {
    /// Which release.
    pub release: ReleaseNumber,
    /// When it was made: no file of it is older to clients.
    pub since: Timestamp,
    /// The bundle that they are in.
    pub bundle: Digest,
    /// Its directories by the paths that URLs begin with ([`OptionSettings::static_files`]).
    ///
    /// [`OptionSettings::static_files`]: crate::options::OptionSettings::static_files
    pub paths: BTreeMap<String, String>,
    /// What the [`StaticSet`] that comes of it is called.
    pub set: Digest,
    /// No instance of the release is in service yet: a proxy gets the files in good time, and no client gets them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub coming: bool,
}

impl StaticFiles {
    /// Those of a release that is in service.
    pub fn new(
        release: ReleaseNumber,
        since: Timestamp,
        bundle: Digest,
        paths: BTreeMap<String, String>,
    ) -> Self {
        // No path and no directory has a NUL in it.
        let mut text = format!("{RULES}\0{bundle}");
        for (path, directory) in &paths {
            text.extend(["\0", path, "\0", directory]);
        }
        Self {
            release,
            since,
            bundle,
            paths,
            set: Digest::of(text.as_bytes()),
            coming: false,
        }
    }
}

/// Files by the paths of their URLs, on their way to a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticSet {
    /// Each path begins with `/` and is as it reads once it is decoded.
    pub files: BTreeMap<String, StaticFile>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticFile {
    /// The digest of its content.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: u64,
}

/// What stands before the content of a file on its way to a proxy: its digest in hexadecimal digits, and its size as
/// a number of 8 bytes, the highest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHead(pub StaticFile);

impl FileHead {
    /// How long it is, in bytes.
    pub const LENGTH: usize = 72;

    /// As it is sent.
    pub fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (digest, size) = bytes.split_at_mut(64);
        digest.copy_from_slice(self.0.digest.as_str().as_bytes());
        size.copy_from_slice(&self.0.size.to_be_bytes());
        bytes
    }

    /// The one that these bytes are.
    pub fn read(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let (digest, size) = bytes.split_at(64);
        Some(Self(StaticFile {
            digest: Digest::new(std::str::from_utf8(digest).ok()?).ok()?,
            size: u64::from_be_bytes(size.try_into().ok()?),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_called_by_its_bundle_and_its_directories() {
        let bundle = |text: &str| Digest::of(text.as_bytes());
        let of = |number, bundle: Digest, paths: &[(&str, &str)]| {
            let paths = paths.iter().map(|(a, b)| ((*a).into(), (*b).into()));
            StaticFiles::new(
                ReleaseNumber(number),
                Timestamp::EPOCH,
                bundle,
                paths.collect(),
            )
        };
        let one = of(1, bundle("a"), &[("/a", "b")]);
        assert_eq!(one.set, of(2, bundle("a"), &[("/a", "b")]).set);
        assert_ne!(one.set, of(1, bundle("b"), &[("/a", "b")]).set);
        assert_ne!(one.set, of(1, bundle("a"), &[("/a", "c")]).set);
        assert_ne!(one.set, of(1, bundle("a"), &[]).set);
        let text = serde_json::to_string(&one).expect("JSON");
        assert_eq!(serde_json::from_str::<StaticFiles>(&text).expect("it"), one);
    }

    #[test]
    fn a_head_says_which_file_follows() {
        let digest = Digest::of(b"");
        assert!(digest.as_str().starts_with("e3b0c44298fc1c14"));
        let head = FileHead(StaticFile { digest, size: 300 });
        assert_eq!(FileHead::read(&head.bytes()), Some(head));
        assert_eq!(FileHead::read(&[0; FileHead::LENGTH]), None);
    }
}
