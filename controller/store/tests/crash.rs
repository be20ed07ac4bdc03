//! A process that is killed while it writes loses nothing that was acknowledged.

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
