//! Runs one container of an instance for as long as it lives, as a process of the instance's shim.
//!
//! What an earlier attempt left of the container goes first, so that neither a kill of this process nor of the Engine
//! leaves two. The end of an essential container is the end of all of its instance: their processes end with them, and the
//! shim starts them again.

use super::engine::{self, Engine, EngineError, encoded, filters};
use super::output::Frames;
use super::{
    ENVIRONMENT, INSTANCE, LOGINS, Ready, container_name, network_name, prepare, volume_name,
};
use beanpole_bundle::containers::{Container, From};
use futures::future::join_all;
use http::Method;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long an Engine that is away is waited for: a restart of it takes seconds.
const AWAY: Duration = Duration::from_mins(1);
/// How long another container is waited for that is to start before.
const EARLIER: Duration = Duration::from_mins(1);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// What the others of an instance get to end, in seconds.
const OTHERS_S: u64 = 10;
/// Longest that the Engine waits for a container to end; the shim waits for less.
const STOP_S: u64 = 3600;
/// What belongs to the host and not to a container.
const OF_THE_HOST: [&str; 12] = [
    "PATH", "HOME", "LANG", "SHELL", "TMPDIR", "USER", "LOGNAME", "PWD", "OLDPWD", "SHLVL", "_",
    LOGINS,
];
/// What every container of Docker may do and hardly one needs: raw packets reach neighbours.
const DROPPED: [&str; 3] = ["NET_RAW", "MKNOD", "AUDIT_WRITE"];
/// The exit code of what could not be started, as Docker's client has it.
const NOT_STARTED: i32 = 125;

/// What is to be run.
#[derive(Debug)]
pub struct Run {
    /// The release's directory.
    pub release: PathBuf,
    /// The container.
    pub name: String,
    /// Its environment, for volumes.
    pub environment: String,
    /// The instance's memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Its CPU in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Its processes and threads.
    pub pids: Option<u64>,
    /// Open files per process.
    pub open_files: Option<u64>,
}

#[derive(Deserialize)]
struct Release {
    containers: Option<Ready>,
}

#[derive(Deserialize)]
struct Seen {
    #[serde(rename = "State")]
    state: State,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Running", default)]
    running: bool,
    #[serde(rename = "ExitCode", default)]
    exit_code: i64,
    #[serde(rename = "OOMKilled", default)]
    out_of_memory: bool,
}

/// Runs it; gives the exit code.
pub async fn run(run: &Run) -> i32 {
    match go(run).await {
        Ok(code) => code,
        Err(why) => {
            remark(&format!("{}.", why.trim_end_matches('.')));
            NOT_STARTED
        }
    }
}

/// Says something of its own in the container's log.
fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "beanpole: {text}");
}

async fn go(run: &Run) -> Result<i32, String> {
    let mut stop = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let path = run.release.join("release.json");
    let release: Option<Release> =
        beanpole_daemon::files::read_json(&path).map_err(|error| error.to_string())?;
    let ready = release
        .and_then(|release| release.containers)
        .ok_or("the release has no containers")?;
    let all = &ready.containers.containers;
    let one = all
        .iter()
        .find(|one| one.name == run.name)
        .ok_or("the release has no such container")?;
    let instance =
        std::env::var("BEANPOLE_INSTANCE").map_err(|_| "there is no BEANPOLE_INSTANCE")?;
    let job = Job {
        run,
        ready: &ready,
        one,
        name: container_name(&instance, &one.name),
        instance,
        several: all.len() > 1,
    };
    let engine = tokio::select! {
        engine = connect() => engine?,
        _ = stop.recv() => return Ok(0),
    };
    let starting = async {
        if job.several {
            make_network(&engine, &job.instance, path).await?;
            job.wait_for_earlier(&engine).await?;
        }
        job.make(&engine).await
    };
    let made = tokio::select! {
        made = starting => made,
        _ = stop.recv() => {
            job.remove(&engine).await;
            return Ok(0);
        }
    };
    if let Err(error) = made {
        job.remove(&engine).await;
        return Err(error);
    }
    let (code, told) = job.live(&engine, &mut stop).await?;
    job.remove(&engine).await;
    if told {
        return Ok(code);
    }
    if one.essential || !job.several {
        if job.several {
            remark("the container has ended, and with it the others of the instance");
            job.end_others(&engine).await;
        }
        // A process that ends well is started again like any other.
        return Ok(code);
    }
    remark(&format!(
        "the container has ended with {code}; the others go on without it"
    ));
    stop.recv().await;
    Ok(0)
}

/// The Engine, which may be starting.
async fn connect() -> Result<Engine, String> {
    let end = Instant::now() + AWAY;
    loop {
        match Engine::connect(engine::SOCKET).await {
            Ok(engine) => return Ok(engine),
            Err(error) if error.is_away() && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Makes the network of an instance, unless another of its containers has: the Engine would make a second one of the same
/// name. `turn` is a file that they have in common.
async fn make_network(engine: &Engine, instance: &str, turn: PathBuf) -> Result<(), String> {
    let taking = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(turn)?;
        file.lock().map(|()| file)
    });
    let _turn = taking
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let name = network_name(instance);
    let path = format!("/networks/{}", encoded(&name));
    match engine
        .call("look at a network", Method::GET, &path, None)
        .await
    {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.to_string()),
    }
    let body = json!({"Name": name, "CheckDuplicate": true, "Labels": {(INSTANCE): instance}});
    match engine
        .call(
            "make a network",
            Method::POST,
            "/networks/create",
            Some(&body),
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

struct Job<'r> {
    run: &'r Run,
    ready: &'r Ready,
    one: &'r Container,
    /// The container's, on the host.
    name: String,
    instance: String,
    several: bool,
}

impl Job<'_> {
    fn path(&self, of: &str) -> String {
        format!("/containers/{}{of}", encoded(&self.name))
    }

    async fn state(&self, engine: &Engine, name: &str) -> Result<Option<State>, EngineError> {
        let path = format!("/containers/{}/json", encoded(name));
        match engine.get::<Seen>("look at a container", &path).await {
            Ok(seen) => Ok(Some(seen.state)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until those run that are to start before; not for ever: they may have ended by then.
    async fn wait_for_earlier(&self, engine: &Engine) -> Result<(), String> {
        let end = Instant::now() + EARLIER;
        for earlier in &self.one.after {
            let name = container_name(&self.instance, earlier);
            loop {
                let state = self.state(engine, &name).await;
                if state.map_err(|error| error.to_string())?.is_some() {
                    break;
                }
                if Instant::now() > end {
                    remark(&format!(
                        "the container {earlier} did not start within {} s; this one starts without it",
                        EARLIER.as_secs()
                    ));
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn make(&self, engine: &Engine) -> Result<(), String> {
        self.remove(engine).await;
        let body = self.body()?;
        let path = format!("/containers/create?name={}", encoded(&self.name));
        engine
            .call("make the container", Method::POST, &path, Some(&body))
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    async fn remove(&self, engine: &Engine) {
        let path = self.path("?force=1&v=1");
        if let Err(error) = engine.remove("remove the container", &path).await
            && !error.is_conflict()
        {
            remark(&error.to_string());
        }
    }

    /// Starts it and hands on what it says until it has ended; its exit code, and whether it was told to end.
    async fn live(&self, engine: &Engine, stop: &mut Signal) -> Result<(i32, bool), String> {
        let mut told = false;
        let mut started = false;
        let mut away: Option<Instant> = None;
        loop {
            // Before it starts, so that its first words are heard.
            let heard = self.attach(engine).await;
            if !started {
                let path = self.path("/start");
                engine
                    .call("start the container", Method::POST, &path, None)
                    .await
                    .map_err(|error| error.to_string())?;
                started = true;
            }
            if let Ok(mut heard) = heard {
                away = None;
                let mut frames = Frames::default();
                let mut piece = vec![0; 64 * 1024];
                loop {
                    tokio::select! {
                        read = heard.read(&mut piece) => match read {
                            Ok(0) | Err(_) => break,
                            Ok(length) => frames.push(&piece[..length], hand_on),
                        },
                        _ = stop.recv(), if !told => {
                            told = true;
                            self.tell_to_end(engine);
                        }
                    }
                }
            }
            match self.state(engine, &self.name).await {
                Ok(Some(state)) if !state.running => {
                    if state.out_of_memory {
                        remark("the container used more memory than it may, and was killed");
                    }
                    return Ok((i32::try_from(state.exit_code).unwrap_or(NOT_STARTED), told));
                }
                // Somebody has removed it.
                Ok(None) => return Ok((NOT_STARTED, told)),
                // Its output has ended, or the Engine was started again and let it live.
                Ok(Some(_)) => {}
                Err(error) if error.is_away() => {
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY {
                        return Err(error.to_string());
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = stop.recv(), if !told => {
                    told = true;
                    self.tell_to_end(engine);
                }
            }
        }
    }

    async fn attach(&self, engine: &Engine) -> Result<TokioIo<hyper::upgrade::Upgraded>, String> {
        let path = self.path("/attach?stream=1&stdout=1&stderr=1");
        let headers = [
            ("connection", "Upgrade".to_owned()),
            ("upgrade", "tcp".to_owned()),
        ];
        let answer = engine
            .send(
                "listen to the container",
                Method::POST,
                &path,
                &headers,
                engine::nothing(),
            )
            .await
            .map_err(|error| error.to_string())?;
        let upgraded = hyper::upgrade::on(answer).await;
        upgraded
            .map(TokioIo::new)
            .map_err(|error| error.to_string())
    }

    /// Has the Engine send the signal; it answers when the container has ended.
    fn tell_to_end(&self, engine: &Engine) {
        let (engine, path) = (engine.clone(), self.path(&format!("/stop?t={STOP_S}")));
        tokio::spawn(async move {
            let asked = engine.send(
                "stop the container",
                Method::POST,
                &path,
                &[],
                engine::nothing(),
            );
            if let Err(error) = asked.await
                && !error.is_not_found()
            {
                remark(&error.to_string());
            }
        });
    }

    /// Ends the other containers of the instance; their processes end with them.
    async fn end_others(&self, engine: &Engine) {
        let others = self
            .ready
            .containers
            .containers
            .iter()
            .filter(|other| other.name != self.one.name);
        let ends = others.map(|other| {
            let name = container_name(&self.instance, &other.name);
            let path = format!("/containers/{}/stop?t={OTHERS_S}", encoded(&name));
            async move {
                engine
                    .call("stop a container", Method::POST, &path, None)
                    .await
                    .map(|_| ())
            }
        });
        join_all(ends).await;
    }

    fn body(&self) -> Result<Value, String> {
        let one = self.one;
        let image = self
            .ready
            .images
            .get(&one.name)
            .ok_or("the release has no image for it")?;
        let environment: Vec<String> = self
            .environment(std::env::vars())
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut mounts = Vec::new();
        for mount in &one.mounts {
            let mut entry = json!({"Target": mount.to, "ReadOnly": mount.read_only});
            match &mount.from {
                From::Volume(name) => {
                    entry["Type"] = json!("volume");
                    entry["Source"] = json!(volume_name(&self.run.environment, name));
                    entry["VolumeOptions"] =
                        json!({"Labels": {(ENVIRONMENT): self.run.environment}});
                }
                From::Own => entry["Type"] = json!("volume"),
                From::Bundle(path) => {
                    let source = prepare::inside(&self.run.release.join("app"), path)?;
                    entry["Type"] = json!("bind");
                    entry["Source"] = json!(source);
                    entry["ReadOnly"] = json!(true);
                }
                From::Host(path) => {
                    entry["Type"] = json!("bind");
                    entry["Source"] = json!(path);
                    entry["BindOptions"] = json!({"CreateMountpoint": true});
                    let _ = std::fs::create_dir_all(Path::new(path));
                }
            }
            mounts.push(entry);
        }
        let mut host = json!({
            "RestartPolicy": {"Name": "no"},
            // What it says goes to the instance's log.
            "LogConfig": {"Type": "none"},
            "CapDrop": DROPPED,
            "SecurityOpt": ["no-new-privileges"],
            "Mounts": mounts,
            "Init": one.init,
            "ReadonlyRootfs": one.read_only,
            "ExtraHosts": one.extra_hosts,
            "PidsLimit": self.run.pids,
        });
        if one.rights.privileged || !one.rights.capabilities.is_empty() {
            host["Privileged"] = json!(one.rights.privileged);
            host["CapAdd"] = json!(one.rights.capabilities);
            host["SecurityOpt"] = json!([]);
        }
        if !one.tmpfs.is_empty() {
            let all = one.tmpfs.iter().map(|path| (path.clone(), json!("")));
            host["Tmpfs"] = Value::Object(all.collect());
        }
        if let Some(memory) = memory(
            &self.ready.containers.containers,
            one,
            self.run.memory_bytes,
        ) {
            host["Memory"] = json!(memory);
            // As much with swap: none of it.
            host["MemorySwap"] = json!(memory);
        }
        if let Some(millis) = least(one.cpu_millis, self.run.cpu_millis) {
            host["NanoCpus"] = json!(millis.saturating_mul(1_000_000));
        }
        if let Some(files) = self.run.open_files {
            host["Ulimits"] = json!([{"Name": "nofile", "Soft": files, "Hard": files}]);
        }
        let mut body = json!({
            "Image": image,
            "Env": environment,
            "Labels": {(INSTANCE): self.instance},
            "AttachStdout": true,
            "AttachStderr": true,
        });
        if let Some(port) = one.port {
            let outside = std::env::var("PORT").map_err(|_| "there is no PORT")?;
            body["ExposedPorts"] = json!({(format!("{port}/tcp")): {}});
            host["PortBindings"] = json!({(format!("{port}/tcp")): [{"HostPort": outside}]});
        }
        for (key, value) in [
            ("Cmd", one.command.as_ref().map(|words| json!(words))),
            (
                "Entrypoint",
                one.entrypoint.as_ref().map(|words| json!(words)),
            ),
            ("WorkingDir", one.directory.as_ref().map(|text| json!(text))),
            ("User", one.user.as_ref().map(|text| json!(text))),
            (
                "StopSignal",
                one.stop_signal.as_ref().map(|text| json!(text)),
            ),
            ("Hostname", one.host_names.get(1).map(|text| json!(text))),
        ] {
            if let Some(value) = value {
                body[key] = value;
            }
        }
        if self.several {
            let network = network_name(&self.instance);
            host["NetworkMode"] = json!(network);
            body["NetworkingConfig"] =
                json!({"EndpointsConfig": {(network): {"Aliases": one.host_names}}});
        }
        body["HostConfig"] = host;
        Ok(body)
    }

    /// What the container finds: its own variables, and those of the instance, which count before them.
    fn environment(
        &self,
        given: impl Iterator<Item = (String, String)>,
    ) -> BTreeMap<String, String> {
        let mut all = self.one.environment.clone();
        all.extend(given.filter(|(name, _)| !OF_THE_HOST.contains(&name.as_str())));
        match self.one.port {
            Some(port) => all.insert("PORT".to_owned(), port.to_string()),
            None => all.remove("PORT"),
        };
        all
    }
}

fn hand_on(errors: bool, bytes: &[u8]) {
    // The shim reads; when it has gone, this process goes with it.
    let _ = if errors {
        io::stderr().write_all(bytes)
    } else {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    };
}

fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What a container may use of its instance's memory: what it asks for, less where all together ask for more than there is;
/// those that ask for nothing share what is left.
fn memory(all: &[Container], one: &Container, limit: Option<u64>) -> Option<u64> {
    /// The Engine takes no less.
    const LEAST: u64 = 8 << 20;
    let Some(limit) = limit else {
        return one.memory_bytes;
    };
    let asked: u64 = all.iter().filter_map(|one| one.memory_bytes).sum();
    let silent = all.iter().filter(|one| one.memory_bytes.is_none()).count() as u64;
    // Nobody gets nothing: the silent ones have half where the others ask for all.
    let left = limit
        .saturating_sub(asked)
        .max(if silent > 0 { limit / 2 } else { 0 });
    let share = match one.memory_bytes {
        None => left / silent.max(1),
        Some(own) => {
            let room = limit - left.min(limit);
            let room = if silent > 0 { room } else { limit };
            if asked <= room {
                own
            } else {
                (u128::from(own) * u128::from(room) / u128::from(asked.max(1))) as u64
            }
        }
    };
    Some(share.max(LEAST))
}

/// Every container, or every network, of an instance, by id; `path` lists all of them.
pub(super) async fn of_instance(
    engine: &Engine,
    label: &str,
    path: &str,
) -> Result<Vec<String>, EngineError> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(rename = "Id")]
        id: String,
    }
    let query = filters(&json!({"label": [label]}));
    let found: Vec<Listed> = engine
        .get("list what an instance has", &format!("{path}{query}"))
        .await?;
    Ok(found.into_iter().map(|one| one.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_bundle::containers::Image;

    fn container(name: &str, memory: Option<u64>) -> Container {
        let text = json!({"name": name, "host_names": [name], "image": Image::Pull {name: "a".to_owned(), update: false},
            "environment": {"A": "own", "B": "own"}, "mounts": [], "essential": true, "memory_bytes": memory});
        serde_json::from_value(text).expect("a container")
    }

    #[test]
    fn memory_is_shared_by_what_containers_ask_for_and_never_more_than_the_instance_has() {
        const MIB: u64 = 1 << 20;
        for (asked, limit, shares) in [
            (&[None][..], Some(512), &[Some(512)][..]),
            (&[None], None, &[None]),
            (&[Some(64), None], Some(512), &[Some(64), Some(448)]),
            (&[Some(64), Some(128)], Some(512), &[Some(64), Some(128)]),
            (&[Some(512), Some(512)], Some(512), &[Some(256), Some(256)]),
            (&[Some(512), None], Some(512), &[Some(256), Some(256)]),
        ] {
            let all: Vec<Container> = asked
                .iter()
                .map(|asked| container("a", asked.map(|mib| mib * MIB)))
                .collect();
            let found: Vec<Option<u64>> = all
                .iter()
                .map(|one| Some(memory(&all, one, limit.map(|mib| mib * MIB))? / MIB))
                .collect();
            assert_eq!(found, shares, "{asked:?} of {limit:?}");
        }
    }

    #[test]
    fn a_container_finds_the_properties_and_nothing_of_its_host() {
        let mut one = container("web", None);
        one.port = Some(8080);
        let ready = Ready {
            containers: beanpole_bundle::containers::Containers {
                containers: vec![one.clone()],
                ..Default::default()
            },
            images: BTreeMap::new(),
        };
        let run = Run {
            release: PathBuf::new(),
            name: "web".to_owned(),
            environment: "e-1".to_owned(),
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
            open_files: None,
        };
        let job = Job {
            run: &run,
            ready: &ready,
            one: &one,
            name: String::new(),
            instance: "i-1".to_owned(),
            several: false,
        };
        let given = [
            ("PATH", "/host"),
            (LOGINS, "s3cret"),
            ("PORT", "20001"),
            ("B", "property"),
            ("C", "c"),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let found = job.environment(given.into_iter());
        let expected = [
            ("A", "own"),
            ("B", "property"),
            ("C", "c"),
            ("PORT", "8080"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
    }
}
