//! Waits for the end of an operation and shows how it goes.
//!
//! Two sources feed one loop: the event stream (a thread that re-connects by itself) tells what
//! happens, the operation itself, asked for again and again, tells where it stands and decides when
//! it is over. Either may break and come back without the wait ending.

use crate::client::{Client, UNREACHABLE, escape, sse};
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use crate::output::progress::Board;
use crate::output::{count, duration, plural, receipt};
use beanpole_protocol::api::{Environment, Operation, OperationKind, OperationStatus};
use beanpole_protocol::event::Event;
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::proxy::said;
use beanpole_protocol::{EnvironmentName, OperationId};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// From one look at the operation to the next.
const LOOK: Duration = Duration::from_millis(250);
/// After an event the operation has likely moved on: look sooner.
const LOOK_AFTER_EVENT: Duration = Duration::from_millis(20);
/// How long the controller may be away before the wait is given up.
const LONGEST_ABSENCE: Duration = Duration::from_mins(2);

enum Note {
    Event(Box<Event>),
    Interrupted,
}

/// Follows `operation` to its end, then tells the result. An operation that fails is a failure.
pub fn follow(context: &Context, operation: Operation) -> Result<(), Failure> {
    let started = Instant::now();
    let ended = wait(context, operation)?;
    conclude(context, &ended, started.elapsed())
}

/// Follows `operation` to its end and returns it as it ended, however that was.
pub fn wait(context: &Context, operation: Operation) -> Result<Operation, Failure> {
    let client = context.client()?;
    let (sender, notes) = channel();
    interrupt::tell(sender.clone(), Note::Interrupted);
    events(client.clone(), &operation.id, sender);
    let mut board = Board::new(context.output);
    let ended = watch(client, operation, &notes, &mut board);
    // What happened last may still be on its way.
    while let Ok(Note::Event(event)) = notes.recv_timeout(Duration::from_millis(50)) {
        board.event(&event);
    }
    board.clear();
    ended
}

fn watch(
    client: &Client,
    operation: Operation,
    notes: &Receiver<Note>,
    board: &mut Board,
) -> Result<Operation, Failure> {
    let path = format!("/v1/operations/{}", operation.id);
    let mut current = operation;
    let mut away_since: Option<Instant> = None;
    let mut next_look = Instant::now();
    loop {
        board.operation(&current);
        if current.status.is_over() {
            return Ok(current);
        }
        match notes.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
            Ok(Note::Interrupted) => return Err(interrupted(&current)),
            Ok(Note::Event(event)) => {
                board.event(&event);
                next_look = next_look.min(Instant::now() + LOOK_AFTER_EVENT);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(next_look.saturating_duration_since(Instant::now()));
            }
        }
        match client.get::<Operation>(&path) {
            Ok(operation) => {
                let begins = current.status == OperationStatus::Queued
                    && operation.status != OperationStatus::Queued;
                for line in operation.plan.lines.iter().filter(|_| begins) {
                    board.line(&format!("  {line}"));
                }
                if away_since.take().is_some() {
                    board.line("The controller is back.");
                }
                current = operation;
            }
            Err(failure) if failure.has_code(UNREACHABLE) => {
                let since = *away_since.get_or_insert_with(|| {
                    board.line("The controller does not answer; trying again.");
                    Instant::now()
                });
                if since.elapsed() > LONGEST_ABSENCE {
                    return Err(failure.hint(format!(
                        "The operation goes on once the controller is back. Follow it again: beanpole attach {}",
                        current.id
                    )));
                }
            }
            Err(failure) => return Err(failure),
        }
        next_look = Instant::now() + LOOK;
    }
}

fn interrupted(operation: &Operation) -> Failure {
    let name = &operation.environment_name;
    // By its id: it may have ended by then.
    let again = format!("Follow it again: beanpole attach {}", operation.id);
    if operation.status == OperationStatus::Queued {
        return interrupt::failure(format!(
            "Stopped watching; the {} of {name} stays queued.",
            operation.kind
        ))
        .hint(format!(
            "{again}. Take it out: beanpole abort {name} --queued"
        ));
    }
    interrupt::failure(format!(
        "Stopped watching; the {} of {name} goes on.",
        operation.kind
    ))
    .hint(match operation.kind {
        OperationKind::Terminate | OperationKind::Swap => again,
        _ => format!("{again}. Give it up: beanpole abort {name}"),
    })
}

fn events(client: Client, operation: &OperationId, sender: Sender<Note>) {
    let path = format!("/v1/events/stream?operation={}", escape(operation.as_str()));
    std::thread::spawn(move || {
        // A controller that has no stream to give leaves the wait to the looks at the operation.
        let _ = sse::follow(&client, &path, None, |event| {
            sender.send(Note::Event(Box::new(event))).is_ok()
        });
    });
}

/// Tells how an operation ended.
fn conclude(context: &Context, operation: &Operation, waited: Duration) -> Result<(), Failure> {
    if operation.status != OperationStatus::Succeeded {
        return Err(explain(context, operation));
    }
    let environment = environment(context, operation);
    if context.output.json {
        let mut value = serde_json::to_value(operation)
            .map_err(|error| Failure::caused("The answer cannot be written as JSON.", &error))?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert(
                "url".to_owned(),
                serde_json::json!(environment.as_ref().and_then(|e| e.url.clone())),
            );
        }
        return context.output.json(&value);
    }
    let took = operation
        .finished_at
        .map_or(waited, |end| end.since(operation.started_at));
    let mut text = summary(operation, environment.as_ref(), took);
    if operation.kind == OperationKind::Scale
        && let Some(sleeps) = sleeps(context, &operation.environment_name)
    {
        text.push_str(&format!("\n{sleeps}"));
    }
    context.output.line(text);
    Ok(())
}

/// That an environment does without instances while nobody asks, if it does.
fn sleeps(context: &Context, name: &EnvironmentName) -> Option<String> {
    let path = format!("/v1/environments/{}/settings", escape(name.as_str()));
    let settings: OptionSettings = context.client().ok()?.get(&path).ok()?;
    let after = Duration::from_millis(settings.sleeps_after_ms()?);
    Some(format!(
        "It sleeps, without any, after {} without a request (IdleTime), and the next one wakes it. Change that: beanpole config {name} --set IdleTime=SECONDS",
        duration(after)
    ))
}

/// What requests noticed of an operation that changes what runs.
fn meanwhile(operation: &Operation) -> Option<String> {
    let changes = matches!(
        operation.kind,
        OperationKind::Deploy
            | OperationKind::Rollback
            | OperationKind::Restart
            | OperationKind::Configure
    );
    changes.then(|| {
        format!(
            "Requests meanwhile: {} served, {} failed.",
            count(
                operation
                    .requests_served
                    .saturating_sub(operation.requests_failed)
            ),
            count(operation.requests_failed)
        )
    })
}

fn summary(operation: &Operation, environment: Option<&Environment>, took: Duration) -> String {
    let name = &operation.environment_name;
    let version = operation
        .version
        .as_ref()
        .map(|version| version.to_string())
        .unwrap_or_default();
    let release = operation.to.map(|to| to.to_string()).unwrap_or_default();
    let took = duration(took);
    let mut text = match operation.kind {
        OperationKind::Deploy => format!("{name} runs {version} (release {release}), {took}."),
        OperationKind::Rollback => {
            format!("{name} is back on {version} (release {release}), {took}.")
        }
        OperationKind::Create => format!("{name} is created, {took}."),
        OperationKind::Terminate if operation.leftovers.is_empty() => {
            format!("{name} is gone, {took}.")
        }
        OperationKind::Terminate => {
            format!("{name} is gone but for what could not be reached, {took}.")
        }
        OperationKind::Scale => {
            let size = environment.map_or(0, |environment| environment.size);
            format!(
                "{name} has {}, {took}.",
                plural(u64::from(size), "instance")
            )
        }
        OperationKind::Restart => format!("{name} is restarted, {took}."),
        OperationKind::Configure => format!("{name} has its new settings, {took}."),
        OperationKind::Replace => format!("{name} has its instances replaced, {took}."),
        OperationKind::Swap => format!("{name} has other hostnames, {took}."),
    };
    if let Some(meanwhile) = meanwhile(operation) {
        text.push_str(&format!("\n{meanwhile}"));
    }
    for line in receipt::short(operation) {
        text.push_str(&format!("\n{line}"));
    }
    if operation.kind == OperationKind::Create && environment.is_some_and(|e| e.version.is_none()) {
        text.push_str(&format!("\nNext: beanpole deploy {name}"));
    }
    for left in &operation.leftovers {
        text.push_str(&format!("\n{left}"));
    }
    for left in &operation.plan.left_out {
        text.push_str(&format!("\n{left}"));
    }
    let lingering = environment.map_or(&[][..], |environment| &environment.lingering);
    if !lingering.is_empty() {
        let open: u32 = lingering.iter().map(|one| one.open).sum();
        text.push_str(&format!(
            "\nLingering until their open requests ({open}) are over: {}. See beanpole status {name}",
            match lingering.len() {
                1 => "1 instance".to_owned(),
                n => format!("{n} instances"),
            }
        ));
    }
    if operation.kind != OperationKind::Terminate
        && let Some(address) = environment.map(Environment::met_at)
        && !address.is_empty()
    {
        text.push_str(&format!("\n{address}"));
    }
    text
}

fn environment(context: &Context, operation: &Operation) -> Option<Environment> {
    context
        .client()
        .ok()?
        .get(&format!(
            "/v1/environments/{}",
            escape(operation.environment_name.as_str())
        ))
        .ok()
}

/// Why an operation failed: instance, probe, answer, the app's last lines, and where the
/// environment stands now.
pub fn explain(context: &Context, operation: &Operation) -> Failure {
    let name = &operation.environment_name;
    let outcome = match operation.status {
        OperationStatus::Aborted => "was aborted",
        _ => "failed",
    };
    let what = match operation.kind {
        OperationKind::Configure => "change of settings".to_owned(),
        kind => kind.to_string(),
    };
    let mut failure = Failure::new(format!("The {what} of {name} {outcome}."));
    failure.code = Some("operation-failed".to_owned());
    if let Some(why) = &operation.failure {
        failure.code = Some(why.code.clone());
        failure.causes.push(why.message.clone());
        let mut place = Vec::new();
        if let Some(instance) = &why.instance {
            place.push(format!("instance {instance}"));
        }
        if let Some(host) = &why.host {
            place.push(format!("host {host}"));
        }
        match (&why.probe, &why.answer) {
            (Some(probe), Some(answer)) => {
                place.push(said(probe, answer));
            }
            (Some(probe), None) => place.push(format!("{probe} got no answer")),
            _ => {}
        }
        if !place.is_empty() {
            failure.causes.push(place.join(", "));
        }
        if !why.log.is_empty() {
            let whose = why.instance.as_ref().map_or_else(
                || "Last lines of the log:".to_owned(),
                |instance| format!("Last lines of the log of {instance}:"),
            );
            failure.details.push(whose);
            failure
                .details
                .extend(why.log.iter().map(|line| format!("  | {line}")));
        }
    } else if let Some(message) = &operation.message {
        failure.causes.push(message.clone());
    }
    failure.details.extend(aftermath(operation));
    let environment = environment(context, operation);
    failure
        .details
        .extend(environment.as_ref().map(|one| standing(one, operation)));
    // What never began has nothing to tell of what was served meanwhile.
    let began = operation.receipt.is_some() || operation.requests_served > 0;
    failure
        .details
        .extend(meanwhile(operation).filter(|_| began).map(|text| {
            let took = operation
                .finished_at
                .map(|end| format!(" It took {}.", duration(end.since(operation.started_at))));
            text + &took.unwrap_or_default()
        }));
    failure.details.extend(receipt::short(operation));
    failure.details.extend(
        environment
            .map(|environment| environment.met_at())
            .filter(|at| !at.is_empty()),
    );
    failure.hint = Some(match operation.kind {
        OperationKind::Create => format!(
            "See what happened: beanpole events {name}. Remove it: beanpole terminate {name}"
        ),
        _ => format!("See more: beanpole logs {name}, beanpole events {name}"),
    });
    if context.output.json {
        let _ = context.output.json(operation);
    }
    failure
}

/// What came after the failure, where that was not what should come: the way back failed, too.
fn aftermath(operation: &Operation) -> Option<String> {
    let message = operation.message.as_deref()?;
    let why = operation.failure.as_ref()?.message.as_str();
    let after = message.strip_prefix(why)?.trim();
    let went_back = operation.status == OperationStatus::RolledBack;
    (!went_back && !after.is_empty()).then(|| after.to_owned())
}

/// A sentence on where the environment stands after a failure.
fn standing(environment: &Environment, operation: &Operation) -> String {
    let runs = match (&environment.version, environment.release) {
        (Some(version), Some(release)) => format!("its live release is {release} ({version})"),
        _ => "no release is live".to_owned(),
    };
    let name = &environment.name;
    let back = match operation.status {
        OperationStatus::RolledBack => format!("{name} was taken back; {runs}"),
        _ => format!("{name}: {runs}"),
    };
    format!(
        "{back}, status {}, health {}.",
        environment.status, environment.health
    )
}

/// Waits for `operation` unless told to `detach`.
pub fn finish(context: &Context, operation: Operation, detach: bool) -> Result<(), Failure> {
    if operation.status == OperationStatus::Queued {
        let (kind, name) = (operation.kind, &operation.environment_name);
        let waits = operation.waiting.first().map_or("", String::as_str);
        let text = format!("The {kind} of {name} is queued. {waits}");
        if detach {
            let text = format!("{text}\nFollow it: beanpole attach {}", operation.id);
            return context.output.result(&operation, text);
        }
        context.output.say(text);
    }
    if detach {
        let text = format!(
            "The {} of {} has begun.\nFollow it: beanpole attach {}",
            operation.kind, operation.environment_name, operation.id
        );
        return context.output.result(&operation, text);
    }
    follow(context, operation)
}
