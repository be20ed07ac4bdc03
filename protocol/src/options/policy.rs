//! How deployments go through the instances.

use serde::{Deserialize, Serialize};

/// How a new release reaches the instances.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub enum DeploymentPolicy {
    /// Every instance at once: fast, with an interruption.
    AllAtOnce,
    /// Batch after batch, each out of the load balancer while it changes.
    #[default]
    Rolling,
    /// As Rolling, after a batch of new instances: capacity never falls.
    RollingWithAdditionalBatch,
    /// A whole set of new instances, first one of them, then one change of routes; the old set is not
    /// touched before.
    Immutable,
    /// A whole set of new instances that gets a share of the requests first, in one step or several, while
    /// both releases are compared; then all of them.
    TrafficSplitting,
}

impl DeploymentPolicy {
    /// All of them, in the order of EB's guide.
    pub const ALL: [Self; 5] = [
        Self::AllAtOnce,
        Self::Rolling,
        Self::RollingWithAdditionalBatch,
        Self::Immutable,
        Self::TrafficSplitting,
    ];

    /// Its name, as in EB's options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllAtOnce => "AllAtOnce",
            Self::Rolling => "Rolling",
            Self::RollingWithAdditionalBatch => "RollingWithAdditionalBatch",
            Self::Immutable => "Immutable",
            Self::TrafficSplitting => "TrafficSplitting",
        }
    }
}

impl std::fmt::Display for DeploymentPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DeploymentPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
        let found = Self::ALL
            .into_iter()
            .find(|one| plain(one.name()) == plain(text));
        found.ok_or_else(|| {
            let known: Vec<String> = Self::ALL.iter().map(|one| format!("`{one}`")).collect();
            format!(
                "`{text}` is not a deployment policy: use {}",
                one_of(&known)
            )
        })
    }
}

/// `a`, `b` or `c`.
fn one_of(names: &[String]) -> String {
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// How many instances change together. Written `2` or `30%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BatchSize {
    /// A share of the instances at the start, rounded down, at least one. 1 to 100.
    Percentage(u8),
    /// A number of instances. At least 1.
    Fixed(u32),
}

impl BatchSize {
    /// The number of instances per batch, for an environment of `instances`.
    pub fn of(self, instances: u32) -> u32 {
        match self {
            Self::Percentage(percent) => {
                let share = u64::from(instances) * u64::from(percent.min(100)) / 100;
                u32::try_from(share).unwrap_or(u32::MAX).max(1)
            }
            Self::Fixed(count) => count.clamp(1, instances.max(1)),
        }
    }
}

impl std::fmt::Display for BatchSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Percentage(percent) => write!(f, "{percent}%"),
            Self::Fixed(count) => count.fmt(f),
        }
    }
}

impl std::str::FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is not a batch size: use a number such as `2`, or a share such as `30%`"
            )
        };
        match text.strip_suffix('%') {
            Some(share) => match share.trim().parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percentage(percent)),
                _ => Err(wrong()),
            },
            None => match text.trim().parse() {
                Ok(count @ 1..) => Ok(Self::Fixed(count)),
                _ => Err(wrong()),
            },
        }
    }
}

impl utoipa::PartialSchema for BatchSize {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[1-9][0-9]*%?$"))
            .into()
    }
}

impl utoipa::ToSchema for BatchSize {}

impl TryFrom<String> for BatchSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BatchSize> for String {
    fn from(size: BatchSize) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_round_down_and_never_to_nothing() {
        assert_eq!(BatchSize::Percentage(30).of(10), 3);
        assert_eq!(BatchSize::Percentage(30).of(3), 1);
        assert_eq!(BatchSize::Percentage(1).of(3), 1);
        assert_eq!(BatchSize::Fixed(9).of(3), 3);
        assert_eq!("30%".parse(), Ok(BatchSize::Percentage(30)));
        assert!("0".parse::<BatchSize>().is_err());
        assert!("101%".parse::<BatchSize>().is_err());
    }
}
