//! `beanpole up`: controller, proxy and agent on this machine, from one data directory.

use super::daemons::{Front, Offer, Telling, listen_address, warn_of_instances};
use crate::client::find::{self, UpRecord};
use crate::context::Context;
use crate::local::children::{Daemon, keep};
use crate::local::lock;
use crate::output::errors::Failure;
use crate::output::warn;
use beanpole_daemon::{files, stop};
use clap::Args;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Looks at `/healthz` until everything serves.
const LOOK: Duration = Duration::from_millis(50);

/// Run a controller, a load balancer and an agent on this machine
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole up\n  beanpole up --data ./state --http 0.0.0.0:80 --https 0.0.0.0:443\n  beanpole up --data ./state --api 127.0.0.1:0 --http 127.0.0.1:0 --https 127.0.0.1:0\n\nNo root is needed. Everything is kept in one directory; the token for the CLI is in DIR/token,\nthe addresses are in DIR/up.json. Applications keep running when it stops."
)]
pub struct Up {
    /// Where everything is kept [default: /var/lib/beanpole for root, else ~/.local/share/beanpole] [env: BEANPOLE_DATA]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where the JSON API listens; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700", value_parser = listen_address)]
    pub api: SocketAddr,
    /// Where applications answer by HTTP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub http: SocketAddr,
    /// Where applications answer by HTTPS
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443", value_parser = listen_address)]
    pub https: SocketAddr,
    /// The domain below which environments get their hostnames
    #[arg(long, default_value = "localhost")]
    pub domain: String,
    /// The address at which load balancers on other hosts reach instances on this machine; without it there are none
    /// here while such load balancers exist
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub instance_address: IpAddr,
    /// A further load balancer on this machine, started on its own (`beanpole proxy`), by its socket; may be given
    /// several times
    #[arg(long, value_name = "SOCKET")]
    pub local_proxy: Vec<PathBuf>,
    /// What stands in front of the load balancer
    #[command(flatten)]
    pub front: Front,
    /// What is told of requests
    #[command(flatten)]
    pub telling: Telling,
    /// How the API is protected, and bounds
    #[command(flatten)]
    pub offer: Offer,
    /// Show the daemons' logs here too
    #[arg(long, short)]
    pub verbose: bool,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(context: &Context, command: &Up) -> Result<(), Failure> {
    command.offer.check(command.api)?;
    let data = prepare(command)?;
    let _lock = lock::take(&data)?;
    if rustix::process::geteuid().is_root() && beanpole_agent::fences::lies_in_tmp(&data) {
        warn(&format!(
            "The data directory {} lies below /tmp or /var/tmp, so instances get no /tmp of their own: they share it, \
             with TMPDIR set to a directory each. Another place gives them one: --data DIR",
            data.display()
        ));
    }
    warn_of_instances(&[
        ("--api", command.api),
        ("--http", command.http),
        ("--https", command.https),
    ]);
    let mut command = command.clone();
    let mut addresses = [&mut command.api, &mut command.http, &mut command.https];
    // What was asked for by number comes before what may be any.
    addresses.sort_by_key(|address| address.port() == 0);
    let mut taken = Vec::new();
    for address in addresses {
        taken.push(choose_port(address)?);
    }
    // All are held until each has one: the system may give a free port again at once.
    drop(taken);
    // One thread: the kernel ties a child's life to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::caused("The runtime cannot be started.", &error))?;
    let result = runtime.block_on(supervise(context, &command, &data));
    // The wait for the daemons may still sit in a thread of its own.
    runtime.shutdown_background();
    let _ = fs::remove_file(data.join("up.json"));
    result
}

/// Makes the data directory and returns its full path.
fn prepare(command: &Up) -> Result<PathBuf, Failure> {
    let data = find::data_directory(command.data.clone());
    let cannot = |error: std::io::Error| {
        Failure::caused(
            format!("Cannot use the data directory {}.", data.display()),
            &error,
        )
        .hint("Choose another one: beanpole up --data DIR")
    };
    lay_out(&data).map_err(cannot)?;
    data.canonicalize().map_err(cannot)
}

/// Makes what a data directory consists of. Parts that are there already get their modes again: what
/// the controller keeps is for nobody else to read.
pub(super) fn lay_out(data: &Path) -> io::Result<()> {
    // Applications may run as users of their own, who must reach their files below.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data)?;
    not_of_others(data)?;
    for part in ["agent", "proxy", "controller", "logs"] {
        let mode = if part == "agent" { 0o711 } else { 0o700 };
        let part = data.join(part);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&part)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Refuses a directory in which other users can put a token or records of their own, as sshd does with
/// `StrictModes`.
fn not_of_others(directory: &Path) -> io::Result<()> {
    let known = fs::metadata(directory)?;
    let (owner, mode) = (known.uid(), known.mode() & 0o7777);
    let own = owner == rustix::process::geteuid().as_raw() || owner == 0;
    if own && mode & 0o002 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("other users can change it: it belongs to user {owner} and has mode {mode:o}"),
    ))
}

/// Replaces port 0 by a free one, so that a daemon that is started again gets the same. The port is
/// taken while the answer lives.
fn choose_port(address: &mut SocketAddr) -> Result<TcpListener, Failure> {
    let free = TcpListener::bind(*address)
        .and_then(|listener| listener.local_addr().map(|chosen| (listener, chosen)));
    match free {
        Ok((listener, chosen)) => {
            *address = chosen;
            Ok(listener)
        }
        Err(error) => Err(
            Failure::caused(format!("Cannot listen on {address}."), &error).hint(
                if error.kind() == std::io::ErrorKind::PermissionDenied {
                    "Ports below 1024 need root: choose a higher one with --api, --http or --https"
                } else {
                    "Choose another address with --api, --http or --https; port 0 picks a free one"
                },
            ),
        ),
    }
}

async fn supervise(context: &Context, command: &Up, data: &Path) -> Result<(), Failure> {
    let stopping = stop::on_signal()
        .map_err(|error| Failure::caused("Signals cannot be listened for.", &error))?;
    let executable = std::env::current_exe()
        .map_err(|error| Failure::caused("This executable cannot be found.", &error))?;
    let record = record(command, data);
    files::write_json(&data.join("up.json"), &record, 0o644)
        .map_err(|error| Failure::caused("The addresses cannot be written down.", &error))?;
    let (sender, mut gave_up) = tokio::sync::mpsc::unbounded_channel();
    let mut kept = Vec::new();
    for daemon in daemons(command, data) {
        let stop = CancellationToken::new();
        let keeping = keep(daemon, executable.clone(), stop.clone());
        let sender = sender.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = keeping.await {
                let _ = sender.send(error);
            }
        });
        kept.push((stop, task));
    }
    let ready = tokio::spawn(announce(
        context.output,
        record,
        data.to_owned(),
        command.domain.clone(),
    ));
    let result = tokio::select! {
        () = stopping.cancelled() => Ok(()),
        Some(gave_up) = gave_up.recv() => Err(gave_up.failure),
    };
    ready.abort();
    // The controller first, so that it does not mourn the others; then traffic; then the agent.
    for (stop, task) in kept.into_iter().rev() {
        stop.cancel();
        let _ = task.await;
    }
    if result.is_ok() {
        context
            .output
            .say("Stopped. Applications keep running; `beanpole up` finds them again.");
    }
    result
}

fn record(command: &Up, data: &Path) -> UpRecord {
    let scheme = if command.offer.encrypts() {
        "https"
    } else {
        "http"
    };
    // One that listens everywhere is reached here by loopback.
    let mut reached = command.api;
    match reached.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => reached.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => reached.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    UpRecord {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: format!("{scheme}://{reached}"),
        api: command.api.to_string(),
        http: command.http.to_string(),
        https: command.https.to_string(),
        token_file: data.join("token"),
        ca: command
            .offer
            .tls_self_signed
            .then(|| beanpole_controller::self_signed_certificate(data)),
    }
}

/// The daemons in the order of their start.
fn daemons(command: &Up, data: &Path) -> Vec<Daemon> {
    let agent_socket = data.join("agent/agent.sock");
    let proxy_socket = data.join("proxy/proxy.sock");
    let words = |words: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
        words.iter().map(|word| word.as_ref().to_owned()).collect()
    };
    let daemon = |name, arguments| Daemon {
        name,
        arguments,
        log: data.join(format!("logs/{name}.log")),
        show: command.verbose,
    };
    let agent = words(&[&"--data", &data, &"--socket", &agent_socket]);
    let mut proxy = words(&[
        &"--data",
        &data.join("proxy"),
        &"--socket",
        &proxy_socket,
        &"--http",
        &command.http.to_string(),
        &"--https",
        &command.https.to_string(),
        &"--domain",
        &command.domain,
        &"--access-log",
        &data.join("logs/access.log"),
    ]);
    proxy.extend(command.front.arguments());
    proxy.extend(command.telling.arguments());
    let mut controller = words(&[
        &"--data",
        &data,
        &"--api",
        &command.api.to_string(),
        &"--local-agent",
        &agent_socket,
        &"--local-proxy",
        &proxy_socket,
        &"--domain",
        &command.domain,
        &"--http-port",
        &command.http.port().to_string(),
        &"--instance-address",
        &command.instance_address.to_string(),
    ]);
    for socket in &command.local_proxy {
        controller.extend(words(&[&"--local-proxy", socket]));
    }
    controller.extend(command.offer.arguments());
    vec![
        daemon("agent", agent),
        daemon("proxy", proxy),
        daemon("controller", controller),
    ]
}

/// Waits until everything serves, then says where and what to type next.
async fn announce(output: crate::output::Output, record: UpRecord, data: PathBuf, domain: String) {
    let url = record.url.clone();
    let serves =
        tokio::task::spawn_blocking(move || wait_until_healthy(&url, Duration::from_hours(1)));
    if !matches!(serves.await, Ok(true)) {
        return;
    }
    if output.json {
        let _ = output.json(&record);
        return;
    }
    let how = if data == find::default_data() {
        String::new()
    } else {
        format!(
            "\nIn another terminal:\n  export BEANPOLE_DATA={}",
            data.display()
        )
    };
    let unfenced = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "\nNot root: applications on this machine run as you and can read what you can, this token and the\n\
         keys to hosts included. For trying out, and for applications that you trust.\n"
    };
    let certificate = record
        .ca
        .as_deref()
        .map_or_else(String::new, |ca| trust(ca, &record.api));
    output.line(format!(
        "Beanpole {} is up.\n\
         \n\
         API           {}\n\
         applications  http://NAME.{domain}:{}/ and https://NAME.{domain}:{}/\n\
         token         {}\n\
         logs          {}\n\
         {certificate}{unfenced}{how}\n\
         Next, in your application's directory:\n  \
         beanpole create shop-prod --instances 2\n  \
         beanpole deploy shop-prod\n\
         \n\
         Ctrl-C stops it; applications keep running.",
        record.version,
        record.url,
        port(&record.http),
        port(&record.https),
        record.token_file.display(),
        data.join("logs").display(),
    ));
}

/// What other machines need to trust the API's certificate, `ca`.
fn trust(ca: &Path, api: &str) -> String {
    let reached = api.parse().map_or_else(
        |_| api.to_owned(),
        |api| beanpole_controller::reached_at(api).to_string(),
    );
    format!(
        "certificate   {}\n\
         \n\
         From another machine, with copies of the certificate and the token:\n  \
         beanpole --url https://{reached} --ca api-cert.pem --token-file token status\n",
        ca.display()
    )
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or_default()
}

/// Waits until `GET /healthz` answers 200, at most `limit`.
pub fn wait_until_healthy(url: &str, limit: Duration) -> bool {
    let Ok(client) = crate::client::Client::without_secrets(url) else {
        return false;
    };
    let begun = std::time::Instant::now();
    let mut told = begun;
    while begun.elapsed() < limit {
        match client.get::<beanpole_protocol::api::Healthz>("/healthz") {
            Ok(_) => return true,
            Err(failure) if told.elapsed() > Duration::from_secs(10) => {
                told = std::time::Instant::now();
                warn(&format!("Not everything serves yet: {}", failure.message));
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
    false
}
