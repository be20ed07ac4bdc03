//! Keys: parts joined so that their order is the order of the parts.

/// Joins parts with a NUL between them. Text parts must not hold NUL; numbers go in as
/// [`number`]. An empty last part makes the prefix of all keys below the parts before it.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&0)
}

/// A number as eight bytes that sort as it does. Only as the last part of a key: it may hold NUL.
pub fn number(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// The smallest key that comes after every key beginning with `prefix`; none if there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}
