//! An environment's settings and what they are made of: what it was told itself counts before what the files of its
//! version say (EB guide, "command-options", "Precedence").
//!
//! Records hold what is in force, and beside it what of that the version brought. The difference is the environment's
//! own.

use crate::Fault;
use crate::read::{self, Reader};
use beanpole_protocol::api;
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::problem::Problem;
use beanpole_store::model::{EnvironmentRecord, ReleaseRecord, VersionRecord};

/// Settings that are to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layers {
    /// All of them.
    pub settings: OptionSettings,
    /// Those that the version brought.
    pub brought: OptionSettings,
}

impl Layers {
    /// An environment's own settings upon what a version brings.
    pub fn of(own: &OptionSettings, brings: &OptionSettings) -> Self {
        let brought = brings.below(own);
        Self {
            settings: brought.overlaid(own),
            brought,
        }
    }

    /// An environment with a version, its own settings changed by `set`.
    pub fn with_version(
        environment: &EnvironmentRecord,
        version: &VersionRecord,
        set: &OptionSettings,
    ) -> Self {
        Self::of(&own(environment).overlaid(set), &version.options)
    }

    /// A new environment with its first version.
    pub fn at_creation(told: &OptionSettings, version: Option<&VersionRecord>) -> Self {
        match version {
            Some(version) => Self::of(&version.manifest.overlaid(told), &version.options),
            None => Self::of(told, &OptionSettings::default()),
        }
    }

    /// Those of a release, in an environment that has `environment`'s capacity.
    pub fn of_release(release: &ReleaseRecord, environment: &EnvironmentRecord) -> Self {
        let settings = release
            .settings
            .clone()
            .with_capacity_of(&environment.settings);
        let brought = release
            .brought
            .clone()
            .with_capacity_of(&environment.brought);
        Self {
            brought: brought.also_in(&settings),
            settings,
        }
    }

    /// The environment's settings, with those of a call that changes them.
    ///
    /// # Errors
    /// It removes what the version brought: that goes with the version alone.
    pub fn changed(
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        body: &api::UpdateSettings,
    ) -> Result<Self, Fault> {
        let before = own(environment);
        let mut own = before.overlaid(&body.set);
        for (namespace, names) in &body.remove {
            for option in names {
                let was_own = own.remove(namespace, option);
                if !was_own && environment.settings.get(namespace, option).is_some() {
                    return Err(is_brought(environment, namespace, option).into());
                }
            }
        }
        Ok(Self::of(&own, &brings(reader, environment)?))
    }

    /// Puts them in an environment's record; what was in force is given back.
    pub fn put_in(self, environment: &mut EnvironmentRecord) -> OptionSettings {
        environment.brought = self.brought;
        std::mem::replace(&mut environment.settings, self.settings)
    }
}

/// What an environment was told itself.
fn own(environment: &EnvironmentRecord) -> OptionSettings {
    environment.settings.without(&environment.brought)
}

/// What the files of the version say that is live. Where none is, they are those of the last one that was tried.
fn brings(reader: &impl Reader, environment: &EnvironmentRecord) -> Result<OptionSettings, Fault> {
    let live = match environment.live {
        Some(live) => read::release(reader, &environment.id, live)?,
        None => None,
    };
    let version = match live {
        Some(live) => {
            let key = VersionRecord::key_of(&environment.application, &live.version);
            reader.one::<VersionRecord>(&key)?
        }
        None => None,
    };
    Ok(version.map_or_else(|| environment.brought.clone(), |version| version.options))
}

fn is_brought(environment: &EnvironmentRecord, namespace: &str, option: &str) -> Problem {
    Problem::invalid(
        "option-of-version",
        format!(
            "Option `{option}` ({namespace}) is not set in `{}` itself: a configuration file of its version sets it.",
            environment.name
        ),
    )
    .hint(format!(
        "Set it otherwise, which counts before the file: beanpole config {} --set {namespace}:{option}=VALUE. Or deploy a \
         version without it.",
        environment.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{environment, release};
    use beanpole_protocol::options::{ASG, COMMAND, PROPERTIES};
    use beanpole_protocol::{Digest, Timestamp, VersionLabel};
    use beanpole_store::Store;

    fn settings(all: &[(&str, &str, &str)]) -> OptionSettings {
        let mut settings = OptionSettings::default();
        for (namespace, name, value) in all {
            settings.set(namespace, name, *value);
        }
        settings
    }

    fn version(label: &str, options: OptionSettings) -> VersionRecord {
        VersionRecord {
            application: environment().application,
            label: VersionLabel::new(label).expect("a label"),
            description: String::new(),
            bundle: Digest::new("0".repeat(64)).expect("a digest"),
            bundle_size: 1,
            release_command: None,
            processes: None,
            container_commands: Default::default(),
            site: None,
            options,
            manifest: OptionSettings::default(),
            options_passed_over: Vec::new(),
            created_at: Timestamp::EPOCH,
        }
    }

    /// An environment with `version` live.
    fn with_live(version: &VersionRecord, own: &OptionSettings) -> (Store, EnvironmentRecord) {
        let mut environment = environment();
        let layers = Layers::of(own, &version.options);
        let mut live = release(&environment);
        live.version = version.label.clone();
        live.settings = layers.settings.clone();
        live.brought = layers.brought.clone();
        layers.put_in(&mut environment);
        environment.live = Some(live.number);
        let store = Store::in_memory();
        store
            .update(|tx| {
                tx.put(version)?;
                tx.put(&live)?;
                tx.put(&environment)
            })
            .expect("memory");
        (store, environment)
    }

    fn change(set: OptionSettings, remove: &[(&str, &str)]) -> api::UpdateSettings {
        let mut body = api::UpdateSettings {
            set,
            ..api::UpdateSettings::default()
        };
        for (namespace, name) in remove {
            let names = body.remove.entry((*namespace).to_owned()).or_default();
            names.push((*name).to_owned());
        }
        body
    }

    #[test]
    fn the_example_of_the_guide_holds() {
        // "command-options", "Precedence": set by the API, then by a file, then by default.
        let two = version("v1", settings(&[(ASG, "MinSize", "2")]));
        let (store, mut environment) = with_live(&two, &settings(&[(ASG, "MinSize", "5")]));
        assert_eq!(environment.settings.get(ASG, "MinSize"), Some("5"));
        let body = change(OptionSettings::default(), &[(ASG, "MinSize")]);
        let layers = Layers::changed(&store, &environment, &body).expect("it is its own");
        layers.put_in(&mut environment);
        assert_eq!(environment.settings.get(ASG, "MinSize"), Some("2"));
        let without = version("v2", OptionSettings::default());
        let layers = Layers::with_version(&environment, &without, &OptionSettings::default());
        assert_eq!(layers, Layers::default(), "it went with its file");
    }

    #[test]
    fn what_a_version_brought_cannot_be_removed_and_can_be_set_otherwise() {
        let brings = settings(&[(PROPERTIES, "A", "file"), (COMMAND, "Timeout", "900")]);
        let live = version("v1", brings);
        let (store, mut environment) = with_live(&live, &OptionSettings::default());
        let refused = Layers::changed(
            &store,
            &environment,
            &change(OptionSettings::default(), &[(PROPERTIES, "A")]),
        );
        let Err(Fault::Problem(problem)) = refused else {
            panic!("it is removed");
        };
        assert_eq!(problem.code, "option-of-version");
        // The same value, said by the environment itself, stays with it.
        let body = change(settings(&[(PROPERTIES, "A", "file")]), &[]);
        let layers = Layers::changed(&store, &environment, &body).expect("set");
        layers.put_in(&mut environment);
        let next = version("v2", OptionSettings::default());
        let layers = Layers::with_version(&environment, &next, &OptionSettings::default());
        assert_eq!(layers.settings, settings(&[(PROPERTIES, "A", "file")]));
        assert!(layers.brought.0.is_empty());
    }

    #[test]
    fn a_release_comes_back_with_what_it_brought_and_the_capacity_of_today() {
        let brings = settings(&[(PROPERTIES, "A", "1"), (ASG, "MinSize", "2")]);
        let (_, mut environment) = with_live(&version("v1", brings), &OptionSettings::default());
        let mut back = release(&environment);
        back.settings = environment.settings.clone();
        back.brought = environment.brought.clone();
        let next = settings(&[(PROPERTIES, "A", "2"), (ASG, "MinSize", "3")]);
        Layers::with_version(
            &environment,
            &version("v2", next),
            &OptionSettings::default(),
        )
        .put_in(&mut environment);
        let layers = Layers::of_release(&back, &environment);
        let holds = settings(&[(PROPERTIES, "A", "1"), (ASG, "MinSize", "3")]);
        assert_eq!(layers.settings, holds);
        assert_eq!(layers.brought, holds, "none of it is the environment's own");
    }

    #[test]
    fn a_manifest_makes_a_new_environments_own_settings_and_files_stay_below() {
        let mut first = version(
            "v1",
            settings(&[(ASG, "MinSize", "4"), (PROPERTIES, "A", "f")]),
        );
        first.manifest = settings(&[(ASG, "MinSize", "3"), (PROPERTIES, "B", "m")]);
        let told = settings(&[(PROPERTIES, "B", "told")]);
        let layers = Layers::at_creation(&told, Some(&first));
        let all = [
            (ASG, "MinSize", "3"),
            (PROPERTIES, "A", "f"),
            (PROPERTIES, "B", "told"),
        ];
        assert_eq!(layers.settings, settings(&all));
        assert_eq!(layers.brought, settings(&[(PROPERTIES, "A", "f")]));
    }
}
