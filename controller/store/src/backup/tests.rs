use super::*;
use crate::model::{ApplicationRecord, TableRecord, TokenRecord};
use beanpole_protocol::{ApplicationName, Generation, Timestamp};

struct World {
    dir: tempfile::TempDir,
    store: Store,
    blobs: Blobs,
    digest: Digest,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(&dir.path().join("store")).expect("open");
    let blobs = Blobs::open(&dir.path().join("blobs"), 1 << 20).expect("blobs");
    let mut writer = blobs.writer().expect("writer");
    writer.write(b"a bundle\nof lines\n").expect("write");
    let (digest, _) = writer.finish(None).expect("finish");
    store
        .update(|tx| {
            tx.counter("events")?;
            let mut table = TableRecord::default();
            table.table.generation = Generation(7);
            tx.put(&table)?;
            tx.put(&ApplicationRecord {
                name: ApplicationName::new("shop").expect("name"),
                description: "beans".to_owned(),
                root: false,
                created_at: Timestamp::from_millis(5),
            })
        })
        .expect("update");
    World {
        dir,
        store,
        blobs,
        digest,
    }
}

fn taken(world: &World) -> Vec<u8> {
    let mut bytes = Vec::new();
    let summary = write(&world.store, &world.blobs, &mut bytes).expect("backup");
    assert_eq!(summary.bundles, 1);
    assert_eq!(verify(&*bytes).expect("whole"), summary);
    bytes
}

#[test]
fn what_is_restored_is_for_its_owner_alone_even_where_the_directory_was_open_to_all() {
    use std::os::unix::fs::PermissionsExt;
    let bytes = taken(&world());
    let target = tempfile::tempdir().expect("temporary directory");
    let (store, blobs) = (target.path().join("store"), target.path().join("blobs"));
    fs::create_dir(&store).expect("directory");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).expect("mode");
    assert!(!replaces_records(&store));
    restore(&*bytes, &store, &blobs).expect("restore");
    let mode = fs::metadata(&store).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(replaces_records(&store));
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).expect("mode");
    drop(Store::open(&store).expect("open"));
    let mode = fs::metadata(&store).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn everything_comes_back_and_nothing_counts_as_given_out() {
    let world = world();
    let bytes = taken(&world);
    let target = tempfile::tempdir().expect("temporary directory");
    let (store, blobs) = (target.path().join("store"), target.path().join("blobs"));
    restore(&*bytes, &store, &blobs).expect("restore");
    let store = Store::open(&store).expect("open");
    assert_eq!(store.list::<ApplicationRecord>().expect("list").len(), 1);
    let table: TableRecord = store
        .get(&TableRecord::the_key())
        .expect("get")
        .expect("there");
    assert_eq!(
        table.table.generation,
        Generation(0),
        "as if never given out"
    );
    let event = store.update(|tx| tx.counter(EVENTS)).expect("counter");
    assert_eq!(event, 1 + LEAP + 1, "no number is given to two events");
    let restored: Option<RestoredRecord> = store.get(&RestoredRecord::the_key()).expect("get");
    assert!(restored.is_some(), "somebody has to be told");
    let blobs = Blobs::open(&blobs, 1 << 20).expect("blobs");
    let mut content = String::new();
    let mut reader = blobs.reader(&world.digest).expect("open").expect("there");
    reader.read_to_string(&mut content).expect("read");
    assert_eq!(content, "a bundle\nof lines\n");
}

#[test]
fn a_torn_or_changed_backup_replaces_nothing() {
    let world = world();
    let bytes = taken(&world);
    let store_dir = world.dir.path().join("store");
    let blobs_dir = world.dir.path().join("blobs");
    drop(world.store);
    let mut wrong: Vec<Vec<u8>> = (0..bytes.len())
        .step_by(97)
        .chain([bytes.len() - 1])
        .map(|length| bytes[..length].to_vec())
        .collect();
    let beans = bytes.windows(5).position(|w| w == b"beans").expect("there");
    let mut changed = bytes.clone();
    changed[beans] = b'B';
    wrong.push(changed);
    for bad in wrong {
        verify(&*bad).expect_err("refused");
        restore(&*bad, &store_dir, &blobs_dir).expect_err("refused");
    }
    let store = Store::open(&store_dir).expect("open");
    assert_eq!(store.list::<ApplicationRecord>().expect("list").len(), 1);
    let left: Vec<_> = fs::read_dir(&store_dir)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left.len(), 2, "the database and the lock: {left:?}");
}

#[test]
fn a_restore_is_refused_while_the_store_is_open() {
    let world = world();
    let bytes = taken(&world);
    let store_dir = world.dir.path().join("store");
    let error = restore(&*bytes, &store_dir, &world.dir.path().join("blobs")).expect_err("open");
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(world.store);
    restore(&*bytes, &store_dir, &world.dir.path().join("blobs")).expect("restore");
    let kept = fs::read_dir(&store_dir)
        .expect("list")
        .filter(|entry| {
            let name = entry.as_ref().expect("entry").file_name();
            name.to_string_lossy().starts_with("before-restore-")
        })
        .count();
    assert_eq!(kept, 1);
}

#[test]
fn automatic_backups_are_bounded() {
    let world = world();
    for _ in 0..AUTOMATIC_KEPT + 3 {
        automatic(&world.store, "hourly").expect("backup");
    }
    let all = automatic_backups(&world.dir.path().join("store")).expect("list");
    assert!(all.len() <= AUTOMATIC_KEPT, "{}", all.len());
    verify(File::open(all.last().expect("one")).expect("open")).expect("whole");
}

#[test]
fn an_automatic_backup_outlives_those_of_a_clock_that_was_ahead() {
    let world = world();
    let store_dir = world.dir.path().join("store");
    let first = automatic(&world.store, "hourly").expect("backup");
    let dir = first.parent().expect("a directory");
    let next_year = jiff::Timestamp::now().as_millisecond() + 31_536_000_000;
    for number in 0..AUTOMATIC_KEPT as i64 {
        let ahead = dir.join(format!("{:014}-hourly.backup", next_year + number));
        std::fs::copy(&first, ahead).expect("copy");
    }
    for _ in 0..2 {
        let written = automatic(&world.store, "hourly").expect("backup");
        let all = automatic_backups(&store_dir).expect("list");
        assert_eq!(all.last(), Some(&written), "the newest comes last");
        assert_eq!(all.len(), AUTOMATIC_KEPT);
    }
}

#[test]
fn a_backup_comes_from_one_moment() {
    let world = world();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let token = |name: &str, number: u64| TokenRecord {
        name: name.to_owned(),
        hash: world.digest.clone(),
        created_at: Timestamp::from_millis(number),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                world
                    .store
                    .update(|tx| {
                        tx.put(&token("first", number))?;
                        tx.put(&token("last", number))
                    })
                    .expect("update");
            }
        });
        for _ in 0..20 {
            let bytes = taken(&world);
            let text = String::from_utf8(bytes).expect("text");
            let times: Vec<_> = text
                .lines()
                .filter(|line| line.contains(r#""table":"tokens""#))
                .filter_map(|line| line.split("created_at").nth(1))
                .collect();
            assert!(times.windows(2).all(|pair| pair[0] == pair[1]), "{times:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn what_a_killed_process_left_half_made_is_swept() {
    let world = world();
    let path = |name: &str| world.dir.path().join(name);
    let automatic = automatic(&world.store, "hourly").expect("backup");
    for tree in [
        "store/restoring",
        "store/mending",
        "blobs.restoring/incoming",
    ] {
        fs::create_dir_all(path(tree)).expect("make");
    }
    for file in ["store/backups/.00000000000001.tmp", "store/spool-1"] {
        fs::write(path(file), "half").expect("write");
    }
    sweep(&world.store, &path("blobs")).expect("sweep");
    let left = |dir: &str| {
        let mut names: Vec<String> = fs::read_dir(path(dir))
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(""), ["blobs", "store"]);
    assert_eq!(left("store"), ["LOCK", "backups", "db"]);
    assert!(automatic.exists());
    assert_eq!(left("store/backups").len(), 1);
}
