//! What a client of HTTP/2 may ask for without taking it: frames that are quick to send and are work here, counted as
//! they come. Whoever goes on and on is told to be calm, and the connection ends.
//!
//! `h2` bounds what has no end (heads in pieces, empty data, requests taken back before anybody saw them), but not
//! requests that are taken back once they are at an app (CVE-2023-44487), nor what is merely answered: PING, SETTINGS.

use std::time::Instant;

/// The length of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// What a client sends before its first frame.
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

/// Requests that may be taken back: as many as a browser has under way when its user leaves two pages at once, and
/// then some every second.
const TAKEN_BACK: Limit = Limit {
    at_once: 200,
    per_second: 20,
};
/// Other frames that carry nothing. Clients measure the way by PING with whatever they read.
const IDLE: Limit = Limit {
    at_once: 2_000,
    per_second: 500,
};

/// How many there may be.
struct Limit {
    at_once: u32,
    per_second: u32,
}

/// How many of a kind may still come.
#[derive(Debug)]
struct Left {
    left: u32,
    since: Instant,
}

impl Left {
    fn new(limit: &Limit, now: Instant) -> Self {
        Self {
            left: limit.at_once,
            since: now,
        }
    }

    /// Counts one; false where that is too many. The clock is asked only when none is left.
    fn take(&mut self, limit: &Limit) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let ms = now.saturating_duration_since(self.since).as_millis();
            let more = ms * u128::from(limit.per_second) / 1_000;
            self.left = u32::try_from(more).unwrap_or(u32::MAX).min(limit.at_once);
            self.since = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        true
    }
}

/// Where frames begin and end in what one side sends.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD],
    /// How much of the head has come.
    have: usize,
    /// How much is still to come before the next one.
    skip: usize,
}

impl Frames {
    /// Follows the next bytes; `each` sees the heads. It stops where that says so.
    fn follow(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8; HEAD], usize) -> bool,
    ) -> bool {
        while !bytes.is_empty() {
            let here = self.skip.min(bytes.len());
            self.skip -= here;
            bytes = &bytes[here..];
            let here = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + here].copy_from_slice(&bytes[..here]);
            self.have += here;
            bytes = &bytes[here..];
            if self.have == HEAD {
                let [a, b, c, ..] = self.head;
                self.have = 0;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                if !each(&self.head, self.skip) {
                    return false;
                }
            }
        }
        true
    }

    /// Whether a frame may begin here.
    fn is_between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }
}

/// Looks at the frames of one connection.
#[derive(Debug)]
pub struct Calm {
    came: Frames,
    went: Frames,
    taken_back: Left,
    idle: Left,
    /// The newest request.
    last: [u8; 4],
    is_over: bool,
}

impl Calm {
    /// Nothing has come.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            came: Frames {
                skip: PREFACE,
                ..Frames::default()
            },
            went: Frames::default(),
            taken_back: Left::new(&TAKEN_BACK, now),
            idle: Left::new(&IDLE, now),
            last: [0; 4],
            is_over: false,
        }
    }

    /// Whether too much has come.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Looks at bytes that came; false where they are too much.
    pub fn takes(&mut self, bytes: &[u8]) -> bool {
        let Self {
            came,
            taken_back,
            idle,
            last,
            ..
        } = self;
        let fine = came.follow(bytes, |head, length| {
            let (kind, flags) = (head[3], head[4]);
            match kind {
                HEADERS => {
                    last.copy_from_slice(&head[5..]);
                    true
                }
                RST_STREAM => taken_back.take(&TAKEN_BACK),
                // It is the way to ask for more of an answer, and clients send many.
                WINDOW_UPDATE => true,
                DATA if length > 0 || flags & END_STREAM != 0 => true,
                _ => idle.take(&IDLE),
            }
        });
        self.is_over |= !fine;
        fine
    }

    /// Looks at bytes that were sent.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.went.follow(bytes, |_, _| true);
    }

    /// What the client is told, where it can be.
    pub fn goodbye(&self) -> Option<Vec<u8>> {
        const ENHANCE_YOUR_CALM: u32 = 11;
        if !self.went.is_between() {
            return None;
        }
        let payload = [&self.last[..], &ENHANCE_YOUR_CALM.to_be_bytes()].concat();
        let head = [0, 0, payload.len() as u8, GOAWAY, 0, 0, 0, 0, 0];
        Some([&head[..], &payload].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 7];
        [&head[..], payload].concat()
    }

    fn begun() -> Calm {
        let mut calm = Calm::new();
        assert!(calm.takes(&[0; PREFACE]));
        calm
    }

    #[test]
    fn frames_are_counted_in_whatever_pieces_they_come() {
        const CANCEL: [u8; 4] = [0, 0, 0, 8];
        let all = [frame(HEADERS, 5, b"head"), frame(RST_STREAM, 0, &CANCEL)].concat();
        let all = all.repeat(TAKEN_BACK.at_once as usize);
        for piece in [1, 2, 7, 9, 1_000, all.len()] {
            let mut calm = begun();
            for bytes in all.chunks(piece) {
                assert!(calm.takes(bytes));
            }
            assert!(!calm.takes(&frame(RST_STREAM, 0, &CANCEL)), "{piece}");
            assert!(calm.is_over());
            let told = calm.goodbye().expect("nothing was sent");
            assert_eq!(told, frame_at_zero(&[0, 0, 0, 7, 0, 0, 0, 11]));
        }
    }

    fn frame_at_zero(payload: &[u8]) -> Vec<u8> {
        let mut frame = frame(GOAWAY, 0, payload);
        frame[8] = 0;
        frame
    }

    #[test]
    fn what_carries_something_or_asks_for_more_is_not_counted() {
        let mut calm = begun();
        let fine = [
            frame(DATA, 0, b"x"),
            frame(DATA, END_STREAM, b""),
            frame(WINDOW_UPDATE, 0, &[0, 0, 1, 0]),
            frame(HEADERS, 5, b"head"),
        ];
        for _ in 0..50_000 {
            assert!(fine.iter().all(|one| calm.takes(one)));
        }
        for empty in [frame(DATA, 0, b""), frame(6, 0, &[0; 8]), frame(99, 0, b"")] {
            let mut calm = begun();
            let came = (0..100_000).take_while(|_| calm.takes(&empty)).count();
            assert!((2_000..10_000).contains(&came), "{came}");
        }
    }

    #[test]
    fn nothing_is_said_in_the_middle_of_a_frame() {
        let mut calm = begun();
        let data = frame(DATA, 0, b"some");
        calm.sent(&data[..11]);
        assert_eq!(calm.goodbye(), None);
        calm.sent(&data[11..]);
        assert!(calm.goodbye().is_some());
    }

    #[test]
    fn after_a_while_there_may_be_more() {
        let limit = Limit {
            at_once: 2,
            per_second: 1_000,
        };
        let mut left = Left::new(&limit, Instant::now());
        assert!(left.take(&limit) && left.take(&limit));
        left.since -= std::time::Duration::from_secs(1);
        assert!(left.take(&limit) && left.take(&limit));
    }
}
