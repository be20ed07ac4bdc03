//! What processes write: bounded, and never in the way of the app.

use crate::world::{GRACE, World, is_root, number_after, until};
use beanpole_agent::runtime::Runtime;
use beanpole_agent::shim::spec::LogBounds;
use beanpole_protocol::Incarnation;
use beanpole_protocol::agent::InstancePhase;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[tokio::test]
async fn logs_are_bounded_and_a_line_without_end_takes_no_memory() {
    let kept = tempfile::tempdir().expect("directory");
    let logs = LogBounds {
        file_bytes: 64 * 1024,
        files: 3,
    };
    let world = World::at(kept.path(), logs);
    let flood =
        "head -c 8000000 /dev/zero | tr '\\0' x; yes | head -n 20000; echo; echo done; sleep 1000";
    let spec = World::spec(7, &[("web", flood)]);
    world.runtime.start(spec.clone()).await.expect("started");
    world.until_log(&spec.id, "web", "done").await;
    let sizes: Vec<u64> = fs::read_dir(world.runtime.log_directory(&spec.id))
        .expect("logs")
        .map(|entry| entry.expect("entry").metadata().expect("size").len())
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    // A batch is written whole: at most one chunk over, with its times.
    assert!(sizes.iter().all(|size| *size < 640 * 1024), "{sizes:?}");
    let shim = world.status(&spec.id).shim.pid;
    let peak = fs::read_to_string(format!("/proc/{shim}/status")).expect("status");
    let peak = number_after(&peak.replace(['\t', ' '], ""), "RssAnon:");
    assert!(peak < 4096, "{peak} KiB of its own");
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn logs_of_processes_that_a_release_has_no_more_go() {
    let world = World::new();
    let mut spec = World::spec(
        23,
        &[
            ("web", "echo one; sleep 1000"),
            ("mail", "echo two; sleep 1000"),
        ],
    );
    world.runtime.start(spec.clone()).await.expect("started");
    world.until_log(&spec.id, "web", "one").await;
    world.until_log(&spec.id, "mail", "two").await;
    let logs = world.runtime.log_directory(&spec.id);
    fs::write(logs.join("mail.log.1"), "older").expect("write");
    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    assert!(logs.join("mail.log").exists(), "until the next start");
    spec.incarnation = Incarnation(2);
    spec.workload = World::spec(23, &[("web", "echo three; sleep 1000")]).workload;
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "three").await;
    assert!(log.contains("one"), "{log}");
    let left: Vec<_> = fs::read_dir(&logs)
        .expect("logs")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["web.log"]);
    world.runtime.remove(&spec.id).await.expect("removed");
}

/// Half a mebibyte of disk, unmounted whatever happens.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs"];
        let status = Command::new("mount").args(options).arg(at).status();
        assert!(status.expect("mount").success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Needs root, for a small disk.
#[tokio::test]
async fn a_full_disk_stops_the_log_but_not_the_app() {
    if !is_root() {
        return;
    }
    let kept = tempfile::tempdir().expect("directory");
    let disk = kept.path().join("disk");
    fs::create_dir(&disk).expect("directory");
    let _disk = SmallDisk::mount(&disk);
    let world = World::at(&disk, LogBounds::default());
    let beat = kept.path().join("beat");
    fs::write(&beat, "").expect("beat");
    fs::set_permissions(&beat, fs::Permissions::from_mode(0o666)).expect("mode");
    let command = format!(
        "while :; do yes | head -n 5000; echo x >> {}; done",
        beat.display()
    );
    let spec = World::spec(19, &[("web", &command)]);
    world.runtime.start(spec.clone()).await.expect("started");
    let beats = || fs::metadata(&beat).map_or(0, |metadata| metadata.len());
    until("the disk is full", || (beats() > 100).then_some(())).await;
    let report = world.report(&spec.id).expect("report");
    assert_eq!(
        (report.phase, report.processes[0].restarts),
        (InstancePhase::Running, 0)
    );
    let path = world.runtime.log_directory(&spec.id).join("web.log");
    fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(0))
        .expect("room again");
    world
        .until_log(&spec.id, "web", "lines lost: the log could not be written")
        .await;
    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    assert_eq!(
        world.report(&spec.id).expect("report").phase,
        InstancePhase::Stopped
    );
    world.runtime.remove(&spec.id).await.expect("removed");
}
