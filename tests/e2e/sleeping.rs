//! Environments that have no instances while nobody asks for them.

use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until, until_true};

#[test]
fn an_environment_that_nobody_asks_for_sleeps_and_its_next_request_is_answered() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2);
    let options = [
        "--set",
        "beanpole:proxy:IdleTime=1",
        "--set",
        "aws:autoscaling:asg:MinSize=0",
    ];
    let command: Vec<&str> = ["config", "shop-prod"].into_iter().chain(options).collect();
    bed.run(&command).ok();
    let sleeps = || {
        let status = bed.status("shop-prod");
        let ready = status["status"] == "Ready";
        (ready && status["instances"].as_array().is_some_and(Vec::is_empty)).then_some(status)
    };
    let status = until("it sleeps", seconds(20), sleeps);
    assert_eq!(status["health"], "Grey", "{status}");
    assert!(
        status["causes"][0]
            .as_str()
            .is_some_and(|why| why.contains("sleeps")),
        "{status}"
    );
    bed.run(&["restart", "shop-prod"])
        .exits(1)
        .says("next request");

    // Those that come at once all wait for the same instance.
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        let ask = || bed.get("shop-prod", "/");
        let asked: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        for one in asked {
            let answer = one.join().expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    assert!(begun.elapsed() < seconds(15), "{:?}", begun.elapsed());
    println!("woken after {:?}", begun.elapsed());

    until("it sleeps again", seconds(20), sleeps);
    bed.deploy(&app, "shop-prod", "v2").ok();
    until_true("it answers", seconds(20), || {
        bed.get("shop-prod", "/").status == 200
    });
    bed.run(&["scale", "shop-prod", "1"]).ok();
    assert_eq!(bed.status("shop-prod")["size"], 1);
}
