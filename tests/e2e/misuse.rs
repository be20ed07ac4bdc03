//! Bad input: exit code 2 for misuse, 1 for what failed, and a hint in every message.

use crate::changes::assert_live;
use beanpole_tests::bed::Bed;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use zip::write::SimpleFileOptions;

#[test]
fn misuse_exits_2_and_failure_exits_1() {
    let bed = Bed::up();
    bed.run(&["frobnicate"]).exits(2);
    bed.run(&["scale", "shop-prod"]).exits(2);
    bed.run(&["scale", "shop-prod", "many"]).exits(2);
    bed.run(&["status", "shop-prod"])
        .exits(1)
        .says("error:")
        .says("shop-prod")
        .says("hint:");
    let app = bed.app("shop");
    let ran = bed.run_in(&app.dir, &["create", "x"]);
    assert!(ran.code == 1 || ran.code == 2, "{ran:?}");
    ran.says("4 to 40");
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--batch", "0"])
        .exits(2);
}

#[test]
fn a_typo_in_deploy_toml_is_refused_with_a_suggestion() {
    let bed = Bed::up();
    let app = bed
        .app("shop")
        .file("deploy.toml", b"aplication = \"shop\"\nx-note = \"free\"\n");
    let ran = bed.run_in(&app.dir, &["create", "shop-prod", "--single"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    ran.says("aplication").says("application");
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let mut bed = Bed::up();
    bed.stop();
    bed.run(&["list"])
        .exits(1)
        .says(&bed.api.to_string())
        .says("beanpole up");
}

#[test]
fn a_wrong_token_is_told() {
    let bed = Bed::up();
    let output = bed
        .command(bed.home(), &["list"])
        .env("BEANPOLE_TOKEN", "wrong")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("token"));
}

fn zip(path: &Path, write: impl FnOnce(&mut zip::ZipWriter<File>)) {
    let mut writer = zip::ZipWriter::new(File::create(path).expect("a file"));
    write(&mut writer);
    writer.finish().expect("a ZIP");
}

#[test]
fn hostile_and_broken_bundles_are_refused_by_the_entrys_name() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1);
    let plain = SimpleFileOptions::default();
    let files = bed.home().join("zips");
    std::fs::create_dir_all(&files).expect("a directory");

    let up = files.join("up.zip");
    zip(&up, |zip| {
        zip.start_file("Procfile", plain).expect("an entry");
        zip.write_all(b"web: true\n").expect("bytes");
        zip.start_file("../../evil.sh", plain).expect("an entry");
        zip.write_all(b"x").expect("bytes");
    });
    let link = files.join("link.zip");
    zip(&link, |zip| {
        zip.start_file("Procfile", plain).expect("an entry");
        zip.write_all(b"web: true\n").expect("bytes");
        zip.add_symlink("out", "/etc/passwd", plain)
            .expect("an entry");
    });
    let bomb = files.join("bomb.zip");
    zip(&bomb, |zip| {
        zip.start_file("zeros.bin", plain).expect("an entry");
        for _ in 0..300 {
            zip.write_all(&vec![0; 1 << 20]).expect("bytes");
        }
    });
    let cases = [(&up, "evil.sh"), (&link, "out"), (&bomb, "zeros.bin")];
    for (number, (path, entry)) in cases.into_iter().enumerate() {
        let label = format!("bad-{number}");
        let path = path.to_str().expect("plain text");
        bed.run_in(
            &app.dir,
            &["deploy", "shop-prod", "--from", path, "--label", &label],
        )
        .exits(1)
        .says(entry);
        assert_live(&bed, "shop-prod", "v1", 1);
    }

    let text = files.join("text.zip");
    std::fs::write(&text, b"this is no ZIP").expect("a file");
    let path = text.to_str().expect("plain text");
    bed.run_in(
        &app.dir,
        &["deploy", "shop-prod", "--from", path, "--label", "text"],
    )
    .exits(2)
    .says("zip");
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--from", "nowhere"])
        .exits(2)
        .says("nowhere");
    assert_live(&bed, "shop-prod", "v1", 1);
}

#[test]
fn a_label_that_is_taken_by_other_content_is_refused() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1).version("v2");
    bed.deploy(&app, "shop-prod", "v1").exits(1).says("v1");
    assert_live(&bed, "shop-prod", "v1", 1);
}
