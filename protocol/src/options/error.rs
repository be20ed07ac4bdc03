//! Why options are refused.

/// Why option settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("There is no option `{}` in namespace `{}`.{}", crate::ids::shown(name), crate::ids::shown(namespace), suggestion.as_ref().map(|s| format!(" Did you mean `{s}`?")).unwrap_or_default())]
    Unknown {
        /// The namespace given.
        namespace: String,
        /// The name given.
        name: String,
        /// A known option of nearly this name.
        suggestion: Option<String>,
    },
    /// A namespace with a name in it that cannot be.
    #[error("`{}` cannot have options: {rule}.", crate::ids::shown(namespace))]
    Namespace {
        /// The namespace given.
        namespace: String,
        /// Why, in a clause.
        rule: String,
    },
    /// A value that the option does not take.
    #[error(
        "`{}` is not a value of option `{name}` ({namespace}): it takes {rule}",
        crate::ids::shown(value)
    )]
    Value {
        /// The namespace.
        namespace: String,
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        rule: String,
    },
    /// A path of URLs that no directory can be served at.
    #[error(
        "`{}` is not a path that static files can be served at ({namespace}): {rule}",
        crate::ids::shown(name)
    )]
    StaticPath {
        /// The namespace.
        namespace: String,
        /// What was given.
        name: String,
        /// What it takes.
        rule: &'static str,
    },
    /// A rule of a listener that has nothing to match by.
    #[error("The rule `{name}` would have neither PathPatterns nor HostHeaders, and take nothing.")]
    EmptyRule {
        /// Its name.
        name: String,
        /// The command that takes it away, as it is typed.
        removal: String,
    },
    /// An option that the environment's kind of load balancer has no use for, or lacks.
    #[error("Option `{name}` ({namespace}): {rule}.")]
    Type {
        /// The namespace.
        namespace: String,
        /// The option.
        name: String,
        /// What is in the way, and what to do.
        rule: String,
    },
    /// Environment properties break EB's limits (guide, "environments-cfg-softwaresettings").
    #[error("Environment property `{}`: {rule}", crate::ids::shown(name))]
    Property {
        /// The property; its value may be secret.
        name: String,
        /// The limit.
        rule: String,
    },
}

impl OptionError {
    /// What to do about it, where that is more than to give another value.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::EmptyRule { removal, .. } => Some(format!(
                "Give it one of both. To remove the rule: {removal}"
            )),
            _ => None,
        }
    }
}
