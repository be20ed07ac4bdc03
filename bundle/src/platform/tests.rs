use super::*;
use std::fs;

/// A directory with these files; those without content are empty.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let top = tempfile::tempdir().expect("temporary directory");
    for (name, content) in files {
        let path = top.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("make");
        fs::write(path, content).expect("write");
    }
    top
}

fn found(
    files: &[(&str, &str)],
    platform: Platform,
    options: &[(&str, &str)],
) -> Result<Plan, Refused> {
    let top = tree(files);
    let set = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let options = options.iter().map(set).collect();
    find(&mut Directory(top.path()), platform, &options)
}

/// The platform that is found, what builds it and what `web` starts.
fn auto(files: &[(&str, &str)]) -> (Platform, String, String) {
    let plan = found(files, Platform::Auto, &[]).expect("found");
    let first = |all: &[(String, String)]| {
        all.first()
            .map_or(String::new(), |(_, command)| command.clone())
    };
    (plan.platform, first(&plan.build), first(&plan.processes))
}

#[test]
fn each_platform_is_found_by_its_files_and_knows_what_to_start() {
    let gunicorn = "gunicorn --bind 0.0.0.0:$PORT --workers 1 --threads 15";
    for (files, platform, build, start) in [
        (
            &[("package.json", r#"{"scripts":{"start":"x"}}"#)][..],
            Platform::Node,
            "",
            "npm start",
        ),
        (
            &[("package.json", "{}"), ("server.js", "")],
            Platform::Node,
            "",
            "node server.js",
        ),
        (
            &[("requirements.txt", "")],
            Platform::Python,
            "",
            &format!("{gunicorn} application:application"),
        ),
        (
            &[("Pipfile", ""), ("app.py", "app = Flask(__name__)")],
            Platform::Python,
            "",
            &format!("{gunicorn} app:app"),
        ),
        (
            &[("pyproject.toml", ""), ("main.py", "api = FastAPI()")],
            Platform::Python,
            "",
            "uvicorn --host 0.0.0.0 --port $PORT --workers 1 main:api",
        ),
        (
            &[
                (
                    "manage.py",
                    "setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')",
                ),
                ("shop/wsgi.py", ""),
                ("package.json", "{}"),
                ("requirements.txt", ""),
            ],
            Platform::Python,
            "",
            &format!("{gunicorn} shop.wsgi:application"),
        ),
        (
            &[("config.ru", "")],
            Platform::Ruby,
            "",
            "puma -b tcp://0.0.0.0:$PORT",
        ),
        (
            &[
                ("Gemfile", ""),
                ("config.ru", ""),
                ("package.json", "{}"),
                ("Gemfile.lock", "GEM\n  specs:\n    rack (3.0)\n"),
            ],
            Platform::Ruby,
            "",
            "bundle exec rackup -o 0.0.0.0 -p $PORT",
        ),
        (
            &[("index.php", ""), ("package.json.txt", "")],
            Platform::Php,
            "",
            "php-fpm",
        ),
        (
            &[("go.mod", ""), ("main.go", "package main\n")],
            Platform::Go,
            "go build -o bin/application .",
            "bin/application",
        ),
        (
            &[("application.go", "")],
            Platform::Go,
            "go build -o bin/application application.go",
            "bin/application",
        ),
        (
            &[("bin/application", ""), ("go.mod", "")],
            Platform::Go,
            "",
            "bin/application",
        ),
        (
            &[("shop 1.jar", "")],
            Platform::Java,
            "",
            "java -jar 'shop 1.jar'",
        ),
        (
            &[("META-INF/MANIFEST.MF", "")],
            Platform::Java,
            "",
            "java -jar application.jar",
        ),
        (
            &[("pom.xml", ""), ("mvnw", "")],
            Platform::Java,
            "sh ./mvnw -B -q -DskipTests package",
            "",
        ),
        (
            &[
                ("build.gradle", ""),
                ("build/libs/a.jar", ""),
                ("build/libs/a-plain.jar", ""),
            ],
            Platform::Java,
            "gradle --console=plain assemble",
            "java -jar build/libs/a.jar",
        ),
        (&[("shop.war", "")], Platform::Tomcat, "", "catalina.sh run"),
        (
            &[("WEB-INF/web.xml", ""), ("META-INF/MANIFEST.MF", "")],
            Platform::Tomcat,
            "",
            "catalina.sh run",
        ),
        (
            &[("Shop.runtimeconfig.json", "{}"), ("Shop.dll", "")],
            Platform::Dotnet,
            "",
            "dotnet Shop.dll",
        ),
        (
            &[
                (
                    "Shop.runtimeconfig.json",
                    r#"{"runtimeOptions":{"includedFrameworks":[]}}"#,
                ),
                ("Shop", ""),
            ],
            Platform::Dotnet,
            "",
            "./Shop",
        ),
        (
            &[("Procfile", "web: ./x\n"), ("index.html", "")],
            Platform::Procfile,
            "",
            "./x",
        ),
        (
            &[("dist/index.html", ""), ("index.html", "")],
            Platform::Static,
            "",
            "beanpole web dist",
        ),
    ] {
        let wanted = (platform, build.to_owned(), start.to_owned());
        assert_eq!(auto(files), wanted, "{files:?}");
    }
}

#[test]
fn a_procfile_and_a_buildfile_come_before_what_the_platform_does() {
    let files = [
        ("go.mod", ""),
        ("main.go", "package main\n"),
        ("Procfile", "web: ./server\n"),
        ("Buildfile", "make: go build -o server .\n"),
    ];
    let plan = found(&files, Platform::Auto, &[]).expect("found");
    assert!(plan.from_procfile);
    assert_eq!(plan.processes, [("web".to_owned(), "./server".to_owned())]);
    assert_eq!(
        plan.build,
        [("make".to_owned(), "go build -o server .".to_owned())]
    );
    let refused = found(
        &[("Buildfile", "no colon"), ("app.js", "")],
        Platform::Node,
        &[],
    );
    let refused = refused.expect_err("a line without a colon");
    assert!(
        refused.message.contains("Line 1 of the Buildfile"),
        "{refused}"
    );
}

#[test]
fn rails_builds_its_assets_and_migrates_once() {
    let files = [
        ("Gemfile", ""),
        ("config.ru", ""),
        (
            "Gemfile.lock",
            "GEM\n  specs:\n    puma (6.4)\n    rails (7.1.3)\n      rack (3.0)\n",
        ),
    ];
    let plan = found(&files, Platform::Auto, &[]).expect("found");
    assert!(plan.build[0].1.ends_with("assets:precompile"), "{plan:?}");
    let migration = plan.release_command.expect("a migration");
    assert!(migration.contains("RAILS_SKIP_MIGRATIONS"), "{migration}");
    let top = tree(&[&files[..], &[("Procfile", "release: ./own\nweb: x\n")]].concat());
    let named = named(&mut Directory(top.path()), Platform::Auto).expect("read");
    assert_eq!(named.release_command.as_deref(), Some("./own"));
}

#[test]
fn several_wars_answer_at_their_names() {
    let top = tree(&[("ROOT.war", ""), ("shop.war", ""), ("shop#v2.war", "")]);
    let wars = wars(&Directory(top.path())).expect("wars");
    let contexts: Vec<_> = wars.iter().map(|war| war.context.as_str()).collect();
    assert_eq!(contexts, ["ROOT", "shop#v2", "shop"]);
    let alone = tree(&[("shop.war", "")]);
    let wars = super::wars(&Directory(alone.path())).expect("one");
    assert_eq!(wars[0].context, "ROOT");
    let odd = found(&[("a.war", ""), ("b c.war", "")], Platform::Tomcat, &[]);
    assert!(odd.expect_err("no path").message.contains("b c.war"));
}

#[test]
fn options_decide_what_starts() {
    let plan = |files, platform, options| found(files, platform, options).expect("found").processes;
    let python = &[("requirements.txt", "")][..];
    let web = plan(
        python,
        Platform::Auto,
        &[("WSGIPath", "shop/asgi.py:app"), ("NumProcesses", "3")],
    );
    assert_eq!(
        web[0].1,
        "uvicorn --host 0.0.0.0 --port $PORT --workers 3 shop.asgi:app"
    );
    let web = plan(python, Platform::Auto, &[("Interface", "ASGI")]);
    assert!(web[0].1.starts_with("uvicorn"), "{web:?}");
    let java = &[("a.jar", "")][..];
    let options = [
        ("Xmx", "1g"),
        ("JVM Options", "-Da=b  -ea"),
        ("-XX:MaxMetaspaceSize", "64m"),
    ];
    let web = plan(java, Platform::Auto, &options);
    assert_eq!(
        web[0].1,
        "java -Xmx1g -Da=b -ea -XX:MaxMetaspaceSize=64m -jar a.jar"
    );
    let web = plan(
        &[("site/x.html", "")],
        Platform::Static,
        &[("Root", "/site/")],
    );
    assert_eq!(web[0].1, "beanpole web site");
    for (name, value) in [("WSGIPath", "a; reboot"), ("NumProcesses", "$(reboot)")] {
        let refused = found(python, Platform::Auto, &[(name, value)]).expect_err(value);
        assert_eq!(refused.code, "option-invalid");
    }
}

#[test]
fn what_says_nothing_or_too_much_is_refused_with_its_reason() {
    for (files, platform, says) in [
        (
            &[("a.jar", ""), ("b.jar", "")][..],
            Platform::Auto,
            "2 JARs at its top (a.jar, b.jar)",
        ),
        (&[("readme", "")], Platform::Tomcat, "no WAR for Tomcat"),
        (
            &[("go.mod", "")],
            Platform::Auto,
            "main package is not at the top",
        ),
        (&[("Gemfile", "")], Platform::Auto, "no config.ru"),
        (
            &[("readme", "")],
            Platform::Dotnet,
            "no *.runtimeconfig.json",
        ),
        (
            &[("a.runtimeconfig.json", ""), ("b.runtimeconfig.json", "")],
            Platform::Auto,
            "several .NET applications",
        ),
        (&[("readme", "")], Platform::Static, "no index.html"),
        (&[("readme", "")], Platform::Java, "no JAR at its top"),
    ] {
        let refused = found(files, platform, &[]).expect_err(says);
        assert_eq!(refused.code, "no-platform");
        assert!(refused.message.contains(says), "{refused}");
    }
}

#[test]
fn a_word_for_a_shell_stays_one_word() {
    assert_eq!(quoted("a-b/c.jar"), "a-b/c.jar");
    assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    assert_eq!(quoted(""), "''");
}
