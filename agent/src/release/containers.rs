//! What a bundle runs in containers: the host's Docker Engine builds or pulls the images.

use super::build::{Codes, Made, Site, acts_as_root, limits, make_home};
use super::install::Packages;
use super::platform::Plan;
use super::root::Run;
use super::{Fault, Workshop, blocking, programs};
use crate::containers::engine::{self, Engine, EngineError};
use crate::containers::prepare::Order;
use crate::containers::{LOGINS, Ready, clean};
use beanpole_bundle::containers::{self, Container, Image};
use beanpole_bundle::ebextensions::NeedsRoot;
use beanpole_bundle::platform::Directory;
use beanpole_daemon::files;
use beanpole_protocol::agent::Limits;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an Engine may take to answer that was just started.
const STARTS: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
const CODES: Codes = Codes {
    failed: "image-failed",
    out_of_memory: "build-out-of-memory",
};
/// Docker Engine.
const ENGINE: Packages = Packages {
    what: "Docker Engine",
    apt: "docker.io",
    dnf: "moby-engine",
    apk: "docker",
    zypper: "docker",
    stop: "",
    otherwise: "",
};
/// Starts it, by whatever starts services there.
const START: &str = "if [ -d /run/systemd/system ]; then systemctl enable --now --quiet docker; \
    elif command -v rc-service >/dev/null; then rc-update add docker default; rc-service docker start; \
    else service docker start; fi";

/// Makes the images ready.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let is_made = |one: &Container| matches!(one.image, Image::Made { .. });
    let made = plan.containers.clone();
    let containers = match made.filter(|made| made.containers.iter().all(is_made)) {
        // There are no variables in it.
        Some(made) => made,
        None => {
            let (tree, properties) = (site.tree.clone(), site.order.properties.0.clone());
            blocking(move || {
                let mut top = Directory(&tree);
                Ok(containers::read(&mut top, Some(&properties))?)
            })
            .await?
        }
    };
    if let Some(needs) = &containers.needs_root
        && !acts_as_root(site.order)
    {
        let application = &site.order.application;
        return Err(Fault::new(
            NeedsRoot::NOT_ALLOWED,
            format!(
                "{} {}",
                needs.refusal(application),
                NeedsRoot::hint(application)
            ),
        ));
    }
    workshop.engine(site).await?;
    let secret_file = workshop.layout.image_secret();
    let secret = blocking(move || {
        clean::secret(&secret_file).map_err(|error| Fault::io("keep", &secret_file, &error))
    })
    .await?;
    let result = site.work.join("images.json");
    let order = Order {
        tree: site.tree.clone(),
        containers: containers.clone(),
        key: site.order.key.clone(),
        secret,
        logins: site.order.properties.0.get(LOGINS).cloned(),
        limits: limits(&site.order.options),
        result: result.clone(),
    };
    let path = site.work.join("images-order.json");
    files::write_json(&path, &order, 0o600).map_err(|error| {
        Fault::new(
            "host-io",
            format!("The agent could not write {}: {error}.", path.display()),
        )
    })?;
    let command = format!(
        "exec {} container prepare {}",
        programs::quoted(&workshop.program.to_string_lossy()),
        programs::quoted(&path.to_string_lossy())
    );
    let shown = match containers.containers.as_slice() {
        [one] => format!("docker: the image of {}", one.image.shown()),
        several => format!("docker: the images of {} containers", several.len()),
    };
    // What it uses itself is little; the Engine holds builds to their limits.
    workshop.run_engine(site, &shown, command).await?;
    let images: Option<BTreeMap<String, String>> =
        files::read_json(&result).map_err(|error| Fault::new("host-io", error.to_string()))?;
    for used in [&path, &result] {
        let _ = std::fs::remove_file(used);
    }
    Ok(Made {
        processes: Some(containers.shown()),
        containers: Some(Ready {
            containers,
            images: images.unwrap_or_default(),
        }),
        ..Made::default()
    })
}

impl Workshop {
    /// Sees to it that the host has an Engine that answers.
    async fn engine(&self, site: &Site<'_>) -> Result<(), Fault> {
        let missing = match Engine::connect(engine::SOCKET).await {
            Ok(_) => return Ok(()),
            Err(EngineError::Missing { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                return Err(Fault::new(
                    "docker-forbidden",
                    format!(
                        "The agent may not use Docker Engine ({}): run it as root, or as a user of the group `docker`.",
                        engine::SOCKET
                    ),
                ));
            }
            Err(error) if error.is_away() => error,
            Err(error) => return Err(Fault::new("docker-unfit", format!("{error}."))),
        };
        self.install_packages(site, "dockerd", &ENGINE).await?;
        if programs::find("dockerd", false).is_none() {
            return Err(Fault::new(
                "runtime-missing",
                format!("{missing}. {}", ENGINE.advice()),
            ));
        }
        if site.order.install && rustix::process::geteuid().is_root() {
            self.run_engine(site, "docker: start the Engine", START.to_owned())
                .await?;
        }
        let end = Instant::now() + STARTS;
        loop {
            match Engine::connect(engine::SOCKET).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_away() && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    return Err(Fault::new(
                        "docker-away",
                        format!("{error}. See why on the host: systemctl status docker"),
                    ));
                }
            }
        }
    }

    async fn run_engine(&self, site: &Site<'_>, shown: &str, script: String) -> Result<(), Fault> {
        let home = site.work.join(super::install::HOME);
        make_home(&home, None)?;
        let limits = Limits::default();
        let run = Run {
            shown,
            arguments: vec!["-c".to_owned(), script],
            directory: Path::new("/"),
            environment: &BTreeMap::new(),
            limits,
        };
        let ended = self.run_as_root(site, run).await?;
        match ended.judge(&CODES, shown, &limits) {
            None => Ok(()),
            Some(fault) => Err(fault.with_log(ended.lines)),
        }
    }
}
