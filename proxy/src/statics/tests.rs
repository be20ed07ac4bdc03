use super::*;
use beanpole_protocol::statics::FileHead;

struct Scene {
    directory: tempfile::TempDir,
    statics: Arc<Statics>,
}

fn set(files: &[(&str, &str)]) -> StaticSet {
    let files = files.iter().map(|(path, content)| {
        let file = StaticFile {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
        };
        ((*path).to_owned(), file)
    });
    StaticSet {
        files: files.collect(),
    }
}

fn framed(contents: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for content in contents {
        let head = FileHead(StaticFile {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
        });
        bytes.extend_from_slice(&head.bytes());
        bytes.extend_from_slice(content.as_bytes());
    }
    bytes
}

fn named(set: &str, release: u64) -> StaticFiles {
    StaticFiles {
        set: Digest::of(set.as_bytes()),
        ..StaticFiles::new(
            ReleaseNumber(release),
            Timestamp::EPOCH,
            Digest::of(b"bundle"),
            Default::default(),
        )
    }
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let statics = Statics::restore(directory.path()).expect("restore");
        Self {
            directory,
            statics: Arc::new(statics),
        }
    }

    fn again(&self) -> Statics {
        Statics::restore(self.directory.path()).expect("restore")
    }

    fn begin(&self, name: &str, set: StaticSet) -> Vec<Digest> {
        let begun = self.statics.begin(Digest::of(name.as_bytes()), set);
        begun.expect("it is taken")
    }

    /// In pieces of 7 bytes, none of which ends where a file does.
    fn send(&self, name: &str, bytes: &[u8]) -> Result<Vec<Digest>, NotTaken> {
        let name = Digest::of(name.as_bytes());
        let mut intake = Intake::new(self.statics.clone(), name)?;
        for piece in bytes.chunks(7) {
            intake.take(piece)?;
        }
        intake.end()
    }

    fn files(&self) -> usize {
        let files = self.directory.path().join("files");
        fs::read_dir(files).expect("a directory").count()
    }
}

fn content(statics: &Statics, hit: Option<Hit>) -> Option<String> {
    match hit? {
        Hit::File { file, .. } => {
            let path = statics.path(&file.file.digest);
            Some(fs::read_to_string(path).expect("it is there"))
        }
        Hit::Directory => Some("a directory".to_owned()),
    }
}

#[test]
fn a_set_counts_once_all_its_files_are_there() {
    let scene = Scene::new();
    let files = [
        ("/a.css", "one"),
        ("/b.css", "two"),
        ("/c.css", "one"),
        ("/empty", ""),
    ];
    assert_eq!(scene.begin("s", set(&files)).len(), 3, "each content once");
    assert_eq!(scene.send("s", &framed(&["one"])).expect("taken").len(), 2);
    let found = |statics: &Statics| content(statics, statics.find(&[named("s", 1)], "/a.css"));
    assert_eq!(found(&scene.statics), None);
    assert!(scene.again().sets().is_empty());
    assert_eq!(
        scene.begin("s", set(&files)).len(),
        2,
        "what came has not to come again"
    );
    assert!(
        scene
            .send("s", &framed(&["", "two"]))
            .expect("taken")
            .is_empty()
    );
    assert_eq!(found(&scene.statics).as_deref(), Some("one"));
    assert_eq!(found(&scene.again()).as_deref(), Some("one"));
    assert!(scene.begin("s", set(&files)).is_empty());
    assert!(
        scene.begin("t", set(&files[1..])).is_empty(),
        "others have all of it"
    );
}

#[test]
fn what_is_not_what_it_should_be_is_not_kept() {
    let scene = Scene::new();
    let unknown = scene.send("s", &framed(&["one"]));
    assert!(matches!(unknown, Err(NotTaken::Unknown)));
    scene.begin("s", set(&[("/a", "one")]));
    let mut forged = framed(&["one"]);
    forged[FileHead::LENGTH] = b'x';
    for bytes in [
        forged,
        framed(&["two"]),
        framed(&["one"])[..73].to_vec(),
        vec![b'x'; 80],
    ] {
        let sent = scene.send("s", &bytes);
        assert!(matches!(sent, Err(NotTaken::Refused(_))), "{sent:?}");
    }
    assert_eq!(scene.files(), 0);
    let name = Digest::of(b"s");
    let mut large = set(&[("/a", "one")]);
    large.files.get_mut("/a").expect("a file").size = MOST_BYTES + 1;
    let refused = scene.statics.begin(name.clone(), large);
    assert!(matches!(refused, Err(NotTaken::Refused(_))));
    let many = (0..=MOST_FILES).map(|n| format!("/{n}"));
    let many: Vec<String> = many.collect();
    let many: Vec<(&str, &str)> = many.iter().map(|path| (path.as_str(), "")).collect();
    let refused = scene.statics.begin(name, set(&many));
    assert!(matches!(refused, Err(NotTaken::Refused(_))));
}

#[test]
fn what_no_table_names_is_freed_and_what_sets_share_stays() {
    let scene = Scene::new();
    for (name, files) in [
        ("s", [("/a", "one"), ("/b", "two")]),
        ("t", [("/a", "two"), ("/b", "three")]),
    ] {
        scene.begin(name, set(&files));
        let sent = scene.send(name, &framed(&[files[0].1, files[1].1]));
        assert!(sent.expect("taken").is_empty());
    }
    scene.begin("u", set(&[("/c", "four"), ("/d", "five")]));
    scene.send("u", &framed(&["four"])).expect("taken");
    let keep = |names: &[&str]| {
        let names = names.iter().map(|name| Digest::of(name.as_bytes()));
        scene.statics.keep_only(&names.collect());
    };
    keep(&["t", "u"]);
    assert_eq!(scene.files(), 3, "two, three and four");
    assert!(
        scene
            .send("u", &framed(&["five"]))
            .expect("taken")
            .is_empty()
    );
    keep(&["t"]);
    assert_eq!(scene.files(), 2);
    assert_eq!(scene.again().sets(), [Digest::of(b"t")]);
    let damaged = scene
        .directory
        .path()
        .join("files")
        .join(Digest::of(b"two").as_str());
    fs::write(damaged, "tw").expect("write");
    let again = scene.again();
    assert!(again.sets().is_empty());
    again.keep_only(&BTreeSet::from([Digest::of(b"t")]));
    assert_eq!(scene.files(), 0);
}

#[test]
fn a_path_leads_to_the_first_set_in_service_that_has_it() {
    let scene = Scene::new();
    let old = [
        ("/a.js", "old"),
        ("/old.js", "only old"),
        ("/docs/index.html", "docs"),
    ];
    let new = [("/a.js", "new"), ("/b", "b")];
    for (name, files) in [("old", &old[..]), ("new", &new[..])] {
        scene.begin(name, set(files));
        let contents: Vec<&str> = files.iter().map(|(_, content)| *content).collect();
        scene.send(name, &framed(&contents)).expect("taken");
    }
    let find = |named: &[StaticFiles], path: &str| {
        content(&scene.statics, scene.statics.find(named, path))
    };
    let both = [named("new", 2), named("gone", 3), named("old", 1)];
    for (path, wanted) in [
        ("/a.js", Some("new")),
        ("/%61.js", Some("new")),
        ("/old.js", Some("only old")),
        ("/docs/", Some("docs")),
        ("/docs", Some("a directory")),
        ("/docs/index.html", Some("docs")),
        ("/b/", None),
        ("/", None),
        ("/c", None),
        ("/docs/../a.js", None),
    ] {
        assert_eq!(find(&both, path).as_deref(), wanted, "{path}");
    }
    let mut coming = both.clone();
    coming[0].coming = true;
    assert_eq!(find(&coming, "/a.js").as_deref(), Some("old"));
    assert_eq!(find(&coming, "/b"), None);
    assert_eq!(find(&[], "/a.js"), None);
}

#[test]
fn the_form_is_chosen_by_what_the_client_likes_best() {
    let files = [("/a.js", "plain"), ("/a.js.br", "b"), ("/a.js.gz", "g")];
    let set = Set::new(&set(&files));
    let served = &set.by_path["/a.js"];
    assert!(served.varies() && !set.by_path["/a.js.br"].varies());
    assert_eq!(served.content_type, "text/javascript; charset=utf-8");
    for (accepted, wanted) in [
        ("gzip, br", Some(Encoding::Br)),
        ("gzip, br;q=0.5", Some(Encoding::Gzip)),
        ("zstd", None),
        ("br;q=0", None),
        ("", None),
    ] {
        let head = format!("GET / HTTP/1.1\r\nAccept-Encoding: {accepted}\r\n\r\n");
        let (file, encoding) = served.form(Headers::Raw(head.as_bytes()));
        assert_eq!(encoding, wanted, "{accepted}");
        let size = if encoding.is_some() { 1 } else { 5 };
        assert_eq!(file.size, size);
    }
    assert_eq!(content_type("/logo.svg"), "image/svg+xml");
    assert_eq!(content_type("/a/CNAME"), "application/octet-stream");
}
