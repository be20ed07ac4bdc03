//! `beanpole page`: an environment's own pages for errors.

use super::environment_path;
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{bytes, table};
use beanpole_daemon::files;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{PageView, SetPage};
use beanpole_protocol::content::{LARGEST_PAGE, PageFor};
use clap::{Args, Subcommand};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long it is waited for the load balancers.
const LIMIT: Duration = Duration::from_secs(30);
/// After how long it is said that it is waited for them.
const SAID_AFTER: Duration = Duration::from_secs(1);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

/// List, set and remove an environment's own pages for errors of the load balancer
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole page set shop-prod 503 sorry.html\n  beanpole page set shop-prod 5xx error.html       all from 500 on that have none of their own\n  beanpole page list shop-prod\n  beanpole page remove shop-prod 503\n\nA page is HTML of at most 64 KiB, in one file; {{status}} and {{request_id}} in it stand for what they say.\nClients that ask for JSON get JSON as before. With the option beanpole:proxy:ReplaceErrors, the pages also take\nthe place of the application's own errors."
)]
pub struct Pages {
    #[command(subcommand)]
    command: PageCommand,
}

#[derive(Debug, Subcommand)]
enum PageCommand {
    /// List pages
    #[command(alias = "ls")]
    List {
        /// The environment [default: `environment` of deploy.toml]
        environment: Option<EnvironmentName>,
    },
    /// Set a page
    Set {
        /// The environment [default: `environment` of deploy.toml], then the status (408, 413, 429, 500 to 599, or
        /// 5xx), then the file
        #[arg(value_name = "[ENVIRONMENT] STATUS FILE", num_args = 2..=3, required = true)]
        what: Vec<String>,
        /// Do not wait for the load balancers
        #[arg(long)]
        detach: bool,
    },
    /// Remove a page: the load balancer's own takes its place
    #[command(alias = "rm")]
    Remove {
        /// The environment [default: `environment` of deploy.toml], then the status
        #[arg(value_name = "[ENVIRONMENT] STATUS", num_args = 1..=2, required = true)]
        what: Vec<String>,
    },
}

/// Lists, sets or removes.
pub fn run(context: &Context, command: Pages) -> Result<(), Failure> {
    match command.command {
        PageCommand::List { environment } => {
            let name = context.environment(environment.as_ref())?;
            list(context, &name)
        }
        PageCommand::Set { what, detach } => {
            let (file, rest) = what.split_last().ok_or_else(nothing_given)?;
            if let ([environment], Ok(page)) = (rest, PageFor::new(file.to_lowercase())) {
                return Err(Failure::misuse(format!(
                    "Which page shall {} get for {page}?",
                    beanpole_protocol::ids::shown(environment)
                ))
                .hint(format!(
                    "Name its file: beanpole page set {environment} {page} sorry.html"
                )));
            }
            let (name, page) = which(context, rest)?;
            let html = read(Path::new(file))?;
            set(context, &name, &SetPage { page, html }, detach)
        }
        PageCommand::Remove { what } => {
            let (name, page) = which(context, &what)?;
            context.client()?.remove(&format!(
                "{}?page={}",
                pages_path(&name),
                escape(page.as_str())
            ))?;
            context.output.result(
                &serde_json::json!({ "removed": page, "environment": name }),
                format!("{name} has no page of its own for {page} any more."),
            )
        }
    }
}

fn pages_path(name: &EnvironmentName) -> String {
    format!("{}/pages", environment_path(name))
}

fn nothing_given() -> Failure {
    Failure::misuse("Give a status.")
}

/// The environment and the page that are meant.
fn which(context: &Context, what: &[String]) -> Result<(EnvironmentName, PageFor), Failure> {
    let (page, rest) = what.split_last().ok_or_else(nothing_given)?;
    let misuse = |error: beanpole_protocol::ids::Invalid| Failure::misuse(format!("{error}."));
    let named = rest.first().map(|name| EnvironmentName::new(name.as_str()));
    let named = named.transpose().map_err(misuse)?;
    let page = PageFor::new(page.to_lowercase()).map_err(misuse)?;
    Ok((context.environment(named.as_ref())?, page))
}

/// Reads a page from a file.
pub fn read(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    files::read_text(path, LARGEST_PAGE).map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => {
            let most = LARGEST_PAGE / 1_024;
            Failure::misuse(format!("The page {shown} is larger than {most} KiB."))
                .hint("Have it load its images and styles from somewhere else.")
        }
        ErrorKind::InvalidData => Failure::misuse(format!("The page {shown} is not in UTF-8."))
            .hint("Save it in that encoding."),
        _ => Failure::caused(format!("The page {shown} cannot be read."), &error).into_misuse(),
    })
}

fn set(
    context: &Context,
    name: &EnvironmentName,
    wanted: &SetPage,
    detach: bool,
) -> Result<(), Failure> {
    let client = context.client()?;
    let path = pages_path(name);
    let page = &wanted.page;
    let mut set: PageView = client.post(&path, wanted)?;
    if !detach {
        set = in_force(
            context,
            set,
            |set| set.in_force,
            || {
                let all: Vec<PageView> = client.get(&path)?;
                let mut found = all.into_iter().filter(|one| one.page == *page);
                found.next().ok_or_else(|| {
                    Failure::new(format!("The page for {page} was removed again meanwhile."))
                })
            },
        )?;
        if !set.in_force {
            return Err(not_everywhere(name));
        }
    }
    let text = format!("{name} has its own page for {page}.");
    context.output.result(&set, text)
}

/// Waits until something is in force, or its time is up.
pub fn in_force<T>(
    context: &Context,
    first: T,
    is_in_force: impl Fn(&T) -> bool,
    look: impl Fn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    let mut seen = first;
    let mut told = false;
    while !is_in_force(&seen) && begun.elapsed() < LIMIT {
        if !told && begun.elapsed() > SAID_AFTER {
            told = true;
            context.output.say(format!(
                "It is written down. Waiting for the load balancers to have it, for {} s at most ...",
                LIMIT.as_secs()
            ));
        }
        std::thread::sleep(LOOK);
        seen = look()?;
    }
    Ok(seen)
}

/// That its time was up.
pub fn not_everywhere(name: &EnvironmentName) -> Failure {
    let seconds = LIMIT.as_secs();
    Failure::new(format!(
        "It is written down, but not every load balancer has it after {seconds} s."
    ))
    .hint(format!(
        "It is in force as soon as they have: beanpole status {name}"
    ))
}

fn list(context: &Context, name: &EnvironmentName) -> Result<(), Failure> {
    let pages: Vec<PageView> = context.client()?.get(&pages_path(name))?;
    if context.output.json {
        return context.output.json(&pages);
    }
    let rows = pages.iter().map(|one| {
        let since = if one.in_force {
            one.since.to_string()
        } else {
            "not everywhere yet".to_owned()
        };
        vec![one.page.to_string(), bytes(one.size), since]
    });
    context
        .output
        .line(table::render(&["PAGE", "SIZE", "SINCE"], rows.collect()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_text_of_a_bounded_size() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("page.html");
        let read_as = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("write");
            read(&path).map_err(|failure| failure.render(false))
        };
        assert_eq!(read_as(b"<p>hi").as_deref(), Ok("<p>hi"));
        assert!(read_as(&vec![b'x'; LARGEST_PAGE]).is_ok());
        let large = read_as(&vec![b'x'; LARGEST_PAGE + 1]).expect_err("too large");
        assert!(large.contains("is larger than 64 KiB"), "{large}");
        let odd = read_as(&[0xff]).expect_err("no text");
        assert!(odd.contains("UTF-8"), "{odd}");
    }
}
