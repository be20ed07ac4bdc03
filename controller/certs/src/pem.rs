//! Blocks of PEM in a text, as they stand there.

/// A block: its label (`CERTIFICATE`) and its lines, markers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    pub(crate) text: &'a str,
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
        let marker = format!("-----END {label}-----");
        let Some(end) = block.find(&marker) else {
            rest = &block[BEGIN.len()..];
            continue;
        };
        let end = end + marker.len();
        found.push(Block {
            label,
            text: &block[..end],
        });
        rest = &block[end..];
    }
    found
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
        assert!(blocks("-----BEGIN A-----\ntorn").is_empty());
    }
}
