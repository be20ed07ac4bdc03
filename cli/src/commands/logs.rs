//! `beanpole logs`: what the instances write.

use super::environment_path;
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::foreign::{Colours, printable};
use beanpole_protocol::api::Environment;
use beanpole_protocol::{EnvironmentName, InstanceId};
use clap::Args;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use ureq::http::Method;

/// Show what an environment's instances write to standard output and error
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole logs shop-prod\n  beanpole logs shop-prod --follow\n  beanpole logs shop-prod --instance i-0a1b2c3d4e5f60718 --process web --tail 1000\n\nOn a terminal, colours pass and other control characters are made visible; into a file or a pipe,\nlines go as the application wrote them."
)]
pub struct Logs {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Of this instance only
    #[arg(long, short)]
    instance: Option<InstanceId>,
    /// Of this process of the Procfile only
    #[arg(long, short)]
    process: Option<String>,
    /// How many lines per instance, counted from the last one
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    tail: u32,
    /// Go on with what they write
    #[arg(long, short)]
    follow: bool,
}

/// Copies the lines as they come.
pub fn run(context: &Context, command: &Logs) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let mut path = format!("{}/logs?tail={}", environment_path(&name), command.tail);
    if let Some(instance) = &command.instance {
        path.push_str(&format!("&instance={instance}"));
    }
    if let Some(process) = &command.process {
        path.push_str(&format!("&process={}", escape(process)));
    }
    if command.follow {
        path.push_str("&follow=true");
    }
    let reader =
        context
            .client()?
            .stream(Method::GET, &path, &[("accept", "text/plain".to_owned())])?;
    let mut reader = BufReader::new(reader);
    let mut out = std::io::stdout();
    let terminal = out.is_terminal();
    let colours = if context.output.colour {
        Colours::Any
    } else {
        Colours::None
    };
    let mut line = Vec::new();
    let mut nothing = true;
    loop {
        line.clear();
        let count = reader
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::caused("The log broke off.", &error))?;
        if count == 0 {
            if nothing && command.tail > 0 {
                context.output.say(nothing_there(context, command, &name)?);
            }
            return Ok(());
        }
        nothing = false;
        if context.output.json {
            let text = String::from_utf8_lossy(&line);
            context.output.json_line(&as_json(text.trim_end()))?;
        } else if out
            .write_all(&shown(&line, terminal, colours))
            .and_then(|()| out.flush())
            .is_err()
        {
            // The reader went away: `| head`.
            return Ok(());
        }
    }
}

/// Why no line came, as far as that can be told.
fn nothing_there(
    context: &Context,
    command: &Logs,
    name: &EnvironmentName,
) -> Result<String, Failure> {
    let environment = context
        .client()
        .and_then(|client| client.get::<Environment>(&environment_path(name)));
    let Ok(environment) = environment else {
        return Ok("There are no lines.".to_owned());
    };
    if environment.instances.is_empty() {
        return Ok(match environment.version {
            Some(_) => format!("{name} has no instances now. See why: beanpole status {name}"),
            None => format!("{name} has no instances. Deploy to it: beanpole deploy {name}"),
        });
    }
    let known: BTreeSet<&str> = environment
        .instances
        .iter()
        .flat_map(|instance| &instance.processes)
        .map(|process| process.name.as_str())
        .collect();
    match &command.process {
        Some(process) if !known.contains(process.as_str()) => {
            let known: Vec<&str> = known.into_iter().collect();
            Err(Failure::misuse(format!(
                "{name} has no process `{}`. It has {}.",
                beanpole_protocol::ids::shown(process),
                known.join(", ")
            )))
        }
        _ => Ok(format!("{name} has written no lines yet.")),
    }
}

/// A line as it goes out. On a terminal nothing is obeyed but colours; what reads a pipe or a file
/// gets what the application wrote, byte by byte.
fn shown(line: &[u8], terminal: bool, colours: Colours) -> Cow<'_, [u8]> {
    if !terminal {
        return line.into();
    }
    let text = String::from_utf8_lossy(line);
    let text = match text.strip_suffix("\r\n") {
        Some(text) => format!("{text}\n").into(),
        None => text,
    };
    printable(&text, colours).into_owned().into_bytes().into()
}

/// `INSTANCE HOST TIME PROCESS STREAM LINE` as fields.
fn as_json(line: &str) -> serde_json::Value {
    let parts: Vec<&str> = line.splitn(6, ' ').collect();
    match parts.as_slice() {
        [instance, host, at, process, stream, text] => serde_json::json!({
            "instance": instance, "host": host, "at": at,
            "process": process, "stream": stream, "line": text,
        }),
        _ => serde_json::json!({ "line": line }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_in_a_log_but_colours() {
        let line = b"web \x1b[32mok\x1b[0m \x1b]0;x\x07\xff\r\n";
        assert_eq!(*shown(line, false, Colours::Any), *line.as_slice());
        assert_eq!(
            String::from_utf8_lossy(&shown(line, true, Colours::Any)),
            "web \u{1b}[32mok\u{1b}[0m \\u001b]0;x\\u0007\u{fffd}\n"
        );
        assert_eq!(
            String::from_utf8_lossy(&shown(b"\x1b[32mok\n", true, Colours::None)),
            "\\u001b[32mok\n"
        );
    }
}
