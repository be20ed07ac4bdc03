//! The application that the demo deploys, in two versions.

use super::INSTANCES;
use super::home::open_executable;
use crate::client::Client;
use crate::output::errors::Failure;
use beanpole_protocol::api::{Application, Bundle, CreateApplication, CreateVersion, Version};
use beanpole_protocol::options::{ASG, INSTANCE, OptionSettings, PROPERTIES};
use beanpole_protocol::{ApplicationName, EnvironmentName, VersionLabel};
use std::fs;
use std::path::Path;

/// The example's own files: what `examples/demo` holds, so that the bare executable has them.
const PROCFILE: &str = include_str!("../../../../examples/demo/Procfile");
const PAGE: &str = include_str!("../../../../examples/demo/index.html");

pub(super) fn names() -> Result<(ApplicationName, EnvironmentName), Failure> {
    let wrong = |error: beanpole_protocol::ids::Invalid| Failure::new(error.to_string());
    Ok((
        ApplicationName::new("demo").map_err(wrong)?,
        EnvironmentName::new("demo-app").map_err(wrong)?,
    ))
}

pub(super) fn settings(home: &Path) -> Result<OptionSettings, Failure> {
    let mut settings = OptionSettings::default();
    settings.set(ASG, "MinSize", INSTANCES.to_string());
    // Its application is known to stay up; whoever watches need not wait for the proof.
    settings.set(INSTANCE, "MinUptime", "1");
    let program = open_executable(home)?;
    settings.set(PROPERTIES, "BEANPOLE", program.display().to_string());
    Ok(settings)
}

/// Packs the example as `label` and hands it to the controller.
pub(super) fn upload(
    client: &Client,
    application: &ApplicationName,
    label: &str,
    colour: &str,
) -> Result<VersionLabel, Failure> {
    let directory = tempfile::tempdir()
        .map_err(|error| Failure::caused("A temporary directory cannot be made.", &error))?;
    let files = [
        (
            "Procfile",
            PROCFILE.replace("--version v1", &format!("--version {label}")),
        ),
        ("index.html", PAGE.replace("#2f6f4f", colour)),
    ];
    for (name, text) in files {
        fs::write(directory.path().join(name), text)
            .map_err(|error| Failure::caused("The example cannot be written.", &error))?;
    }
    let mut packed = crate::project::pack::directory(directory.path(), &[], u64::MAX / 16)?;
    let _: Bundle = client.put(
        &format!("/v1/bundles/{}", packed.digest),
        &mut packed.file,
        packed.size,
    )?;
    let path = format!("/v1/applications/{application}");
    if !client.exists_by_get(&path)? {
        let _: Application = client.post(
            "/v1/applications",
            &CreateApplication {
                name: application.clone(),
                description: "What `beanpole demo` shows".to_owned(),
            },
        )?;
    }
    let label = VersionLabel::new(label).map_err(|error| Failure::new(error.to_string()))?;
    let known = format!("{path}/versions/{label}");
    if !client.exists_by_get(&known)? {
        let _: Version = client.post(
            &format!("{path}/versions"),
            &CreateVersion {
                label: label.clone(),
                description: "An example".to_owned(),
                bundle: packed.digest,
            },
        )?;
    }
    Ok(label)
}
