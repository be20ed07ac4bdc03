//! Options that a bundle brings along: `option_settings` of its configuration files, and `OptionSettings` of its
//! manifest `env.yaml`, and what fragments of nginx come to (`nginx`).
//!
//! The order is Elastic Beanstalk's (EB guide, "command-options", "Precedence"): what an environment was told itself
//! counts before what the files of its version say, and those before the defaults. Of two files that set an option the
//! later one counts. The manifest is for an environment that is made: its options become the environment's own.
//!
//! An option that is unknown here is passed over and told: EB has many for what own hosts do not have. A value that a
//! known option does not take is refused with its file and line.

use crate::Refused;
use crate::ebextensions::{self, Extensions, Setting};
use crate::env_yaml::{self, EnvYaml};
use crate::nginx::{self, Nginx};
use crate::platform::Top;
use beanpole_protocol::options::{ENVIRONMENT, OptionError, OptionSettings, PROPERTIES};
use std::collections::BTreeMap;

/// As many options that are passed over are told.
const TOLD: usize = 20;

/// The options of a bundle, each once and fit to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Those of its configuration files and fragments of nginx.
    pub settings: Vec<Setting>,
    /// Those of its manifest, for an environment that is made.
    pub manifest: Vec<Setting>,
    /// What is set and does nothing here, 20 at most: `aws:elb:policies:Port in .ebextensions/01.config, line 3`.
    pub passed_over: Vec<String>,
}

impl Brought {
    /// Reads what a bundle sets.
    ///
    /// # Errors
    /// A file cannot be read as what it is, or a known option has a value that it does not take.
    pub fn read<T: Top>(top: &mut T) -> Result<Self, T::Error> {
        let manifest = env_yaml::read(top)?;
        let extensions = ebextensions::read(top)?;
        Self::beside(top, &extensions, manifest.as_ref())
    }

    /// The same, where some of its files were read already.
    ///
    /// # Errors
    /// As [`Brought::read`].
    pub(crate) fn beside<T: Top>(
        top: &mut T,
        extensions: &Extensions,
        manifest: Option<&EnvYaml>,
    ) -> Result<Self, T::Error> {
        Ok(Self::of(extensions, manifest, nginx::read(top)?)?)
    }

    /// Sorts out what a bundle sets. What `option_settings` say counts before fragments of nginx.
    fn of(
        extensions: &Extensions,
        manifest: Option<&EnvYaml>,
        nginx: Nginx,
    ) -> Result<Self, Refused> {
        let mut passed_over = Vec::new();
        let mut files = nginx.settings;
        files.extend(extensions.settings.iter().cloned());
        let settings = sorted_out(&files, "ebextensions-invalid", &mut passed_over)?;
        passed_over.extend(nginx.passed_over);
        let manifest = match manifest {
            Some(manifest) => sorted_out(&manifest.settings, "env-yaml-invalid", &mut passed_over)?,
            None => Vec::new(),
        };
        passed_over.truncate(TOLD);
        Ok(Self {
            settings,
            manifest,
            passed_over,
        })
    }

    /// What its configuration files set.
    pub fn options(&self) -> OptionSettings {
        put_together(&self.settings)
    }

    /// What its manifest sets in an environment that is made.
    pub fn options_of_manifest(&self) -> OptionSettings {
        put_together(&self.manifest)
    }
}

fn put_together(settings: &[Setting]) -> OptionSettings {
    let mut all = OptionSettings::default();
    for one in settings {
        all.set(&one.namespace, &one.name, one.value.clone());
    }
    all
}

fn sorted_out(
    settings: &[Setting],
    code: &'static str,
    passed_over: &mut Vec<String>,
) -> Result<Vec<Setting>, Refused> {
    let mut all: BTreeMap<(String, String), Setting> = BTreeMap::new();
    for setting in settings {
        let setting = Setting {
            value: as_here(setting),
            ..setting.clone()
        };
        let Setting {
            namespace,
            name,
            file,
            line,
            ..
        } = &setting;
        if namespace == PROPERTIES && name == "PORT" {
            passed_over.push(format!(
                "PORT in {file}, line {line}: each instance gets a port of its own"
            ));
            continue;
        }
        if setting.value.contains("`{") {
            passed_over.push(format!(
                "{} in {file}, line {line}: its value is made of resources, which are not made here",
                crate::shown(&format!("{namespace}:{name}"))
            ));
            continue;
        }
        match OptionSettings::validate_one(namespace, name, &setting.value) {
            Ok(()) => {
                all.insert((namespace.clone(), name.clone()), setting);
            }
            Err(OptionError::Unknown { .. } | OptionError::Namespace { .. }) => {
                passed_over.push(format!(
                    "{} in {file}, line {line}",
                    crate::shown(&format!("{namespace}:{name}"))
                ));
            }
            Err(error) => {
                return Err(Refused::new(
                    code,
                    format!(
                        "{file}, line {line}: {}.",
                        error.to_string().trim_end_matches('.')
                    ),
                ));
            }
        }
    }
    Ok(all.into_values().collect())
}

/// A value of EB's as the option has it here: what was the load balancer before the one of today does the same.
fn as_here(setting: &Setting) -> String {
    let is = |name: &str, value: &str| {
        setting.namespace == ENVIRONMENT && setting.name == name && setting.value == value
    };
    if is("LoadBalancerType", "classic") {
        return "application".to_owned();
    }
    setting.value.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::options::{ASG, COMMAND};

    fn setting(namespace: &str, name: &str, value: &str, line: usize) -> Setting {
        Setting {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            resource: None,
            value: value.to_owned(),
            file: ".ebextensions/01.config".to_owned(),
            line,
        }
    }

    fn brought(settings: Vec<Setting>) -> Result<Brought, Refused> {
        let extensions = Extensions {
            settings,
            ..Extensions::default()
        };
        Brought::of(&extensions, None, Nginx::default())
    }

    #[test]
    fn the_later_file_counts_and_what_own_hosts_do_not_have_is_told() {
        let found = brought(vec![
            setting(ASG, "MinSize", "2", 2),
            setting(
                "aws:autoscaling:launchconfiguration",
                "InstanceType",
                "t3.micro",
                4,
            ),
            setting(PROPERTIES, "PORT", "8080", 6),
            setting(PROPERTIES, "TABLE", "`{\"Ref\": \"Table\"}`", 7),
            setting(ENVIRONMENT, "LoadBalancerType", "classic", 8),
            setting(ASG, "MinSize", "3", 10),
        ])
        .expect("known options");
        assert_eq!(found.options().get(ASG, "MinSize"), Some("3"));
        let kind = found.options();
        assert_eq!(
            kind.get(ENVIRONMENT, "LoadBalancerType"),
            Some("application")
        );
        assert_eq!(
            found.passed_over,
            [
                "aws:autoscaling:launchconfiguration:InstanceType in .ebextensions/01.config, line 4",
                "PORT in .ebextensions/01.config, line 6: each instance gets a port of its own",
                "aws:elasticbeanstalk:application:environment:TABLE in .ebextensions/01.config, line 7: its value is \
                 made of resources, which are not made here",
            ]
        );
    }

    #[test]
    fn a_value_that_an_option_does_not_take_is_refused_with_its_place() {
        let refused = brought(vec![setting(COMMAND, "BatchSize", "many", 7)]).expect_err("a word");
        assert_eq!(refused.code, "ebextensions-invalid");
        assert!(
            refused.message.starts_with(
                ".ebextensions/01.config, line 7: `many` is not a value of option `BatchSize`"
            ),
            "{refused}"
        );
        let refused = brought(vec![setting(PROPERTIES, "A B", "s3cret", 1)]).expect_err("a space");
        assert!(!refused.message.contains("s3cret"), "{refused}");
    }
}
