//! Looks into a ZIP without unpacking it.

use crate::ebextensions::{self, ContainerCommand, NeedsRoot, PassedOver, Resource};
use crate::hooks::{self, When};
use crate::platform::{self, Top};
use crate::statics;
use crate::{
    Archive, Contents, Entry, Refused, UnpackLimits, damaged, examine, follow, link_targets, open,
    shown,
};
use crate::{Brought, cron, env_yaml};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Refuses a bundle that hosts could not run on `platform` in an environment of `tier`, as far as
/// that can be told without them. Gives the first thing in it that only root can do there, if there is any: whether
/// that may be, the application's permissions say.
pub fn check_runs(
    file: File,
    platform: Platform,
    options: &platform::Options,
    tier: Tier,
) -> Result<Option<NeedsRoot>, Refused> {
    look_into(file, |packed| {
        let plan = platform::find(packed, platform, options)?;
        plan.suits(tier)?;
        packed.check_hooks()?;
        cron::read(packed)?;
        let manifest = env_yaml::read(packed)?;
        let extensions = ebextensions::read(packed)?;
        Brought::beside(packed, &extensions, manifest.as_ref())?;
        let of_containers = plan.containers.and_then(|containers| containers.needs_root);
        Ok(extensions.needs_root.or(of_containers))
    })
}

/// What a bundle has run besides its processes and hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// The `release` line of its Procfile, in full.
    pub release: Option<String>,
    /// Its container commands, in their order.
    pub container: Vec<ContainerCommand>,
    /// Whether its configuration files have hosts set up besides.
    pub sets_up: bool,
    /// The processes that its Procfile names; none where it has no Procfile.
    pub processes: Vec<String>,
    /// The directory of a static site that load balancers can serve, and whether its files make the bundle one.
    pub site: Option<(String, bool)>,
}

/// The release command and the container commands of a bundle, and its processes by name.
pub fn commands(file: File, platform: Platform) -> Result<Commands, Refused> {
    look_into(file, |packed| {
        let named = platform::named(packed, platform)?;
        let extensions = ebextensions::read(packed)?;
        Ok(Commands {
            release: named.release_command,
            sets_up: extensions.sets_up(),
            container: extensions.container_commands,
            processes: named.processes.into_iter().map(|(name, _)| name).collect(),
            site: site(packed),
        })
    })
}

/// The options that a bundle brings along.
pub fn brought(file: File) -> Result<Brought, Refused> {
    look_into(file, |packed| Brought::read(packed))
}

/// A static site in a directory of its own: all of a bundle is never served by load balancers, and one that is too large for
/// them is served by its instances alone.
fn site(packed: &Packed<'_>) -> Option<(String, bool)> {
    let root =
        platform::site_root(packed, &platform::Options::new()).filter(|root| !root.is_empty())?;
    statics::add(packed, "", &root, &mut BTreeMap::new()).ok()?;
    Some((root, platform::detect(packed) == Some(Platform::Static)))
}

/// What Elastic Beanstalk would do for a bundle and hosts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotRun {
    /// Keys of its configuration files.
    pub extensions: Vec<PassedOver>,
    /// What its configuration files want beside the environment.
    pub resources: Vec<Resource>,
    /// Options, as [`Brought::passed_over`].
    pub options: Vec<String>,
    /// What containers ask for, as [`crate::containers::Containers::passed_over`].
    pub containers: Vec<String>,
}

/// What of a bundle is passed over.
pub fn not_run(file: File, platform: Platform) -> Result<NotRun, Refused> {
    look_into(file, |packed| {
        let is_docker = match platform {
            Platform::Auto => platform::detect(packed) == Some(Platform::Docker),
            chosen => chosen == Platform::Docker,
        };
        let containers = if is_docker {
            crate::containers::read(packed, None)?.passed_over
        } else {
            Vec::new()
        };
        let options = Brought::read(packed)?.passed_over;
        let extensions = ebextensions::read(packed)?;
        Ok(NotRun {
            extensions: extensions.passed_over,
            resources: extensions.resources,
            options,
            containers,
        })
    })
}

pub(crate) fn look_into<T>(
    file: File,
    look: impl FnOnce(&mut Packed<'_>) -> Result<T, Refused>,
) -> Result<T, Refused> {
    let (mut archive, contents) = examine(open(file)?, &UnpackLimits::default())?;
    let links = link_targets(&mut archive, &contents)?;
    let mut packed = Packed {
        archive: archive.clone(),
        contents: &contents,
        links,
    };
    look(&mut packed)
}

pub(crate) struct Packed<'c> {
    pub(crate) archive: Archive,
    pub(crate) contents: &'c Contents,
    pub(crate) links: BTreeMap<&'c Path, PathBuf>,
}

impl Packed<'_> {
    /// The file that `name` leads to.
    fn entry(&self, name: &str) -> Option<Entry> {
        let path = follow(PathBuf::new(), Path::new(name), &self.links)?;
        let files = &self.contents.files;
        // A bundle may have very many, and each of its links may be asked for.
        let found = files.binary_search_by(|(file, _)| file.cmp(&path)).ok()?;
        Some(files[found].1)
    }

    /// Refuses hooks that no host could start.
    fn check_hooks(&mut self) -> Result<(), Refused> {
        let contents = self.contents;
        let directories: Vec<PathBuf> = hooks::Kind::ALL
            .into_iter()
            .flat_map(|kind| When::ALL.map(|when| when.directory(kind)))
            .collect();
        let hooks = contents.files.iter().filter(|(path, _)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let directory = path.parent().unwrap_or(Path::new(""));
            directories.iter().any(|one| one == directory) && hooks::counts(&name)
        });
        for (path, entry) in hooks {
            hooks::check(path, &self.head_of(*entry, hooks::HEAD)?)?;
        }
        Ok(())
    }

    fn head_of(&mut self, entry: Entry, longest: u64) -> Result<Vec<u8>, Refused> {
        let mut bytes = Vec::new();
        self.archive
            .by_index(entry.index)
            .map_err(|error| damaged(&error))?
            .take(longest)
            .read_to_end(&mut bytes)
            .map_err(|error| damaged(&error.into()))?;
        Ok(bytes)
    }
}

impl Top for Packed<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        let Some(entry) = self.entry(name) else {
            return Ok(None);
        };
        self.head_of(entry, longest).map(Some)
    }

    fn names(&self) -> Vec<(String, bool)> {
        let top = |path: &Path| match path.components().next() {
            Some(Component::Normal(name)) => Some(shown(&name.to_string_lossy())),
            _ => None,
        };
        let files = self.contents.files.iter().chain(&self.contents.links);
        let files = files.filter(|(path, _)| path.components().count() == 1);
        let names: BTreeSet<(String, bool)> = files
            .filter_map(|(path, _)| Some((top(path)?, false)))
            .chain(
                self.contents
                    .directories
                    .iter()
                    .filter_map(|path| Some((top(path)?, true))),
            )
            .collect();
        names.into_iter().collect()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        let Some(directory) = follow(PathBuf::new(), Path::new(name), &self.links) else {
            return Vec::new();
        };
        let files = self.contents.files.iter().chain(&self.contents.links);
        files
            .filter(|(path, _)| path.parent() == Some(&directory))
            .filter_map(|(path, _)| Some(path.file_name()?.to_string_lossy().into_owned()))
            .filter(|file| {
                let path = Path::new(name).join(file);
                path.to_str().is_some_and(|path| self.has_file(path))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn zip(write: impl FnOnce(&mut ZipWriter<File>)) -> File {
        let mut zip = ZipWriter::new(tempfile::tempfile().expect("a file"));
        write(&mut zip);
        zip.finish().expect("finish")
    }

    fn bundle(files: &[(&str, &str)]) -> File {
        zip(|zip| {
            for (name, content) in files {
                zip.start_file(*name, SimpleFileOptions::default())
                    .expect("start");
                zip.write_all(content.as_bytes()).expect("write");
            }
        })
    }

    fn runs(file: File, platform: Platform, tier: Tier) -> Result<(), Refused> {
        check_runs(file, platform, &platform::Options::new(), tier).map(|_| ())
    }

    fn refusal(files: &[(&str, &str)], platform: Platform, tier: Tier) -> Refused {
        runs(bundle(files), platform, tier).expect_err("refused")
    }

    #[test]
    fn what_hosts_can_run_is_let_through() {
        let package = r#"{"scripts": {"start": "node x.js"}}"#;
        for (files, platform) in [
            (&[("Procfile", "web: ./x\n")][..], Platform::Auto),
            (&[("Procfile", "web: ./x\n")], Platform::Procfile),
            (&[("package.json", package)], Platform::Auto),
            (&[("package.json", "{}"), ("app.js", "")], Platform::Auto),
            (&[("server.js", "")], Platform::Node),
            (&[("requirements.txt", "flask\n")], Platform::Auto),
            (&[("application.py", "")], Platform::Python),
        ] {
            runs(bundle(files), platform, Tier::Web).expect("runs");
        }
        let files = &[("Procfile", "jobs: ./x\n")];
        runs(bundle(files), Platform::Auto, Tier::Worker).expect("a worker needs no web");
    }

    #[test]
    fn what_no_host_could_run_is_refused_with_its_reason() {
        let (auto, web) = (Platform::Auto, Tier::Web);
        let refused = refusal(&[("Procfile", "web: ./x\nworker ./y\n")], auto, web);
        assert_eq!(refused.code, "procfile-invalid");
        assert!(refused.message.contains("Line 2"), "{refused}");
        let refused = refusal(&[("Procfile", "jobs: ./x\ncron: ./y\n")], auto, web);
        assert_eq!(refused.code, "procfile-without-web");
        assert!(refused.message.contains("`jobs`, `cron`"), "{refused}");
        for (files, platform, says) in [
            (
                &[("readme.txt", "")][..],
                auto,
                "no Procfile at its top, and no",
            ),
            (
                &[("package.json", "{}")],
                Platform::Procfile,
                "no Procfile at its top",
            ),
            (&[("package.json", "{}")], auto, "no `start` script"),
            (
                &[("procfile", "web: x")],
                auto,
                "the name is written `Procfile`",
            ),
            (
                &[("shop/Procfile", "web: x"), ("__MACOSX/x", "")],
                auto,
                "in the folder `shop`",
            ),
        ] {
            let refused = refusal(files, platform, web);
            assert_eq!(refused.code, "no-platform", "{refused}");
            assert!(refused.message.contains(says), "{refused}");
        }
        let refused = refusal(&[("package.json", "{")], auto, web);
        assert_eq!(refused.code, "package-invalid");
    }

    #[test]
    fn a_link_at_the_top_counts_as_the_file_it_leads_to() {
        let file = zip(|zip| {
            let plain = SimpleFileOptions::default();
            zip.start_file("config/procs", plain).expect("start");
            zip.write_all(b"web: ./x\n").expect("write");
            zip.add_symlink("etc", "config", plain).expect("link");
            zip.add_symlink("Procfile", "etc/procs", plain)
                .expect("link");
        });
        runs(file, Platform::Auto, Tier::Web).expect("runs");
        let loops = zip(|zip| {
            let plain = SimpleFileOptions::default();
            zip.add_symlink("Procfile", "Procfile", plain)
                .expect("link");
        });
        let refused = runs(loops, Platform::Auto, Tier::Web).expect_err("leads nowhere");
        assert_eq!(refused.code, "no-platform");
    }

    #[test]
    fn a_hook_that_nothing_could_start_is_refused_before_anything_is_sent() {
        let (auto, web) = (Platform::Auto, Tier::Web);
        let procfile = ("Procfile", "web: ./x\n");
        let fine = [
            procfile,
            (".platform/hooks/predeploy/1.sh", "#!/bin/sh\n"),
            (".platform/hooks/predeploy/.gitkeep", ""),
            (".platform/hooks/prebuild/lib/common", "no hook"),
        ];
        runs(bundle(&fine), auto, web).expect("runs");
        assert_eq!(not_run(bundle(&fine), auto), Ok(NotRun::default()));
        for place in [
            "hooks/prebuild",
            "hooks/postdeploy",
            "confighooks/predeploy",
        ] {
            let name = format!(".platform/{place}/1.sh");
            let refused = refusal(&[procfile, (&name, "make assets\n")], auto, web);
            assert_eq!(refused.code, "hook-invalid");
            assert!(refused.message.contains(&name), "{refused}");
        }
    }

    #[test]
    fn a_release_command_is_no_process() {
        let (auto, web) = (Platform::Auto, Tier::Web);
        let command = |files| {
            commands(bundle(files), Platform::Auto)
                .expect("readable")
                .release
        };
        let both = &[("Procfile", "release: ./migrate up\nweb: ./x\n")];
        runs(bundle(both), auto, web).expect("runs");
        assert_eq!(command(both).as_deref(), Some("./migrate up"));
        assert_eq!(command(&[("Procfile", "web: ./x\n")]), None);
        assert_eq!(command(&[("requirements.txt", "")]), None);
        let only = ("Procfile", "release: ./migrate\n");
        let refused = refusal(&[only], auto, web);
        assert_eq!(refused.code, "procfile-invalid");
        assert!(refused.message.contains("names no process"), "{refused}");
        runs(bundle(&[only, ("requirements.txt", "flask\n")]), auto, web)
            .expect("gunicorn is the process");
        let no_web = &[("Procfile", "release: ./migrate\njobs: ./x\n")];
        let refused = refusal(no_web, auto, web);
        assert_eq!(refused.code, "procfile-without-web");
        assert!(!refused.message.contains("release"), "{refused}");
    }

    #[test]
    fn container_commands_are_read_and_what_is_passed_over_is_told() {
        let (auto, web) = (Platform::Auto, Tier::Web);
        let procfile = ("Procfile", "web: ./x\n");
        let config = |text| (".ebextensions/01.config", text);
        let fine = "Outputs: {}\ncontainer_commands:\n  b: {command: x}\n  a: {command: y}\n";
        let files = [procfile, config(fine)];
        runs(bundle(&files), auto, web).expect("runs");
        let found = commands(bundle(&files), Platform::Auto)
            .expect("readable")
            .container;
        let names: Vec<_> = found.iter().map(|command| command.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let left_out = not_run(bundle(&files), auto).expect("readable").extensions;
        assert_eq!(left_out[0].file, ".ebextensions/01.config");
        assert_eq!(left_out[0].keys, ["Outputs"]);
        let files = [procfile, config("container_commands:\n  a: {test: x}\n")];
        let refused = refusal(&files, auto, web);
        assert_eq!(refused.code, "ebextensions-invalid");
        assert!(refused.message.contains("line 2"), "{refused}");
        assert!(refused.hint().contains("deploy again"), "{refused}");
    }

    #[test]
    fn configuration_files_are_found_where_links_lead() {
        let file = zip(|zip| {
            let plain = SimpleFileOptions::default();
            zip.start_file("deploy/eb/real", plain).expect("start");
            zip.write_all(b"container_commands: {a: {command: x}}")
                .expect("write");
            zip.add_symlink("deploy/eb/a.config", "real", plain)
                .expect("link");
            zip.add_symlink(".ebextensions", "deploy/eb", plain)
                .expect("link");
        });
        assert_eq!(
            commands(file, Platform::Auto)
                .expect("readable")
                .container
                .len(),
            1
        );
    }

    #[test]
    fn a_static_site_is_known_by_its_directory_or_by_choice() {
        let site = |files: &[(&str, &str)]| {
            let found = commands(bundle(files), Platform::Auto).expect("readable");
            found.site
        };
        let page = ("dist/index.html", "hello");
        assert_eq!(site(&[page]), Some(("dist".to_owned(), true)));
        let with_server = site(&[page, ("package.json", r#"{"scripts":{"start":"x"}}"#)]);
        assert_eq!(with_server, Some(("dist".to_owned(), false)));
        assert_eq!(
            site(&[("index.html", "")]),
            None,
            "all of a bundle is not served"
        );
        assert_eq!(site(&[("Procfile", "web: x\n")]), None);
    }

    #[test]
    fn a_procfile_longer_than_anybody_writes_is_refused() {
        let long = format!("web: {}\n", "x".repeat(70_000));
        let refused = refusal(&[("Procfile", &long)], Platform::Auto, Tier::Web);
        assert_eq!(refused.code, "bundle-unsafe");
    }
}
