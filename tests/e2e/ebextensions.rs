//! Every key of `.ebextensions` on a real host, for an application that may act as root there.

use crate::changes::assert_live;
use crate::over_ssh::hosts;
use crate::platforms::bed_on_h1;
use beanpole_tests::apps::App;
use beanpole_tests::hosts::Hosts;

const UNIT: &str = "/etc/systemd/system/shop-helper.service";

/// With every key; `motd` is what one of its files says.
fn with_every_key(app: App, motd: &str) -> App {
    let first = format!(
        "packages:\n  yum: {{jq: []}}\n  apt: {{file: ''}}\n  python: {{six: 1.16.0}}\n\
         groups:\n  shoppers: {{gid: \"4500\"}}\n\
         users:\n  helper:\n    uid: \"4501\"\n    groups: [shoppers]\n    homeDir: /srv/helper\n\
         sources:\n  /srv/helper/data: http://127.0.0.1:8099/data.tar.gz\n\
         files:\n  \"/etc/shop/motd\":\n    mode: \"000640\"\n    owner: helper\n    group: shoppers\n    content: |\n      {motd}\n  \
         \"/etc/shop/page\":\n    source: http://127.0.0.1:8099/page\n  \"/etc/shop/now\":\n    mode: \"120777\"\n    content: motd\n  \
         \"{UNIT}\":\n    content: |\n      [Service]\n      User=helper\n      ExecStart=/bin/sleep infinity\n      \
         [Install]\n      WantedBy=multi-user.target\n\
         services:\n  systemd:\n    shop-helper:\n      enabled: true\n      ensureRunning: true\n      files: [/etc/shop/motd]\n"
    );
    let second = r#"{
        "commands": {"01_who": {"command": "echo $(id -un) $(pwd) $A >>/srv/commands", "env": {"A": "b"}},
                     "02_not": {"command": "touch /srv/not", "test": "false"}},
        "container_commands": {"01": {"command": "id -un >made"},
                               "02_leader": {"command": "echo $(id -un) $(cat made) >>/srv/leader", "leader_only": true}},
        "option_settings": {"aws:elasticbeanstalk:application:environment": {"GREETING": "hello"}, "aws:ec2:vpc": {"VPCId": "vpc-1"}},
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}, "Stream": {"Type": "AWS::Kinesis::Stream"}}
    }"#;
    app.file(".ebextensions/01-host.config", first.as_bytes())
        .file(".ebextensions/02-app.config", second.as_bytes())
        .file(
            ".platform/hooks/predeploy/1.sh",
            b"#!/bin/sh\necho $(id -un) $(cat made) >>/srv/hooks\n",
        )
        .file(
            ".platform/hooks/postdeploy/1.sh",
            b"#!/bin/sh\nid -un >>/srv/postdeploy\n",
        )
}

/// What tells whether anything was done again.
fn marks() -> String {
    Hosts::on(
        "h1",
        "stat -c '%n %Y %i' /etc/shop/motd /etc/shop/page /srv/helper/data; grep -c ' install ' /var/log/dpkg.log; \
         systemctl show -p ExecMainPID shop-helper; ls -a /etc/shop",
    )
}

#[test]
fn every_key_of_ebextensions_is_carried_out_once_and_only_where_it_may() {
    let Some(_hosts) = hosts("ebextensions", &["h1"]) else {
        return;
    };
    let bed = bed_on_h1();
    Hosts::on(
        "h1",
        "mkdir -p /srv/www/in && echo one >/srv/www/in/text && echo page >/srv/www/page && \
         tar -C /srv/www/in -czf /srv/www/data.tar.gz . && \
         systemd-run --unit=www python3 -m http.server 8099 --bind 127.0.0.1 --directory /srv/www",
    );
    let app = with_every_key(bed.app("shop"), "hello");
    bed.run_in(&app.dir, &["create", "shop-prod", "--instances", "1"])
        .ok();
    bed.deploy(&app, "shop-prod", "v1")
        .exits(1)
        .says("`packages` in .ebextensions/01-host.config, line 1")
        .says("beanpole app root allow shop");
    let nothing = Hosts::on("h1", "ls /etc/shop /srv/commands 2>/dev/null || true");
    assert_eq!(nothing.trim(), "", "nothing was sent");

    bed.run(&["app", "root", "allow", "shop"]).ok();
    bed.run(&["app", "list"]).ok().says("allowed");
    bed.deploy(&app, "shop-prod", "v1")
        .ok()
        .says("the resource Stream (AWS::Kinesis::Stream)")
        .says("aws:ec2:vpc:VPCId in .ebextensions/02-app.config, line 6");
    bed.run(&["printenv", "shop-prod"])
        .ok()
        .says("GREETING=hello");
    assert_live(&bed, "shop-prod", "v1", 1);
    for (line, says) in [
        ("dpkg-query -W -f '${db:Status-Abbrev} ' jq file", "ii  ii"),
        ("python3 -c 'import six; print(six.__version__)'", "1.16.0"),
        ("id helper", "uid=4501(helper)"),
        ("id -Gn helper", "shoppers"),
        ("getent passwd helper", ":/srv/helper:/usr/sbin/nologin"),
        ("getent group shoppers", "shoppers:x:4500:"),
        ("stat -c '%a %U %G' /etc/shop/motd", "640 helper shoppers"),
        ("cat /etc/shop/now", "hello"),
        ("cat /etc/shop/page", "page"),
        ("cat /srv/helper/data/text", "one"),
        ("cat /srv/commands", "root / b"),
        ("ls /srv", "www"),
        ("cat /srv/hooks", "root root"),
        ("cat /srv/leader", "root root"),
        ("cat /srv/postdeploy", "root"),
        ("systemctl is-enabled shop-helper", "enabled"),
        ("systemctl is-active shop-helper", "active"),
        ("ps -o user= -C sleep | sort -u", "helper"),
    ] {
        let text = Hosts::on("h1", line);
        assert!(text.contains(says), "{line}: {text}");
    }
    assert!(!Hosts::on("h1", "ls /srv").contains("not"));
    let processes = Hosts::on(
        "h1",
        "ps -eo user:32,args | grep 'testapp v1' | grep -v grep",
    );
    assert!(
        processes.lines().all(|line| line.starts_with("bp-")),
        "the application is nobody: {processes}"
    );

    let before = marks();
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_eq!(marks(), before, "nothing is done twice");
    assert_eq!(Hosts::on("h1", "cat /srv/commands").lines().count(), 2);

    let app = with_every_key(app, "good day");
    bed.deploy(&app, "shop-prod", "v3").ok();
    let after = marks();
    let pid = |marks: &str| {
        let mut lines = marks.lines();
        let line = lines.find(|line| line.starts_with("ExecMainPID"));
        line.map(str::to_owned)
    };
    assert_ne!(pid(&after), pid(&before), "its file changed: {after}");
    assert_eq!(Hosts::on("h1", "cat /etc/shop/motd.bak").trim(), "hello");
    assert_eq!(Hosts::on("h1", "cat /etc/shop/now").trim(), "good day");

    bed.run(&["app", "root", "deny", "shop"]).ok();
    bed.deploy(&app, "shop-prod", "v4")
        .exits(1)
        .says("may not act as root");
    assert_live(&bed, "shop-prod", "v3", 1);
    // Options go with the files that set them.
    for directory in [".ebextensions", ".platform"] {
        std::fs::remove_dir_all(app.dir.join(directory)).expect("removed");
    }
    bed.deploy(&app, "shop-prod", "v5").ok();
    let left = bed.run(&["printenv", "shop-prod"]).ok().out.clone();
    assert!(!left.contains("GREETING"), "{left}");
}
