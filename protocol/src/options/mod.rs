//! Configuration options, namespaced as Elastic Beanstalk's, and the typed values read from them.
//!
//! Values travel as strings, as in the EB API. [`KNOWN`] is the one list: validation, defaults, the
//! reference page and `deploy.toml.example` all come from it.
//!
//! A map of texts is here; what options there are is in `known`, what values they take in `kind`, how
//! they are read as values in `typed`, `balance`, `check`, `content`, `processes`, `split` and `update`.

mod balance;
mod check;
mod content;
mod error;
mod kind;
mod known;
mod nearest;
mod network;
mod platforms;
mod policy;
mod processes;
mod property;
mod split;
mod statics;
mod typed;
mod update;

pub use error::OptionError;
pub use kind::{Kind, parse_label};
pub use known::{Change, KNOWN, OptionSpec, spec};
pub use nearest::nearest;
pub use network::Listener;
pub use policy::{BatchSize, DeploymentPolicy};
pub use processes::{ListenerRule, NAMED, RequestRules, named, port_variable, process_namespace};
pub use split::{GuardLimits, SplitStep, SplitSteps};
pub use statics::{OLDER_STATIC_FILES, is_of_static_files};
pub use typed::DeploymentOptions;
pub use update::Replacement;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Environment properties live in this namespace; every name is allowed in it.
pub const PROPERTIES: &str = "aws:elasticbeanstalk:application:environment";
/// Directories of a bundle that the load balancer serves: names are paths of URLs, values are directories.
pub const STATIC_FILES: &str = "aws:elasticbeanstalk:environment:proxy:staticfiles";
/// How deployments run.
pub const COMMAND: &str = "aws:elasticbeanstalk:command";
/// The options that say how much capacity there is.
const CAPACITY: [(&str, &str); 3] = [
    (ENVIRONMENT, "EnvironmentType"),
    (ASG, "MinSize"),
    (ASG, "MaxSize"),
];
/// How well instances have to be.
pub const HEALTH: &str = "aws:elasticbeanstalk:healthreporting:system";
/// The share of a new release under TrafficSplitting.
pub const SPLITTING: &str = "aws:elasticbeanstalk:trafficsplitting";
/// Beanpole's own: steps, comparison and clients that stay on a side under TrafficSplitting.
pub const SPLIT: &str = "beanpole:trafficsplitting";
/// The process that gets the traffic: health checks and draining.
pub const PROCESS: &str = "aws:elasticbeanstalk:environment:process:default";
/// The legacy name of the health check's path.
pub const APPLICATION: &str = "aws:elasticbeanstalk:application";
/// Number of instances.
pub const ASG: &str = "aws:autoscaling:asg";
/// How instances are replaced when settings change that those that run cannot take on.
pub const UPDATE: &str = "aws:autoscaling:updatepolicy:rollingupdate";
/// Load balanced or single instance.
pub const ENVIRONMENT: &str = "aws:elasticbeanstalk:environment";
/// Python's own options.
pub const PYTHON: &str = "aws:elasticbeanstalk:container:python";
/// Beanpole's own: which server runs Python applications.
pub const PYTHON_SERVER: &str = "beanpole:python";
/// Beanpole's own: what all platforms have.
pub const PLATFORM: &str = "beanpole:platform";
/// PHP's own options.
pub const PHP: &str = "aws:elasticbeanstalk:container:php:phpini";
/// Options of the JVM, of Tomcat and Java SE.
pub const JVM: &str = "aws:elasticbeanstalk:container:tomcat:jvmoptions";
/// Beanpole's own: static sites.
pub const SITE: &str = "beanpole:static";
/// Beanpole's own: what an instance may use.
pub const INSTANCE: &str = "beanpole:instance";
/// Beanpole's own: how releases are kept and prepared.
pub const RELEASE: &str = "beanpole:release";
/// Beanpole's own: how long connections may outlast the instances' time.
pub const CONNECTIONS: &str = "beanpole:connections";
/// The load balancer of an environment.
pub const LOADBALANCER: &str = "aws:elbv2:loadbalancer";
/// Beanpole's own: how the proxy shares traffic.
pub const PROXY: &str = "beanpole:proxy";
/// Beanpole's own: which hosts an environment's instances go to.
pub const PLACEMENT: &str = "beanpole:placement";

/// Option settings: namespace, name, value.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct OptionSettings(pub BTreeMap<String, BTreeMap<String, String>>);

/// Values of environment properties may be secret and are not printed.
impl std::fmt::Debug for OptionSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for (namespace, options) in &self.0 {
            for (name, value) in options {
                let shown = if namespace == PROPERTIES {
                    "***"
                } else {
                    value
                };
                map.entry(&format_args!("{namespace}:{name}"), &shown);
            }
        }
        map.finish()
    }
}

impl OptionSettings {
    /// The value set, if any; never a default.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&str> {
        self.0.get(namespace)?.get(name).map(String::as_str)
    }

    /// Sets a value, without checking it.
    pub fn set(&mut self, namespace: &str, name: &str, value: impl Into<String>) {
        self.0
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), value.into());
    }

    /// Removes a value and says whether it was there.
    pub fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(options) = self.0.get_mut(namespace) else {
            return false;
        };
        let was_there = options.remove(name).is_some();
        if options.is_empty() {
            self.0.remove(namespace);
        }
        was_there
    }

    /// These settings with `over` laid upon them.
    pub fn overlaid(&self, over: &Self) -> Self {
        let mut all = self.clone();
        for (namespace, options) in &over.0 {
            for (name, value) in options {
                all.set(namespace, name, value.clone());
            }
        }
        all
    }

    /// These settings with as much capacity as `other` asks for, and its listeners: both belong to an environment,
    /// whatever release it runs.
    pub fn with_capacity_of(mut self, other: &Self) -> Self {
        self.take_listeners_of(other);
        for (namespace, option) in CAPACITY {
            match other.get(namespace, option) {
                Some(value) => self.set(namespace, option, value),
                None => {
                    self.remove(namespace, option);
                }
            }
        }
        self
    }

    /// Makes the changes that lead from `before` to `after`, and no other.
    pub fn follow(&mut self, before: &Self, after: &Self) {
        for (namespace, options) in &before.0 {
            for name in options.keys() {
                if after.get(namespace, name).is_none() {
                    self.remove(namespace, name);
                }
            }
        }
        for (namespace, options) in &after.0 {
            for (name, value) in options {
                if before.get(namespace, name) != Some(value) {
                    self.set(namespace, name, value.clone());
                }
            }
        }
    }

    /// Those of these settings that `other` does not have with the same value.
    pub fn without(&self, other: &Self) -> Self {
        self.filtered(|namespace, name, value| other.get(namespace, name) != Some(value))
    }

    /// Those of these settings that `other` has with the same value.
    pub fn also_in(&self, other: &Self) -> Self {
        self.filtered(|namespace, name, value| other.get(namespace, name) == Some(value))
    }

    /// These settings as they hold below `own`: those that `own` does not set.
    pub fn below(&self, own: &Self) -> Self {
        self.filtered(|namespace, name, _| own.get(namespace, name).is_none())
    }

    /// What is set, without the values.
    pub fn names(&self) -> BTreeMap<String, Vec<String>> {
        let all = self.0.iter();
        all.map(|(namespace, options)| (namespace.clone(), options.keys().cloned().collect()))
            .collect()
    }

    fn filtered(&self, keep: impl Fn(&str, &str, &str) -> bool) -> Self {
        let mut all = self.clone();
        for (namespace, options) in &mut all.0 {
            options.retain(|name, value| keep(namespace, name, value));
        }
        all.0.retain(|_, options| !options.is_empty());
        all
    }

    /// Checks an option by itself.
    ///
    /// # Errors
    /// There is none of that name, or it does not take the value.
    pub fn validate_one(namespace: &str, name: &str, value: &str) -> Result<(), OptionError> {
        if namespace == PROPERTIES {
            return property::validate(name, value);
        }
        if is_of_static_files(namespace) {
            return statics::validate(namespace, name, value);
        }
        if namespace == JVM && spec(namespace, name).is_none() {
            return platforms::validate_jvm(name, value);
        }
        let Some(spec) = spec(namespace, name) else {
            return Err(OptionError::Unknown {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                suggestion: suggested(namespace, name),
            });
        };
        if !spec.kind.accepts(value) {
            return Err(OptionError::Value {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                value: value.to_owned(),
                rule: match spec.kind.fault(value) {
                    Some(fault) => format!("{}. {fault}", spec.kind.rule()),
                    None => spec.kind.rule(),
                },
            });
        }
        Ok(())
    }

    /// Checks every option and value.
    pub fn validate(&self) -> Result<(), OptionError> {
        for (namespace, options) in &self.0 {
            for (name, value) in options {
                Self::validate_one(namespace, name, value)?;
            }
        }
        self.check_names()?;
        let is_share = self.effective(COMMAND, "BatchSizeType") == "Percentage";
        let size = self.effective(COMMAND, "BatchSize");
        if is_share && size.parse::<u32>().is_ok_and(|size| size > 100) {
            return Err(OptionError::Value {
                namespace: COMMAND.to_owned(),
                name: "BatchSize".to_owned(),
                value: size.to_owned(),
                rule: "at most 100 while BatchSizeType is Percentage".to_owned(),
            });
        }
        Ok(())
    }

    /// The value in force: what is set, else the default. Empty when neither is there.
    pub fn effective(&self, namespace: &str, name: &str) -> &str {
        self.get(namespace, name)
            .unwrap_or_else(|| spec(namespace, name).map_or("", |spec| spec.default))
    }
}

/// A known option of nearly this name, first in its own namespace.
fn suggested(namespace: &str, name: &str) -> Option<String> {
    if let Some(like) = nearest(name, named(namespace).map(|known| known.name)) {
        return Some(format!("{namespace}:{like}"));
    }
    let like = nearest(name, KNOWN.iter().map(|known| known.name))?;
    let known = KNOWN.iter().find(|known| known.name == like)?;
    Some(format!("{}:{}", known.namespace, known.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_suggests_the_nearest_one() {
        let mut settings = OptionSettings::default();
        settings.set(COMMAND, "BatchSise", "3");
        let error = settings.validate().expect_err("unknown").to_string();
        assert_eq!(
            error,
            "There is no option `BatchSise` in namespace `aws:elasticbeanstalk:command`. Did you mean `aws:elasticbeanstalk:command:BatchSize`?"
        );
    }

    #[test]
    fn only_what_changed_is_followed() {
        let settings = |all: &[(&str, &str)]| {
            let mut settings = OptionSettings::default();
            for (name, value) in all {
                settings.set(PROPERTIES, name, *value);
            }
            settings
        };
        let mut followed = settings(&[("A", "own"), ("B", "1"), ("C", "1")]);
        followed.follow(
            &settings(&[("A", "1"), ("B", "1"), ("C", "1")]),
            &settings(&[("A", "1"), ("B", "2"), ("D", "1")]),
        );
        assert_eq!(followed, settings(&[("A", "own"), ("B", "2"), ("D", "1")]));
    }

    #[test]
    fn what_is_set_above_hides_what_is_below_and_both_can_be_told_apart() {
        let settings = |all: &[(&str, &str)]| {
            let mut settings = OptionSettings::default();
            for (name, value) in all {
                settings.set(PROPERTIES, name, *value);
            }
            settings
        };
        let own = settings(&[("A", "1")]);
        let brought = settings(&[("A", "2"), ("B", "2")]).below(&own);
        assert_eq!(brought, settings(&[("B", "2")]));
        let both = brought.overlaid(&own);
        assert_eq!(both.without(&brought), own);
        assert_eq!(brought.also_in(&both), brought);
        assert!(brought.also_in(&own).0.is_empty(), "no empty namespaces");
    }

    #[test]
    fn values_of_properties_are_not_printed() {
        let mut settings = OptionSettings::default();
        settings.set(PROPERTIES, "PASSWORD", "hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!format!("{:?}", settings.properties()).contains("hunter2"));
    }
}
