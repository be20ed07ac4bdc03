//! Builds on a real host: their limits, their end, and an agent that dies in the middle of one.

use crate::changes::assert_live;
use crate::over_ssh::{add, hosts, until_host_is};
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::Hosts;
use beanpole_tests::wait::{seconds, until_true};

/// Instead of npm: the build stays, in part in a session of its own, for as long as `/srv/hold`
/// is there when it begins.
const TOOLS: &str = r#"
printf '#!/bin/sh\necho v18.0.0\n' >/usr/local/bin/node
cat >/usr/local/bin/npm <<'END'
#!/bin/sh
[ "$1" != --version ] || exit 0
touch /tmp/of-the-build /var/tmp/of-the-build
env -i setsid sleep 987654 >/dev/null 2>&1 &
[ ! -e /srv/hold ] || sleep 987654
END
chmod 755 /usr/local/bin/node /usr/local/bin/npm
touch /srv/hold"#;

/// Memory, CPU and process limits of the builds under way and the processes in them, of version 1 or 2.
const LIMITS: &str = "cd /sys/fs/cgroup; \
    cat {.,memory}/beanpole/build-*/memory.{max,limit_in_bytes} 2>/dev/null; \
    cat {.,cpu}/beanpole/build-*/cpu.{max,cfs_quota_us} 2>/dev/null; \
    cat {.,pids}/beanpole/build-*/pids.max 2>/dev/null; \
    cat {.,pids}/beanpole/build-*/cgroup.procs 2>/dev/null | sort -u | wc -l";

#[test]
fn a_build_has_limits_and_nothing_of_it_outlives_it_or_its_agent() {
    let Some(_hosts) = hosts("build_limits", &["h1"]) else {
        return;
    };
    let bed = Bed::up();
    Hosts::on("h1", TOOLS);
    add(&bed, "root", "h1", &[]).ok();
    until_host_is(&bed, "h1", "Ready", 20);
    bed.run(&["host", "drain", "local"]).ok();
    let app = bed.serving("shop-prod", 1);
    let package = r#"{"name":"shop","version":"1.0.0","dependencies":{"a":"1"}}"#;
    let app = app.version("v2").file("package.json", package.as_bytes());
    let mut deploy = bed
        .command(&app.dir, &["deploy", "shop-prod", "--label", "v2"])
        .spawn()
        .expect("deploy");
    let bash = |line: &str| Hosts::on("h1", &format!("bash -c '{line}'"));
    until_true("the build runs", seconds(30), || {
        Hosts::on("h1", "pgrep -fc '^sleep 987654' || true").trim() == "2"
    });
    let planted = Hosts::on("h1", "ls /tmp /var/tmp | grep -c of-the-build || true");
    assert_eq!(planted.trim(), "0", "it has a /tmp of its own");
    let limits = bash(LIMITS);
    let lines: Vec<&str> = limits.lines().map(str::trim).collect();
    let [memory, cpu, pids, processes] = lines[..] else {
        panic!("limits: {limits}");
    };
    assert!(
        memory.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 40),
        "{limits}"
    );
    assert!(
        cpu.split(' ')
            .next()
            .is_some_and(|quota| quota.parse::<u64>().is_ok()),
        "{limits}"
    );
    assert_eq!(pids, "1024");
    assert_eq!(processes, "3", "the command and its two sleeps");
    // The agent dies, and the next one builds anew, once the rest of the first build is gone.
    let first = Hosts::on("h1", "pgrep -f '^sleep 987654'");
    Hosts::on("h1", "rm /srv/hold");
    let main = "systemctl show -p MainPID --value beanpole-agent.service";
    Hosts::on("h1", &format!("kill -9 $({main})"));
    assert!(deploy.wait().expect("wait").success());
    assert_live(&bed, "shop-prod", "v2", 1);
    for pid in first.lines() {
        assert!(
            Hosts::try_on("h1", &format!("kill -0 {pid}")).is_err(),
            "{pid} lives"
        );
    }
    let left = Hosts::on("h1", "pgrep -fc '^sleep 987654' || true");
    assert_eq!(left.trim(), "0");
    assert_eq!(bash(LIMITS).trim(), "0", "no group is left");
    // Nor is the application's user, once the environment is.
    let users = || Hosts::on("h1", "grep -c ^bp- /etc/passwd || true");
    assert_eq!(users().trim(), "1");
    bed.run(&["terminate", "shop-prod", "--yes"]).ok();
    until_true("its user is gone", seconds(30), || users().trim() == "0");
}
