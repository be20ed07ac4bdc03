//! HTTP/2 frame by frame, as no library would send them (RFC 9113).

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// Whoever asks too much is told so.
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long it is waited for a frame.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A frame of settings.
pub fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = all
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// Headers as literals without any table (RFC 7541, section 6.2.2).
pub fn block(headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

fn length(out: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 127;
    if length < PREFIX {
        out.push(length as u8);
        return;
    }
    out.push(PREFIX as u8);
    let mut rest = length - PREFIX;
    while rest >= 128 {
        out.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// The headers of a GET for a path.
pub fn get(path: &str) -> Vec<u8> {
    block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"app.localhost"),
        (b":path", path.as_bytes()),
    ])
}

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The status that a block of headers begins with.
    pub fn status(&self) -> Option<u16> {
        let first = *self.payload.first()?;
        // What the static table has of them (RFC 7541, appendix A).
        let known = [200, 204, 206, 304, 400, 404, 500];
        if let Some(at) = first.checked_sub(0x88)
            && let Some(status) = known.get(usize::from(at))
        {
            return Some(*status);
        }
        let text = self.payload.get(2..)?;
        let head = *self.payload.get(1)?;
        let text = text.get(..usize::from(head & 0x7f))?;
        if head & 0x80 == 0 {
            return std::str::from_utf8(text).ok()?.parse().ok();
        }
        // Digits in Huffman's code (appendix B): 0 to 2 have five bits, the others six.
        let mut bits = text
            .iter()
            .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        bits <<= 64 - 8 * text.len();
        let mut status = 0;
        for _ in 0..3 {
            let five = bits >> 59;
            let (digit, length) = if five < 3 {
                (five, 5)
            } else {
                ((bits >> 58) - 0b01_1001 + 3, 6)
            };
            status = status * 10 + digit as u16;
            bits <<= length;
        }
        Some(status)
    }

    /// The number at the beginning of its payload, or behind the first four bytes.
    pub fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Why the connection ends, if this says so.
    pub fn goes_away(&self) -> Option<u32> {
        (self.kind == GOAWAY).then(|| self.number(4)).flatten()
    }
}

/// A connection that has begun.
pub struct Talk<S> {
    pub io: S,
    bytes: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Begins with these settings.
    pub async fn begin(mut io: S, all: &[(u16, u32)]) -> Self {
        let begun = [PREFACE, &settings(all)].concat();
        io.write_all(&begun).await.expect("write");
        io.flush().await.expect("flush");
        Self::of(io)
    }

    /// One of which nothing was read yet.
    pub fn of(io: S) -> Self {
        Self {
            io,
            bytes: Vec::new(),
        }
    }

    /// Whether all of it was taken.
    pub async fn send(&mut self, frames: &[u8]) -> bool {
        self.io.write_all(frames).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// The next frame; none where the connection has ended, or nothing comes.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.bytes.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if self.bytes.len() >= 9 + length {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let (kind, flags) = (head[3], head[4]);
                    let payload = self.bytes[9..9 + length].to_vec();
                    self.bytes.drain(..9 + length);
                    return Some(Frame {
                        kind,
                        flags,
                        stream,
                        payload,
                    });
                }
            }
            let read = tokio::time::timeout(PATIENCE, self.io.read_buf(&mut self.bytes)).await;
            if !matches!(read, Ok(Ok(1..))) {
                return None;
            }
        }
    }

    /// The next frame that is about a stream, or ends the connection.
    pub async fn next_of(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.stream == stream && frame.kind != WINDOW_UPDATE && frame.kind != SETTINGS
                || frame.kind == GOAWAY
            {
                return Some(frame);
            }
        }
    }

    /// Why the connection ends, where it is told; it does end.
    pub async fn end(&mut self) -> Option<u32> {
        let mut why = None;
        while let Some(frame) = self.next().await {
            why = frame.goes_away().or(why);
        }
        why
    }
}
