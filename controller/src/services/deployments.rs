//! What is checked of a deployment before the engine is asked: the engine knows records, and whether a
//! host can run a bundle stands in its files.

use super::bundles;
use crate::app::{App, store_problem};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{CreateEnvironment, Deploy, UpdateSettings};
use beanpole_protocol::options::is_of_static_files;
use beanpole_protocol::problem::Problem;
use beanpole_store::model::VersionRecord;

/// Refuses a version that the environment could not run. What the engine refuses anyway, such as an
/// unknown name, is left to it.
pub(crate) fn check_deploy(
    app: &App,
    name: &EnvironmentName,
    body: &Deploy,
) -> Result<(), Problem> {
    let version = body.version.as_ref();
    let Some(target) = app.engine.target(name, version, &body.settings)? else {
        return Ok(());
    };
    bundles::check_runs(
        app,
        &target.application,
        &target.bundle,
        target.platform,
        &target.options,
        target.tier,
    )?;
    bundles::check_static_files(app, &target.bundle, &target.static_files, target.tier)
}

/// Refuses other settings that what is live cannot have.
pub(crate) fn check_settings(
    app: &App,
    name: &EnvironmentName,
    body: &UpdateSettings,
) -> Result<(), Problem> {
    let of_static_files = |namespace: &String| is_of_static_files(namespace);
    if !body
        .set
        .0
        .keys()
        .chain(body.remove.keys())
        .any(of_static_files)
    {
        return Ok(());
    }
    let Some(target) = app.engine.target_under(name, body)? else {
        return Ok(());
    };
    bundles::check_static_files(app, &target.bundle, &target.static_files, target.tier)
}

/// Refuses the first version of an environment that could not run it.
pub(crate) fn check_create(app: &App, body: &CreateEnvironment) -> Result<(), Problem> {
    let Some(label) = &body.version else {
        return Ok(());
    };
    let version: Option<VersionRecord> = app
        .store
        .get(&VersionRecord::key_of(&body.application, label))
        .map_err(store_problem)?;
    match version {
        Some(version) => {
            let settings = version.options.overlaid(&version.manifest);
            let settings = settings.overlaid(&body.settings);
            let options = settings.platform_options();
            let (application, bundle) = (&body.application, &version.bundle);
            bundles::check_runs(app, application, bundle, body.platform, &options, body.tier)?;
            let paths = settings.static_files();
            bundles::check_static_files(app, &version.bundle, &paths, body.tier)
        }
        None => Ok(()),
    }
}
