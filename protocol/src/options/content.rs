//! What the load balancer does to answers, read from options.

use super::{OptionSettings, PROXY};
use crate::content::{Compression, Encoding, PoolContent};

/// `none`, or encodings by preference: `zstd,br,gzip`. None where it is neither.
pub(super) fn parse_encodings(value: &str) -> Option<Vec<Encoding>> {
    if value == "none" {
        return Some(Vec::new());
    }
    let mut encodings = Vec::new();
    for word in value.split(',') {
        let encoding = Encoding::ALL
            .into_iter()
            .find(|one| one.name() == word.trim())?;
        if encodings.contains(&encoding) {
            return None;
        }
        encodings.push(encoding);
    }
    Some(encodings)
}

impl OptionSettings {
    /// What is done to answers, as far as settings say it.
    pub fn pool_content(&self) -> PoolContent {
        PoolContent {
            compression: self.compression(),
            replaces_errors: self.flag(PROXY, "ReplaceErrors"),
            ..PoolContent::default()
        }
    }

    fn compression(&self) -> Option<Compression> {
        let encodings = parse_encodings(self.effective(PROXY, "Compression"))?;
        (!encodings.is_empty()).then(|| Compression {
            encodings,
            min_bytes: self.number(PROXY, "CompressionMinSize").unwrap_or(1024),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compressed_once_that_is_asked_for() {
        let mut settings = OptionSettings::default();
        assert!(settings.pool_content().is_nothing());
        settings.set(PROXY, "Compression", "br, gzip");
        settings.validate().expect("they are known");
        let compression = settings.pool_content().compression.expect("asked for");
        assert_eq!(compression.encodings, [Encoding::Br, Encoding::Gzip]);
        assert_eq!(compression.min_bytes, 1024);
        for wrong in ["", "deflate", "gzip,gzip", "gzip,", "none,gzip", "true"] {
            settings.set(PROXY, "Compression", wrong);
            assert!(settings.validate().is_err(), "{wrong}");
        }
    }
}
