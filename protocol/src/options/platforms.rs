//! Options of platforms, as an order carries them to an agent.

use super::{
    JVM, KNOWN, OptionError, OptionSettings, PHP, PLATFORM, PYTHON, PYTHON_SERVER, RELEASE, SITE,
};
use std::collections::BTreeMap;

/// What a name takes that is passed to the JVM.
const JVM_RULE: &str =
    "a name that begins with X, such as `XX:MaxMetaspaceSize`, of letters, digits and : + - . _ =";

/// Checks an option of the JVM that has no name of its own here (EB guide, "java-tomcat-namespaces").
pub(super) fn validate_jvm(name: &str, value: &str) -> Result<(), OptionError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":+-._=".contains(&byte);
    if !name.starts_with('X') || !name.bytes().all(plain) {
        return Err(OptionError::Unknown {
            namespace: JVM.to_owned(),
            name: name.to_owned(),
            suggestion: None,
        });
    }
    if value.chars().any(|c| c.is_control() || c == ' ') {
        return Err(OptionError::Value {
            namespace: JVM.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
            rule: format!("a value without blanks; {JVM_RULE}"),
        });
    }
    Ok(())
}

impl OptionSettings {
    /// Options of the platform, for the agent: name to value in force. Further options of the JVM have a hyphen
    /// before their names.
    pub fn platform_options(&self) -> BTreeMap<String, String> {
        let of_platforms = [PLATFORM, PYTHON, PYTHON_SERVER, PHP, SITE];
        let mut all: BTreeMap<String, String> = KNOWN
            .iter()
            .filter(|known| {
                of_platforms.contains(&known.namespace)
                    || known.namespace == RELEASE && known.name.starts_with("Build")
            })
            .map(|known| (known, self.effective(known.namespace, known.name)))
            // What is not set is the agent's to decide.
            .filter(|(_, value)| !value.is_empty())
            .map(|(known, value)| (known.name.to_owned(), value.to_owned()))
            .collect();
        // Tomcat has defaults of its own, and Java SE has none.
        for (name, value) in self.0.get(JVM).into_iter().flatten() {
            let mut of_jvm = KNOWN.iter().filter(|known| known.namespace == JVM);
            let name = if of_jvm.any(|known| known.name == name) {
                name.clone()
            } else {
                format!("-{name}")
            };
            all.insert(name, value.clone());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_jvm_are_passed_on_by_their_names() {
        let mut settings = OptionSettings::default();
        settings.set(JVM, "Xmx", "512m");
        settings.set(JVM, "XX:MaxMetaspaceSize", "128m");
        settings.validate().expect("fine");
        let options = settings.platform_options();
        assert_eq!(options["Xmx"], "512m");
        assert_eq!(options["-XX:MaxMetaspaceSize"], "128m");
        assert!(!options.contains_key("Xms"), "Java SE has no default");
        assert_eq!(options["memory_limit"], "256M");
        for (name, value) in [("maxHeap", "1"), ("XX:A B", "1"), ("XX:A", "1 -version")] {
            let mut settings = OptionSettings::default();
            settings.set(JVM, name, value);
            assert!(settings.validate().is_err(), "{name}");
        }
    }
}
