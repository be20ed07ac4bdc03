//! From a directory, a ZIP or a git ref to a version on the controller: pack, upload what is not
//! known yet, name it.

use super::{apps, environment_path};
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::progress::Upload;
use crate::output::{bytes, plural};
use crate::project::git;
use crate::project::pack::{self, Packed};
use crate::project::settings::LabelStyle;
use beanpole_bundle::NotRun;
use beanpole_bundle::ebextensions::NeedsRoot;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{Bundle, CreateVersion, Environment, Tier, Version};
use beanpole_protocol::ids::shown;
use beanpole_protocol::{ApplicationName, EnvironmentName, VersionLabel};
use std::path::{Path, PathBuf};

/// What the user said about a new version.
#[derive(Debug, Default)]
pub struct Wanted {
    /// `--from`.
    pub from: Option<PathBuf>,
    /// `--git`.
    pub git: Option<String>,
    /// `--label`.
    pub label: Option<VersionLabel>,
    /// `--description`.
    pub description: Option<String>,
    /// What the environment that it is for runs it as.
    pub runs_as: Option<RunsAs>,
}

/// What an environment runs versions as.
#[derive(Debug)]
pub struct RunsAs {
    /// Its platform.
    pub platform: Platform,
    /// Options of that, as far as they are known here.
    pub options: beanpole_bundle::platform::Options,
    /// Its tier.
    pub tier: Tier,
}

/// Packs, uploads and names a version; says whether it is new.
pub fn make_version(
    context: &Context,
    application: &ApplicationName,
    wanted: &Wanted,
) -> Result<(Version, bool), Failure> {
    let (packed, commit) = pack(context, wanted)?;
    if let Some(runs_as) = &wanted.runs_as {
        if let Some(needs) = packed.check_runs(runs_as)? {
            check_root(context, application, &needs)?;
        }
        for note in notes(&packed.not_run(runs_as)?) {
            crate::output::warn(&note);
        }
    }
    let files = packed
        .files
        .map(|files| format!(", {}", plural(files, "file")))
        .unwrap_or_default();
    context.output.say(format!(
        "Packed {}{files}, {}, sha256 {}.",
        packed.from,
        bytes(packed.size),
        packed.digest.short()
    ));
    let client = context.client()?;
    let bundle = packed.digest.clone();
    upload(context, client, packed)?;
    let label = match &wanted.label {
        Some(label) => label.clone(),
        None => own_label(context, client, application, &bundle, commit.as_ref())?,
    };
    let description = wanted
        .description
        .clone()
        .or_else(|| commit.map(|commit| commit.subject.chars().take(200).collect()))
        .unwrap_or_default();
    let path = format!("/v1/applications/{}/versions", escape(application.as_str()));
    let known = format!("{path}/{}", escape(label.as_str()));
    if client.exists_by_get(&known)? {
        let version: Version = client.get(&known)?;
        if version.bundle == bundle {
            context
                .output
                .say(format!("Version {label} has this content already."));
            return Ok((version, false));
        }
        return Err(Failure::new(format!(
            "Version {label} of {application} exists and has other content; a version never changes."
        ))
        .hint("Choose another name with --label, or deploy what is there: --version"));
    }
    let version = client.post(
        &path,
        &CreateVersion {
            label,
            description,
            bundle,
        },
    )?;
    Ok((version, true))
}

/// Refuses a bundle that asks for what only root may do on hosts, where its application may not act as root there.
fn check_root(
    context: &Context,
    application: &ApplicationName,
    needs: &NeedsRoot,
) -> Result<(), Failure> {
    if apps::may_be_root(context.client()?, application)? {
        return Ok(());
    }
    let mut failure = Failure::new(needs.refusal(application)).hint(NeedsRoot::hint(application));
    failure.code = Some(NeedsRoot::NOT_ALLOWED.to_owned());
    Err(failure)
}

/// Says what of a bundle is passed over.
fn notes(not_run: &NotRun) -> Vec<String> {
    let extensions = not_run.extensions.iter().map(|over| {
        format!(
            "Note: {} has keys that do nothing here: {}.",
            over.file,
            over.keys.join(", ")
        )
    });
    let resources = not_run
        .resources
        .iter()
        .map(|resource| format!("Note: {resource}."));
    let options = not_run
        .options
        .iter()
        .map(|option| format!("Note: {option}: does nothing here."));
    let containers = not_run
        .containers
        .iter()
        .map(|asked| format!("Note: containers do not get {asked}."));
    extensions
        .chain(resources)
        .chain(options)
        .chain(containers)
        .collect()
}

/// Packs what is wanted: the command line first, then `deploy.toml`, then the directory.
fn pack(context: &Context, wanted: &Wanted) -> Result<(Packed, Option<git::Commit>), Failure> {
    let project = context.project()?;
    let source = &project.settings.source;
    let limit = source
        .size_limit_mib
        .map_or(pack::DEFAULT_LIMIT, |mib| mib.saturating_mul(1024 * 1024));
    let root = match &project.root {
        Some(root) => root.clone(),
        None => std::env::current_dir()
            .map_err(|error| Failure::caused("The current directory cannot be read.", &error))?,
    };
    let reference = match (&wanted.from, &wanted.git) {
        (Some(_), _) => None,
        (None, Some(reference)) => Some(reference),
        (None, None) => source.git.as_ref(),
    };
    if let Some(reference) = reference {
        let commit = git::commit(&root, reference)?;
        let packed = git::archive(&root, &commit, limit)?;
        return Ok((packed, Some(commit)));
    }
    let from = match (&wanted.from, &source.from) {
        (Some(from), _) => from.clone(),
        (None, Some(from)) => root.join(from),
        (None, None) => root,
    };
    let from = pack::resolve(&from)?;
    if wanted.from.is_none() {
        project.may_hold(&from)?;
    }
    let packed = if from.is_dir() {
        context.output.say(format!("Packing {} …", from.display()));
        pack::directory(&from, &source.ignore, limit)?
    } else {
        pack::archive(&from, limit)?
    };
    Ok((packed, None))
}

fn upload(context: &Context, client: &Client, packed: Packed) -> Result<(), Failure> {
    let path = format!("/v1/bundles/{}", packed.digest);
    if client.exists(&path)? {
        context
            .output
            .say("The controller has this bundle already.");
        return Ok(());
    }
    let mut reader = Upload::new(context.output, packed.file, packed.size);
    let stored: Bundle = client.put(&path, &mut reader, packed.size)?;
    drop(reader);
    if stored.digest != packed.digest {
        return Err(Failure::new("The bundle arrived damaged.")
            .hint("Try again; if it stays so, the network or a proxy on the way changes data"));
    }
    context
        .output
        .say(format!("Uploaded {}.", bytes(stored.size)));
    Ok(())
}

/// `app-<git hash>` for a commit, unless another content has that name; else `app-<time>`.
fn own_label(
    context: &Context,
    client: &Client,
    application: &ApplicationName,
    bundle: &beanpole_protocol::Digest,
    commit: Option<&git::Commit>,
) -> Result<VersionLabel, Failure> {
    let style = context.project()?.settings.source.label;
    let time = compact(beanpole_daemon::clock::now());
    let invalid = |error: beanpole_protocol::ids::Invalid| Failure::new(error.to_string());
    let (LabelStyle::Auto, Some(commit)) = (style, commit) else {
        return VersionLabel::new(format!("app-{time}")).map_err(invalid);
    };
    let label = VersionLabel::new(format!("app-{}", commit.short())).map_err(invalid)?;
    let path = format!(
        "/v1/applications/{}/versions/{}",
        escape(application.as_str()),
        escape(label.as_str())
    );
    if client.exists_by_get(&path)? {
        let version: Version = client.get(&path)?;
        if version.bundle != *bundle {
            return VersionLabel::new(format!("app-{}-{time}", commit.short())).map_err(invalid);
        }
    }
    Ok(label)
}

/// A time in UTC as `yymmdd_HHMMSSmmm`.
fn compact(at: beanpole_protocol::Timestamp) -> String {
    let digits: String = at
        .to_string()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    match (digits.get(2..8), digits.get(8..17)) {
        (Some(day), Some(time)) => format!("{day}_{time}"),
        _ => digits,
    }
}

/// The environment `name`, with a hint for one that does not exist.
pub fn environment(context: &Context, name: &EnvironmentName) -> Result<Environment, Failure> {
    context
        .client()?
        .get(&environment_path(name))
        .map_err(|failure: Failure| {
            if failure.has_code("environment-not-found") {
                failure.hint(format!("Create it: beanpole create {name}"))
            } else {
                failure
            }
        })
}

/// The application meant: the one named, else that of `deploy.toml`, else one named as the project's
/// directory.
pub fn application(
    context: &Context,
    named: Option<&ApplicationName>,
) -> Result<ApplicationName, Failure> {
    if let Some(name) = context.application(named)? {
        return Ok(name);
    }
    let root = match &context.project()?.root {
        Some(root) => root.clone(),
        None => std::env::current_dir()
            .map_err(|error| Failure::caused("The current directory cannot be read.", &error))?,
    };
    directory_name(&root).ok_or_else(|| {
        Failure::misuse("Which application?")
            .hint("Name it with --application, or set `application` in deploy.toml")
    })
}

/// A directory's name as an application's.
pub fn directory_name(root: &Path) -> Option<ApplicationName> {
    ApplicationName::new(root.file_name()?.to_str()?).ok()
}

/// Reads `NAME=VALUE`.
pub fn property(text: &str) -> Result<(&str, &str), Failure> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| {
            // The text may be a secret given in the wrong place: it is not repeated.
            Failure::misuse("An environment property is written NAME=VALUE.")
                .hint("For example LOG_LEVEL=debug; NAME= removes one")
        })
}

/// Reads a platform's name.
pub fn platform(text: &str) -> Result<Platform, String> {
    let known = Platform::ALL.map(Platform::as_str);
    named(text, &known, "platform")
}

/// Reads a tier's name. EB's own spellings will do.
pub fn tier(text: &str) -> Result<Tier, String> {
    match text.to_ascii_lowercase().as_str() {
        "webserver" => Ok(Tier::Web),
        lower => named(lower, &["web", "worker"], "tier"),
    }
}

fn named<T: serde::de::DeserializeOwned>(
    text: &str,
    known: &[&str],
    what: &str,
) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        let near = beanpole_protocol::options::nearest(text, known.iter().copied())
            .map(|near| format!(" Did you mean `{near}`?"))
            .unwrap_or_default();
        format!(
            "there is no {what} `{}`.{near} Known: {}",
            shown(text),
            known.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_carry_the_time_as_the_eb_cli_writes_it() {
        let at = beanpole_protocol::Timestamp::from_millis(1_790_000_000_120);
        assert_eq!(compact(at), "260921_141320120");
    }

    #[test]
    fn what_is_passed_over_is_named_with_its_file() {
        let not_run = NotRun {
            extensions: vec![beanpole_bundle::ebextensions::PassedOver {
                file: ".ebextensions/01.config".to_owned(),
                keys: vec!["Outputs".to_owned(), "packages.msi".to_owned()],
            }],
            resources: [
                ("Queue", "AWS::SQS::Queue"),
                ("Stream", "AWS::Kinesis::Stream"),
            ]
            .map(|(name, kind)| beanpole_bundle::ebextensions::Resource {
                name: name.to_owned(),
                kind: Some(kind.to_owned()),
                file: ".ebextensions/02.config".to_owned(),
                line: 3,
            })
            .to_vec(),
            containers: vec!["port 81 in Dockerrun.aws.json, line 4".to_owned()],
            options: vec!["aws:ec2:vpc:VPCId in .ebextensions/03.config, line 2".to_owned()],
        };
        let notes = notes(&not_run);
        assert!(
            notes[0].contains(
                ".ebextensions/01.config has keys that do nothing here: Outputs, packages.msi."
            ),
            "{}",
            notes[0]
        );
        assert_eq!(
            notes[1],
            "Note: the resource Queue (AWS::SQS::Queue) in .ebextensions/02.config, line 3, is not made here yet."
        );
        assert!(notes[2].ends_with("is of a type that Beanpole does not make."));
        assert_eq!(
            notes[3],
            "Note: aws:ec2:vpc:VPCId in .ebextensions/03.config, line 2: does nothing here."
        );
        assert_eq!(
            notes[4],
            "Note: containers do not get port 81 in Dockerrun.aws.json, line 4."
        );
    }

    #[test]
    fn an_unknown_platform_suggests_the_nearest() {
        let error = platform("pyton").expect_err("unknown");
        assert!(error.contains("Did you mean `python`?"), "{error}");
        assert_eq!(tier("WebServer"), Ok(Tier::Web));
    }

    #[test]
    fn a_property_in_the_wrong_shape_is_not_repeated() {
        let error = property("s3cret").expect_err("wrong");
        assert!(!error.message.contains("s3cret"));
    }
}
