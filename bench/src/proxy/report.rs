//! What came of it: for programs (JSON), for the terminal, for a page (Markdown).

use super::peers::{BEANPOLE, PEERS};
use super::rows::{IDLE, Kind, Row};
use super::verdict::{Court, DISTURBED, Verdict, load_limited};
use super::{LOAD_CORE, Measure, Measured, PROXY_CORE, plot};
use crate::Setup;
use crate::stats::{median, range, ratios};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Below this it is said that sessions were not resumed that should have been.
const RESUMED: f64 = 0.9;

/// Everything.
#[derive(Serialize)]
pub struct Report {
    made_at: String,
    machine: String,
    versions: BTreeMap<&'static str, String>,
    rounds: usize,
    seconds: u32,
    /// The rows, in order.
    pub rows: Vec<RowReport>,
    /// The targets.
    pub targets: Vec<Verdict>,
}

/// A row.
#[derive(Serialize)]
pub struct RowReport {
    #[serde(skip)]
    row: &'static Row,
    name: &'static str,
    title: &'static str,
    /// The load balancers, Beanpole first.
    pub peers: Vec<PeerReport>,
}

/// A load balancer in a row.
#[derive(Serialize)]
pub struct PeerReport {
    /// Its name.
    pub name: &'static str,
    /// What was measured.
    pub figures: BTreeMap<Measure, Spread>,
    /// What Beanpole's is of it, round by round.
    pub beanpole_by_this: BTreeMap<Measure, Spread>,
    /// Whether the load generator and the upstream had no more to give.
    pub load_limited: bool,
    /// Why there is nothing.
    pub missing: Option<String>,
}

/// A median with its least and its most.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(runs: &[f64]) -> Option<Self> {
        let (low, high) = range(runs);
        (!runs.is_empty()).then(|| Self {
            median: median(runs),
            low,
            high,
        })
    }
}

/// What is compared with Beanpole.
const COMPARED: [Measure; 4] = [
    Measure::RequestsPerSecond,
    Measure::P99Ms,
    Measure::CpuUsPerRequest,
    Measure::KbPerConnection,
];
const ALL: [Measure; 16] = [
    Measure::RequestsPerSecond,
    Measure::P50Ms,
    Measure::P99Ms,
    Measure::CpuUsPerRequest,
    Measure::MemoryMb,
    Measure::ProxyBusy,
    Measure::CoreBusy,
    Measure::Disturbed,
    Measure::LoadBusy,
    Measure::Resumed,
    Measure::Connections,
    Measure::KbPerConnection,
    Measure::AppliedMs,
    Measure::AppliedMostMs,
    Measure::P99ChangingMs,
    Measure::RequestsChanging,
];

/// A column of a table.
struct Column {
    head: &'static str,
    measure: Measure,
    how: How,
}

enum How {
    /// The median, and the spread in brackets.
    Spread,
    /// The median alone.
    Median,
    /// What Beanpole's is of it.
    Ratio,
}

const fn column(head: &'static str, measure: Measure, how: How) -> Column {
    Column { head, measure, how }
}

const LOAD: &[Column] = &[
    column("requests/s", Measure::RequestsPerSecond, How::Spread),
    column("p50 ms", Measure::P50Ms, How::Median),
    column("p99 ms", Measure::P99Ms, How::Spread),
    column("CPU us/request", Measure::CpuUsPerRequest, How::Spread),
    column("memory MB", Measure::MemoryMb, How::Median),
    column(
        "Beanpole by it: requests",
        Measure::RequestsPerSecond,
        How::Ratio,
    ),
    column("p99", Measure::P99Ms, How::Ratio),
    column("CPU", Measure::CpuUsPerRequest, How::Ratio),
];
const RESTING: &[Column] = &[
    column("KB/connection", Measure::KbPerConnection, How::Spread),
    column("memory MB", Measure::MemoryMb, How::Median),
    column("connections", Measure::Connections, How::Median),
    column("Beanpole by it: KB", Measure::KbPerConnection, How::Ratio),
];
const CHANGING: &[Column] = &[
    column("in force after ms", Measure::AppliedMs, How::Spread),
    column("longest ms", Measure::AppliedMostMs, How::Spread),
    column("p99 ms before", Measure::P99Ms, How::Spread),
    column("p99 ms meanwhile", Measure::P99ChangingMs, How::Spread),
    column("requests/s before", Measure::RequestsPerSecond, How::Median),
    column("meanwhile", Measure::RequestsChanging, How::Median),
];

/// Lines of cells; the first has the heads.
type Cells = Vec<Vec<String>>;

impl RowReport {
    fn new(row: &'static Row, all: &[Measured]) -> Self {
        let of_row = || all.iter().filter(|one| one.row.name == row.name);
        let ours = of_row().find(|one| one.peer.name == BEANPOLE);
        let peers = of_row().map(|one| PeerReport {
            name: one.peer.name,
            figures: ALL
                .into_iter()
                .filter_map(|measure| Some((measure, Spread::of(&one.column(measure))?)))
                .collect(),
            beanpole_by_this: COMPARED
                .into_iter()
                .filter(|_| one.peer.name != BEANPOLE)
                .filter_map(|measure| {
                    let ratios = ratios(&ours?.column(measure), &one.column(measure));
                    Some((measure, Spread::of(&ratios)?))
                })
                .collect(),
            load_limited: load_limited(one),
            missing: one.failed.clone(),
        });
        Self {
            row,
            name: row.name,
            title: row.title,
            peers: peers.collect(),
        }
    }

    /// Whether it is one with requests per second.
    pub fn is_load(&self) -> bool {
        matches!(self.row.kind, Kind::Load(_))
    }

    /// Its title.
    pub fn title(&self) -> &'static str {
        self.title
    }

    fn cells(&self) -> Cells {
        let columns = match self.row.kind {
            Kind::Load(_) => LOAD,
            Kind::Idle { .. } => RESTING,
            Kind::Change => CHANGING,
        };
        let heads = columns.iter().map(|column| column.head.to_owned());
        let mut cells = vec![std::iter::once(String::new()).chain(heads).collect()];
        for peer in self.peers.iter().filter(|peer| !peer.figures.is_empty()) {
            let mark = if peer.load_limited { " *" } else { "" };
            let mut line = vec![format!("{}{mark}", peer.name)];
            line.extend(columns.iter().map(|column| peer.cell(column)));
            cells.push(line);
        }
        cells
    }

    /// The load balancers, the one that needs the least CPU time per request first.
    fn ranked_by_cpu(&self) -> Vec<&'static str> {
        let cost = |peer: &PeerReport| Some(peer.figures.get(&Measure::CpuUsPerRequest)?.median);
        let mut ranked: Vec<_> = self
            .peers
            .iter()
            .filter_map(|peer| Some((cost(peer)?, peer.name)))
            .collect();
        ranked.sort_by(|one, other| one.0.total_cmp(&other.0));
        ranked.into_iter().map(|(_, name)| name).collect()
    }

    /// What else has to be known.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.peers.iter().any(|peer| peer.load_limited) {
            let ranks = self.ranked_by_cpu().join(", ");
            notes.push(format!(
                "* the load generator and the upstream were the limit: CPU time per request ranks. {ranks}."
            ));
        }
        let resumes = self.name == "tls-resumed";
        for peer in &self.peers {
            let median = |measure| peer.figures.get(&measure).map(|spread| spread.median);
            if let Some(missing) = &peer.missing {
                notes.push(format!("Without {}: {missing}.", peer.name));
            }
            if let Some(resumed) = median(Measure::Resumed)
                && resumes
                && resumed < RESUMED
            {
                let resumed = percent(resumed);
                notes.push(format!(
                    "{} resumed only {resumed} of the sessions.",
                    peer.name
                ));
            }
        }
        let disturbed: Vec<_> = self
            .peers
            .iter()
            .filter_map(PeerReport::disturbed)
            .collect();
        if !disturbed.is_empty() {
            let disturbed = disturbed.join(", ");
            notes.push(format!("Other programs used the core of {disturbed}."));
        }
        let held = self.peers.iter().find_map(|peer| {
            let connections = peer.figures.get(&Measure::Connections)?;
            Some(connections.median).filter(|held| *held < IDLE as f64)
        });
        if let Some(held) = held {
            let held = number(held);
            notes.push(format!(
                "With {held} connections: the limit of open files allows no more here."
            ));
        }
        notes
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

impl PeerReport {
    /// How much of its core other programs used, where that was more than a little.
    fn disturbed(&self) -> Option<String> {
        let share = self.figures.get(&Measure::Disturbed)?.median;
        (share > DISTURBED).then(|| format!("{} ({})", self.name, percent(share)))
    }

    fn cell(&self, column: &Column) -> String {
        let from = match column.how {
            How::Ratio => &self.beanpole_by_this,
            How::Spread | How::Median => &self.figures,
        };
        let Some(spread) = from.get(&column.measure) else {
            return String::new();
        };
        match column.how {
            How::Ratio => format!("{:.2} x", spread.median),
            How::Median => number(spread.median),
            How::Spread if spread.low >= spread.high => number(spread.median),
            How::Spread => format!(
                "{} ({} - {})",
                number(spread.median),
                number(spread.low),
                number(spread.high)
            ),
        }
    }
}

/// Three digits or all before the point, with commas between thousands.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
    }
}

impl Report {
    /// Puts together what was measured.
    pub fn new(setup: &Setup, programs: &[Result<PathBuf, String>], all: Vec<Measured>) -> Self {
        let mut rows: Vec<RowReport> = Vec::new();
        for one in &all {
            if rows.last().is_none_or(|last| last.name != one.row.name) {
                rows.push(RowReport::new(one.row, &all));
            }
        }
        let versions = PEERS.iter().zip(programs).filter_map(|(peer, program)| {
            let program = program.as_ref().ok()?;
            Some((peer.name, version(program, peer.version)?))
        });
        Self {
            made_at: beanpole_daemon::clock::now().to_string(),
            machine: machine(),
            versions: versions.collect(),
            rounds: setup.rounds,
            seconds: setup.seconds,
            targets: Court(&all).judge(),
            rows,
        }
    }

    fn heading(&self) -> Vec<String> {
        let versions: Vec<_> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name}: {version}"))
            .collect();
        vec![
            format!("{}, {}.", self.made_at, self.machine),
            format!("{}.", versions.join("; ")),
            format!(
                "One worker each, alone on core {PROXY_CORE}; load generator and upstream on core {LOAD_CORE}. \
                 Medians (least - most) of {} alternating runs of {} s, ratios taken round by round.",
                self.rounds, self.seconds
            ),
        ]
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut text = self.heading().join("\n") + "\n";
        for row in &self.rows {
            text.push_str(&format!("\n{}: {}\n", row.name, row.title));
            text.push_str(&padded(&row.cells()));
            for note in row.notes() {
                text.push_str(&format!("  {note}\n"));
            }
        }
        text.push_str("\nTargets\n");
        text.push_str(&padded(&self.target_cells()));
        text
    }

    /// As a page, with the picture `plot` beside it.
    pub fn markdown(&self, plot: &str) -> String {
        let mut text = String::from(
            "# The load balancer beside others\n\nWritten by `./dev bench proxy`; how to read it: \
             [benchmarks](../../docs/guides/benchmarks.md).\n\n",
        );
        text.push_str(&self.heading().join("\n"));
        text.push_str(&format!(
            "\n\n![Requests per second and CPU time per request]({plot})\n"
        ));
        for row in &self.rows {
            text.push_str(&format!("\n## {}\n\n", row.title));
            text.push_str(&piped(&row.cells()));
            let notes = row.notes();
            if !notes.is_empty() {
                text.push_str(&format!("\n{}\n", notes.join("\n").replace("* ", "\\* ")));
            }
        }
        text.push_str("\n## Targets\n\n");
        text.push_str(&piped(&self.target_cells()));
        text
    }

    fn target_cells(&self) -> Cells {
        let mut cells = vec![
            ["row", "target of Beanpole", "is", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        for verdict in &self.targets {
            let reached = match verdict.reached {
                Some(true) => "reached",
                Some(false) => "MISSED",
                None => "",
            };
            cells.push(vec![
                verdict.row.clone(),
                verdict.target.clone(),
                verdict.value.clone(),
                reached.to_owned(),
            ]);
        }
        cells
    }

    /// Writes `proxy.md` and `proxy.svg` into `dir`.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("proxy.md"), self.markdown("proxy.svg"))?;
        fs::write(dir.join("proxy.svg"), plot::svg(self))
    }
}

fn padded(cells: &Cells) -> String {
    let width = |at: usize| cells.iter().map(|line| line[at].chars().count()).max();
    let mut text = String::new();
    for line in cells {
        let padded: Vec<String> = line
            .iter()
            .enumerate()
            .map(|(at, cell)| format!("{cell:<0$}", width(at).unwrap_or(0)))
            .collect();
        text.push_str(&format!("  {}\n", padded.join("  ").trim_end()));
    }
    text
}

fn piped(cells: &Cells) -> String {
    let mut text = String::new();
    for (at, line) in cells.iter().enumerate() {
        let line: Vec<_> = line.iter().map(|cell| cell.replace(" *", " \\*")).collect();
        text.push_str(&format!("| {} |\n", line.join(" | ")));
        if at == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(line.len())));
        }
    }
    text
}

/// The first line that a program says of its version.
fn version(program: &Path, arguments: &[&str]) -> Option<String> {
    if arguments.is_empty() {
        return None;
    }
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next()?;
    // What follows are the build's address and checksum.
    let words = line.split_whitespace().take(3);
    Some(words.collect::<Vec<_>>().join(" "))
}

/// Processor, cores, system.
fn machine() -> String {
    let value = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once([':', '=']));
        value.map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores of {}, {}, Linux {}",
        value("/proc/cpuinfo", "model name").unwrap_or_else(|| "an unknown processor".to_owned()),
        value("/etc/os-release", "PRETTY_NAME").unwrap_or_else(|| "an unknown system".to_owned()),
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::super::verdict::measured;
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_matter() {
        let told = [0.123, 12.34, 123.4, 1_234.0, 1_234_567.0, -123.0].map(number);
        assert_eq!(told, ["0.12", "12.3", "123", "1,234", "1,234,567", "-123"]);
    }

    #[test]
    fn a_report_ranks_by_cpu_time_where_the_load_was_the_limit_and_draws_every_bar() {
        let runs = |cpu| [[100.0, 1.0, cpu, 0.99], [120.0, 2.0, cpu, 0.99]];
        let setup = Setup {
            beanpole: PathBuf::new(),
            bare: None,
            rounds: 2,
            seconds: 4,
            quick: false,
            rows: Vec::new(),
        };
        let mut all = vec![
            measured("http-1k", BEANPOLE, &runs(9.0)),
            measured("http-1k", "nginx", &runs(8.0)),
            measured("http-1k", "Caddy", &[]),
        ];
        all[2].failed = Some("caddy is not installed".to_owned());
        let report = Report::new(&setup, &[], all);
        let page = report.markdown("proxy.svg");
        for line in [
            "| nginx \\* | 110 (100 - 120) | 0.50 | 1.50 (1.00 - 2.00) | 8.00 | 5.00 | 1.00 x | 1.00 x | 1.12 x |",
            "CPU time per request ranks. nginx, Beanpole.",
            "Without Caddy: caddy is not installed.",
            "| http-1k | at most 1 x the p99 (the load was the limit) of nginx | 1.00 x | reached |",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
        let picture = plot::svg(&report);
        // The background and two bars for each of two.
        assert_eq!(picture.matches("<rect").count(), 5, "{picture}");
    }

    #[test]
    fn columns_line_up_in_the_terminal_and_stars_stay_stars_on_a_page() {
        let cells = vec![
            vec![String::new(), "requests/s".to_owned()],
            vec!["nginx *".to_owned(), "1".to_owned()],
        ];
        assert_eq!(padded(&cells), "           requests/s\n  nginx *  1\n");
        assert_eq!(
            piped(&cells),
            "|  | requests/s |\n|---|---|\n| nginx \\* | 1 |\n"
        );
    }
}
