//! Certificates that clients trust: of the controller's own authority, and of another by ACME.

use beanpole_tests::bed::Bed;
use beanpole_tests::ports::{self, Reserved};
use beanpole_tests::wait::{seconds, until, until_true};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What curl makes of `https://HOST/` at the load balancer, trusting `ca` alone: the status, or why none.
fn https(bed: &Bed, ca: &Path, host: &str) -> Result<String, String> {
    let port = bed.https.port();
    let output = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .arg("--cacert")
        .arg(ca)
        .arg(format!("https://{host}:{port}/"))
        .output()
        .expect("curl can be run");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn authority(bed: &Bed) -> PathBuf {
    let ca = bed.home().join("ca.pem");
    fs::write(&ca, bed.run(&["ca", "show", "--quiet"]).ok().out).expect("written");
    ca
}

fn certificate(bed: &Bed, name: &str) -> Value {
    bed.run(&["cert", "show", name, "--json"]).ok().json()
}

#[test]
fn hostnames_get_certificates_that_outlive_every_daemon_and_change_without_a_restart() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    bed.run(&["ca", "init", "--auto"])
        .ok()
        .says("update-ca-certificates");
    let ca = authority(&bed);
    let host = Bed::host("shop-prod");
    until_true("the hostname has a certificate", seconds(20), || {
        https(&bed, &ca, &host).is_ok_and(|status| status == "200")
    });
    let name = format!("ca-{host}");
    let own = certificate(&bed, &name);
    assert_eq!(own["used_by"], json!(["shop-prod"]), "{own}");
    assert_eq!(own["in_force"], true, "{own}");
    https(&bed, &ca, "other.example").expect_err("nobody has that name");

    // One that is given comes before it.
    bed.run(&["ca", "issue", &host, "--days", "365"]).ok();
    let (cert, key) = (format!("{host}.crt"), format!("{host}.key"));
    bed.run(&["cert", "add", "shop", "--cert", &cert, "--key", &key])
        .ok();
    until_true("it is used", seconds(10), || {
        certificate(&bed, "shop")["used_by"] == json!(["shop-prod"])
    });
    until_true("the other one is not needed any more", seconds(20), || {
        bed.run(&["cert", "show", &name]).code == 1
    });
    for daemon in ["proxy", "controller"] {
        bed.kill_and_await_successor(daemon);
        assert_eq!(
            https(&bed, &ca, &host).as_deref(),
            Ok("200"),
            "after {daemon}"
        );
    }
    let kept = fs::metadata(bed.data().join("proxy/certificates.json")).expect("kept");
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    until_true("it is known to be in force", seconds(10), || {
        certificate(&bed, "shop")["in_force"] == true
    });
    bed.run(&["cert", "remove", "shop", "--yes"]).ok();
    until_true("the first is back", seconds(20), || {
        bed.run(&["cert", "show", &name]).code == 0
    });
    until_true("and shown", seconds(10), || {
        https(&bed, &ca, &host).is_ok_and(|status| status == "200")
    });
}

/// A real authority that speaks ACME, and a DNS of its own, in which every name leads here.
struct Pebble {
    children: Vec<Child>,
    directory: String,
    dns: String,
    log: PathBuf,
    _ports: [Reserved; 3],
}

impl Pebble {
    /// Its own certificate is signed by the bed's authority.
    fn start(bed: &Bed) -> Self {
        let ports = [(); 3].map(|()| ports::reserve());
        let [api, dns, management] = ports.each_ref().map(|port| port.address);
        // A name server listens on UDP, too, where the reservation is.
        let dns_port = dns.port() + 10_000;
        let config = bed.home().join("pebble.json");
        let file = |name: &str| bed.home().join(name).display().to_string();
        let settings = json!({"pebble": {
            "listenAddress": api.to_string(), "managementListenAddress": "127.0.0.1:0",
            "certificate": file("127.0.0.1.crt"), "privateKey": file("127.0.0.1.key"),
            "httpPort": bed.http.port(), "tlsPort": bed.https.port(),
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        fs::write(&config, settings.to_string()).expect("written");
        let log = bed.home().join("pebble.log");
        let start = |command: &mut Command| {
            let log = fs::OpenOptions::new().create(true).append(true).open(&log);
            let log = log.expect("a log");
            let other = log.try_clone().expect("the log can be shared");
            let child = command
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(other)
                .spawn();
            child.expect("pebble and pebble-challtestsrv are installed")
        };
        let names = start(
            Command::new("pebble-challtestsrv")
                .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
                .args(["-dns01", &format!("127.0.0.1:{dns_port}")])
                .args(["-management", &management.to_string()])
                .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]),
        );
        let signs = start(
            Command::new("pebble")
                .args(["-strict", "-dnsserver", &format!("127.0.0.1:{dns_port}")])
                .arg("-config")
                .arg(&config)
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_WFE_NONCEREJECT", "40")
                .env("PEBBLE_AUTHZREUSE", "0"),
        );
        Self {
            children: vec![names, signs],
            directory: format!("https://{api}/dir"),
            dns: format!("http://{management}"),
            log,
            _ports: ports,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn orders(&self) -> usize {
        self.said().matches("Added order").count()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A hook that puts records into that DNS, slowly.
fn put_hook(bed: &Bed, dns: &str) {
    let hooks = bed.data().join("acme-hooks");
    fs::create_dir_all(&hooks).expect("made");
    let text = format!(
        "#!/bin/sh\nset -e\necho \"$@\" >> \"$0.seen\"\ncase $1 in\n\
         present) curl -sf -d \"{{\\\"host\\\":\\\"$2\\\",\\\"value\\\":\\\"$3\\\"}}\" {dns}/set-txt; sleep 1 ;;\n\
         cleanup) curl -sf -d \"{{\\\"host\\\":\\\"$2\\\"}}\" {dns}/clear-txt ;;\nesac\n"
    );
    let path = hooks.join("dns");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
}

#[test]
fn an_authority_signs_by_every_proof_whatever_becomes_of_the_controller() {
    let bed = Bed::up();
    bed.run(&["ca", "init", "--domain", "example.test"]).ok();
    authority(&bed);
    bed.run(&["ca", "issue", "127.0.0.1"]).ok();
    let pebble = Pebble::start(&bed);
    let register = [
        "acme",
        "register",
        "home",
        "--directory",
        &pebble.directory,
        "--root",
        "ca.pem",
        "--agree-terms",
    ];
    until_true("the DNS is there", seconds(20), || {
        let asked = Command::new("curl").args(["-s", &pebble.dns]).status();
        asked.is_ok_and(|status| status.success())
    });
    until_true("the authority is there", seconds(20), || {
        bed.run(&register).code == 0
    });
    bed.run(&register).ok().says("Account home");
    // Pebble's terms, as its directory says.
    let (_, unagreed) = register.split_last().expect("words");
    bed.run(unagreed)
        .exits(1)
        .says("Read them at data:text/plain,");
    let other = [&register[..], &["--email", "ops@example.com"]].concat();
    bed.run(&other).exits(1).says("There is an account `home`");

    let ask = |name: &str, host: &str, more: &[&str]| {
        let words = [&["cert", "request", name, host, "--acme", "home"], more].concat();
        bed.run(&words)
    };
    ask("web", "web.example.test", &[])
        .ok()
        .says("Certificate web is in place");
    ask("alpn", "alpn.example.test", &["--proof", "tls-alpn-01"]).ok();
    ask(
        "no",
        "no.example.test",
        &["--proof", "dns-01", "--dns-hook", "../x"],
    )
    .exits(1)
    .says("There is no executable file");
    let web = certificate(&bed, "web");
    assert_eq!(web["origin"], "acme");
    assert!(
        web["issuer"]
            .as_str()
            .is_some_and(|issuer| issuer.contains("Pebble")),
        "{web}"
    );
    assert!(web["renews_at"].is_string(), "{web}");

    // The controller is killed while the hook runs: the same order goes on.
    put_hook(&bed, &pebble.dns);
    let before = pebble.orders();
    ask(
        "all",
        "*.example.test",
        &["--proof", "dns-01", "--dns-hook", "dns", "--detach"],
    )
    .ok();
    let seen = bed.data().join("acme-hooks/dns.seen");
    let hook = || fs::read_to_string(&seen).unwrap_or_default();
    until_true("the hook runs", seconds(20), || hook().contains("present"));
    bed.kill_and_await_successor("controller");
    until("the order ends", seconds(30), || {
        (certificate(&bed, "all")["status"] == "Valid").then_some(())
    });
    assert_eq!(pebble.orders(), before + 1, "one order\n{}", pebble.said());
    until_true("the record is taken back", seconds(20), || {
        hook().contains("cleanup _acme-challenge.example.test.")
    });

    // What the authority cannot find is told with what to do, and not ordered again at once.
    let nowhere = Command::new("curl")
        .args(["-sf", "-d", "{\"ip\":\"127.0.0.3\"}"])
        .arg(format!("{}/set-default-ipv4", pebble.dns))
        .status();
    assert!(nowhere.is_ok_and(|status| status.success()));
    ask("lost", "lost.example.test", &[])
        .exits(1)
        .says("Proof of lost.example.test by http-01 failed")
        .says("It is tried again in");
    let before = pebble.orders();
    bed.kill_and_await_successor("controller");
    assert_eq!(certificate(&bed, "lost")["status"], "Pending");
    assert_eq!(pebble.orders(), before);
    assert_eq!(certificate(&bed, "web")["status"], "Valid");
}
