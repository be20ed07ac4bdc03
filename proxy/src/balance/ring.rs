//! Consistent hashing: every target has many places on a ring, and a key belongs to whoever comes next. When a
//! target comes or goes, only keys that become its own, or were, move.

use fnv::FnvHasher;
use std::hash::Hasher;

/// Places of each target. Shares of keys then lie within a few per cent of each other (a standard deviation of
/// 7 %), and the ring of 200 targets takes a third of a megabyte.
const PLACES: u32 = 200;

/// Who is next to each key.
pub struct Ring {
    /// By their place, with the number of the target.
    places: Box<[(u32, u16)]>,
}

impl Ring {
    /// A ring of targets with these names, numbered as they come.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut places: Vec<(u32, u16)> = Vec::new();
        for (number, name) in (0..=u16::MAX).zip(names) {
            let own = hash_of(name.as_bytes());
            places.extend((0..PLACES).map(|place| {
                let hash = mix(own.wrapping_add(u64::from(place) << 32));
                ((hash >> 32) as u32, number)
            }));
        }
        places.sort_unstable();
        Self {
            places: places.into_boxed_slice(),
        }
    }

    /// The numbers of targets in the order in which they are to get `key`; each comes many times.
    pub fn after(&self, key: u64) -> impl Iterator<Item = usize> {
        let at = (key >> 32) as u32;
        let first = self.places.partition_point(|(place, _)| *place < at);
        let (before, after) = self.places.split_at(first);
        after
            .iter()
            .chain(before)
            .map(|(_, number)| usize::from(*number))
    }
}

/// A key of these bytes.
pub fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    mix(hasher.finish())
}

/// All bits of `number`, mixed (the last step of SplitMix64).
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 10_000;

    fn names(count: u32) -> Vec<String> {
        (0..count).map(|n| format!("i-{n:017x}")).collect()
    }

    /// The name that each of [`KEYS`] keys belongs to.
    fn owners(names: &[String]) -> Vec<&str> {
        let ring = Ring::new(names.iter().map(String::as_str));
        (0..KEYS)
            .map(|key| {
                let key = hash_of(format!("client-{key}").as_bytes());
                names[ring.after(key).next().expect("somebody")].as_str()
            })
            .collect()
    }

    #[test]
    fn of_ten_thousand_clients_only_those_of_a_target_that_goes_move() {
        let all = names(10);
        let mut fewer = all.clone();
        let gone = fewer.remove(3);
        let moved: Vec<_> = owners(&all)
            .into_iter()
            .zip(owners(&fewer))
            .filter(|(before, after)| before != after)
            .collect();
        assert!(moved.iter().all(|(before, _)| *before == gone));
        // A tenth would be 1,000.
        assert!((850..1_150).contains(&moved.len()), "{}", moved.len());
        // They are shared out among all others.
        for heir in &fewer {
            let share = moved.iter().filter(|(_, after)| after == heir).count();
            assert!((25..250).contains(&share), "{share} went to {heir}");
        }
    }

    #[test]
    fn every_target_has_about_the_same_share_of_the_keys() {
        for count in [2, 10, 50] {
            let names = names(count);
            let owners = owners(&names);
            let most = names
                .iter()
                .map(|name| owners.iter().filter(|owner| *owner == name).count())
                .max();
            let even = KEYS as usize / count as usize;
            assert!(
                most.is_some_and(|most| most < even * 13 / 10),
                "{most:?} of {even}"
            );
        }
    }
}
