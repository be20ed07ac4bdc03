//! How instances are replaced when settings change that one that runs cannot take on (EB guide,
//! "using-features.rollingupdates").

use super::kind::parse_bool;
use super::{OptionSettings, UPDATE};

/// How instances are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// All at once, in place: the service is interrupted.
    Disabled,
    /// Batch after batch: new ones are started and get well, then old ones leave.
    Rolling {
        /// Instances of a batch, at least 1.
        batch: u32,
        /// Instances that have to serve at any time.
        in_service: u32,
        /// How long new ones have to run without a restart before old ones leave, in milliseconds.
        pause_ms: u64,
        /// How long new ones have to get well, in milliseconds; absent for as long as any others.
        timeout_ms: Option<u64>,
    },
    /// A whole new set beside the old one, then one change of routes.
    Immutable,
}

impl OptionSettings {
    /// How the instances of an environment of `size` are replaced.
    pub fn replacement(&self, size: u32) -> Replacement {
        let kind = self.effective(UPDATE, "RollingUpdateType");
        if kind == "Immutable" {
            return Replacement::Immutable;
        }
        let number = |name| {
            let value: Option<u32> = self.get(UPDATE, name)?.parse().ok();
            value
        };
        let (batch, in_service) = (number("MaxBatchSize"), number("MinInstancesInService"));
        let pause = self
            .get(UPDATE, "PauseTime")
            .filter(|text| !text.is_empty());
        // Setting one of these turns it on.
        let is_on = batch.is_some() || in_service.is_some() || pause.is_some();
        let asked = self.effective(UPDATE, "RollingUpdateEnabled");
        if !is_on && parse_bool(asked) == Some(false) {
            return Replacement::Disabled;
        }
        let by_time = kind == "Time";
        Replacement::Rolling {
            batch: batch
                .unwrap_or_else(|| size.div_ceil(3))
                .clamp(1, size.max(1)),
            in_service: in_service.unwrap_or(0),
            pause_ms: pause
                .filter(|_| by_time)
                .and_then(parse_duration)
                .unwrap_or(0),
            timeout_ms: self.get(UPDATE, "Timeout").and_then(parse_duration),
        }
    }
}

/// Reads an ISO 8601 duration such as `PT5M` or `PT1H30M`, in milliseconds.
pub(super) fn parse_duration(text: &str) -> Option<u64> {
    let duration: jiff::SignedDuration = text.parse().ok()?;
    let is_iso = text.starts_with('P');
    u64::try_from(duration.as_millis()).ok().filter(|_| is_iso)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_instances_changes_together_unless_told_otherwise() {
        let mut settings = OptionSettings::default();
        let rolling = |batch, in_service, pause_ms, timeout_ms| Replacement::Rolling {
            batch,
            in_service,
            pause_ms,
            timeout_ms,
        };
        assert_eq!(settings.replacement(7), rolling(3, 0, 0, None));
        settings.set(UPDATE, "RollingUpdateEnabled", "false");
        assert_eq!(settings.replacement(7), Replacement::Disabled);
        settings.set(UPDATE, "MinInstancesInService", "5");
        settings.set(UPDATE, "MaxBatchSize", "9");
        settings.set(UPDATE, "PauseTime", "PT1M30S");
        settings.set(UPDATE, "Timeout", "PT5M");
        assert_eq!(settings.replacement(7), rolling(7, 5, 0, Some(300_000)));
        settings.set(UPDATE, "RollingUpdateType", "Time");
        assert_eq!(
            settings.replacement(7),
            rolling(7, 5, 90_000, Some(300_000))
        );
        settings.validate().expect("all valid");
        settings.set(UPDATE, "RollingUpdateType", "Immutable");
        assert_eq!(settings.replacement(7), Replacement::Immutable);
        for wrong in ["90", "90s", "-PT1M", "PT2H", "later"] {
            settings.set(UPDATE, "PauseTime", wrong);
            assert!(settings.validate().is_err(), "{wrong}");
        }
    }
}
