//! `beanpole events`: what happened.

use crate::client::{escape, sse};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::progress::event_line;
use crate::output::{Output, Paint};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::Page;
use beanpole_protocol::event::{Event, Severity};
use clap::Args;
use std::collections::VecDeque;

/// Show what happened on an environment, oldest first
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole events shop-prod\n  beanpole events shop-prod --follow\n  beanpole events --all --last 100 --json"
)]
pub struct Events {
    /// The environment [default: `environment` of deploy.toml]
    #[arg(conflicts_with = "all")]
    environment: Option<EnvironmentName>,
    /// Of every environment and host
    #[arg(long)]
    all: bool,
    /// How many, counted from the last one; 0 with --follow, for those that come
    #[arg(long, short = 'n', default_value_t = 50)]
    last: usize,
    /// Go on with what happens
    #[arg(long, short)]
    follow: bool,
}

/// Shows the last events and, when told to, those that come.
pub fn run(context: &Context, command: &Events) -> Result<(), Failure> {
    if command.last == 0 && !command.follow {
        return Err(Failure::misuse("--last 0 shows nothing.")
            .hint("Give a number from 1, or --follow for what comes"));
    }
    let filter = if command.all {
        String::new()
    } else {
        let name = context.environment(command.environment.as_ref())?;
        format!("environment={}", escape(name.as_str()))
    };
    let client = context.client()?;
    let mut last: VecDeque<Event> = VecDeque::new();
    let mut after: Option<String> = None;
    let mut newest = None;
    loop {
        let next = after
            .as_ref()
            .map(|after| format!("&after={}", escape(after)))
            .unwrap_or_default();
        let page: Page<Event> = client.get(&format!("/v1/events?{filter}&limit=1000{next}"))?;
        for event in page.items {
            newest = Some(event.id);
            last.push_back(event);
            if last.len() > command.last {
                last.pop_front();
            }
        }
        match page.next {
            Some(next) if after.as_ref() != Some(&next) => after = Some(next),
            _ => break,
        }
    }
    if context.output.json && !command.follow {
        return context.output.json(&last);
    }
    for event in &last {
        show(context.output, event, command.all)?;
    }
    if command.follow {
        let path = format!("/v1/events/stream?{filter}");
        let after = newest.or(Some(beanpole_protocol::EventId(0)));
        return sse::follow(client, &path, after, |event| {
            show(context.output, &event, command.all).is_ok()
        });
    }
    if last.is_empty() {
        context.output.say("Nothing has happened yet.");
    }
    Ok(())
}

/// `2026-03-01 12:03:04  WARN   shop-prod: message`; the name where there are events of several.
fn line(event: &Event, of_all: bool) -> String {
    let at = event.at.to_string();
    let day = at.get(..10).unwrap_or_default();
    let mut event = event.clone();
    if let Some(name) = event.environment_name.as_ref().filter(|_| of_all) {
        event.message = format!("{name}: {}", event.message);
    }
    format!("{day} {}", event_line(&event))
}

fn show(output: Output, event: &Event, of_all: bool) -> Result<(), Failure> {
    if output.json {
        return output.json_line(event);
    }
    let line = line(event, of_all);
    let line = match event.severity {
        Severity::Warn => output.paint(Paint::Warn, &line),
        Severity::Error | Severity::Fatal => output.paint(Paint::Bad, &line),
        Severity::Trace | Severity::Debug => output.paint(Paint::Dim, &line),
        Severity::Info => line,
    };
    output.line(line);
    for detail in &event.details {
        output.line(format!("             {detail}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::{EventId, Timestamp};

    #[test]
    fn a_line_has_its_day_and_where_several_are_shown_its_environment() {
        let event = Event {
            id: EventId(7),
            at: Timestamp::from_millis(1_767_225_600_000),
            severity: Severity::Warn,
            code: "process-ended".to_owned(),
            message: "It ended.".to_owned(),
            environment_name: EnvironmentName::new("shop-prod").ok(),
            request_id: None,
            operation: None,
            application: None,
            environment: None,
            instance: None,
            host: None,
            details: Vec::new(),
        };
        assert_eq!(line(&event, false), "2026-01-01 00:00:00  WARN   It ended.");
        assert_eq!(
            line(&event, true),
            "2026-01-01 00:00:00  WARN   shop-prod: It ended."
        );
    }
}
