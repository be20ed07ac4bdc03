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

/// What the load balancer serves of releases, in a settings file.
const SERVED: &str = "application = \"shop\"\n\
                      [options.\"aws:elasticbeanstalk:environment:proxy:staticfiles\"]\n\
                      \"/assets\" = \"static\"\n";

#[test]
fn static_files_of_two_releases_are_served_while_one_takes_the_place_of_the_other() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2);
    let option = "aws:elasticbeanstalk:environment:proxy:staticfiles:/assets=static";
    bed.run(&["config", "shop-prod", "--set", option])
        .exits(1)
        .says("The bundle has no directory `static`, which is to be served at `/assets`.");
    let asked = |path: &str, headers: &[(&str, &str)]| {
        let mut open = Connection::open(bed.http, seconds(30)).expect("connect");
        let asked = open.send("GET", "shop-prod.localhost", path, headers, b"");
        asked.expect("the proxy answers")
    };
    let app = app
        .file("deploy.toml", SERVED.as_bytes())
        .file("static/one.js", b"the first one")
        .file("static/one.js.br", b"compressed")
        .file("static/both.css", b"both")
        .version("v2");
    bed.deploy(&app, "shop-prod", "v2").ok();
    let one = asked("/assets/one.js", &[]);
    assert_eq!(one.text(), "the first one");
    let tag = one.header("etag").expect("a tag").to_owned();
    let same = asked("/assets/one.js", &[("If-None-Match", &tag)]);
    assert_eq!(same.status, 304);
    let part = asked("/assets/one.js", &[("Range", "bytes=4-8")]);
    assert_eq!((part.status, &*part.text()), (206, "first"));
    let small = asked("/assets/one.js", &[("Accept-Encoding", "br")]);
    assert_eq!(small.text(), "compressed");
    assert!(asked("/assets/none.js", &[]).text().starts_with("v2"));

    for name in ["one.js", "one.js.br"] {
        std::fs::remove_file(app.dir.join("static").join(name)).expect("it is there");
    }
    let app = app.file("static/two.js", b"the second one").version("v3");
    let detached = "--policy Rolling --batch 1 --detach";
    bed.deploy_with(&app, "shop-prod", "v3", detached).ok();
    until_true("the new release is in service", seconds(60), || {
        asked("/assets/two.js", &[]).text() == "the second one"
    });
    assert_eq!(asked("/assets/one.js", &[]).text(), "the first one");
    until_true("the old one is gone", seconds(60), || {
        asked("/assets/one.js", &[]).text().starts_with("v3")
    });
    assert_eq!(asked("/assets/both.css", &[]).text(), "both");
}
