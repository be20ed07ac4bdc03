//! Secrets at rest: sealed with a key that lies beside the records, never within them.
//!
//! A sealed text is `v1:KEY:NONCE:DATA`: which key opens it (the start of its SHA-256), the nonce and the
//! ciphertext with its tag, in hexadecimal. ChaCha20-Poly1305 with random nonces: far fewer texts are sealed
//! with one key than would make two of the same nonce likely. What a text is for is authenticated with it, so
//! that nobody who can write records can have one secret taken for another.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a key's digest that name it in what it has sealed.
const NAME_BYTES: usize = 4;
const VERSION: &str = "v1";

/// Why a sealed text is not readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another key sealed it.
    #[error("it was sealed with another key than the one that is here")]
    OtherKey,
    /// It is not what was sealed.
    #[error("it is damaged")]
    Damaged,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoChance,
}

/// What seals and opens secrets.
pub struct SealingKey {
    key: LessSafeKey,
    name: String,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealingKey").field(&self.name).finish()
    }
}

impl SealingKey {
    /// A new key as the text that [`SealingKey::from_text`] reads.
    pub fn generate() -> Result<String, SealError> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| SealError::NoChance)?;
        Ok(hex::encode(bytes))
    }

    /// Reads a key; none if the text is none.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = hex::decode(text.trim()).ok()?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            name: hex::encode(&digest(&SHA256, &bytes).as_ref()[..NAME_BYTES]),
        })
    }

    /// Seals a secret. `what` it is has to be said again to open it.
    pub fn seal(&self, what: &str, secret: &str) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| SealError::NoChance)?;
        let mut data = secret.as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(what.as_bytes()),
                &mut data,
            )
            .map_err(|_| SealError::NoChance)?;
        let (nonce, data) = (hex::encode(nonce), hex::encode(data));
        Ok(format!("{VERSION}:{}:{nonce}:{data}", self.name))
    }

    /// Opens what [`SealingKey::seal`] sealed as the same thing.
    pub fn open(&self, what: &str, sealed: &str) -> Result<String, SealError> {
        let mut parts = sealed.split(':');
        let (Some(VERSION), Some(name), Some(nonce), Some(data), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(SealError::Damaged);
        };
        if name != self.name {
            return Err(SealError::OtherKey);
        }
        let nonce = hex::decode(nonce)
            .ok()
            .and_then(|nonce| Nonce::try_assume_unique_for_key(&nonce).ok())
            .ok_or(SealError::Damaged)?;
        let mut data = hex::decode(data).map_err(|_| SealError::Damaged)?;
        let secret = self
            .key
            .open_in_place(nonce, Aad::from(what.as_bytes()), &mut data)
            .map_err(|_| SealError::Damaged)?;
        String::from_utf8(secret.to_vec()).map_err(|_| SealError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SealingKey {
        let text = SealingKey::generate().expect("random bytes");
        SealingKey::from_text(&format!("{text}\n")).expect("a key")
    }

    #[test]
    fn what_is_sealed_opens_as_the_same_thing_with_the_same_key_alone() {
        let key = key();
        let sealed = key.seal("certificate shop", "secret").expect("sealed");
        assert!(!sealed.contains("secret"));
        assert_eq!(
            key.open("certificate shop", &sealed).as_deref(),
            Ok("secret")
        );
        assert_eq!(
            key.open("certificate web", &sealed),
            Err(SealError::Damaged)
        );
        assert_eq!(
            self::key().open("certificate shop", &sealed),
            Err(SealError::OtherKey)
        );
        let again = key.seal("certificate shop", "secret").expect("sealed");
        assert_ne!(sealed, again, "another nonce each time");
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let key = key();
        let sealed = key.seal("x", "secret").expect("sealed");
        let mut other = sealed.clone();
        let last = if other.ends_with('0') { '1' } else { '0' };
        other.pop();
        other.push(last);
        for wrong in [
            other.as_str(),
            "",
            "v1:a",
            "v2:a:b:c",
            &format!("{sealed}:"),
        ] {
            assert_eq!(key.open("x", wrong), Err(SealError::Damaged), "{wrong}");
        }
    }

    #[test]
    fn a_text_that_is_no_key_is_none() {
        for wrong in ["", "00", "zz", &"0".repeat(63)] {
            assert!(SealingKey::from_text(wrong).is_none(), "{wrong:?}");
        }
    }
}
