//! Logs of an environment's instances, from their agents, merged.

use crate::app::App;
use beanpole_daemon::clock;
use beanpole_fleet::LogQuery;
use beanpole_protocol::api::Instance;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{EnvironmentName, InstanceId};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::io;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Lines that wait to be sent.
const LINES_WAITING: usize = 256;
/// A longer line is cut, in bytes.
const LONGEST_LINE: usize = 64 * 1024;

/// Streams lines `INSTANCE HOST TIME PROCESS STREAM LINE`. Without `follow` they are sorted by time;
/// with it they come as the agents send them. A host that does not answer is told in a line of its
/// own.
pub(crate) async fn stream(
    app: &App,
    environment: EnvironmentName,
    only: Option<InstanceId>,
    query: LogQuery,
) -> Result<ReceiverStream<io::Result<Bytes>>, Problem> {
    let view = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine
                .environment(&environment, &observed, app.time.now())
        })
        .await?;
    let mut instances = view.instances;
    if let Some(only) = only {
        instances.retain(|instance| instance.id == only);
        if instances.is_empty() {
            return Err(Problem::not_found("instance", only).hint(format!(
                "See which there are: beanpole status {}",
                view.name
            )));
        }
    }
    let (lines, sorted) = mpsc::channel(LINES_WAITING);
    let follow = query.follow;
    for instance in instances {
        let (app, query, lines) = (app.clone(), query.clone(), lines.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = copy(&app, &instance, &query, &lines) => {}
                () = app.stop.cancelled() => {}
            }
        });
    }
    drop(lines);
    if follow {
        return Ok(passed_on(sorted));
    }
    let mut all: Vec<Bytes> = ReceiverStream::new(sorted).collect().await;
    all.sort_by(|one, other| time_of(one).cmp(time_of(other)));
    let (out, ready) = mpsc::channel(LINES_WAITING);
    tokio::spawn(async move {
        for line in all {
            if out.send(Ok(line)).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(ready))
}

fn passed_on(mut lines: mpsc::Receiver<Bytes>) -> ReceiverStream<io::Result<Bytes>> {
    let (out, ready) = mpsc::channel(LINES_WAITING);
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            if out.send(Ok(line)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(ready)
}

/// The third field: times in RFC 3339 sort as text.
fn time_of(line: &Bytes) -> &[u8] {
    line.split(|byte| *byte == b' ').nth(2).unwrap_or_default()
}

async fn copy(app: &App, instance: &Instance, query: &LogQuery, lines: &mpsc::Sender<Bytes>) {
    let head = format!("{} {} ", instance.id, instance.host);
    let note =
        |text: String| Bytes::from(format!("{head}{} beanpole stderr {text}\n", clock::now()));
    let Some(client) = app.links.client(&instance.host_id) else {
        let text = format!("the host {} has no connection", instance.host);
        let _ = lines.send(note(text)).await;
        return;
    };
    let mut pieces = match client.logs(&instance.id, query).await {
        Ok(pieces) => pieces,
        Err(error) => {
            let text = format!("no logs: {}", beanpole_fleet::chain(&error));
            let _ = lines.send(note(text)).await;
            return;
        }
    };
    let mut buffer = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => buffer.extend_from_slice(&piece),
            Err(error) => {
                let text = format!("the log broke off: {}", beanpole_fleet::chain(&error));
                let _ = lines.send(note(text)).await;
                return;
            }
        }
        while let Some(end) = end_of_line(&buffer) {
            let line = buffer.split_to(end);
            if !send(lines, &head, &line).await {
                return;
            }
        }
    }
    if !buffer.is_empty() {
        send(lines, &head, &buffer).await;
    }
}

/// Where the first line ends, its line feed included.
fn end_of_line(buffer: &[u8]) -> Option<usize> {
    let within = &buffer[..buffer.len().min(LONGEST_LINE)];
    match within.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(end + 1),
        None => (buffer.len() >= LONGEST_LINE).then_some(LONGEST_LINE),
    }
}

async fn send(lines: &mpsc::Sender<Bytes>, head: &str, line: &[u8]) -> bool {
    let mut whole = BytesMut::with_capacity(head.len() + line.len() + 1);
    whole.extend_from_slice(head.as_bytes());
    whole.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        whole.extend_from_slice(b"\n");
    }
    lines.send(whole.freeze()).await.is_ok()
}
