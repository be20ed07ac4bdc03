//! Where a chunked body ends (RFC 9112, section 7.1), and where its content and its trailers are.

use std::ops::Range;

/// Longest line of a chunk's size with its extensions, and most bytes of trailers.
const LONGEST_LINE: usize = 16 * 1024;
const MOST_TRAILERS: usize = 64 * 1024;

/// How far a chunked body has come.
#[derive(Debug, Default)]
pub struct Chunked {
    at: At,
    /// Bytes left of the chunk, or the size as far as its digits have come.
    size: u64,
    /// Bytes of the line or of the trailers.
    line: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    FirstDigit,
    Digits,
    /// Behind the digits: nothing but blanks may stand there before an extension or the end of the line.
    Blank,
    /// Behind the semicolon.
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line of trailers; the empty one is the last.
    LineStart,
    /// In the name of a trailer.
    TrailerName,
    Trailer,
    TrailerEnd,
    LastLf,
    Over,
}

impl At {
    /// Whether the last chunk was before it.
    fn is_behind_chunks(self) -> bool {
        matches!(
            self,
            Self::LineStart | Self::TrailerName | Self::Trailer | Self::TrailerEnd | Self::LastLf
        )
    }
}

/// Whether a byte may be in no line (RFC 9110, section 5.5): readers differ in what they take it for.
fn is_control(byte: u8) -> bool {
    byte != b'\t' && byte.is_ascii_control()
}

/// Whether a byte may be in the name of a header (RFC 9110, section 5.6.2).
fn is_of_names(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What some bytes of a chunked body are.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Content.
    Content(Range<usize>),
    /// Of the section behind the last chunk: trailers, and the empty line at its end.
    Trailers(Range<usize>),
}

/// It is not a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl Chunked {
    /// Whether the body is over.
    pub fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// Takes the next bytes: how many of them belong to the body, and how many of these are its content.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, u64), Broken> {
        self.take_apart(bytes, |_| {})
    }

    /// The same; `each` sees what of them is not for the chunks alone.
    pub fn take_apart(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Part),
    ) -> Result<(usize, u64), Broken> {
        let mut next = 0;
        let mut content = 0;
        let mut trailers = None;
        while next < bytes.len() && self.at != At::Over {
            if self.at == At::Data {
                let here = self.size.min((bytes.len() - next) as u64);
                let begin = next;
                next += here as usize;
                each(Part::Content(begin..next));
                content += here;
                self.size -= here;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            if trailers.is_none() && self.at.is_behind_chunks() {
                trailers = Some(next);
            }
            self.step(bytes[next])?;
            next += 1;
        }
        if let Some(begin) = trailers {
            each(Part::Trailers(begin..next));
        }
        Ok((next, content))
    }

    fn step(&mut self, byte: u8) -> Result<(), Broken> {
        self.at = match (self.at, byte) {
            (At::FirstDigit | At::Digits, _) if byte.is_ascii_hexdigit() => {
                // More than sixteen digits are no length of anything.
                if self.size > u64::MAX >> 4 {
                    return Err(Broken);
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                self.size = (self.size << 4) | digit;
                self.longer(LONGEST_LINE)?;
                At::Digits
            }
            (At::Digits | At::Blank | At::Extension, b'\r') => At::SizeEnd,
            (At::Digits | At::Blank, b';') => At::Extension,
            (At::Digits | At::Blank, b' ' | b'\t') => {
                self.longer(LONGEST_LINE)?;
                At::Blank
            }
            (At::Extension, _) if !is_control(byte) => {
                self.longer(LONGEST_LINE)?;
                At::Extension
            }
            (At::SizeEnd, b'\n') => {
                self.line = 0;
                if self.size == 0 {
                    At::LineStart
                } else {
                    At::Data
                }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::FirstDigit,
            (At::LineStart, b'\r') => At::LastLf,
            (At::LastLf, b'\n') => At::Over,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerEnd, b'\n') => At::LineStart,
            (At::LineStart | At::TrailerName, _) if is_of_names(byte) => {
                self.longer(MOST_TRAILERS)?;
                At::TrailerName
            }
            (At::TrailerName, b':') => {
                self.longer(MOST_TRAILERS)?;
                At::Trailer
            }
            (At::Trailer, _) if !is_control(byte) => {
                self.longer(MOST_TRAILERS)?;
                At::Trailer
            }
            _ => return Err(Broken),
        };
        Ok(())
    }

    fn longer(&mut self, most: usize) -> Result<(), Broken> {
        self.line += 1;
        if self.line > most {
            Err(Broken)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left behind the body, and how much content it has, whatever the pieces.
    fn read(body: &[u8], piece: usize) -> Result<(usize, u64), Broken> {
        let mut chunked = Chunked::default();
        let (mut taken, mut content) = (0, 0);
        for bytes in body.chunks(piece) {
            let (here, found) = chunked.take(bytes)?;
            taken += here;
            content += found;
            if chunked.is_over() {
                break;
            }
        }
        assert!(chunked.is_over(), "not over: {chunked:?}");
        Ok((taken, content))
    }

    #[test]
    fn a_body_ends_where_it_ends_in_whatever_pieces_it_comes() {
        let bodies: [(&[u8], u64); 5] = [
            (b"0\r\n\r\n", 0),
            (b"5\r\nhello\r\n0\r\n\r\n", 5),
            (b"A;name=\"v\"\r\n0123456789\r\n1 \r\nx\r\n0\r\n\r\n", 11),
            (b"3\r\nabc\r\n0\r\nExpires: never\r\nX: y\r\n\r\n", 3),
            (b"0000000000000003\r\n\r\n\r\r\n0\r\n\r\n", 3),
        ];
        for (body, content) in bodies {
            let mut more = body.to_vec();
            more.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            for piece in 1..=more.len() {
                assert_eq!(read(&more, piece), Ok((body.len(), content)));
            }
        }
    }

    #[test]
    fn content_and_trailers_are_told_apart_in_whatever_pieces_they_come() {
        let body = b"4;a=b\r\nfine\r\n2\r\n!!\r\n0;x\r\nX: y\r\nZ:\r\n\r\n";
        for piece in 1..=body.len() {
            let mut chunked = Chunked::default();
            let (mut content, mut trailers) = (Vec::new(), Vec::new());
            for bytes in body.chunks(piece) {
                let taken = chunked.take_apart(bytes, |part| match part {
                    Part::Content(range) => content.extend_from_slice(&bytes[range]),
                    Part::Trailers(range) => trailers.extend_from_slice(&bytes[range]),
                });
                assert!(taken.is_ok());
            }
            assert_eq!(content, b"fine!!");
            assert_eq!(trailers, b"X: y\r\nZ:\r\n\r\n");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_no_body() {
        let bodies: [&[u8]; 14] = [
            b"\r\n",
            b"5 0\r\nhello\r\n",
            b"5 \t0x\r\nhello\r\n",
            b";\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n",
            b"10000000000000000\r\n",
            b"0\r\nX: y\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
            b"0\r\nX: y\r\n z\r\n\r\n",
        ];
        for body in bodies {
            let mut chunked = Chunked::default();
            assert_eq!(chunked.take(body), Err(Broken), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn lines_without_an_end_are_given_up() {
        let mut size = Chunked::default();
        let zeros = vec![b'0'; LONGEST_LINE + 1];
        assert_eq!(size.take(&zeros), Err(Broken));
        let mut trailers = Chunked::default();
        assert!(trailers.take(b"0\r\n").is_ok());
        let line = b"X: y\r\n".repeat(MOST_TRAILERS / 3);
        assert_eq!(trailers.take(&line), Err(Broken));
    }
}
