//! How much an environment takes at once, and how often its requests are sent again, at each proxy.

use serde::{Deserialize, Serialize};

/// How many requests may be in flight, and how many wait for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// To all instances together; any where 0.
    #[serde(default)]
    pub all: u32,
    /// To one instance; any where 0.
    #[serde(default)]
    pub each: u32,
    /// How many more wait until one is over; others get a 503 at once.
    #[serde(default)]
    pub pending: u32,
    /// How long each waits at most, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

impl Capacity {
    /// Whether there is anything to look at.
    pub fn limits_any(&self) -> bool {
        self.all > 0 || self.each > 0
    }
}

/// How many requests may be sent to a second instance, so that a failure is not multiplied by attempts to get
/// around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// Per cent of the requests of the last 10 s.
    pub percent: u8,
    /// And so many a second besides, which is for environments with few requests.
    pub per_second: u32,
    /// GET, HEAD and OPTIONS without a body are sent again also where an instance answered with 502 to 504, or
    /// broke off before it answered.
    #[serde(default)]
    pub failed: bool,
}

impl Default for Retries {
    /// As Linkerd has it.
    fn default() -> Self {
        Self {
            percent: 20,
            per_second: 10,
            failed: false,
        }
    }
}
