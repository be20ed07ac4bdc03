//! Takes everything away that this host got from Beanpole, and says what.

use crate::converge::Host;
use crate::remove;
use beanpole_daemon::files;
use beanpole_protocol::agent::{Installed, Uninstalled};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;

/// How long the instances may take to go.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a system command may take.
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// The directory of the executables of an installed agent.
pub const PROGRAMS: &str = "/usr/local/lib/beanpole";
/// The system user as whom the controller comes in.
const LOGIN: &str = "beanpole";
const UNIT: &str = "beanpole-agent.service";
/// What was installed, beside the agent's data.
const INSTALLED: &str = "installed.json";
/// What the set-up and the supervisor leave beside the agent's data.
const BESIDE_DATA: [&str; 3] = [INSTALLED, "agent.log", "agent.log.1"];
/// What the supervisor leaves beside the socket.
const SUPERVISOR: &str = "supervisor.pid";

/// What bootstrap put on this host besides the agent's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Where the executables are; none for an agent that was not installed.
    pub programs: Option<PathBuf>,
    /// The unit file.
    pub unit: Option<PathBuf>,
    /// The file that has cron start the agent at boot.
    pub cron: Option<PathBuf>,
    /// The user as whom the controller comes in.
    pub login: Option<String>,
    /// The data directory, removed when empty.
    pub data_dir: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
}

impl Installation {
    /// Nothing but the data: an agent started by hand.
    pub fn none() -> Self {
        Self {
            programs: None,
            unit: None,
            cron: None,
            login: None,
            data_dir: PathBuf::new(),
            socket: PathBuf::new(),
        }
    }

    /// What belongs to an agent that runs from `executable`: everything when it lies among the
    /// installed ones.
    pub fn of(executable: &Path, data_dir: &Path, socket: &Path) -> Self {
        let base = Self {
            data_dir: data_dir.to_owned(),
            socket: socket.to_owned(),
            ..Self::none()
        };
        // What set this host up wrote down what it made; that wins over every default.
        match files::read_json::<Installed>(&data_dir.join(INSTALLED)) {
            Ok(Some(installed)) => {
                return Self {
                    programs: Some(installed.executables.into()),
                    unit: installed.unit.map(PathBuf::from),
                    cron: installed.cron.map(PathBuf::from),
                    login: Some(installed.user),
                    ..base
                };
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "what was installed here cannot be read"),
        }
        if !executable.starts_with(PROGRAMS) {
            return base;
        }
        Self {
            programs: Some(PathBuf::from(PROGRAMS)),
            unit: Some(PathBuf::from("/etc/systemd/system").join(UNIT)),
            login: Some(LOGIN.to_owned()),
            ..base
        }
    }

    /// The executable that is the newest one here from now on; `executable` where none is installed.
    pub fn program(&self, executable: &Path) -> PathBuf {
        let installed = self.programs.as_ref();
        installed
            .map(|programs| programs.join("current").join("beanpole"))
            .filter(|program| program.exists())
            .unwrap_or_else(|| executable.to_owned())
    }

    /// What starts the agent after a reboot, as of now: `systemd`, `cron`.
    pub fn started_at_boot_by(&self) -> Option<&'static str> {
        let there = |path: &Option<PathBuf>| path.as_deref().is_some_and(Path::exists);
        if there(&self.unit) {
            Some("systemd")
        } else if there(&self.cron) {
            Some("cron")
        } else {
            None
        }
    }
}

#[derive(Default)]
struct Tally(Uninstalled);

impl Tally {
    fn removed(&mut self, what: String) {
        self.0.removed.push(what);
    }

    fn left(&mut self, what: String) {
        self.0.left.push(what);
    }

    fn note(&mut self, kind: &str, path: &Path, outcome: io::Result<()>) {
        let what = format!("{kind} {}", path.display());
        match outcome {
            Ok(()) => self.removed(what),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.left(format!("{what}: {error}")),
        }
    }

    /// Removes a directory and all that is in it, which may take its time.
    async fn directory(&mut self, path: &Path) {
        let whole = path.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove::tree(&whole)).await;
        self.note(
            "directory",
            path,
            removed.unwrap_or_else(|error| Err(io::Error::other(error))),
        );
    }
}

/// Stops everything and removes it. The agent ends after this.
pub async fn run(host: &Arc<Host>, installation: &Installation) -> Uninstalled {
    let mut tally = Tally::default();
    let before: Vec<_> = host.runtime.observe();
    let done = host.empty(PATIENCE).await;
    let after = host.runtime.observe();
    for report in before {
        let id = report.id;
        match after.iter().find(|left| left.id == id) {
            None => tally.removed(format!("instance {id}")),
            Some(_) => tally.left(format!("instance {id}: it does not end")),
        }
    }
    if !done && after.is_empty() {
        tally.left("releases that were still being prepared".to_owned());
    }
    let fences = host.workshop.fences.clone();
    match tokio::task::spawn_blocking(move || fences.remove_all()).await {
        Ok(fences) => {
            tally.0.removed.extend(fences.removed);
            tally.0.left.extend(fences.left);
        }
        Err(error) => tally.left(format!("users and cgroups: {error}")),
    }
    // What starts the agent goes after everything that may fail: an agent that ends in between comes
    // back, and can be told again.
    tally.directory(host.layout.root()).await;
    if let Some(unit) = installation.unit.as_deref().filter(|unit| unit.exists()) {
        // Disabling first: it removes the links that start the unit at boot.
        if let Err(error) = command("systemctl", &["disable", UNIT]).await {
            tally.left(format!("the links of {UNIT}: {error}"));
        }
        tally.note("unit", unit, fs::remove_file(unit));
        // Without its file the unit has no `Restart=` left, so the agent's end is final.
        if let Err(error) = command("systemctl", &["daemon-reload"]).await {
            tally.left(format!("systemd still knows {UNIT}: {error}"));
        }
    }
    if let Some(cron) = &installation.cron {
        tally.note("file", cron, fs::remove_file(cron));
    }
    if let Some(programs) = &installation.programs {
        tally.directory(programs).await;
    }
    if let Some(login) = &installation.login {
        remove_login(&mut tally, login).await;
    }
    if !installation.socket.as_os_str().is_empty() {
        let socket = &installation.socket;
        tally.note("socket", socket, fs::remove_file(socket));
        if let Some(above) = socket.parent().filter(|p| p.ends_with("run/beanpole")) {
            let _ = fs::remove_file(above.join(SUPERVISOR));
            tally.note("directory", above, fs::remove_dir(above));
        }
    }
    let data = &installation.data_dir;
    if !data.as_os_str().is_empty() && data.exists() {
        for name in BESIDE_DATA {
            let path = data.join(name);
            tally.note("file", &path, fs::remove_file(&path));
        }
        match fs::remove_dir(data) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                // A proxy or a controller may live here too: theirs is not ours to remove.
                let names: Vec<String> = fs::read_dir(data)
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| {
                        Some(entry.ok()?.file_name().to_string_lossy().into_owned())
                    })
                    .collect();
                tally.left(format!(
                    "directory {}: it also holds {}",
                    data.display(),
                    names.join(", ")
                ));
            }
            outcome => tally.note("directory", data, outcome),
        }
    }
    tally.0
}

async fn remove_login(tally: &mut Tally, login: &str) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(entry) = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(login))
    else {
        return;
    };
    let home = entry.split(':').nth(5).unwrap_or_default().to_owned();
    // Forced, since the controller's own session runs as this user right now.
    if let Err(error) = command("userdel", &["-f", login]).await {
        tally.left(format!("user {login}: {error}"));
        return;
    }
    tally.removed(format!("user {login} and its key"));
    let home = PathBuf::from(home);
    // Never a directory that others use.
    let own = home.components().count() > 2 && home.to_string_lossy().contains("beanpole");
    if own && home.exists() {
        tally.directory(&home).await;
    }
}

async fn command(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(COMMAND_WAIT, output).await {
        Err(_) => Err(format!("`{program}` did not end in time")),
        Ok(Err(error)) => Err(format!("`{program}` could not be started: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!(
            "`{program} {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
