//! Sessions that stay at an instance.

use beanpole_tests::bed::Bed;
use beanpole_tests::http::{Answer, Connection};
use beanpole_tests::wait::{seconds, until};

/// Asks over a connection of its own; none while nothing listens, or while another error comes back.
fn asked(bed: &Bed, headers: &[(&str, &str)]) -> Option<Answer> {
    let mut connection = Connection::open(bed.http, seconds(10)).ok()?;
    let host = Bed::host("shop-prod");
    let answer = connection.send("GET", &host, "/", headers, b"").ok()?;
    (answer.status == 200).then_some(answer)
}

/// Which instance has answered.
fn instance(answer: &Answer) -> String {
    let text = answer.text();
    text.split(' ').nth(1).expect("an instance").to_owned()
}

#[test]
fn a_client_stays_at_its_instance_once_that_is_set_and_over_the_death_of_the_proxy() {
    let bed = Bed::up();
    let _app = bed.serving("shop-prod", 2);
    let wanted = "aws:elasticbeanstalk:environment:process:default:StickinessEnabled=true";
    bed.run(&["config", "shop-prod", "--set", wanted]).ok();
    let (pair, home) = until("a cookie is given", seconds(20), || {
        let first = asked(&bed, &[])?;
        let pair = first.header("set-cookie")?.split(';').next()?.to_owned();
        Some((pair, instance(&first)))
    });
    assert!(pair.starts_with("beanpole_session="), "{pair}");
    let stays = || {
        for _ in 0..6 {
            let again = asked(&bed, &[("Cookie", &pair)]).expect("an answer");
            assert_eq!(instance(&again), home);
            assert_eq!(again.header("set-cookie"), None);
        }
    };
    stays();
    bed.kill_and_await_successor("proxy");
    until("it answers again", seconds(20), || asked(&bed, &[]));
    stays();
}
