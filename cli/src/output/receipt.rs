//! Receipts and plans for people: a few lines at the end of a command, tables where all is asked for.

use super::{Output, bytes, count, duration, plural, table};
use beanpole_protocol::api::{
    BatchReceipt, InstanceReceipt, Operation, OperationKind, Phase, PhaseTime, PlanStep, PlanView,
    PlannedChange, PlannedSetting, Receipt, ReceiptTraffic,
};
use beanpole_protocol::options::PROPERTIES;
use std::collections::BTreeSet;
use std::time::Duration;

/// Phases that took less are left out of a line, in milliseconds: nobody waits for them.
const WORTH_TELLING_MS: u64 = 100;
/// Those that took less than such a part of the whole are, too.
const WORTH_TELLING_PART: u64 = 33;

/// Milliseconds for people: `4.2 s`, `10 min`.
pub fn ms(millis: u64) -> String {
    let text = duration(Duration::from_millis(millis));
    match text.strip_suffix(" min 0 s") {
        Some(minutes) => format!("{minutes} min"),
        None => text,
    }
}

/// A latency for people: `0.9 ms`, `20 ms`, `1.3 s`.
pub fn latency(us: u64) -> String {
    let ms = us as f64 / 1_000.0;
    if us < 10_000 {
        format!("{ms:.1} ms")
    } else if us < 1_000_000 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1_000.0)
    }
}

/// A receipt in a few lines, for the end of a command: latency, time, and where the rest is.
pub fn short(operation: &Operation) -> Vec<String> {
    let Some(receipt) = &operation.receipt else {
        return Vec::new();
    };
    if operation.kind == OperationKind::Terminate {
        return Vec::new();
    }
    let mut lines = Vec::new();
    lines.extend(uncounted(receipt));
    lines.extend(away(receipt));
    if let Some(during) = percentiles(&receipt.during) {
        let before = percentiles(&receipt.before).map(|text| format!("{text} before; "));
        let before = before.unwrap_or_default();
        lines.push(format!("Latency: {before}{during} meanwhile."));
    }
    let mut time = vec![spent(&receipt.phases)];
    if !receipt.sent.is_empty() {
        time.push(format!(
            "{} sent to {}",
            bytes(receipt.sent_bytes()),
            plural(receipt.sent.len() as u64, "host")
        ));
    }
    time.retain(|text| !text.is_empty());
    if !time.is_empty() {
        lines.push(format!("Time: {}.", time.join("; ")));
    }
    let name = &operation.environment_name;
    let of = match operation.to {
        Some(to) if operation.from != Some(to) => to.to_string(),
        _ => operation.id.to_string(),
    };
    lines.push(format!("All of it: beanpole show {name} {of}"));
    lines
}

/// What the counts of requests cannot know.
fn uncounted(receipt: &Receipt) -> Option<String> {
    let times = match receipt.during.restarts {
        0 => return None,
        1 => "once".to_owned(),
        more => format!("{more} times"),
    };
    Some(format!(
        "A load balancer was started again {times} meanwhile: what clients were refused until it was back is \
         not counted."
    ))
}

/// What is in no time.
fn away(receipt: &Receipt) -> Option<String> {
    (receipt.away_ms > 0).then(|| {
        format!(
            "The controller was away or stood still for {} meanwhile, which is not in these times.",
            ms(receipt.away_ms)
        )
    })
}

fn percentiles(traffic: &ReceiptTraffic) -> Option<String> {
    let (p50, p99) = (traffic.p50_us?, traffic.p99_us?);
    Some(format!("p50 {}, p99 {}", latency(p50), latency(p99)))
}

/// `4.0 s preparing, 12.1 s draining`.
fn spent(phases: &[PhaseTime]) -> String {
    let all: u64 = phases.iter().map(|one| one.ms).sum();
    let least = WORTH_TELLING_MS.max(all / WORTH_TELLING_PART);
    let told = phases.iter().filter(|one| one.ms >= least);
    let texts: Vec<String> = told
        .map(|one| format!("{} {}", ms(one.ms), one.phase))
        .collect();
    texts.join(", ")
}

/// A receipt in full, in tables.
pub fn full(output: Output, receipt: &Receipt) -> String {
    let mut parts = vec![requests(receipt)];
    parts.extend(uncounted(receipt));
    parts.extend(away(receipt));
    if !receipt.releases.is_empty() {
        parts.push(releases(receipt));
    }
    if !receipt.batches.is_empty() {
        parts.push(batches(&receipt.batches));
    }
    if !receipt.instances.is_empty() {
        parts.push(instances(output, &receipt.instances));
    }
    parts.join("\n\n")
}

/// The figures of a receipt that are one each.
pub fn figures(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let sent: Vec<String> = receipt
        .sent
        .iter()
        .map(|to| format!("{} to {}", bytes(to.bytes), to.host))
        .collect();
    let sent = if sent.is_empty() {
        "nothing: hosts had it".to_owned()
    } else {
        sent.join(", ")
    };
    let took = match spent(&receipt.phases) {
        text if text.is_empty() => ms(receipt.took_ms),
        text => format!("{}: {text}", ms(receipt.took_ms)),
    };
    vec![("took", took), ("bundle sent", sent)]
}

fn requests(receipt: &Receipt) -> String {
    let row = |when: &str, of: &ReceiptTraffic| {
        vec![
            when.to_owned(),
            ms(of.for_ms),
            of.requests.map(count).unwrap_or_default(),
            of.failed.map(count).unwrap_or_default(),
            of.p50_us.map(latency).unwrap_or_default(),
            of.p99_us.map(latency).unwrap_or_default(),
        ]
    };
    let mut rows = vec![
        row("before", &receipt.before),
        row("during", &receipt.during),
    ];
    if let Some(after) = &receipt.after {
        rows.push(row("after", after));
    }
    let mut text = table::render(
        &["REQUESTS", "FOR", "ANSWERED", "FAILED", "P50", "P99"],
        rows,
    );
    if !receipt.complete {
        text.push_str("\nWhat comes after is counted for a minute; ask again then.");
    }
    text
}

fn releases(receipt: &Receipt) -> String {
    let rows = receipt.releases.iter().map(|of| {
        vec![
            of.release.to_string(),
            count(of.requests),
            count(of.errors),
            of.p50_us.map(latency).unwrap_or_default(),
            of.p99_us.map(latency).unwrap_or_default(),
        ]
    });
    table::render(
        &["RELEASE", "GIVEN MEANWHILE", "ERRORS", "P50", "P99"],
        rows.collect(),
    )
}

fn batches(batches: &[BatchReceipt]) -> String {
    let phases: BTreeSet<Phase> = batches
        .iter()
        .flat_map(|batch| &batch.phases)
        .map(|of| of.phase)
        .collect();
    let mut headings = vec!["BATCH".to_owned(), "INSTANCES".into(), "TOOK".into()];
    headings.extend(phases.iter().map(|phase| phase.to_string().to_uppercase()));
    let rows = batches.iter().map(|batch| {
        let way = if batch.back { ", back" } else { "" };
        let mut row = vec![
            format!("{}{way}", batch.number),
            batch.instances.to_string(),
            ms(batch.took_ms),
        ];
        row.extend(phases.iter().map(|phase| {
            let of = batch.phases.iter().find(|of| of.phase == *phase);
            of.map(|of| ms(of.ms)).unwrap_or_default()
        }));
        row
    });
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    table::render(&headings, rows.collect())
}

fn instances(output: Output, instances: &[InstanceReceipt]) -> String {
    let time = |millis: Option<u64>| millis.map(ms).unwrap_or_default();
    let some = |number: u64| {
        if number == 0 {
            String::new()
        } else {
            count(number)
        }
    };
    let rows: Vec<Vec<String>> = instances
        .iter()
        .map(|one| {
            let result = one.result.replace('-', " ");
            vec![
                one.instance.to_string(),
                one.host.to_string(),
                one.batch.to_string(),
                output.status(result),
                one.release
                    .map(|number| number.to_string())
                    .unwrap_or_default(),
                time(one.out_of_service_ms),
                time(one.drained_ms),
                time(one.started_ms),
                time(one.checked_ms),
                time(one.stopped_ms),
                some(u64::from(one.cut)),
                some(u64::from(one.restarts)),
                count(one.requests),
            ]
        })
        .collect();
    let headings = [
        "INSTANCE",
        "HOST",
        "BATCH",
        "RESULT",
        "RELEASE",
        "OUT OF SERVICE",
        "DRAINED",
        "STARTED",
        "CHECKED",
        "STOPPED",
        "CUT",
        "RESTARTS",
        "REQUESTS",
    ];
    // A column that says nothing of any instance is left out.
    let told: Vec<usize> = (0..headings.len())
        .filter(|column| rows.iter().any(|row| !row[*column].is_empty()))
        .collect();
    let headings: Vec<&str> = told.iter().map(|column| headings[*column]).collect();
    let rows = rows
        .into_iter()
        .map(|row| told.iter().map(|column| row[*column].clone()).collect())
        .collect();
    table::render(&headings, rows)
}

/// What a plan comes to: its steps with their capacity, and how long it takes. Nothing where the plan
/// was not asked for beforehand.
pub fn plan(name: &str, plan: &PlanView) -> Vec<String> {
    let Some(time) = plan.time.as_ref().filter(|_| !plan.steps.is_empty()) else {
        return Vec::new();
    };
    let rows = plan.steps.iter().map(|step| {
        vec![
            match (step.batch, step.share) {
                (Some(number), _) => format!("batch {number}"),
                (None, Some(_)) => "share".to_owned(),
                (None, None) => match step.changes.first().map(|change| change.change.as_str()) {
                    Some("run") => "command".to_owned(),
                    None => "check".to_owned(),
                    _ => "prepare".to_owned(),
                },
            },
            match step.share {
                Some(percent) => format!("{percent} % to the new instances"),
                None if step.changes.is_empty() => "tried on what is in service".to_owned(),
                None => what(&step.changes),
            },
            in_service(step),
            running(step),
            step.expected_ms.map(about).unwrap_or_default(),
            ms(step.at_most_ms),
        ]
    });
    let table = table::render(
        &[
            "STEP",
            "WHAT",
            "IN SERVICE",
            "RUNNING",
            "EXPECTED",
            "AT MOST",
        ],
        rows.collect(),
    );
    let mut lines = vec![String::new()];
    lines.extend(table.lines().map(|line| format!("  {line}")));
    let bound = ms(time.at_most_ms);
    lines.push(String::new());
    lines.push(match (time.expected_ms, time.measured) {
        (Some(expected), measured) => format!(
            "  Expected: {}, as the last {} of {name} took; at most {bound} by its settings.",
            about(expected),
            plural(u64::from(measured), "operation")
        ),
        (None, 0) => format!(
            "  At most {bound} by its settings; nothing was deployed to {name} yet that it could be measured by."
        ),
        (None, _) => format!(
            "  At most {bound} by its settings; some of it was never done on {name}, and cannot be measured by what was."
        ),
    });
    lines
}

fn about(millis: u64) -> String {
    match millis {
        0 => "at once".to_owned(),
        1..1_000 => "under 1 s".to_owned(),
        _ => format!(
            "about {}",
            ms(millis.div_ceil(1_000) * 1_000).replace(".0 s", " s")
        ),
    }
}

/// `replace 1 on h1, 2 on h2`.
fn what(changes: &[PlannedChange]) -> String {
    let mut words: Vec<(&str, Vec<String>)> = Vec::new();
    for change in changes {
        let place = match change.instances {
            0 => change.host.clone(),
            number => format!("{number} on {}", change.host),
        };
        match words.iter_mut().find(|(word, _)| *word == change.change) {
            Some((_, places)) => places.push(place),
            None => words.push((&change.change, vec![place])),
        }
    }
    let texts: Vec<String> = words
        .into_iter()
        .map(|(word, places)| match word {
            "prepare" => format!("on {}", places.join(", ")),
            "run" => format!("once on {}", places.join(", ")),
            _ => format!("{word} {}", places.join(", ")),
        })
        .collect();
    texts.join("; ")
}

fn in_service(step: &PlanStep) -> String {
    path(&[step.serving_before, step.serving_lowest, step.serving_after])
}

fn running(step: &PlanStep) -> String {
    path(&[step.running_most, step.running_after])
}

/// `3 → 2 → 3`; what stays is said once.
fn path(numbers: &[u32]) -> String {
    let mut path = numbers.to_vec();
    path.dedup();
    let texts: Vec<String> = path.iter().map(ToString::to_string).collect();
    texts.join(" → ")
}

/// One line for each setting that changes, with what was and what it takes.
pub fn settings(settings: &[PlannedSetting]) -> Vec<String> {
    settings.iter().map(setting).collect()
}

fn setting(one: &PlannedSetting) -> String {
    let option = &one.option;
    let effect = match one.needs.as_str() {
        "restart" => "needs a restart",
        "replacement" => "replaces instances",
        "check" => "is tried first, interrupts nothing",
        _ => "interrupts nothing",
    };
    if one.namespace == PROPERTIES {
        let verb = match one.how.as_str() {
            "removed" => "removes",
            "changed" => "changes",
            _ => "sets",
        };
        return format!("  {verb} environment property {option}; {effect}");
    }
    let namespace = &one.namespace;
    let was = match &one.from {
        Some(from) => format!("was {from}"),
        None => "was not set".to_owned(),
    };
    match (&one.to, one.how.as_str()) {
        (Some(to), "removed") => {
            format!("  sets {option} back to {to} ({namespace}), {was}; {effect}")
        }
        (None, _) => format!("  removes {option} ({namespace}), {was}; {effect}"),
        (Some(to), _) => format!("  sets {option} to {to} ({namespace}), {was}; {effect}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_written_for_people() {
        assert_eq!(latency(900), "0.9 ms");
        assert_eq!(latency(1_234), "1.2 ms");
        assert_eq!(latency(20_400), "20 ms");
        assert_eq!(latency(1_340_000), "1.3 s");
    }

    #[test]
    fn what_stays_is_said_once() {
        assert_eq!(path(&[3, 2, 3]), "3 → 2 → 3");
        assert_eq!(path(&[3, 3, 3]), "3");
        assert_eq!(path(&[3, 3, 4]), "3 → 4");
    }

    #[test]
    fn times_that_nobody_waits_for_are_left_out() {
        let of = |phase, ms| PhaseTime { phase, ms };
        let phases = [of(Phase::Preparing, 4_020), of(Phase::Switching, 12)];
        assert_eq!(spent(&phases), "4.0 s preparing");
        assert_eq!(about(4_020), "about 5 s");
        assert_eq!(about(60_000), "about 1 min");
        assert_eq!(ms(600_000), "10 min");
    }
}
