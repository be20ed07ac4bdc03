//! Ruby: Bundler installs what the `Gemfile` asks for, into a cache by its lock file.

use super::build::{CODES, Made, Site, Step};
use super::cache::Key;
use super::node::{hand_over, take_back};
use super::{Fault, Workshop, blocking, build, programs, runtimes, tree};
use beanpole_bundle::platform::{self, Directory};
use std::collections::BTreeMap;
use std::path::Path;

/// Groups of gems that are not installed unless `BUNDLE_WITHOUT` says otherwise, as on EB.
const WITHOUT: &str = "test:development";

/// Installs what a bundle needs.
pub async fn install(workshop: &Workshop, site: &Site<'_>) -> Result<Made, Fault> {
    let ruby = workshop.runtime(site, &runtimes::RUBY, None);
    let ruby = ruby.await?;
    let mut made = Made {
        path: vec![ruby.program.directory.clone()],
        ..Made::default()
    };
    for (name, value) in [
        ("RACK_ENV", "production"),
        ("RAILS_ENV", "production"),
        ("RAILS_LOG_TO_STDOUT", "true"),
        ("RAILS_SERVE_STATIC_FILES", "true"),
        ("BUNDLE_WITHOUT", WITHOUT),
    ] {
        made.environment.insert(name.to_owned(), value.to_owned());
    }
    if !platform::has_gemfile(&Directory(&site.tree)) {
        return Ok(made);
    }
    let bundler = workshop
        .require(site, "bundle", &runtimes::RUBY.packages)
        .await?;
    made.path.push(bundler.directory.clone());
    let locked = site.tree.join("Gemfile.lock").is_file();
    if locked {
        made.environment
            .insert("BUNDLE_FROZEN".to_owned(), "true".to_owned());
    }
    let path = programs::path_with(made.path.iter().map(|path| path.as_path()));
    let run = Run {
        workshop,
        site,
        program: &bundler.path,
        path: &path,
    };
    hand_over(site).await?;
    if site.tree.join("vendor/bundle").is_dir() {
        let place = workshop
            .layout
            .release(&site.order.key)
            .join("app/vendor/bundle");
        made.environment.insert(
            "BUNDLE_PATH".to_owned(),
            place.to_string_lossy().into_owned(),
        );
        take_back(site).await?;
        return Ok(made);
    }
    // What the host has by itself, as packages of its distribution, needs no registry.
    if !run.succeeds(&["check"], &made.environment).await? {
        let name = Key::default()
            .with(site.order.application.as_str())
            .with(&ruby.version)
            .with(std::env::consts::ARCH)
            .with(
                site.order
                    .properties
                    .0
                    .get("BUNDLE_WITHOUT")
                    .map_or("", |text| text),
            )
            .with_file(&site.tree, "Gemfile")?
            .with_file(&site.tree, "Gemfile.lock")?
            .name("ruby");
        let _turn = workshop.caches.turn(&name).await;
        let gems = workshop.caches.path(&name);
        made.environment.insert(
            "BUNDLE_PATH".to_owned(),
            gems.to_string_lossy().into_owned(),
        );
        if !workshop.caches.is_complete(&name) {
            workshop.caches.clear(&name)?;
            if let Err(fault) = run.install(&gems, locked, &made.environment).await {
                let _ = workshop.caches.clear(&name);
                return Err(fault);
            }
            workshop.caches.complete(&name)?;
        }
        made.caches.push(name);
    }
    take_back(site).await?;
    Ok(made)
}

/// Bundler in a release.
struct Run<'a> {
    workshop: &'a Workshop,
    site: &'a Site<'a>,
    program: &'a Path,
    path: &'a str,
}

impl Run<'_> {
    async fn ended(
        &self,
        arguments: &[&str],
        environment: &BTreeMap<String, String>,
    ) -> Result<Option<Fault>, Fault> {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let step = Step {
            program: self.program,
            arguments: &arguments,
            directory: &self.site.tree,
            path: self.path,
        };
        let (shown, own) = (step.shown(), BTreeMap::new());
        let ended = self
            .workshop
            .run_to_its_end(self.site, &step, &shown, &CODES, environment, &own)
            .await?;
        let limits = build::limits(&self.site.order.options);
        let fault = ended.judge(&CODES, &shown, &limits);
        Ok(fault.map(|fault| fault.with_log(ended.lines)))
    }

    async fn succeeds(
        &self,
        arguments: &[&str],
        environment: &BTreeMap<String, String>,
    ) -> Result<bool, Fault> {
        Ok(self.ended(arguments, environment).await?.is_none())
    }

    async fn install(
        &self,
        gems: &Path,
        locked: bool,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let user = self.site.user.as_ref();
        tree::make_private(gems, user)?;
        if let Some(user) = user {
            tree::give(gems, user)?;
        }
        let mut environment = environment.clone();
        if locked {
            environment.insert("BUNDLE_DEPLOYMENT".to_owned(), "true".to_owned());
        }
        let arguments = ["install", "--jobs", "4", "--retry", "3"];
        if let Some(fault) = self.ended(&arguments, &environment).await? {
            return Err(fault);
        }
        if let Some(user) = self.site.user.clone() {
            let directory = gems.to_owned();
            blocking(move || {
                tree::seal(&directory, &user, false)?;
                tree::make_private(&directory, Some(&user))
            })
            .await?;
        }
        Ok(())
    }
}
