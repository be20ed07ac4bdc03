//! What a container says: the Engine sends frames of eight bytes of head (1 for output, 2 for errors; the length) and
//! what was written (Engine API, "ContainerAttach").

use bytes::{Buf, BytesMut};

/// Frames that come in pieces.
#[derive(Default)]
pub(super) struct Frames {
    waiting: BytesMut,
    /// Bytes of the frame under way, and whether it is of errors.
    left: usize,
    errors: bool,
}

impl Frames {
    /// Takes a piece; `write` gets what is whole: whether it is of errors, and the bytes.
    pub(super) fn push(&mut self, piece: &[u8], mut write: impl FnMut(bool, &[u8])) {
        self.waiting.extend_from_slice(piece);
        loop {
            if self.left == 0 {
                let Some(head) = self.waiting.get(..8) else {
                    return;
                };
                self.errors = head[0] == 2;
                self.left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
                self.waiting.advance(8);
                continue;
            }
            let ready = self.left.min(self.waiting.len());
            if ready == 0 {
                return;
            }
            write(self.errors, &self.waiting[..ready]);
            self.waiting.advance(ready);
            self.left -= ready;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_however_they_are_cut() {
        let bytes = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x05error";
        for size in 1..bytes.len() {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut frames = Frames::default();
            for piece in bytes.chunks(size) {
                frames.push(piece, |errors, text| {
                    let to = if errors { &mut err } else { &mut out };
                    to.extend_from_slice(text);
                });
            }
            assert_eq!((&out[..], &err[..]), (&b"one"[..], &b"error"[..]), "{size}");
        }
    }
}
