//! Makes the images of a release ready: built by the Engine itself, or pulled. Runs as a program of its own, whose output is
//! the build's log; the Engine ends a build whose client has gone.
//!
//! An image is held by a tag of its release. Its name carries a secret of the host, so that no other application can begin
//! an image with it; what was pulled keeps no other name, so that nobody without its login has it either.

use super::engine::{self, Body, Engine, EngineError, encoded};
use super::login::Logins;
use super::{context, tag};
use beanpole_bundle::containers::{Containers, Image};
use beanpole_protocol::agent::{Limits, ReleaseKey};
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces of a context that wait for the Engine.
const PIECES: usize = 8;
/// The name of a Dockerfile that no bundle has.
const MADE: &str = ".Dockerfile.beanpole";
/// Bytes of such a piece.
const PIECE: usize = 256 * 1024;
/// Another preparation may take the name of an image away that it pulled as well.
const TRIES: u32 = 3;

/// What is to be made ready; a file that only root reads.
#[derive(Serialize, Deserialize)]
pub struct Order {
    /// The release's tree.
    pub tree: PathBuf,
    /// Its containers.
    pub containers: Containers,
    /// The release.
    pub key: ReleaseKey,
    /// Part of the names of its images.
    pub secret: String,
    /// The property [`super::LOGINS`].
    pub logins: Option<String>,
    /// What a build may use.
    pub limits: Limits,
    /// Where the ids of the images go.
    pub result: PathBuf,
}

/// Makes all images ready and says on standard output how it goes. The error is for people.
pub async fn prepare(order: &Order) -> Result<(), String> {
    let engine = Engine::connect(engine::SOCKET)
        .await
        .map_err(|error| error.to_string())?;
    let logins = match &order.logins {
        Some(text) => {
            Logins::read(text).map_err(|why| format!("The property {} {why}.", super::LOGINS))?
        }
        None => Logins::default(),
    };
    let mut images = BTreeMap::new();
    for one in &order.containers.containers {
        let tag = tag(&order.secret, &order.key, &one.name);
        let id = match &one.image {
            Image::Build { .. } | Image::Made { .. } => {
                build(&engine, order, &one.image, &tag, &logins).await
            }
            Image::Pull { name, update } => pull(&engine, name, *update, &tag, &logins).await,
        };
        let id = id.map_err(|why| format!("The image of the container {}: {why}", one.name))?;
        images.insert(one.name.clone(), id);
    }
    beanpole_daemon::files::write_json(&order.result, &images, 0o600)
        .map_err(|error| error.to_string())
}

#[derive(Deserialize)]
struct Inspected {
    #[serde(rename = "Id")]
    id: String,
}

async fn id_of(engine: &Engine, name: &str) -> Result<String, EngineError> {
    let path = format!("/images/{}/json", encoded(name));
    let found: Inspected = engine.get("look at an image", &path).await?;
    Ok(found.id)
}

async fn build(
    engine: &Engine,
    order: &Order,
    image: &Image,
    tag: &str,
    logins: &Logins,
) -> Result<String, String> {
    let nothing = BTreeMap::new();
    let (context, file, arguments, target, text) = match image {
        Image::Build {
            context,
            file,
            arguments,
            target,
        } => (
            context.as_str(),
            file.as_str(),
            arguments,
            target.as_ref(),
            None,
        ),
        Image::Made { base, steps } => {
            let text = dockerfile(base, steps);
            ("", MADE, &nothing, None, Some(text))
        }
        Image::Pull { .. } => return Err("it is not built".to_owned()),
    };
    match &text {
        Some(text) => text.lines().for_each(say),
        None => say(&format!("docker build -f {} .", image.shown())),
    }
    let root = inside(&order.tree, context)?;
    let mut query = format!(
        "/build?version=1&rm=1&forcerm=1&t={}&dockerfile={}",
        encoded(tag),
        encoded(file)
    );
    if let Some(memory) = order.limits.memory_bytes {
        // Nothing of it goes to the disk.
        query.push_str(&format!("&memory={memory}&memswap={memory}"));
    }
    if let Some(millis) = order.limits.cpu_millis {
        query.push_str(&format!(
            "&cpuperiod=100000&cpuquota={}",
            millis.saturating_mul(100)
        ));
    }
    if !arguments.is_empty() {
        let arguments = serde_json::to_string(arguments).map_err(|error| error.to_string())?;
        query.push_str(&format!("&buildargs={}", encoded(&arguments)));
    }
    if let Some(target) = target {
        query.push_str(&format!("&target={}", encoded(target)));
    }
    let headers = [
        ("content-type", "application/x-tar".to_owned()),
        ("x-registry-config", logins.config()),
    ];
    let body = tar_of(root, file.to_owned(), text);
    let answer = engine
        .send("build it", Method::POST, &query, &headers, body)
        .await
        .map_err(|error| format!("{error}."))?;
    follow(answer, &order.secret).await?;
    let id = id_of(engine, tag).await;
    id.map_err(|error| format!("{error}."))
}

/// The Dockerfile of an application that is added to a base image.
fn dockerfile(base: &str, steps: &[String]) -> String {
    let mut text = format!("FROM {base}\nWORKDIR /var/app/current\nCOPY . .\n");
    for step in steps {
        // As JSON a line stays one, whatever is in it.
        let run = serde_json::json!(["/bin/sh", "-c", step]);
        text.push_str(&format!("RUN {run}\n"));
    }
    text
}

/// A directory of the tree, and no other, wherever links lead.
pub(super) fn inside(tree: &Path, below: &str) -> Result<PathBuf, String> {
    let found = tree.canonicalize().and_then(|tree| {
        let path = tree.join(below).canonicalize()?;
        Ok((path.starts_with(&tree), path))
    });
    match found {
        Ok((true, path)) => Ok(path),
        Ok((false, _)) => Err(format!("`{below}` leads out of the bundle.")),
        Err(error) => Err(format!("`{below}` of the bundle: {error}.")),
    }
}

/// The tar of a directory, made as it is sent.
fn tar_of(root: PathBuf, dockerfile: String, text: Option<String>) -> Body {
    let (pieces, ready) = mpsc::channel::<io::Result<Frame<Bytes>>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let out = io::BufWriter::with_capacity(PIECE, Pieces(&pieces));
        if let Err(error) = context::write(&root, &dockerfile, text.as_deref(), out) {
            let _ = pieces.blocking_send(Err(error));
        }
    });
    StreamBody::new(ReceiverStream::new(ready)).boxed_unsync()
}

struct Pieces<'p>(&'p mpsc::Sender<io::Result<Frame<Bytes>>>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Frame::data(Bytes::copy_from_slice(bytes));
        self.0
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn pull(
    engine: &Engine,
    name: &str,
    update: bool,
    tag: &str,
    logins: &Logins,
) -> Result<String, String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let before = match id_of(engine, name).await {
            Ok(id) => Some(id),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(format!("{error}.")),
        };
        if before.is_none() || update {
            say(&format!("docker pull {name}"));
            if let Err(error) = ask_registry(engine, name, logins).await {
                if before.is_none() {
                    return Err(error);
                }
                // Whoever runs the host has put it there.
                say(&format!(
                    "{error} The host has an image of that name, which is taken."
                ));
            }
        }
        let id = match id_of(engine, name).await {
            Ok(id) => id,
            Err(error) => {
                last = format!("{error}.");
                continue;
            }
        };
        let (repository, label) = tag.rsplit_once(':').unwrap_or((tag, "latest"));
        let path = format!(
            "/images/{}/tag?repo={}&tag={}",
            encoded(&id),
            encoded(repository),
            encoded(label)
        );
        engine
            .call("name an image", Method::POST, &path, None)
            .await
            .map_err(|_| "Docker Engine could not name it.".to_owned())?;
        if before.is_none() {
            let path = format!("/images/{}?noprune=1", encoded(name));
            let _ = engine.remove("take a name off an image", &path).await;
        }
        return Ok(id);
    }
    Err(last)
}

async fn ask_registry(engine: &Engine, name: &str, logins: &Logins) -> Result<(), String> {
    let mut query = format!("/images/create?fromImage={}", encoded(name));
    let last = name.rsplit('/').next().unwrap_or(name);
    if !last.contains([':', '@']) {
        // Without one the Engine pulls every one.
        query.push_str("&tag=latest");
    }
    let headers: Vec<(&str, String)> = logins
        .header(name)
        .map(|login| ("x-registry-auth", login))
        .into_iter()
        .collect();
    let answer = engine
        .send("pull it", Method::POST, &query, &headers, engine::nothing())
        .await
        .map_err(|error| format!("{error}."))?;
    follow(answer, "").await
}

/// Says what the Engine says, but for lines with `secret` in them; its error is this one's.
async fn follow(answer: http::Response<hyper::body::Incoming>, secret: &str) -> Result<(), String> {
    let mut lines = BodyStream::new(answer.into_body());
    let mut waiting = Vec::new();
    let mut failed = None;
    let mut last_status = String::new();
    while let Some(frame) = lines.next().await {
        let frame = frame.map_err(|error| format!("Docker Engine broke off: {error}."))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        waiting.extend_from_slice(&data);
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let Ok(value) = serde_json::from_slice::<Value>(&line) else {
                continue;
            };
            if let Some(error) = value["error"].as_str() {
                failed = Some(format!("{}.", error.trim().trim_end_matches('.')));
            } else if let Some(text) = value["stream"].as_str() {
                for line in text
                    .lines()
                    .filter(|line| secret.is_empty() || !line.contains(secret))
                {
                    say(line);
                }
            } else if let Some(status) = value["status"].as_str()
                && value["progress"].is_null()
                && status != last_status
            {
                status.clone_into(&mut last_status);
                say(status);
            }
        }
        if waiting.len() > 1 << 20 {
            return Err("Docker Engine says something without an end.".to_owned());
        }
    }
    failed.map_or(Ok(()), Err)
}

fn say(line: &str) {
    let line = line.trim_end();
    if !line.is_empty() {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }
}
