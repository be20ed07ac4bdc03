//! The steps of setting a host up, each over the admin's session: detect, upload, install, wait.

use super::keys::Obstacle;
use super::{BootstrapError, HostSetup, Progress, Standing, keys, scripts};
use crate::client::Executable;
use crate::dial::{DialError, Dialer};
use crate::ssh::{ExecError, Session};
use beanpole_protocol::agent::{Claim, HostReport, Installed};
use bytes::Bytes;
use http::Method;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

/// How long the upload of the executable may take.
const UPLOAD_LIMIT: Duration = Duration::from_mins(15);
/// The pause between two looks at an agent that is starting.
const READY_PAUSE: Duration = Duration::from_millis(200);
/// How long the agent may take to write down whose it is.
const CLAIM_LIMIT: Duration = Duration::from_secs(15);
/// Bytes that go to the host in one piece.
const PIECE: usize = 256 * 1024;

/// What a host said about itself.
pub(super) struct Found {
    pub kernel: String,
    pub arch: String,
    pub os: String,
    pub systemd: bool,
    pub cron: bool,
    pub sudo: bool,
}

/// The host, as the admin's session reaches it.
pub(super) struct Host<'a> {
    pub setup: &'a HostSetup,
    pub session: &'a Session,
}

impl Host<'_> {
    fn name(&self) -> String {
        self.setup.admin.ssh.to_string()
    }

    /// Runs one of our scripts with `values` as its variables, as root where `sudo` says how.
    async fn script(
        &self,
        step: &'static str,
        sudo: bool,
        script: &str,
        values: &[(&str, &str)],
    ) -> Result<String, BootstrapError> {
        let output = scripts::run(self.session, sudo, script, values, scripts::LIMIT)
            .await
            .map_err(|source| BootstrapError::Exec {
                host: self.name(),
                step,
                source,
            })?;
        if output.status == Some(0) {
            return Ok(output.stdout);
        }
        Err(BootstrapError::Failed {
            host: self.name(),
            step,
            message: scripts::last_words(&output),
        })
    }

    /// Finds out what the machine is, and whether the admin can become root.
    pub(super) async fn detect(&self) -> Result<Found, BootstrapError> {
        let systemd = self.setup.paths.systemd.display().to_string();
        let cron = self.setup.paths.cron.display().to_string();
        let home = self.setup.paths.home.display().to_string();
        let user = &self.setup.paths.user;
        let said = self
            .script(
                "detecting",
                false,
                scripts::DETECT,
                &[
                    ("SYSTEMD", &systemd),
                    ("CRON", &cron),
                    ("BEANPOLE_USER", user),
                    ("HOME_DIR", &home),
                ],
            )
            .await?;
        let said: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let get = |name: &str| said.get(name).map_or("", |text| text.trim());
        let root = get("uid") == "0";
        if !root && get("sudo") != "yes" {
            return Err(BootstrapError::NeedsRoot {
                host: self.name(),
                user: self.setup.admin.ssh.user.clone(),
                message: get("sudo").to_owned(),
            });
        }
        if let Some(home) = said.get("taken") {
            return Err(BootstrapError::UserTaken {
                host: self.name(),
                user: user.clone(),
                home: home.trim().to_owned(),
            });
        }
        Ok(Found {
            kernel: get("kernel").to_owned(),
            arch: get("arch").to_owned(),
            os: get("os").to_owned(),
            systemd: get("systemd") == "yes",
            cron: get("cron") == "yes",
            sudo: !root,
        })
    }

    /// Finds out which host this is and whose. Nothing is changed there.
    pub(super) async fn standing(&self, found: &Found) -> Result<Standing, BootstrapError> {
        let data = self.setup.paths.data.display().to_string();
        let home = self.setup.paths.home.display().to_string();
        let values = [("DATA", data.as_str()), ("HOME_DIR", home.as_str())];
        let said = self
            .script("asking whose it is", found.sudo, scripts::STANDING, &values)
            .await?;
        Ok(Standing::read(
            &said,
            self.setup.controller_key.public_line(),
        ))
    }

    /// Where this version's executable lies on the host.
    fn directory(&self, executable: &Executable) -> PathBuf {
        let name = format!("{}-{}", executable.version, executable.digest.short());
        self.setup.paths.lib.join(name)
    }

    fn temporary(&self, executable: &Executable) -> PathBuf {
        let name = format!(".upload-{}", executable.digest.short());
        self.setup.paths.lib.join(name)
    }

    /// Uploads the executable unless it is there; returns whether it did.
    pub(super) async fn upload(
        &self,
        found: &Found,
        executable: &Executable,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<bool, BootstrapError> {
        let installed = self.directory(executable).join("beanpole");
        let installed = installed.display().to_string();
        let digest = |path: String| async move {
            self.script(
                "reading the executable's digest",
                found.sudo,
                scripts::DIGEST,
                &[("FILE", &path)],
            )
            .await
            .map(|said| said.trim().to_owned())
        };
        if digest(installed).await? == executable.digest.as_str() {
            progress(Progress::UpToDate);
            return Ok(false);
        }
        let failed = |error: std::io::Error| BootstrapError::Exec {
            host: self.name(),
            step: "uploading",
            source: ExecError::Input(error),
        };
        let file = tokio::fs::File::open(&executable.path)
            .await
            .map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        progress(Progress::Uploading { sent: 0, size });
        let state = (file, 0_u64);
        let pieces = futures::stream::try_unfold(state, |(mut file, sent)| async move {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece).await?;
            if length == 0 {
                return Ok(None);
            }
            piece.truncate(length);
            let sent = sent + length as u64;
            progress(Progress::Uploading { sent, size });
            Ok(Some((Bytes::from(piece), (file, sent))))
        });
        let temporary = self.temporary(executable).display().to_string();
        let directory = self.setup.paths.lib.display().to_string();
        let command = scripts::command(
            found.sudo,
            scripts::UPLOAD,
            &[("DIRECTORY", &directory), ("FILE", &temporary)],
        );
        let output = self
            .session
            .exec(&command, pieces, UPLOAD_LIMIT)
            .await
            .map_err(|source| BootstrapError::Exec {
                host: self.name(),
                step: "uploading",
                source,
            })?;
        if output.status != Some(0) {
            return Err(BootstrapError::Failed {
                host: self.name(),
                step: "uploading",
                message: scripts::last_words(&output),
            });
        }
        let arrived = digest(temporary).await?;
        if arrived != executable.digest.as_str() {
            return Err(BootstrapError::Damaged {
                host: self.name(),
                sent: executable.digest.to_string(),
                arrived,
            });
        }
        Ok(true)
    }

    /// User, key, directories, service: puts right what is missing or different.
    pub(super) async fn install(
        &self,
        found: &Found,
        executable: &Executable,
    ) -> Result<(), BootstrapError> {
        let paths = &self.setup.paths;
        let text = |path: PathBuf| path.display().to_string();
        let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let place = [
            ("FILE", text(self.temporary(executable))),
            ("DIRECTORY", text(self.directory(executable))),
        ];
        let place: Vec<(&str, &str)> = place.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let step = "placing the executable";
        let output = scripts::run(
            self.session,
            found.sudo,
            scripts::PLACE,
            &place,
            scripts::LIMIT,
        )
        .await
        .map_err(|source| BootstrapError::Exec {
            host: self.name(),
            step,
            source,
        })?;
        match output.status {
            Some(0) => {}
            Some(scripts::DOES_NOT_RUN) => {
                return Err(BootstrapError::DoesNotRun {
                    host: self.name(),
                    arch: found.arch.clone(),
                    message: scripts::last_words(&output),
                });
            }
            _ => {
                return Err(BootstrapError::Failed {
                    host: self.name(),
                    step,
                    message: scripts::last_words(&output),
                });
            }
        }
        let authorized = keys::for_agent(paths, &self.setup.controller_key);
        let by_cron = found.cron && !found.systemd;
        let installed = Installed {
            user: paths.user.clone(),
            home: text(paths.home.clone()),
            executables: text(paths.lib.clone()),
            data: text(paths.data.clone()),
            run: text(paths.run.clone()),
            unit: found
                .systemd
                .then(|| text(paths.units.join("beanpole-agent.service"))),
            cron: by_cron.then(|| text(paths.cron_file())),
        };
        let installed = serde_json::to_string_pretty(&installed)
            .expect("strings are always representable as JSON");
        let values = [
            ("LIB", text(paths.lib.clone())),
            ("VERSION_DIR", text(self.directory(executable))),
            ("DATA", text(paths.data.clone())),
            ("RUN", text(paths.run.clone())),
            ("HOME_DIR", text(paths.home.clone())),
            ("UNITS", text(paths.units.clone())),
            ("BEANPOLE_USER", paths.user.clone()),
            ("AUTHORIZED", authorized),
            ("INSTALLED", installed),
            ("UNIT", scripts::unit(paths)),
            ("WITH_SYSTEMD", yes_or_no(found.systemd)),
            ("START", text(paths.start_agent())),
            ("START_AGENT", scripts::start_agent(paths)),
            ("WITH_CRON", yes_or_no(by_cron)),
            ("CRON_FILE", text(paths.cron_file())),
            ("CRON_LINES", scripts::cron(paths)),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(n, v)| (*n, v.as_str())).collect();
        self.script("installing", found.sudo, scripts::INSTALL, &values)
            .await?;
        Ok(())
    }

    /// Asks the agent through the restricted key until it answers with the right executable.
    pub(super) async fn wait(
        &self,
        found: &Found,
        dialer: &Dialer,
        executable: &Executable,
    ) -> Result<(), BootstrapError> {
        let within = self.setup.ready_within;
        let deadline = Instant::now() + within;
        loop {
            let asked = async {
                let transport = dialer.dial().await?;
                let mut connection = transport.open().await?;
                let report: HostReport =
                    connection.get("/v1/report", Duration::from_secs(5)).await?;
                transport.close().await;
                Ok::<_, DialError>(report)
            };
            let failure = match asked.await {
                Ok(report)
                    if report
                        .agent_digest
                        .as_ref()
                        .is_none_or(|digest| *digest == executable.digest) =>
                {
                    return Ok(());
                }
                // The old one, on its way out.
                Ok(_) => None,
                Err(error) => Some(error),
            };
            if Instant::now() >= deadline {
                return Err(BootstrapError::NoAnswer {
                    host: self.name(),
                    within,
                    obstacles: self.obstacles(found).await,
                    source: Box::new(failure.unwrap_or(DialError::TimedOut(within))),
                });
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }

    /// Makes the host the controller's own: from here on its agent does nothing for another.
    pub(super) async fn claim(&self, dialer: &Dialer) -> Result<HostReport, BootstrapError> {
        let claim = Claim {
            controller: self.setup.controller.clone(),
            take_over: self.setup.take_over,
        };
        let claimed = async {
            let transport = dialer.dial().await?;
            let mut connection = transport.open().await?;
            connection
                .call::<serde_json::Value>(Method::PUT, "/v1/owner", Some(&claim), CLAIM_LIMIT)
                .await?;
            let report = connection.get("/v1/report", CLAIM_LIMIT).await?;
            transport.close().await;
            Ok::<_, DialError>(report)
        };
        claimed.await.map_err(|source| BootstrapError::NotClaimed {
            host: self.name(),
            source: Box::new(source),
        })
    }

    /// What there keeps the key from the agent's socket, as far as its sshd tells. The protocol does
    /// not: a socket that is forbidden is refused like one that nobody listens on.
    async fn obstacles(&self, found: &Found) -> Vec<Obstacle> {
        let user = ("BEANPOLE_USER", self.setup.paths.user.as_str());
        self.script("asking sshd", found.sudo, scripts::ASK_SSHD, &[user])
            .await
            .map(|said| keys::obstacles(&said))
            .unwrap_or_default()
    }
}
