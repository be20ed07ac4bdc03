//! Answers of an OCSP responder, from its own mouth to a client of the load balancer. All three are OpenSSL's.

use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until_true};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

const HOST: &str = "shop.example.test";

fn openssl(home: &Path, arguments: &str) -> String {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(home)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {said}{trouble}");
    said
}

/// An authority's responder, and where it says what it does.
struct Responder {
    child: Child,
    _said: Lines<BufReader<ChildStdout>>,
}

impl Responder {
    /// One that knows of the certificate with the number 2 that it is valid; and its port.
    fn start(home: &Path) -> (Self, u16) {
        let line = "V\t491231235959Z\t\t02\tunknown\t/CN=shop\n";
        fs::write(home.join("index.txt"), line).expect("written");
        let mut child = Command::new("openssl")
            .args("ocsp -port 0 -nmin 60 -index index.txt -CA root.pem".split(' '))
            .args("-rsigner root.pem -rkey root.key".split(' '))
            .current_dir(home)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let port = said.find_map(|line| {
            let line = line.expect("text");
            let address = line.strip_prefix("ACCEPT ")?.split(' ').next()?.to_owned();
            address.rsplit(':').next()?.parse().ok()
        });
        (
            Self { child, _said: said },
            port.expect("it says where it listens"),
        )
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_that_asks_is_shown_what_the_responder_said_though_it_and_the_controller_are_away() {
    let bed = Bed::up();
    let home = bed.home();
    openssl(
        home,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem -subj /CN=Root -days 9",
    );
    let (responder, port) = Responder::start(home);
    let extensions = format!(
        "subjectAltName=DNS:{HOST}\nauthorityInfoAccess=OCSP;URI:http://127.0.0.1:{port}/\n"
    );
    fs::write(home.join("extensions"), extensions).expect("written");
    openssl(
        home,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout shop.key -out shop.csr -subj /CN=shop",
    );
    openssl(
        home,
        "x509 -req -in shop.csr -CA root.pem -CAkey root.key -set_serial 2 -days 9 -extfile extensions -out shop.crt",
    );
    let chain =
        ["shop.crt", "root.pem"].map(|file| fs::read_to_string(home.join(file)).expect("there"));
    fs::write(home.join("shop.pem"), chain.concat()).expect("written");
    bed.run(&[
        "cert", "add", "shop", "--cert", "shop.pem", "--key", "shop.key", "--ocsp",
    ])
    .ok();
    let shown = |version: &str| {
        let port = bed.https.port();
        openssl(
            home,
            &format!(
                "s_client -connect 127.0.0.1:{port} -servername {HOST} -status -CAfile root.pem {version}"
            ),
        )
    };
    until_true("the answer is shown", seconds(20), || {
        shown("-tls1_3").contains("Cert Status: good")
    });
    assert!(shown("-tls1_2").contains("Cert Status: good"));
    drop(responder);
    bed.kill_and_await_successor("proxy");
    bed.kill_and_await_successor("controller");
    assert!(shown("-tls1_3").contains("Cert Status: good"));
    bed.run(&["cert", "set", "shop", "--no-ocsp"]).ok();
    until_true("it is not shown any more", seconds(10), || {
        shown("-tls1_3").contains("OCSP response: no response sent")
    });
}
