//! Putting the controller together, and taking it apart in order.

use crate::app::{App, Expects, Shared, TRANSFERS};
use crate::auth::Tokens;
use crate::fail_points::FailPoints;
use crate::links::{Links, local_proxy};
use crate::listen::Api;
use crate::observations::Observations;
use crate::services::{certificates, hosts};
use crate::time::Time;
use crate::{ControllerConfig, ControllerError, api, driver, free, identity, narrate, sealing};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, Engine, EngineConfig, emit, tell_restore};
use beanpole_fleet::bootstrap::Executables;
use beanpole_fleet::ssh::ControllerKey;
use beanpole_protocol::event::Severity;
use beanpole_store::blobs::Blobs;
use beanpole_store::model::HostRecord;
use beanpole_store::{Closing, Store, StoreError, backup};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// How often the records are saved to an automatic backup, if they changed.
const BACKUP_EVERY: Duration = Duration::from_hours(1);
/// How long whatever uses the store may take to let go of it at the end, and how often that is looked at.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);
const CLOSING_LOOK: Duration = Duration::from_millis(5);

/// Runs the controller until `stop` is cancelled, or something fails that it cannot do without.
pub async fn run(
    mut config: ControllerConfig,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let listening = config.listening.take();
    config.check_listening()?;
    let stop = stop.child_token();
    let _guard = stop.clone().drop_guard();
    let (config, app, wakes, incoming) = {
        let stop = stop.clone();
        tokio::task::spawn_blocking(move || {
            let (app, wakes, incoming) = assemble(&config, stop)?;
            Ok::<_, ControllerError>((config, app, wakes, incoming))
        })
        .await
        .map_err(|error| ControllerError::Engine(error.to_string()))??
    };
    let server = Api::bind(&config).await?;
    hosts::start_links(&app, &config).await?;
    let engine = driver::spawn(app.clone(), wakes)
        .map_err(|error| ControllerError::Engine(error.to_string()))?;
    let reports = tokio::spawn(incoming.take_in(app.clone()));
    let log = tokio::spawn(narrate::run(app.clone()));
    let backups = tokio::spawn(back_up_hourly(app.clone()));
    let keeping = tokio::spawn(certificates::keep(app.clone()));
    let freeing = tokio::spawn(free::run(app.clone(), config.bundle_grace));
    tracing::info!(api = %server.address, data = %config.data.display(), "controller ready");
    if let Some(listening) = listening {
        let _ = listening.send(server.address);
    }
    let serving = tokio::spawn(server.serve(api::router(app.clone()), stop.clone()));
    let ended = watch_engine(engine, &app).await;
    // From here on in the order in which things depend on each other.
    stop.cancel();
    let _ = serving.await;
    app.links.stop().await;
    let _ = reports.await;
    let _ = backups.await;
    let _ = freeing.await;
    let _ = keeping.await;
    let _ = log.await;
    let closing = app.store.closing();
    drop(app);
    closed(&closing).await;
    tracing::info!("controller stopped");
    ended
}

/// Waits for the calls and streams that were just told to end: what they hold keeps the store open, and
/// a successor on the same data would find it locked.
async fn closed(store: &Closing) {
    let over = async {
        while !store.is_over() {
            tokio::time::sleep(CLOSING_LOOK).await;
        }
    };
    if tokio::time::timeout(CLOSING_LIMIT, over).await.is_err() {
        tracing::warn!(
            "work that did not end in time still holds the records; they are free once this process has ended"
        );
    }
}

/// Waits until the controller is told to stop, or the engine breaks down.
async fn watch_engine(
    engine: std::thread::JoinHandle<()>,
    app: &App,
) -> Result<(), ControllerError> {
    let stopped = {
        let app = app.clone();
        tokio::spawn(async move {
            app.stop.cancelled().await;
            app.wake();
        })
    };
    let joined = tokio::task::spawn_blocking(move || engine.join()).await;
    let told = app.stop.is_cancelled();
    stopped.abort();
    match joined {
        Ok(Ok(())) if told => Ok(()),
        Ok(Ok(())) if app.store.is_broken() => Err(ControllerError::Broken),
        Ok(Ok(())) => Err(ControllerError::Engine("nobody told it to".to_owned())),
        Ok(Err(panic)) => Err(ControllerError::Engine(
            panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("it panicked")
                .to_owned(),
        )),
        Err(error) => Err(ControllerError::Engine(error.to_string())),
    }
}

fn assemble(
    config: &ControllerConfig,
    stop: CancellationToken,
) -> Result<(App, Receiver<()>, crate::links::Incoming), ControllerError> {
    let directory = config.directory();
    std::fs::create_dir_all(&directory).map_err(|source| ControllerError::File {
        path: directory.clone(),
        source,
    })?;
    // The lock of the store comes first: it guards all the rest.
    let store = Store::open(&directory.join("store"))?;
    if let Some(recovery) = store.recovery() {
        let draft = Draft::new(
            Severity::Error,
            "store-recovered",
            recovery.to_string(),
            clock::now(),
        );
        store.update(|tx| emit(tx, draft))?;
    }
    tell_restore(&store, clock::now())?;
    let blobs_dir = directory.join("blobs");
    backup::sweep(&store, &blobs_dir)?;
    let blobs = Arc::new(Blobs::open(&blobs_dir, config.bundle_limit_bytes)?);
    let tokens = Tokens::prepare(&store, &config.data.join("token"))?;
    let sealing = sealing::load_or_make(&config.data)?;
    let identity = identity::load_or_make(&store, &directory)?;
    let controller_key = ControllerKey::load_or_create(&directory)?;
    let mut engine = Engine::new(
        store.clone(),
        EngineConfig {
            controller: Some(identity.clone()),
            domain: config.domain.clone(),
            http_port: config.http_port,
            api_port: Some(config.api.port()).filter(|port| *port > 0),
            ..EngineConfig::default()
        },
    );
    if let Some(fail_points) = FailPoints::from_environment() {
        engine = engine.telling(fail_points.stop_where_asked(&store));
    }
    let time = Time::start(|reading| engine.start_time(reading))
        .map_err(|error| ControllerError::Engine(error.to_string()))?;
    let observations = Observations::default();
    if config.local_agent.is_some() {
        hosts::register_local(&store, config.instance_address)?;
    }
    hosts::end_removals(&store)?;
    let hosts: Vec<HostRecord> = store.list()?;
    observations.change(|seen| {
        seen.run = format!("{:032x}", clock::random_bits());
        for host in &hosts {
            seen.register_host(&host.id, time.now());
            if host.taken.is_some() {
                seen.host_taken(&host.id, time.now());
            }
            if host.edge.is_some() {
                seen.register_proxy(host.name.as_str(), time.now());
            }
        }
        for number in 0..config.local_proxies.len() {
            seen.register_proxy(&local_proxy(number), time.now());
        }
    });
    let (links, incoming) = Links::new(
        store.clone(),
        Arc::clone(&blobs),
        config.push_bytes_per_second,
    );
    let (wakes, woken) = sync_channel(1);
    let app = App::new(Shared {
        store,
        blobs,
        engine,
        observations,
        time,
        links,
        removals: hosts::Removals::default(),
        certificates: certificates::Shown::new(sealing),
        tokens,
        identity,
        controller_key,
        executables: Executables {
            own: std::fs::read_link("/proc/self/exe")
                .unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            builds: config.builds.clone(),
        },
        data: config.data.clone(),
        domain: config.domain.to_ascii_lowercase(),
        expects: Expects {
            agent: config.local_agent.is_some(),
            proxies: config.local_proxies.len(),
        },
        stop,
        news: watch::Sender::new(0),
        unneeded: Notify::new(),
        transfers: Arc::new(Semaphore::new(TRANSFERS)),
        wakes,
    });
    Ok((app, woken, incoming))
}

/// Saves the records now and then, so that a damaged database costs an hour at most.
async fn back_up_hourly(app: App) {
    let mut saved = None;
    loop {
        let commits = app.store.commits();
        if saved != Some(commits) {
            let store = app.store.clone();
            let written =
                tokio::task::spawn_blocking(move || backup::automatic(&store, "hourly")).await;
            match written {
                Ok(Ok(path)) => {
                    saved = Some(commits);
                    tracing::debug!(path = %path.display(), "automatic backup written");
                }
                Ok(Err(error)) => log_failed_backup(&error),
                Err(error) => tracing::error!(%error, "the automatic backup broke down"),
            }
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(BACKUP_EVERY) => {}
        }
    }
}

fn log_failed_backup(error: &StoreError) {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "the automatic backup failed"
    );
}
