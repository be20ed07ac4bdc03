//! Where the agent keeps things: everything below `DATA/agent`.

use crate::fences::cgroups::Owner;
use beanpole_protocol::EnvironmentId;
use beanpole_protocol::agent::ReleaseKey;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.join("agent"),
        }
    }

    /// Makes the directories. Applications may pass through them, but list none of them.
    pub fn create(&self) -> io::Result<()> {
        for (path, mode) in [
            (self.root.clone(), 0o711),
            (self.blobs(), 0o700),
            (self.releases(), 0o711),
            (self.caches(), 0o711),
            (self.builds(), 0o700),
        ] {
            DirBuilder::new().recursive(true).mode(mode).create(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// The agent's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Held by the one agent that runs on this data.
    pub fn lock(&self) -> PathBuf {
        self.root.join("agent.lock")
    }

    /// The orders.
    pub fn orders(&self) -> PathBuf {
        self.root.join("orders.json")
    }

    /// Whose host this is.
    pub fn owner(&self) -> PathBuf {
        self.root.join("owner.json")
    }

    /// The agent's own id.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// Bundles.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Prepared releases.
    pub fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    /// Installed dependencies.
    pub fn caches(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Part of the names of images, which only root knows.
    pub fn image_secret(&self) -> PathBuf {
        self.root.join("images.secret")
    }

    /// What runs: a directory for each instance, from before it runs to after its end.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// The load balancer.
    pub fn edge(&self) -> PathBuf {
        self.root.join("edge")
    }

    /// Whether the owner of a cgroup is here.
    pub fn holds(&self, owner: &Owner) -> bool {
        let path = match owner {
            Owner::Instance(id) if *id == crate::edge::id_in(&self.edge()) => {
                self.edge().join(id.as_str())
            }
            Owner::Instance(id) => self.instances().join(id.as_str()),
            Owner::Build(name) => self.builds().join(format!("{name}.pid")),
        };
        // What cannot be told counts as here.
        path.try_exists().unwrap_or(true)
    }

    /// Logs of builds, and records of those that run.
    pub fn builds(&self) -> PathBuf {
        self.root.join("builds")
    }

    /// What setting the host up for an environment has changed and no service was restarted for.
    pub fn setup(&self, environment: &EnvironmentId) -> PathBuf {
        self.root
            .join("setup")
            .join(format!("changed-{environment}.json"))
    }

    /// What directories of the host were filled with.
    pub fn sources(&self) -> PathBuf {
        self.root.join("setup").join("sources.json")
    }

    /// What packages files were of that came by their URLs.
    pub fn package_files(&self) -> PathBuf {
        self.root.join("setup").join("packages.json")
    }

    /// The releases of one environment.
    pub fn environment(&self, key: &ReleaseKey) -> PathBuf {
        self.releases().join(key.environment.as_str())
    }

    /// A prepared release: `app/` (the tree), `release.json`, `synced`.
    pub fn release(&self, key: &ReleaseKey) -> PathBuf {
        self.environment(key).join(key.number.to_string())
    }

    /// Where a release is prepared.
    pub fn release_work(&self, key: &ReleaseKey) -> PathBuf {
        self.environment(key).join(format!("{}.tmp", key.number))
    }

    /// What its build wrote.
    pub fn build_log(&self, key: &ReleaseKey) -> PathBuf {
        self.builds()
            .join(format!("{}-{}.log", key.environment, key.number))
    }

    /// Where its release command has its home directory, while it runs.
    pub fn once_work(&self, key: &ReleaseKey) -> PathBuf {
        self.environment(key).join(format!("{}.once", key.number))
    }

    /// Remembers that its release command was started, and how it ended.
    pub fn once(&self, key: &ReleaseKey) -> PathBuf {
        self.builds()
            .join(format!("{}-{}-once.json", key.environment, key.number))
    }

    /// What its release command wrote.
    pub fn once_log(&self, key: &ReleaseKey) -> PathBuf {
        self.builds()
            .join(format!("{}-{}-once.log", key.environment, key.number))
    }

    /// Tells of its running release command.
    pub fn once_pid(&self, key: &ReleaseKey) -> PathBuf {
        self.builds()
            .join(format!("{}-{}-once.pid", key.environment, key.number))
    }

    /// Tells of its running build.
    pub fn build_pid(&self, key: &ReleaseKey) -> PathBuf {
        self.builds()
            .join(format!("{}-{}.pid", key.environment, key.number))
    }
}
