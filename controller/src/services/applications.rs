//! Applications and their versions.

use crate::app::{App, Refused, store_problem};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, Need, emit, needed_releases, write_application};
use beanpole_protocol::api::{
    Application, CreateApplication, CreateVersion, EnvironmentStatus, UpdateApplication, Version,
};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::RELEASE;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ApplicationName, Digest, ReleaseNumber, RequestId, VersionLabel};
use beanpole_store::model::{
    ApplicationRecord, EnvironmentRecord, OperationRecord, ReleaseRecord, VersionRecord,
};
use beanpole_store::{Record, StoreError, Tx};

fn application_view(record: ApplicationRecord) -> Application {
    Application {
        name: record.name,
        description: record.description,
        root: record.root,
        created_at: record.created_at,
    }
}

fn version_view(record: VersionRecord) -> Version {
    Version {
        application: record.application,
        label: record.label,
        description: record.description,
        bundle: record.bundle,
        bundle_size: record.bundle_size,
        created_at: record.created_at,
    }
}

fn no_application(name: &ApplicationName) -> Problem {
    Problem::not_found("application", name).hint("See which there are: beanpole app list")
}

/// Environments of an application that are not gone.
fn environments(
    tx: &Tx<'_>,
    application: &ApplicationName,
) -> Result<Vec<EnvironmentRecord>, Refused> {
    let mut found: Vec<EnvironmentRecord> = tx.list()?;
    found.retain(|environment| {
        environment.application == *application
            && environment.status != EnvironmentStatus::Terminated
    });
    Ok(found)
}

/// A page of applications by name, one more than `limit` at most.
pub(crate) fn list(
    app: &App,
    after: Option<&ApplicationName>,
    limit: usize,
) -> Result<Vec<Application>, Problem> {
    let after = after.map(ApplicationRecord::key_of);
    let found: Vec<ApplicationRecord> = app
        .store
        .page(b"", after.as_deref(), limit)
        .map_err(store_problem)?;
    Ok(found.into_iter().map(application_view).collect())
}

/// One application.
pub(crate) fn get(app: &App, name: &ApplicationName) -> Result<Application, Problem> {
    let found: Option<ApplicationRecord> = app
        .store
        .get(&ApplicationRecord::key_of(name))
        .map_err(store_problem)?;
    found
        .map(application_view)
        .ok_or_else(|| no_application(name))
}

/// Creates an application.
pub(crate) fn create(
    app: &App,
    request_id: &RequestId,
    body: CreateApplication,
) -> Result<Application, Problem> {
    let record = ApplicationRecord {
        name: body.name,
        description: body.description,
        root: false,
        created_at: clock::now(),
    };
    app.store.update(|tx| {
        let key = ApplicationRecord::key_of(&record.name);
        if tx.get::<ApplicationRecord>(&key)?.is_some() {
            return Err(Refused::from(Problem::conflict(
                "application-exists",
                format!("There is an application `{}` already.", record.name),
            )));
        }
        write_application(tx, request_id, &record)?;
        Ok(())
    })?;
    app.tell_news();
    Ok(application_view(record))
}

/// Whether bundles of an application may act as root on hosts. One that is not there may not.
pub(crate) fn may_be_root(app: &App, name: &ApplicationName) -> Result<bool, Problem> {
    let found: Option<ApplicationRecord> = app
        .store
        .get(&ApplicationRecord::key_of(name))
        .map_err(store_problem)?;
    Ok(found.is_some_and(|record| record.root))
}

/// Changes what an application may do.
pub(crate) fn update(
    app: &App,
    request_id: &RequestId,
    name: &ApplicationName,
    body: &UpdateApplication,
) -> Result<Application, Problem> {
    let record = app.store.update(|tx| {
        let key = ApplicationRecord::key_of(name);
        let Some(mut record) = tx.get::<ApplicationRecord>(&key)? else {
            return Err(Refused::from(no_application(name)));
        };
        let Some(root) = body.root.filter(|root| *root != record.root) else {
            return Ok(record);
        };
        record.root = root;
        tx.put(&record)?;
        let (code, message) = if root {
            (
                "application-root-allowed",
                format!("Bundles of {name} may act as root on its hosts from now on."),
            )
        } else {
            (
                "application-root-denied",
                format!(
                    "Bundles of {name} may not act as root on its hosts any more. What they did there stays."
                ),
            )
        };
        emit(
            tx,
            Draft::new(Severity::Info, code, message, clock::now())
                .request(request_id)
                .application(name),
        )?;
        Ok(record)
    })?;
    // Orders of hosts carry it.
    app.wake();
    app.tell_news();
    Ok(application_view(record))
}

/// Deletes an application and its versions, unless it has environments.
pub(crate) fn delete(
    app: &App,
    request_id: &RequestId,
    name: &ApplicationName,
) -> Result<(), Problem> {
    app.store.update(|tx| {
        let key = ApplicationRecord::key_of(name);
        if tx.get::<ApplicationRecord>(&key)?.is_none() {
            return Err(Refused::from(no_application(name)));
        }
        if let Some(first) = environments(tx, name)?.first() {
            return Err(Problem::conflict(
                "application-in-use",
                format!(
                    "The application `{name}` has environments, `{}` among them.",
                    first.name
                ),
            )
            .hint(format!(
                "Take it down first: beanpole terminate {} --yes",
                first.name
            ))
            .into());
        }
        for version in tx.list_prefix::<VersionRecord>(&VersionRecord::prefix(name))? {
            tx.delete::<VersionRecord>(&VersionRecord::key_of(name, &version.label))?;
        }
        tx.delete::<ApplicationRecord>(&key)?;
        let message = format!("Application {name} deleted.");
        emit(
            tx,
            Draft::new(Severity::Info, "application-deleted", message, clock::now())
                .request(request_id)
                .application(name),
        )?;
        Ok(())
    })?;
    app.tell_news();
    app.unneeded.notify_one();
    Ok(())
}

/// A page of an application's versions by label.
pub(crate) fn versions(
    app: &App,
    application: &ApplicationName,
    after: Option<&VersionLabel>,
    limit: usize,
) -> Result<Vec<Version>, Problem> {
    get(app, application)?;
    let after = after.map(|label| VersionRecord::key_of(application, label));
    let found: Vec<VersionRecord> = app
        .store
        .page(&VersionRecord::prefix(application), after.as_deref(), limit)
        .map_err(store_problem)?;
    Ok(found.into_iter().map(version_view).collect())
}

fn no_version(application: &ApplicationName, label: &VersionLabel) -> Problem {
    Problem::not_found(
        "version",
        format!("{label}` of the application `{application}"),
    )
    .hint("See which there are: beanpole versions")
}

/// One version.
pub(crate) fn version(
    app: &App,
    application: &ApplicationName,
    label: &VersionLabel,
) -> Result<Version, Problem> {
    get(app, application)?;
    let found: Option<VersionRecord> = app
        .store
        .get(&VersionRecord::key_of(application, label))
        .map_err(store_problem)?;
    found
        .map(version_view)
        .ok_or_else(|| no_version(application, label))
}

fn not_uploaded(bundle: &Digest) -> Problem {
    Problem::new(
        422,
        "bundle-missing",
        "The bundle is not here",
        format!("The bundle {bundle} has not been uploaded, or nothing needed it for too long."),
    )
    .hint(format!("Upload it first: PUT /v1/bundles/{bundle}"))
}

/// Creates a version from a bundle that was uploaded before.
pub(crate) fn create_version(
    app: &App,
    request_id: &RequestId,
    application: &ApplicationName,
    body: CreateVersion,
) -> Result<Version, Problem> {
    let mut record = VersionRecord {
        application: application.clone(),
        label: body.label,
        description: body.description,
        release_command: None,
        container_commands: Default::default(),
        site: None,
        options: Default::default(),
        manifest: Default::default(),
        options_passed_over: Vec::new(),
        processes: None,
        bundle: body.bundle,
        bundle_size: 0,
        created_at: clock::now(),
    };
    super::bundles::note_commands(app, &mut record)?;
    app.store.update(|tx| {
        if tx
            .get::<ApplicationRecord>(&ApplicationRecord::key_of(application))?
            .is_none()
        {
            return Err(Refused::from(no_application(application)));
        }
        let key = VersionRecord::key_of(application, &record.label);
        if tx.get::<VersionRecord>(&key)?.is_some() {
            return Err(Problem::conflict(
                "version-exists",
                format!(
                    "The application `{application}` has a version `{}` already, and versions never change.",
                    record.label
                ),
            )
            .hint("Choose another label: --label LABEL")
            .into());
        }
        // Within the transaction: bundles are not freed meanwhile, and afterwards this one is needed.
        record.bundle_size = super::bundles::touch(app, &record.bundle)?
            .ok_or_else(|| not_uploaded(&record.bundle))?;
        tx.put(&record)?;
        let message = format!("Version {} of {application} created.", record.label);
        emit(
            tx,
            Draft::new(
                Severity::Info,
                "version-created",
                message,
                record.created_at,
            )
            .request(request_id)
            .application(application),
        )?;
        Ok(())
    })?;
    app.tell_news();
    Ok(version_view(record))
}

/// Deletes a version, unless an environment runs it, is on its way to or from it, or keeps it to go
/// back to. Older releases of it go along: there is no way back to them without their bundle, which
/// is freed once nothing else needs it.
pub(crate) fn delete_version(
    app: &App,
    request_id: &RequestId,
    application: &ApplicationName,
    label: &VersionLabel,
) -> Result<(), Problem> {
    app.store.update(|tx| {
        let key = VersionRecord::key_of(application, label);
        if tx.get::<VersionRecord>(&key)?.is_none() {
            return Err(Refused::from(no_version(application, label)));
        }
        let mut forgotten = 0;
        for environment in environments(tx, application)? {
            if let Some(queued) = queued_of(tx, &environment, label)? {
                return Err(queued.into());
            }
            let needed = needed_releases(tx, &environment)?;
            let releases: Vec<ReleaseRecord> =
                tx.list_prefix(&ReleaseRecord::prefix(&environment.id))?;
            for release in releases.iter().filter(|release| release.version == *label) {
                match needed.get(&release.number) {
                    Some(need) => {
                        return Err(in_use(label, &environment, release.number, *need).into());
                    }
                    None => {
                        tx.delete::<ReleaseRecord>(&release.key())?;
                        forgotten += 1;
                    }
                }
            }
        }
        tx.delete::<VersionRecord>(&key)?;
        let mut message = format!("Version {label} of {application} deleted.");
        if forgotten > 0 {
            message.push_str(&format!(
                " {forgotten} old release(s) of it can no longer be returned to."
            ));
        }
        emit(
            tx,
            Draft::new(Severity::Info, "version-deleted", message, clock::now())
                .request(request_id)
                .application(application),
        )?;
        Ok(())
    })?;
    app.tell_news();
    app.unneeded.notify_one();
    Ok(())
}

/// Why a version may not be deleted that a queued operation of an environment leads to.
fn queued_of(
    tx: &Tx<'_>,
    environment: &EnvironmentRecord,
    label: &VersionLabel,
) -> Result<Option<Problem>, StoreError> {
    let Some(id) = &environment.next else {
        return Ok(None);
    };
    let queued = tx.get::<OperationRecord>(&OperationRecord::key_of(id))?;
    let wanted = queued.is_some_and(|queued| queued.version.as_ref() == Some(label));
    let name = &environment.name;
    Ok(wanted.then(|| {
        Problem::conflict(
            "version-in-use",
            format!("The version `{label}` is queued to be deployed to the environment `{name}`."),
        )
        .hint(format!(
            "Take that out first: beanpole abort {name} --queued"
        ))
    }))
}

fn in_use(
    label: &VersionLabel,
    environment: &EnvironmentRecord,
    release: ReleaseNumber,
    need: Need,
) -> Problem {
    let name = &environment.name;
    match need {
        Need::Runs => Problem::conflict(
            "version-in-use",
            format!("The version `{label}` is in use by the environment `{name}`."),
        )
        .hint(format!(
            "Deploy another version there first: beanpole deploy {name} --version LABEL"
        )),
        Need::Returns => Problem::conflict(
            "version-kept",
            format!(
                "The environment `{name}` keeps the version `{label}` to go back to, as its release {release}."
            ),
        )
        .hint(format!(
            "It lets go once {} later releases were live, or when it keeps fewer: beanpole config {name} --set {RELEASE}:Keep=1",
            environment.settings.deployment().keep_releases
        )),
    }
}
