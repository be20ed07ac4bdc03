//! The picture: for every row with load, requests per second and CPU time per request as bars.

use super::Measure;
use super::peers::PEERS;
use super::report::{PeerReport, Report, RowReport, number};
use std::fmt::Write as _;

const WIDTH: u32 = 960;
const MARGIN: u32 = 20;
/// Where names of load balancers end and bars begin, how long the longest is, and the room for its number.
const NAMES: u32 = 110;
const BAR: u32 = 240;
const NUMBER: u32 = 90;
const LINE: u32 = 17;
const TITLE: u32 = 26;
const HEAD: u32 = 60;

/// One colour for each load balancer, told apart by those who do not see all colours (Okabe and Ito).
const COLOURS: [&str; PEERS.len()] = ["#0072b2", "#009e73", "#e69f00", "#cc79a7", "#999999"];

/// What stands in each of the two halves.
const PANELS: [(&str, Measure); 2] = [
    (
        "Requests per second (longer is better)",
        Measure::RequestsPerSecond,
    ),
    (
        "CPU us per request (shorter is better)",
        Measure::CpuUsPerRequest,
    ),
];

/// The whole file.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for row in report.rows.iter().filter(|row| row.is_load()) {
        draw(row, &mut y, &mut body);
    }
    let height = y + MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>The load balancer beside others</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (panel, (title, _)) in PANELS.iter().enumerate() {
        let x = bars_begin(panel);
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"24\" font-weight=\"bold\">{title}</text>"
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"44\" fill=\"#555555\">Medians; each row has a scale of its own. \
         * the load was the limit: CPU time ranks.</text>"
    );
    text + &body + "</svg>\n"
}

fn bars_begin(panel: usize) -> u32 {
    MARGIN + NAMES + panel as u32 * (BAR + NUMBER)
}

fn draw(row: &RowReport, y: &mut u32, text: &mut String) {
    *y += TITLE;
    let at = *y - 8;
    let title = escaped(row.title());
    let _ = writeln!(
        text,
        "<text x=\"{MARGIN}\" y=\"{at}\" font-weight=\"bold\">{title}</text>"
    );
    let most = PANELS.map(|(_, measure)| {
        let values = row.peers.iter().filter_map(|peer| value(peer, measure));
        values.fold(0.0, f64::max)
    });
    for peer in row.peers.iter().filter(|peer| !peer.figures.is_empty()) {
        let (middle, mark) = (*y + 12, if peer.load_limited { " *" } else { "" });
        let names_end = MARGIN + NAMES - 8;
        let name = escaped(peer.name);
        let _ = writeln!(
            text,
            "<text x=\"{names_end}\" y=\"{middle}\" text-anchor=\"end\">{name}{mark}</text>"
        );
        let place = PEERS.iter().position(|one| one.name == peer.name);
        let colour = COLOURS[place.unwrap_or(0)];
        for (panel, (_, measure)) in PANELS.iter().enumerate() {
            let Some(value) = value(peer, *measure) else {
                continue;
            };
            let x = bars_begin(panel);
            let length = (value / most[panel].max(f64::MIN_POSITIVE) * f64::from(BAR)).max(1.0);
            let (top, thick, after) = (*y + 2, LINE - 4, f64::from(x) + length + 5.0);
            let said = number(value);
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{top}\" width=\"{length:.1}\" height=\"{thick}\" fill=\"{colour}\"/>\
                 <text x=\"{after:.1}\" y=\"{middle}\">{said}</text>"
            );
        }
        *y += LINE;
    }
}

fn value(peer: &PeerReport, measure: Measure) -> Option<f64> {
    peer.figures.get(&measure).map(|spread| spread.median)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
