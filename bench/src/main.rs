//! Every figure that the README claims, measured against real peers in the same run.
//!
//! `./dev bench` builds what is needed and runs it. Sections can be named: `./dev bench proxy`.
//! Prints a table and writes a JSON file. Peers run alternately with Beanpole on the same cores, so
//! that a noisy machine is noisy for all of them; medians and spreads are given.

mod deploy;
mod idle;
mod peers;
mod process;
mod proxy;
mod stats;

use serde::Serialize;
use std::path::PathBuf;
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

/// Where things are.
pub struct Setup {
    /// The `beanpole` executable.
    pub beanpole: PathBuf,
    /// The bare pingora proxy to compare with, where it is built.
    pub bare: Option<PathBuf>,
    /// How many alternating runs.
    pub rounds: usize,
    /// How long a run of a load generator takes, in seconds.
    pub seconds: u32,
}

/// Why a section has no figures.
type Failed = Box<dyn std::error::Error>;
/// A section: its name and what measures it.
type Section = (&'static str, fn(&Setup) -> Result<Vec<Figure>, Failed>);

const SECTIONS: [Section; 3] = [
    ("proxy", proxy::measure),
    ("idle", idle::measure),
    ("deploy", deploy::measure),
];

fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]
fn main() -> ExitCode {
    let mut json = PathBuf::from("bench.json");
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--json" {
            json = arguments.next().unwrap_or_default().into();
        } else if SECTIONS.iter().any(|(name, _)| *name == argument) {
            wanted.push(argument);
        } else {
            let names: Vec<_> = SECTIONS.iter().map(|(name, _)| *name).collect();
            eprintln!(
                "error: `{argument}` is no section: use {}",
                names.join(", ")
            );
            return ExitCode::from(2);
        }
    }
    let beanpole = beanpole_tests::apps::executable("beanpole");
    let bare = beanpole.with_file_name("examples").join("bare");
    let setup = Setup {
        bare: bare.is_file().then_some(bare),
        beanpole,
        rounds: number("BEANPOLE_BENCH_ROUNDS", 5),
        seconds: number("BEANPOLE_BENCH_SECONDS", 4) as u32,
    };
    let mut figures = Vec::new();
    let mut failed = false;
    for (name, measure) in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("measuring: {name}");
        // What goes wrong on the hosts panics; the other sections' figures are still wanted.
        let measured = std::panic::catch_unwind(|| measure(&setup))
            .unwrap_or_else(|_| Err("it broke off, see above".into()));
        match measured {
            Ok(measured) => figures.extend(measured),
            Err(error) => {
                eprintln!("error: {name}: {error}");
                failed = true;
            }
        }
    }
    println!(
        "{:<8} {:<52} {:>12} {:>23}  target",
        "section", "what", "median", "spread"
    );
    for figure in &figures {
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
    let text = serde_json::to_vec_pretty(&figures).expect("figures are plain data");
    if let Err(error) = std::fs::write(&json, text) {
        eprintln!("error: cannot write {}: {error}", json.display());
        failed = true;
    }
    println!("written to {}", json.display());
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
