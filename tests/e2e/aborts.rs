//! The abort matrix: at every recorded step of a deployment somebody aborts, exactly there. It ends
//! within seconds, on the release before, and nobody's request is lost.
//!
//! The controller stops at a fail point after each step that it recorded; the abort is asked for while it
//! stands there.

use crate::changes::{assert_live, assert_none_failed, create_hasty};
use beanpole_tests::bed::Bed;
use beanpole_tests::fail_points::{FailPoints, Step};
use beanpole_tests::wait::{seconds, until};
use std::time::{Duration, Instant};

const ENVIRONMENT: &str = "shop-prod";
const INSTANCES: usize = 2;
/// What is promised, for requests that take no time to finish.
const BOUND: Duration = Duration::from_secs(5);

struct Aborts {
    bed: Bed,
    points: FailPoints,
    live: &'static str,
    /// Where each abort was asked for, and how long it took from then on.
    took: Vec<(String, Duration)>,
}

impl Aborts {
    fn new() -> Self {
        let (bed, points) = Bed::up_with_fail_points();
        let app = bed.app("shop");
        create_hasty(&bed, &app, ENVIRONMENT);
        bed.deploy(&app, ENVIRONMENT, "v1").ok();
        bed.deploy(&app.version("v2"), ENVIRONMENT, "v2").ok();
        Self {
            bed,
            points,
            live: "v2",
            took: Vec::new(),
        }
    }

    fn other(&self) -> &'static str {
        if self.live == "v1" { "v2" } else { "v1" }
    }

    fn deploy(&self, policy: &str) {
        let mut line = vec!["deploy", ENVIRONMENT, "--version", self.other(), "--detach"];
        line.extend(policy.split(' '));
        let app = self.bed.home().join("apps/shop");
        self.bed.run_in(&app, &line).ok();
    }

    /// The version that runs once nothing is under way.
    #[track_caller]
    fn settled(&self) -> String {
        until("it ends", seconds(60), || {
            let status = self.bed.status(ENVIRONMENT);
            let version = status["version"].as_str().unwrap_or_default().to_owned();
            (status["status"] == "Ready").then_some(version)
        })
    }

    /// Aborts when the entry of that number is on disk. The step, while there is one with that number.
    fn abort(&mut self, policy: &str, entry: u64) -> Option<Step> {
        self.points.reset();
        self.points.stop_at(entry);
        self.deploy(policy);
        let is_over = || self.bed.status(ENVIRONMENT)["status"] == "Ready";
        let step = self.points.stopped(is_over);
        let asked = Instant::now();
        let is_asked = step.is_some() && {
            let path = format!("/v1/environments/{ENVIRONMENT}/abort");
            let answer = self.bed.call("POST", &path, None);
            // The last step is the end: there is nothing to abort any more.
            assert!(matches!(answer.status, 202 | 200 | 409), "{answer:?}");
            answer.status != 409
        };
        self.points.go_on();
        let version = self.settled();
        if is_asked {
            let step = step.as_ref().map_or_else(String::new, Step::name);
            assert_eq!(version, self.live, "aborted at {step}");
            self.took.push((step, asked.elapsed()));
        } else {
            assert_eq!(version, self.other(), "nobody aborted");
            self.live = self.other();
        }
        assert_live(&self.bed, ENVIRONMENT, self.live, INSTANCES);
        step
    }

    /// Aborts at every step of a deployment by that policy.
    fn at_every_step(mut self, policy: &str) {
        let load = self.bed.load(ENVIRONMENT);
        let mut entry = 1;
        while let Some(step) = self.abort(policy, entry) {
            entry = step.last + 1;
        }
        let worst = self.took.iter().max_by_key(|(_, took)| *took);
        let (step, took) = worst.expect("something was aborted");
        say(&format!(
            "{policy}: {} aborts, the slowest took {:.1} s, at {step}",
            self.took.len(),
            took.as_secs_f64()
        ));
        assert!(*took < BOUND, "{:#?}", self.took);
        assert_none_failed(&load.stop());
    }
}

#[expect(clippy::print_stdout, reason = "the figures that a run is for")]
fn say(text: &str) {
    println!("{text}");
}

#[test]
fn an_abort_at_any_step_of_a_rolling_deployment_ends_within_seconds() {
    Aborts::new().at_every_step("--policy Rolling --batch 1");
}

#[test]
fn an_abort_at_any_step_with_an_additional_batch_ends_within_seconds() {
    Aborts::new().at_every_step("--policy RollingWithAdditionalBatch --batch 1");
}

#[test]
fn an_abort_at_any_step_of_an_immutable_deployment_ends_within_seconds() {
    Aborts::new().at_every_step("--policy Immutable");
}

#[test]
fn an_abort_at_any_step_of_a_split_ends_within_seconds() {
    Aborts::new().at_every_step("--split 50%:1s");
}
