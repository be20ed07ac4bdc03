//! Every figure that the README claims, measured against real peers in the same run.
//!
//! `./dev bench` builds what is needed and runs it. Sections can be named: `./dev bench proxy`.
//! Prints tables and writes a JSON file; the section `proxy` writes a page and a picture as well. Peers run
//! alternately with Beanpole on the same cores, so that a noisy machine is noisy for all of them; medians
//! and spreads are given.

mod deploy;
mod idle;
mod process;
mod proxy;
mod push;
mod stats;

use clap::{Parser, ValueEnum};
use proxy::knock::{self, Knock};
use proxy::report::Report;
use proxy::rows;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The section it belongs to.
    section: &'static str,
    /// What was measured.
    what: String,
    /// The median.
    value: f64,
    /// Its unit.
    unit: &'static str,
    /// The least and the most of all runs.
    spread: (f64, f64),
    /// What it is held against, if anything: `at most 60 MB`.
    target: Option<String>,
    /// Whether it reaches that.
    reached: Option<bool>,
}

impl Figure {
    /// A figure without a target.
    pub fn new(
        section: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        runs: &[f64],
    ) -> Self {
        let (low, high) = stats::range(runs);
        Self {
            section,
            what: what.into(),
            value: stats::median(runs),
            unit,
            spread: (low, high),
            target: None,
            reached: None,
        }
    }

    /// Holds the median against an upper bound.
    pub fn at_most(mut self, bound: f64) -> Self {
        self.target = Some(format!("at most {bound} {}", self.unit));
        self.reached = Some(self.value <= bound);
        self
    }
}

/// Where things are, and how much is measured.
pub struct Setup {
    /// The `beanpole` executable.
    pub beanpole: PathBuf,
    /// The bare pingora proxy to compare with, where it is built.
    pub bare: Option<PathBuf>,
    /// How many alternating runs.
    pub rounds: usize,
    /// How long a run of a load generator takes, in seconds.
    pub seconds: u32,
    /// Whether only to see that everything works.
    pub quick: bool,
    /// The rows of the section `proxy`, by the beginnings of their names; all without any.
    pub rows: Vec<String>,
}

/// Why a section has no figures.
type Failed = Box<dyn std::error::Error>;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// The load balancer beside others.
    Proxy,
    /// What the daemons use at rest, and how soon the demo serves.
    Idle,
    /// Deployments to three hosts.
    Deploy,
    /// How bundles get to 3 and 20 hosts.
    Push,
}

/// A section that gives figures: what measures it.
type Others = (
    Section,
    &'static str,
    fn(&Setup) -> Result<Vec<Figure>, Failed>,
);

const OTHERS: [Others; 3] = [
    (Section::Idle, "idle", idle::measure),
    (Section::Deploy, "deploy", deploy::measure),
    (Section::Push, "push", push::measure),
];

/// Measures Beanpole beside others, on this machine, and says which targets are reached.
#[derive(Parser)]
#[command(name = "./dev bench")]
struct Arguments {
    /// What to measure [default: everything; with --rows, `proxy`]
    sections: Vec<Section>,
    /// Rows of the section `proxy`, separated by commas; `tls` means all that begin so [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Alternating runs; one more before warms up [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each run takes [default: 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// One run of one second of everything: shows that it works, the figures are worth nothing
    #[arg(long)]
    quick: bool,
    /// Where all figures go, as JSON
    #[arg(long, default_value = "bench.json")]
    json: PathBuf,
    /// Where the page and the picture of the section `proxy` go [default: bench/results; beside the
    /// JSON file with --quick or --rows, which are not for keeping]
    #[arg(long)]
    results: Option<PathBuf>,
}

impl Arguments {
    fn wants(&self, section: Section) -> bool {
        if self.sections.is_empty() {
            return self.rows.is_empty() || section == Section::Proxy;
        }
        self.sections.contains(&section)
    }

    fn results(&self) -> PathBuf {
        let kept = !self.quick && self.rows.is_empty();
        match &self.results {
            Some(results) => results.clone(),
            None if kept => PathBuf::from("bench/results"),
            None => self.json.with_file_name("bench-results"),
        }
    }

    /// Makes the directories that results go to.
    fn make_places(&self) -> Result<(), String> {
        let of_json = self.json.parent().unwrap_or(Path::new(""));
        for dir in [of_json, &self.results()] {
            if !dir.as_os_str().is_empty() {
                std::fs::create_dir_all(dir).map_err(|error| cannot_write(dir, &error))?;
            }
        }
        Ok(())
    }

    fn setup(&self) -> Setup {
        let beanpole = beanpole_tests::apps::executable("beanpole");
        let bare = beanpole.with_file_name("examples").join("bare");
        let (rounds, seconds) = if self.quick { (1, 1) } else { (5, 4) };
        Setup {
            bare: bare.is_file().then_some(bare),
            beanpole,
            rounds: self.rounds.unwrap_or(rounds) as usize,
            seconds: self.seconds.unwrap_or(seconds),
            quick: self.quick,
            rows: self.rows.clone(),
        }
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

/// All that is measured, as it is written.
#[derive(Default, Serialize)]
struct Everything {
    proxy: Option<Report>,
    figures: Vec<Figure>,
}

/// What goes wrong on the hosts panics; the other sections' figures are still wanted.
fn guarded<T>(measure: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(measure))
        .unwrap_or_else(|_| Err("it broke off, see above".into()))
}

#[expect(clippy::print_stderr, reason = "a program for people")]
fn main() -> ExitCode {
    let mut words = std::env::args();
    if words.nth(1).as_deref() == Some("knock") {
        let knock = Knock::parse_from(std::env::args().skip(1));
        return match knock::run(&knock) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::parse();
    if let Err(error) = rows::chosen(&arguments.rows) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    // Better now than after half an hour.
    if let Err(problem) = arguments.make_places() {
        eprintln!("error: {problem}");
        return ExitCode::from(2);
    }
    let (measured, mut problems) = measure(&arguments);
    problems.extend(write(&arguments, &measured).err());
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the sections that are asked for; also what went wrong.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]
fn measure(arguments: &Arguments) -> (Everything, Vec<String>) {
    let setup = arguments.setup();
    let mut all = Everything::default();
    let mut problems = Vec::new();
    if arguments.wants(Section::Proxy) {
        eprintln!("measuring: proxy");
        match guarded(|| proxy::measure(&setup)) {
            Ok(report) => {
                println!("{}", report.text());
                all.proxy = Some(report);
            }
            Err(error) => problems.push(format!("proxy: {error}")),
        }
    }
    for (section, name, measure) in OTHERS {
        if !arguments.wants(section) {
            continue;
        }
        eprintln!("measuring: {name}");
        match guarded(|| measure(&setup)) {
            Ok(figures) => all.figures.extend(figures),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    print_figures(&all.figures);
    (all, problems)
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn print_figures(figures: &[Figure]) {
    if figures.is_empty() {
        return;
    }
    println!(
        "{:<8} {:<52} {:>12} {:>23}  target",
        "section", "what", "median", "spread"
    );
    for figure in figures {
        let verdict = match (&figure.target, figure.reached) {
            (Some(target), Some(true)) => format!("{target}: reached"),
            (Some(target), _) => format!("{target}: MISSED"),
            (None, _) => String::new(),
        };
        println!(
            "{:<8} {:<52} {:>12} {:>23}  {verdict}",
            figure.section,
            figure.what,
            format!("{} {}", stats::short(figure.value), figure.unit),
            format!(
                "{} - {}",
                stats::short(figure.spread.0),
                stats::short(figure.spread.1)
            ),
        );
    }
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn write(arguments: &Arguments, all: &Everything) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(all).expect("figures are plain data");
    let json = &arguments.json;
    std::fs::write(json, text).map_err(|error| cannot_write(json, &error))?;
    println!("written to {}", json.display());
    if let Some(report) = &all.proxy {
        let results = arguments.results();
        report
            .write(&results)
            .map_err(|error| cannot_write(&results, &error))?;
        println!("written to {}", results.display());
    }
    Ok(())
}
