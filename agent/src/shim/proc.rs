//! The little that is needed from `/proc`, read without the cost of a full parser.

use std::fs;

/// Part of `/proc/PID/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `Z` and `X` are dead.
    pub state: u8,
    /// The parent's process id.
    pub parent: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Of a process; none if there is none.
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name, in parentheses, may hold anything, so fields are counted from its end.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.get(text.rfind(')')? + 2..)?.split(' ');
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            start: fields.nth(17)?.parse().ok()?,
        })
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

/// Every process id there is now.
pub(crate) fn all() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a process lives and has `mark`, a variable with its value, in its environment.
pub(crate) fn carries(pid: i32, mark: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|text| text.split(|byte| *byte == 0).any(|v| v == mark.as_bytes()))
        && Stat::of(pid).is_some_and(Stat::alive)
}

/// Every living descendant of `ancestor`.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    let parents: Vec<(i32, Stat)> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, Stat::of(pid)?)))
        .collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        found.extend(
            parents
                .iter()
                .filter(|(_, stat)| stat.parent == parent)
                .map(|(pid, _)| *pid),
        );
    }
    found.retain(|pid| {
        *pid != ancestor
            && parents
                .iter()
                .any(|(other, stat)| other == pid && stat.alive())
    });
    found
}

/// Changes at every boot, so that process ids of an earlier one are not mistaken for living ones.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_confuse() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let stat = Stat::parse(text).expect("stat");
        assert_eq!((stat.state, stat.parent, stat.start), (b'S', 7, 12_345));
    }
}
