//! Where real daemons get the time and random bits from. What decides takes both as arguments, so
//! that a simulation can own them.

use beanpole_protocol::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time now, by the system's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// 128 random bits, from the operating system by way of a user-space generator.
pub fn random_bits() -> u128 {
    rand::random()
}
