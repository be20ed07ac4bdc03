//! Blocks of PEM in a text, as they stand there.

/// A block: its label (`CERTIFICATE`) and its lines, markers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    pub(crate) text: &'a str,
    /// Whether it has its end; else it is cut short.
    pub(crate) is_whole: bool,
}

/// The blocks of `text`, in their order. What stands between them is left out.
pub(crate) fn blocks(text: &str) -> Vec<Block<'_>> {
    const BEGIN: &str = "-----BEGIN ";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let block = &rest[start..];
        let label = block[BEGIN.len()..]
            .split("-----")
            .next()
            .unwrap_or_default();
        // What begins before this one has ended was cut short.
        let next = block[BEGIN.len()..].find(BEGIN);
        let next = next.map_or(block.len(), |next| BEGIN.len() + next);
        let marker = format!("-----END {label}-----");
        let end = block[..next].find(&marker);
        let (end, is_whole) = match end {
            Some(end) => (end + marker.len(), true),
            None => (next, false),
        };
        found.push(Block {
            label,
            text: &block[..end],
            is_whole,
        });
        rest = &block[end..];
    }
    found
}

/// How many bytes of a SEQUENCE in DER (X.690, section 8.1.3) are missing, and how many it has when it is whole; none where
/// none are, and where it does not say.
pub(crate) fn missing(der: &[u8]) -> Option<(usize, usize)> {
    const SEQUENCE: u8 = 0x30;
    let first = *der.get(1).filter(|_| der[0] == SEQUENCE)?;
    let (header, content) = if first & 0x80 == 0 {
        (2, usize::from(first))
    } else {
        let count = usize::from(first & 0x7f);
        let digits = der.get(2..2 + count).filter(|digits| digits.len() <= 4)?;
        let length = digits
            .iter()
            .fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte));
        (2 + count, usize::try_from(length).ok()?)
    };
    let whole = header.checked_add(content)?;
    let missing = whole.checked_sub(der.len())?;
    (missing > 0).then_some((missing, whole))
}

/// Whether a label is that of a private key.
pub(crate) fn is_key(label: &str) -> bool {
    label.ends_with("PRIVATE KEY")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_between_comments() {
        let text = "# mine\n-----BEGIN A-----\nx\n-----END A-----\nnote\n-----BEGIN B KEY-----\ny\n-----END B KEY-----";
        let found = blocks(text);
        let labels: Vec<_> = found.iter().map(|block| block.label).collect();
        assert_eq!(labels, ["A", "B KEY"]);
        assert_eq!(found[0].text, "-----BEGIN A-----\nx\n-----END A-----");
        assert!(found.iter().all(|block| block.is_whole));
    }

    #[test]
    fn a_block_without_its_end_is_cut_short() {
        let text = "-----BEGIN A-----\nx\n-----BEGIN A-----\ny\n-----END A-----\n-----BEGIN B-----\nz\n-----END";
        let found = blocks(text);
        let whole: Vec<_> = found.iter().map(|block| block.is_whole).collect();
        assert_eq!(whole, [false, true, false]);
        assert_eq!(found[1].text, "-----BEGIN A-----\ny\n-----END A-----");
    }

    #[test]
    fn what_is_missing_of_a_value_is_known_by_its_length() {
        assert_eq!(missing(&[0x30, 2, 1, 1]), None);
        assert_eq!(missing(&[0x30, 3, 1]), Some((2, 5)));
        assert_eq!(missing(&[0x30, 0x82, 1, 0, 9]), Some((255, 260)));
        for odd in [
            &[][..],
            &[0x30],
            &[0x30, 0x82, 1],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[2, 9, 1],
        ] {
            assert_eq!(missing(odd), None, "{odd:?}");
        }
    }
}
