//! Names that users choose, with Elastic Beanstalk's limits on them.

use crate::ids::{Invalid, text_type};
use serde::{Deserialize, Serialize};

fn label(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.chars().count() <= longest
        && !text.starts_with(char::is_whitespace)
        && !text.ends_with(char::is_whitespace)
        && text.chars().all(|c| !c.is_control() && c != '/')
}

/// Longest name of the DNS (RFC 1035, section 2.3.4), and longest label of one.
pub(crate) const LONGEST_DNS_NAME: usize = 253;
pub(crate) const LONGEST_DNS_LABEL: usize = 63;

/// Whether a text is a name of the DNS as hosts have them: labels of 1 to 63 letters, digits and hyphens with dots between, none
/// with a hyphen at an end, 253 characters in all (RFC 1123, section 2.1). `_` is none of these, and in use.
pub fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| dns_label(&label.replace('_', "x"), 1, LONGEST_DNS_LABEL);
    text.len() <= LONGEST_DNS_NAME && text.split('.').all(is_label)
}

fn dns_label(text: &str, shortest: usize, longest: usize) -> bool {
    (shortest..=longest).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

text_type!(
    /// An application. 1 to 100 characters without `/` (EB API, `CreateApplication`).
    ApplicationName, "application name", "it must be 1 to 100 characters, without `/` and without spaces at its ends",
    |text| label(text, 100)
);
text_type!(
    /// A version of an application. 1 to 100 characters without `/` (EB API,
    /// `CreateApplicationVersion`).
    VersionLabel, "version label", "it must be 1 to 100 characters, without `/` and without spaces at its ends",
    |text| label(text, 100)
);
text_type!(
    /// An environment. 4 to 40 letters, digits or hyphens, no hyphen at an end (EB API,
    /// `CreateEnvironment`).
    EnvironmentName, "environment name", "it must be 4 to 40 letters, digits or hyphens, with no hyphen at an end",
    |text| dns_label(text, 4, 40)
);
impl EnvironmentName {
    /// Whether an environment may be given this name. Keys of `deploy.toml` that begin with `x-` are
    /// free for other uses, so one of that name could have no section there.
    pub fn check_new(&self) -> Result<(), Invalid> {
        if self.as_str().starts_with("x-") {
            return Err(Invalid {
                what: "name for a new environment",
                text: self.as_str().to_owned(),
                rule: "names that begin with `x-` are kept free in deploy.toml, so it could have no section there",
            });
        }
        Ok(())
    }
}

text_type!(
    /// The first label of an environment's hostname. 4 to 63 lower-case letters, digits or hyphens
    /// (EB API, `CheckDNSAvailability`).
    Cname, "CNAME prefix", "it must be 4 to 63 lower-case letters, digits or hyphens, with no hyphen at an end",
    |text| dns_label(text, 4, 63) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
);
text_type!(
    /// A host's name in Beanpole. 1 to 63 letters, digits, dots or hyphens.
    HostName, "host name", "it must be 1 to 63 letters, digits, dots or hyphens, with none of these at an end",
    |text| (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
);

text_type!(
    /// A certificate's name in Beanpole. 1 to 63 letters, digits, dots or hyphens.
    CertificateName, "certificate name", "it must be 1 to 63 letters, digits, dots, hyphens or underscores, with a letter or digit at both ends",
    |text| (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names_have_four_to_forty_characters() {
        assert!(EnvironmentName::new("prod").is_ok());
        assert!(EnvironmentName::new("my-App-2").is_ok());
        for wrong in [
            "dev",
            "-prod",
            "prod-",
            "pro d",
            "prod/x",
            &"x".repeat(41),
            "",
        ] {
            assert!(EnvironmentName::new(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn labels_refuse_slashes_and_control_characters() {
        assert!(VersionLabel::new("v1.2 (hotfix)").is_ok());
        for wrong in ["a/b", "a\nb", " a", "", &"x".repeat(101)] {
            assert!(VersionLabel::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
