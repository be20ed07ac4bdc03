//! A load balancer without its controller.

use beanpole_tests::bed::{Bed, signal};
use beanpole_tests::http::Connection;
use beanpole_tests::wait::{seconds, until_true};
use rustix::process::Signal;
use std::fs;

/// Each step of the clock, in minutes.
const STEP: u32 = 10;

#[test]
fn a_day_without_a_controller_is_a_day_like_any_other() {
    let (bed, second, clock) = Bed::up_with_second_proxy_of_another_time();
    let _app = bed.serving("shop-prod", 2);
    let host = Bed::host("shop-prod");
    let status = || {
        let mut connection = Connection::open(second, seconds(10)).ok()?;
        let answer = connection.send("GET", &host, "/", &[], b"").ok()?;
        Some((answer.status, answer.text()))
    };
    until_true("the second load balancer serves", seconds(20), || {
        status().is_some_and(|(status, _)| status == 200)
    });
    signal(bed.daemon("controller"), Signal::STOP);
    let answerers = || {
        let answers = (0..8).map(|_| status().expect("an answer"));
        let mut names: Vec<String> = answers
            .map(|(status, text)| {
                assert_eq!(status, 200, "{text}");
                text.split(' ').nth(1).expect("an instance").to_owned()
            })
            .collect();
        names.sort();
        names.dedup();
        names.len()
    };
    for step in 1..=24 * 60 / STEP {
        fs::write(&clock, format!("+{}\n", step * STEP * 60)).expect("the clock can be set");
        assert!(answerers() >= 1);
        if step == 70 {
            // What ends is not asked, and what comes back is asked again.
            let instance = bed.processes_of_apps().pop().expect("an application");
            signal(instance, Signal::KILL);
            until_true("one is left", seconds(20), || answerers() == 1);
            until_true("both are there again", seconds(40), || answerers() == 2);
        }
    }
    assert_eq!(answerers(), 2);
    signal(bed.daemon("controller"), Signal::CONT);
    bed.run(&["setenv", "shop-prod", "A=1"]).ok();
    let _ = fs::remove_file(clock);
}
