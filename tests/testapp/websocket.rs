//! The server's side of a WebSocket (RFC 6455), as little as an echo needs: short frames, no
//! fragments, no extensions.

use std::io::{self, Read, Write};

/// Appended to a client's key, so that nobody accepts a WebSocket by accident.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The frame that ends a WebSocket.
const CLOSE: u8 = 8;

/// The answer that accepts a client's key.
pub fn accepted(key: &str) -> String {
    let accept = base64(&sha1(format!("{key}{GUID}").as_bytes()));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Sends every frame back until the client closes or leaves.
pub fn echo(mut reader: impl Read, mut writer: impl Write) -> io::Result<()> {
    loop {
        let mut head = [0; 2];
        reader.read_exact(&mut head)?;
        let length = head[1] & 0x7f;
        if head[1] & 0x80 == 0 || length > 125 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut mask = [0; 4];
        reader.read_exact(&mut mask)?;
        let mut frame = vec![0; usize::from(length)];
        reader.read_exact(&mut frame)?;
        for (byte, key) in frame.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
        let mut back = vec![head[0], length];
        back.extend(frame);
        writer.write_all(&back)?;
        if head[0] & 0x0f == CLOSE {
            return Ok(());
        }
    }
}

#[expect(clippy::many_single_char_names, reason = "the letters of RFC 3174")]
fn sha1(text: &[u8]) -> [u8; 20] {
    let mut padded = text.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((text.len() as u64 * 8).to_be_bytes());
    let mut state = [
        0x6745_2301_u32,
        0xefcd_ab89,
        0x98ba_dcfe,
        0x1032_5476,
        0xc3d2_e1f0,
    ];
    for block in padded.chunks(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks(4)) {
            *word = bytes
                .iter()
                .fold(0, |all, byte| all << 8 | u32::from(*byte));
        }
        for at in 16..80 {
            let mixed = words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16];
            words[at] = mixed.rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (chosen, constant) = match at / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(chosen)
                .wrapping_add(e)
                .wrapping_add(constant)
                .wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |all, at| {
            all << 8 | u32::from(part.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let digit = (bits >> (18 - 6 * at)) & 0x3f;
            text.push(if at <= part.len() {
                char::from(DIGITS[digit as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_key_is_accepted_as_the_rfc_says() {
        let answer = super::accepted("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(answer.contains("Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }
}
