//! What every command needs: how to write, where the controller is, what the project says.

use crate::args::Global;
use crate::client::{Client, find};
use crate::output::Output;
use crate::output::errors::Failure;
use crate::project::Project;
use beanpole_protocol::{ApplicationName, EnvironmentName};
use std::cell::OnceCell;

/// One run of the command line.
pub struct Context {
    /// How to write.
    pub output: Output,
    global: Global,
    client: OnceCell<Client>,
    project: OnceCell<Project>,
    /// The environment that the command is about, once that is known.
    meant: OnceCell<EnvironmentName>,
}

impl Context {
    /// From the global options. Nothing is read or connected to yet.
    pub fn new(global: Global) -> Self {
        Self {
            output: Output::new(global.json, global.quiet),
            global: global.with_variables(),
            client: OnceCell::new(),
            project: OnceCell::new(),
            meant: OnceCell::new(),
        }
    }

    /// The controller, found at the first call.
    pub fn client(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let access = find::access(&find::Wanted {
            url: self.global.url.clone(),
            token: self.global.token.clone(),
            token_file: self.global.token_file.clone(),
            data: self.global.data_of_up.clone(),
        })?;
        let client = Client::new(access, self.global.ca.as_deref())?;
        Ok(self.client.get_or_init(|| client))
    }

    /// The project around the current directory.
    pub fn project(&self) -> Result<&Project, Failure> {
        if let Some(project) = self.project.get() {
            return Ok(project);
        }
        let here = std::env::current_dir()
            .map_err(|error| Failure::caused("The current directory cannot be read.", &error))?;
        let project = Project::find(&here)?;
        Ok(self.project.get_or_init(|| project))
    }

    /// The environment meant: the one named, else `environment` of `deploy.toml`.
    pub fn environment(&self, named: Option<&EnvironmentName>) -> Result<EnvironmentName, Failure> {
        let name = match named {
            Some(name) => name.clone(),
            None => self.project()?.settings.environment.clone().ok_or_else(|| {
                Failure::misuse("Which environment?").hint(
                    "Name it after the command, or set `environment` in deploy.toml. List them: beanpole list",
                )
            })?,
        };
        Ok(self.meant.get_or_init(|| name).clone())
    }

    /// The environment that the command turned out to be about.
    pub fn meant(&self) -> Option<&EnvironmentName> {
        self.meant.get()
    }

    /// The application meant: the one named, else `application` of `deploy.toml`.
    pub fn application(
        &self,
        named: Option<&ApplicationName>,
    ) -> Result<Option<ApplicationName>, Failure> {
        match named {
            Some(name) => Ok(Some(name.clone())),
            None => Ok(self.project()?.settings.application.clone()),
        }
    }
}
