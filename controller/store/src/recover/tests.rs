use super::*;
use crate::Store;
use crate::model::ApplicationRecord;
use beanpole_protocol::{ApplicationName, Timestamp};

fn add(store: &Store, name: &str, description: &str) {
    store
        .update(|tx| {
            tx.put(&ApplicationRecord {
                name: ApplicationName::new(name).expect("name"),
                description: description.to_owned(),
                root: false,
                created_at: Timestamp::EPOCH,
            })
        })
        .expect("update");
}

fn names(store: &Store) -> Vec<String> {
    let applications: Vec<ApplicationRecord> = store.list().expect("list");
    applications
        .iter()
        .map(|app| app.name.to_string())
        .collect()
}

/// `shop`, in a backup.
fn filled(dir: &Path) {
    let store = Store::open(dir).expect("open");
    add(&store, "shop", "");
    backup::automatic(&store, "hourly").expect("backup");
}

/// `shop` in a backup, then `app-000` to `app-299`, acknowledged after it.
fn grown(dir: &Path) {
    filled(dir);
    let store = Store::open(dir).expect("open");
    for number in 0..300 {
        add(&store, &format!("app-{number:03}"), &"beans ".repeat(200));
    }
}

fn log(dir: &Path) -> PathBuf {
    database(dir).join("db")
}

fn snapshot(dir: &Path) -> PathBuf {
    fs::read_dir(database(dir))
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("snap."))
        })
        .expect("there is a snapshot")
}

fn cut(file: &Path, length: u64) {
    fs::File::options()
        .write(true)
        .open(file)
        .and_then(|file| file.set_len(length))
        .expect("cut");
}

fn flip(file: &Path, at: usize, count: usize) {
    let mut bytes = fs::read(file).expect("read");
    for byte in bytes.iter_mut().skip(at).take(count) {
        *byte ^= 0x5A;
    }
    fs::write(file, bytes).expect("write");
}

/// What became of a damaged database that held `shop` and 300 more.
#[derive(Debug, PartialEq)]
enum Became {
    Whole,
    Mended,
    Refused,
}

/// Opens it. It has everything, or it is refused, time and again, and a restore of the backup that
/// the error names gives back what that has.
fn opened(dir: &Path, what: &str) -> Became {
    match Store::open(dir) {
        Ok(store) => {
            assert_eq!(names(&store).len(), 301, "{what}: not whole");
            let mended = store.recovery().is_some();
            add(&store, "after", "");
            drop(store);
            let store = Store::open(dir).expect("open again");
            assert_eq!(store.recovery(), None, "{what}: it is whole now");
            assert_eq!(names(&store).len(), 302, "{what}");
            if mended {
                Became::Mended
            } else {
                Became::Whole
            }
        }
        Err(first) => {
            let error = Store::open(dir).expect_err("refused again");
            for error in [first, error] {
                let StoreError::Damaged { backup, why, .. } = error else {
                    panic!("{what}: {error}");
                };
                let backup = backup.unwrap_or_else(|| panic!("{what}: {why}: no backup"));
                assert!(backup.exists(), "{what}");
            }
            let newest = newest_backup(dir).expect("list").expect("a backup");
            let file = fs::File::open(newest).expect("open");
            backup::restore(file, dir, &dir.join("blobs")).expect("restore");
            let store = Store::open(dir).expect("open what was restored");
            assert_eq!(names(&store), ["shop"], "{what}");
            Became::Refused
        }
    }
}

#[test]
fn a_database_with_any_damage_is_never_opened_as_if_it_were_whole() {
    let source = tempfile::tempdir().expect("temporary directory");
    grown(source.path());
    let size = fs::metadata(log(source.path())).expect("its log").len();
    let mut refused = 0;
    let mut damage = |what: String, damage: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().expect("temporary directory");
        copy_tree(source.path(), dir.path()).expect("copy");
        damage(dir.path());
        let became = opened(dir.path(), &what);
        refused += usize::from(became == Became::Refused);
    };
    for part in 0..8 {
        let length = size * part / 8;
        damage(format!("cut off at {length} of {size}"), &|dir| {
            cut(&log(dir), length);
        });
    }
    for part in 0..40 {
        let at = usize::try_from(size * part / 40).expect("small") + 77;
        damage(format!("bytes flipped at {at} of {size}"), &|dir| {
            flip(&log(dir), at, 16);
        });
    }
    damage("an empty snapshot".to_owned(), &|dir| {
        cut(&snapshot(dir), 0);
    });
    damage("a damaged snapshot".to_owned(), &|dir| {
        flip(&snapshot(dir), 100, 1);
    });
    damage("no snapshot".to_owned(), &|dir| {
        fs::remove_file(snapshot(dir)).expect("remove");
    });
    damage("no word on what was acknowledged".to_owned(), &|dir| {
        fs::write(database(dir).join("acknowledged"), "?").expect("write");
    });
    assert!(refused > 8, "most of that cannot be mended: {refused}");
}

#[test]
fn a_log_that_ends_too_early_is_refused_with_how_much_is_missing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    filled(dir.path());
    let early = tempfile::tempdir().expect("temporary directory");
    copy_tree(&database(dir.path()), early.path()).expect("copy");
    let store = Store::open(dir.path()).expect("open");
    add(&store, "one", "");
    add(&store, "two", "");
    drop(store);
    // The log as it was, valid in itself, two changes ago.
    let acknowledged = fs::read(database(dir.path()).join("acknowledged")).expect("read");
    fs::remove_dir_all(database(dir.path())).expect("remove");
    copy_tree(early.path(), &database(dir.path())).expect("copy");
    fs::write(database(dir.path()).join("acknowledged"), acknowledged).expect("write");
    let error = Store::open(dir.path()).expect_err("refused");
    assert!(error.to_string().contains("the last 2 changes"), "{error}");
}

#[test]
fn a_database_that_is_gone_is_missed() {
    for gone in ["db", "db/db"] {
        let dir = tempfile::tempdir().expect("temporary directory");
        grown(dir.path());
        let gone = dir.path().join(gone);
        if gone.is_dir() {
            fs::remove_dir_all(&gone).expect("remove");
        } else {
            fs::remove_file(&gone).expect("remove");
        }
        assert_eq!(opened(dir.path(), "gone"), Became::Refused);
    }
}

#[test]
fn a_damaged_snapshot_loses_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    grown(dir.path());
    fs::write(snapshot(dir.path()), "half").expect("damage");
    assert_eq!(opened(dir.path(), "a snapshot"), Became::Mended);
}

#[test]
fn big_records_that_are_gone_are_missed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    filled(dir.path());
    let store = Store::open(dir.path()).expect("open");
    add(&store, "big", &"beans ".repeat(1 << 20));
    drop(store);
    let blobs = fs::read_dir(database(dir.path()).join("blobs")).expect("list");
    let blobs: Vec<_> = blobs.map(|entry| entry.expect("entry").path()).collect();
    assert!(!blobs.is_empty(), "sled keeps big values in files");
    for path in blobs {
        fs::write(&path, "short").expect("damage");
    }
    assert_eq!(opened(dir.path(), "a blob"), Became::Refused);
}

#[test]
fn without_a_backup_a_damaged_database_is_left_where_it_is() {
    let dir = tempfile::tempdir().expect("temporary directory");
    filled(dir.path());
    fs::remove_dir_all(dir.path().join("backups")).expect("remove");
    fs::write(database(dir.path()).join("conf"), "no configuration").expect("damage");
    for _ in 0..2 {
        let error = Store::open(dir.path()).expect_err("damaged");
        assert!(
            matches!(error, StoreError::Damaged { backup: None, .. }),
            "{error}"
        );
    }
    assert!(log(dir.path()).exists());
}

#[test]
fn a_backup_that_is_damaged_itself_is_not_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    grown(dir.path());
    let broken = dir.path().join("backups/99999999999999-hourly.backup");
    fs::write(&broken, "no backup").expect("write");
    cut(&log(dir.path()), 1000);
    assert_eq!(opened(dir.path(), "cut off"), Became::Refused);
}

#[test]
fn mending_that_was_killed_before_its_end_is_ended() {
    let dir = tempfile::tempdir().expect("temporary directory");
    grown(dir.path());
    fs::rename(database(dir.path()), dir.path().join(MENDING)).expect("rename");
    fs::create_dir(dir.path().join("damaged-5")).expect("directory");
    assert_eq!(opened(dir.path(), "killed"), Became::Whole);
}

#[test]
fn a_database_of_a_version_without_checks_gets_one_with_its_next_change() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let database = database(dir.path());
    fs::create_dir_all(&database).expect("directory");
    let sled = sled::open(&database).expect("open");
    let records = sled.open_tree("records").expect("tree");
    records.insert("counters\0a", "\u{1}7").expect("insert");
    drop((records, sled));
    let sled = Sled::try_open(&database).expect("opened");
    assert!(!sled.is_known_to_be_whole());
    drop(sled);
    let store = Store::open(dir.path()).expect("opened");
    assert_eq!(store.update(|tx| tx.counter("a")).expect("update"), 8);
    drop(store);
    let sled = Sled::try_open(&database).expect("opened");
    assert!(sled.is_known_to_be_whole());
}

#[test]
fn a_database_that_somebody_has_open_is_waited_for_and_not_taken_for_a_damaged_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    filled(dir.path());
    let held = Sled::try_open(&database(dir.path())).expect("opened");
    let opening = std::thread::scope(|scope| {
        let opening = scope.spawn(|| Store::open(dir.path()));
        drop(held);
        opening.join().expect("no panic")
    });
    let store = opening.expect("opened");
    assert_eq!(store.recovery(), None);
    assert_eq!(names(&store), ["shop"]);
}

#[test]
fn a_half_written_snapshot_costs_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    filled(dir.path());
    let snapshot = database(dir.path()).join("snap.00000000000000FF.generating");
    fs::write(snapshot, "half").expect("damage");
    let store = Store::open(dir.path()).expect("opened");
    assert_eq!(names(&store), ["shop"]);
}
