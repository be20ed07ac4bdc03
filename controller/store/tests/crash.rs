//! What was acknowledged survives: a process that is killed while it writes, and a full disk.

use beanpole_protocol::{Digest, Timestamp};
use beanpole_store::model::TokenRecord;
use beanpole_store::{Store, StoreError};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const DIR: &str = "BEANPOLE_TEST_CRASH_DIR";

fn token(name: &str, number: u64) -> TokenRecord {
    TokenRecord {
        name: name.to_owned(),
        hash: Digest::new("0".repeat(64)).expect("a digest"),
        created_at: Timestamp::from_millis(number),
    }
}

/// Not a test by itself: the process that is killed. Each transaction writes two records; its
/// number is printed once it is acknowledged.
#[test]
#[ignore = "started by the test below"]
fn writer() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let store = Store::open(Path::new(&dir)).expect("open");
    let mut out = std::io::stdout();
    loop {
        let number = store
            .update(|tx| {
                let number = tx.counter("writes")?;
                tx.put(&token("first", number))?;
                tx.put(&token("second", number))?;
                tx.put(&token(&format!("each-{}", number % 500), number))?;
                Ok::<_, StoreError>(number)
            })
            .expect("update");
        writeln!(out, "wrote {number}").expect("print");
        out.flush().expect("flush");
    }
}

#[test]
fn a_kill_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut last = 0;
    for round in 1..=6 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["writer", "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the writer");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut count = 0;
        for line in lines {
            let Ok(line) = line else { break };
            // The test harness may have begun the first line.
            if let Some((_, number)) = line.rsplit_once("wrote ") {
                last = number.trim().parse().expect("a number");
                count += 1;
                if count == 40 * round {
                    child.kill().expect("kill");
                }
            }
        }
        child.wait().expect("wait");
        assert!(count >= 40 * round, "the writer ended by itself");
        let store = Store::open(dir.path()).expect("open after the kill");
        assert_eq!(store.recovery(), None);
        let number = |name: &str| {
            let key = beanpole_store::key::join(&[name.as_bytes()]);
            let found: Option<TokenRecord> = store.get(&key).expect("get");
            found.expect("it is there").created_at.as_millis()
        };
        assert!(number("first") >= last, "{} < {last}", number("first"));
        assert_eq!(number("first"), number("second"), "a torn transaction");
        assert_eq!(
            number(&format!("each-{}", last % 500)),
            last.max(number(&format!("each-{}", last % 500)))
        );
    }
}

/// A small disk of its own, unmounted whatever happens.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let disk = Self(tempfile::tempdir().expect("temporary directory"));
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs"])
            .arg(disk.0.path())
            .status();
        assert!(mounted.expect("mount").success());
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Needs root, for the disk.
#[test]
fn a_full_disk_is_noticed_before_it_breaks_the_database() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a_full_disk_is_noticed_before_it_breaks_the_database: needs root");
        return;
    }
    let disk = SmallDisk::mount();
    let dir = disk.0.path().join("store");
    let store = Store::open(&dir).expect("open");
    let write = |number| {
        store.update(|tx| {
            tx.put(&token("first", number))?;
            Ok::<_, StoreError>(())
        })
    };
    write(1).expect("there is room");
    let fill = disk.0.path().join("fill");
    let mut file = std::fs::File::create(&fill).expect("create");
    let piece = vec![0; 1 << 20];
    while file.write_all(&piece).is_ok() {}
    let error = write(2).expect_err("no room");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(error.problem().code, "disk-full");
    let number = || {
        let key = beanpole_store::key::join(&[b"first"]);
        let found: Option<TokenRecord> = store.get(&key).expect("reads go on");
        found.expect("it is there").created_at.as_millis()
    };
    assert_eq!(number(), 1);
    assert!(!store.is_broken());
    std::fs::remove_file(&fill).expect("make room");
    drop(file);
    write(3).expect("it goes on");
    assert_eq!(number(), 3);
}
