//! Pages in place of answers, from the command line to a client.

use beanpole_tests::bed::Bed;
use beanpole_tests::http::{Answer, Connection};
use beanpole_tests::wait::{seconds, until_true};

/// What a browser gets.
fn seen(bed: &Bed) -> Answer {
    let mut open = Connection::open(bed.http, seconds(30)).expect("connect");
    let headers = [("Accept", "text/html")];
    let asked = open.send("GET", "shop-prod.localhost", "/", &headers, b"");
    asked.expect("the proxy answers")
}

#[test]
fn an_environment_is_closed_deployed_to_and_opened_again() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1);
    let page = bed.home().join("sorry.html");
    std::fs::write(&page, "<p>Sorry, {{status}}.").expect("write");
    let page = page.display().to_string();
    bed.run(&["page", "set", "shop-prod", "5xx", &page])
        .ok()
        .says("shop-prod has its own page for 5xx.");
    assert!(seen(&bed).text().starts_with("v1"));

    bed.run(&["maintenance", "on", "shop-prod", "--allow", "192.0.2.1"])
        .ok()
        .says("shop-prod is closed: clients get a 503.");
    let answer = seen(&bed);
    assert_eq!((answer.status, &*answer.text()), (503, "<p>Sorry, 503."));
    assert_eq!(answer.header("retry-after"), Some("300"));
    bed.run(&["status", "shop-prod"])
        .ok()
        .says("not for 192.0.2.1/32")
        .says("It is closed for maintenance");
    bed.deploy(&app.version("v2"), "shop-prod", "v2").ok();
    assert_eq!(seen(&bed).status, 503, "it is still closed");

    bed.run(&["maintenance", "off", "shop-prod"]).ok();
    bed.run(&["page", "remove", "shop-prod", "5xx"]).ok();
    let is_open = || seen(&bed).text().starts_with("v2");
    until_true("it is open", seconds(10), is_open);
}
