//! How the requests are shared between a new release and the one before it.

use super::balance::telling_header;
use crate::proxy::Sticky;
use serde::{Deserialize, Serialize};

/// Steps that a split has at most.
const MOST_STEPS: usize = 20;
/// The longest that a step lasts, in seconds: two days.
const LONGEST_STEP_S: u64 = 48 * 3_600;

/// A share of the requests that a new release gets for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitStep {
    /// Per cent, 1 to 100. At 100 the instances of the release before stay, without requests, until the
    /// step is over.
    pub percent: u8,
    /// How long, in seconds, at most two days; the environment's EvaluationTime where absent.
    pub wait_s: Option<u64>,
}

/// Rising shares, one after the other: `10%`, `1%:90s,5%:10m,25%:1h`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SplitSteps(pub Vec<SplitStep>);

/// How much worse a new release may be than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardLimits {
    /// Points by which its share of failed requests may be higher.
    pub errors_points: u32,
    /// Per cent by which its 95th percentile of latency may be higher; 0 for any.
    pub latency_percent: u32,
}

impl SplitSteps {
    /// The same, with `wait_s` for the steps that have no time of their own.
    #[must_use]
    pub fn with_waits(self, wait_s: u64) -> Self {
        let steps = self.0.into_iter().map(|step| SplitStep {
            wait_s: step.wait_s.or(Some(wait_s)),
            ..step
        });
        Self(steps.collect())
    }
}

impl std::str::FromStr for SplitSteps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut steps: Vec<SplitStep> = Vec::new();
        for part in text.split(',') {
            let step = parse_step(part.trim())?;
            if let Some(before) = steps.last()
                && before.percent >= step.percent
            {
                return Err(format!(
                    "`{text}`: shares have to rise from step to step, and {}% follows on {}%",
                    step.percent, before.percent
                ));
            }
            steps.push(step);
        }
        if steps.len() > MOST_STEPS {
            return Err(format!("`{text}`: a split has at most {MOST_STEPS} steps"));
        }
        Ok(Self(steps))
    }
}

fn parse_step(text: &str) -> Result<SplitStep, String> {
    let wrong = || {
        format!(
            "`{text}` is not a step of a split: use a share from 1% to 100%, and the time that it lasts, such as `10%` or `10%:15m`"
        )
    };
    let (share, wait) = match text.split_once(':') {
        Some((share, wait)) => (share, Some(wait)),
        None => (text, None),
    };
    let percent = share.trim().strip_suffix('%').ok_or_else(wrong)?;
    let Ok(percent @ 1..=100) = percent.trim().parse() else {
        return Err(wrong());
    };
    let wait_s = match wait {
        Some(wait) => Some(parse_seconds(wait.trim()).ok_or_else(wrong)?),
        None => None,
    };
    if wait_s.is_some_and(|wait| wait > LONGEST_STEP_S) {
        return Err(format!("`{text}`: a step lasts at most 48 hours"));
    }
    Ok(SplitStep { percent, wait_s })
}

/// `90s`, `10m`, `1h`, in seconds.
fn parse_seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    number.checked_mul(unit)
}

/// The shortest way to write a number of seconds that [`parse_seconds`] reads.
fn seconds_text(seconds: u64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        _ if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

impl std::fmt::Display for SplitSteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}%", step.percent)?;
            if let Some(wait) = step.wait_s {
                write!(f, ":{}", seconds_text(wait))?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for SplitSteps {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SplitSteps> for String {
    fn from(steps: SplitSteps) -> Self {
        steps.to_string()
    }
}

impl utoipa::PartialSchema for SplitSteps {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some(
                "^[1-9][0-9]*%(:[0-9]+[smh])?(,[1-9][0-9]*%(:[0-9]+[smh])?)*$",
            ))
            .into()
    }
}

impl utoipa::ToSchema for SplitSteps {}

/// `none`, `cookie`, `header:NAME`; nothing where it is neither.
#[allow(clippy::option_option, reason = "absent and wrong are two things")]
pub(super) fn parse_sticky(value: &str) -> Option<Option<Sticky>> {
    match value {
        "none" | "" => Some(None),
        "cookie" => Some(Some(Sticky::Cookie)),
        other => {
            let name = telling_header(other.strip_prefix("header:")?)?;
            Some(Some(Sticky::Header(name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_they_are_written() {
        for text in ["10%", "1%:90s,5%:10m,25%:1h,100%:0s"] {
            let steps: SplitSteps = text.parse().expect("steps");
            assert_eq!(steps.to_string(), text);
        }
        let steps: SplitSteps = " 1% , 50%:2m".parse().expect("steps");
        assert_eq!(steps.with_waits(300).to_string(), "1%:5m,50%:2m");
    }

    #[test]
    fn what_is_no_rising_row_of_shares_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "is not a step"),
            ("10", "is not a step"),
            ("0%", "is not a step"),
            ("101%", "is not a step"),
            ("10%:5", "is not a step"),
            ("10%:5d", "is not a step"),
            ("10%,10%", "have to rise"),
            ("50%,10%", "have to rise"),
            ("10%:49h", "at most 48 hours"),
        ] {
            let error = text.parse::<SplitSteps>().expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_client_stays_by_cookie_or_by_a_header() {
        assert_eq!(parse_sticky("none"), Some(None));
        assert_eq!(parse_sticky("cookie"), Some(Some(Sticky::Cookie)));
        let header = Sticky::Header("x-tenant".to_owned());
        assert_eq!(parse_sticky("header:X-Tenant"), Some(Some(header)));
        // All cookies together differ from request to request.
        for wrong in ["header:", "header:a b", "header:Cookie", "ip", "Cookie"] {
            assert_eq!(parse_sticky(wrong), None, "{wrong}");
        }
    }
}
