//! Rules for environment properties.

use super::OptionError;

/// Checks one property.
pub(super) fn validate(name: &str, value: &str) -> Result<(), OptionError> {
    let refuse = |rule: &str| {
        Err(OptionError::Property {
            name: name.to_owned(),
            rule: rule.to_owned(),
        })
    };
    if name.is_empty() || name.len() > 128 {
        return refuse("a name has 1 to 128 characters");
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.:/+\\-@".contains(c))
    {
        return refuse("a name has letters, digits and _ . : / + \\ - @ only");
    }
    if name.starts_with(|c: char| !c.is_ascii_alphabetic() && c != '_') {
        return refuse(
            "a name begins with a letter or `_`, or shells and many programs cannot read it",
        );
    }
    if name == "PORT" {
        return refuse(
            "Beanpole sets PORT itself, to the port on which each instance has to listen",
        );
    }
    if value.contains('\0') {
        return refuse("a value may not hold a NUL character");
    }
    // EB stops at 256 characters per value and 4,096 in all; own hosts need no such limit, but a
    // bound keeps one property from filling a process's environment.
    if value.len() > 32 * 1024 {
        return refuse("a value has at most 32,768 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::options::{OptionSettings, PROPERTIES};

    #[test]
    fn names_that_no_process_could_use_are_refused_with_a_reason() {
        for (name, why) in [
            ("1A", "begins with a letter"),
            ("-x", "begins with a letter"),
            ("PORT", "Beanpole sets PORT itself"),
            ("A B", "letters, digits and"),
            ("", "1 to 128"),
        ] {
            let mut settings = OptionSettings::default();
            settings.set(PROPERTIES, name, "secret");
            let error = settings.validate().expect_err(name).to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let mut settings = OptionSettings::default();
        settings.set(PROPERTIES, "_a.b-C1", "x");
        settings.validate().expect("a fine name");
    }
}
