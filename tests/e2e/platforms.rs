//! Every platform on a real host, with its real runtime, which the agent installs.

use crate::changes::assert_live;
use crate::over_ssh::{add, hosts, until_host_is};
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use std::path::{Path, PathBuf};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// Deploys an example to an environment of its own and gives what it answers at `/`.
#[track_caller]
pub fn deployed(bed: &Bed, name: &str, options: &[&str]) -> String {
    let source = example(name);
    let environment = format!("{name}-prod");
    let create = [&["create", &environment, "--application", name], options].concat();
    bed.run_in(&source, &create).ok();
    bed.run_in(&source, &["deploy", &environment, "--label", "one"])
        .ok();
    assert_live(bed, &environment, "one", 1);
    bed.get(&environment, "/").text()
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} in: {text}");
    }
}

/// A Beanpole whose only instances are on one fresh host.
pub fn bed_on_h1() -> Bed {
    let bed = Bed::up();
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    bed
}

#[test]
fn runtimes_are_installed_at_their_first_use_and_run_applications() {
    let Some(_hosts) = hosts("platforms", &["h1"]) else {
        return;
    };
    let bed = bed_on_h1();
    let node = deployed(&bed, "node-hello", &[]);
    says(&node, &["Hello from Node.js", "version one"]);
    let go = deployed(&bed, "go-hello", &[]);
    says(&go, &["Hello from Go", "version one"]);
    let java = deployed(&bed, "java-hello", &["--option", "Xmx=96m"]);
    says(&java, &["Hello from Java", "version one", "9", " MiB"]);
    let tomcat = deployed(
        &bed,
        "tomcat-hello",
        &["--env", "GREETING=good day = ü", "--option", "Xms=64m"],
    );
    says(&tomcat, &["Tomcat", "good day = ü", "version one"]);
    let hidden = bed.get("tomcat-hello-prod", "/WEB-INF/web.xml");
    assert_eq!(hidden.status, 404);
    let php = deployed(&bed, "php-hello", &["--option", "memory_limit=99M"]);
    says(&php, &["Hello from PHP", "memory 99M", "version one"]);
    let php = |path| bed.get("php-hello-prod", path);
    says(&php("/cart/7").text(), &["at /cart/7"]);
    says(&php("/style.css").text(), &["sans-serif"]);
    assert_eq!(php("/nothing.php").status, 404);
    let fpm = Hosts::on("h1", "systemctl is-enabled php8.2-fpm.service || true");
    assert_eq!(fpm.trim(), "disabled", "nobody asked for the service");
    // Gems of the distribution need no registry.
    Hosts::on(
        "h1",
        "DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends puma ruby-rack",
    );
    let ruby = deployed(&bed, "ruby-hello", &[]);
    says(&ruby, &["Hello from Ruby", "production", "version one"]);
    let site = deployed(&bed, "static-site", &[]);
    says(&site, &["Hello from a directory"]);
    let missing = bed.get("static-site-prod", "/nothing");
    assert_eq!(missing.status, 404);
    says(&missing.text(), &["This page is not here"]);
    // Load balancers serve the directory as well, by themselves.
    let host = Hosts::on("h1", "pkill -STOP -f '[b]eanpole web'; echo stopped");
    assert_eq!(host.trim(), "stopped");
    says(
        &bed.get("static-site-prod", "/index.html").text(),
        &["Hello from a directory"],
    );
    Hosts::on("h1", "pkill -CONT -f '[b]eanpole web'");
    let flask = deployed(&bed, "flask-hello", &[]);
    says(&flask, &["Hello from Flask", "version one"]);
    let fastapi = deployed(&bed, "fastapi-hello", &[]);
    says(&fastapi, &["Hello from FastAPI", "version one"]);
    let users = "ps -eo user:32,args | grep -E 'php-fpm|Bootstrap|puma|application.jar|bin/application' | grep -v grep";
    let users = Hosts::on("h1", users);
    assert!(users.lines().count() >= 5, "{users}");
    assert!(users.lines().all(|line| line.starts_with("bp-")), "{users}");
    assert!(!users.contains("good day"), "properties are in no argument");
}

#[test]
fn a_host_that_is_not_to_be_changed_is_told_what_it_lacks() {
    let Some(_hosts) = hosts("no_install", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    add(&bed, "root", "h1", &["--no-install"]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    let source = example("go-hello");
    bed.run_in(&source, &["create", "go-prod"]).ok();
    bed.run_in(&source, &["deploy", "go-prod", "--label", "one"])
        .exits(1)
        .says("The host has no `go`")
        .says("apt-get install -y golang-go");
}

/// The runtime of .NET from where Debian has one, and a compiler for it; prints the compiled application.
const DOTNET: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
apt-get -q install -y --no-install-recommends mono-mcs >/dev/null
python3 -m venv /opt/wheel
/opt/wheel/bin/pip -q install dotnetcore2
bin=$(echo /opt/wheel/lib/python3*/site-packages/dotnetcore2/bin)
ln -s "$bin" /opt/dotnet
cd /tmp
all=""
for name in System.Private.CoreLib System.Runtime System.Console System.Net.Sockets System.Net.Primitives \
  System.Runtime.Extensions netstandard; do
  all="$all -r:$(echo "$bin"/shared/Microsoft.NETCore.App/3.1.*/$name.dll)"
done
mcs -noconfig -nostdlib $all -out:Hello.dll Hello.cs
od -An -v -tx1 Hello.dll | tr -d ' \n'"#;

#[test]
fn what_was_published_for_dotnet_runs_on_it() {
    let Some(_hosts) = hosts("dotnet", &["h1"]) else {
        return;
    };
    let bed = bed_on_h1();
    let source = example("dotnet-hello");
    let read = |name: &str| std::fs::read_to_string(source.join(name)).expect("read");
    let code = read("Hello.cs").replace('\'', "'\\''");
    Hosts::on("h1", &format!("printf %s '{code}' >/tmp/Hello.cs"));
    let compiled = Hosts::on("h1", DOTNET);
    // The compiler has its say before.
    let compiled = compiled.lines().last().unwrap_or_default();
    let compiled = hex::decode(compiled.trim()).expect("hexadecimal");
    let published = tempfile::tempdir().expect("temporary directory");
    std::fs::write(published.path().join("Hello.dll"), compiled).expect("write");
    let config = "Hello.runtimeconfig.json";
    std::fs::write(published.path().join(config), read(config)).expect("write");
    let create = [
        "create",
        "dotnet-prod",
        "--env",
        "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1",
    ];
    bed.run_in(published.path(), &create).ok();
    bed.run_in(
        published.path(),
        &["deploy", "dotnet-prod", "--label", "one"],
    )
    .ok();
    assert_live(&bed, "dotnet-prod", "one", 1);
    let text = bed.get("dotnet-prod", "/").text();
    says(&text, &["Hello from .NET", "version one"]);
}
