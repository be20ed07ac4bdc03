//! What there is to say of each platform: for `beanpole platform list` and the reference page, which is written from
//! here by a test that also finds every test that is named.

use super::Top;
use beanpole_protocol::agent::Platform;

/// A platform, for people.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Which.
    pub platform: Platform,
    /// The files by which it is found, the surest first.
    pub known_by: &'static [&'static str],
    /// What is installed.
    pub installs: &'static str,
    /// What starts where no `Procfile` says so.
    pub starts: &'static str,
    /// What decides the version of its runtime, besides the option `RuntimeVersion`.
    pub version: &'static str,
    /// Elastic Beanstalk's branch of the same name.
    pub eb: &'static str,
    /// Features, each with the test that shows it on a host with the real runtime; no test where nothing shows it yet.
    pub verified: &'static [(&'static str, Option<&'static str>)],
}

const INSTALLED: Option<&str> =
    Some("platforms::runtimes_are_installed_at_their_first_use_and_run_applications");

const CONTAINERS: Option<&str> =
    Some("containers::applications_in_containers_are_built_run_healed_and_rolled_back");

/// Every platform, in the order in which they are looked for.
pub const ABOUT: [About; 11] = [
    About {
        platform: Platform::Node,
        known_by: &["package.json"],
        installs: "npm ci or npm install; Yarn or pnpm where their lock file is there",
        starts: "npm start, else app.js, else server.js",
        version: "engines.node of package.json",
        eb: "Node.js",
        verified: &[
            ("runtime installed, packages, start", INSTALLED),
            (
                "packages of the registry, npm ci",
                Some("examples::node_hello"),
            ),
            ("Yarn, pnpm", None),
        ],
    },
    About {
        platform: Platform::Python,
        known_by: &[
            "requirements.txt",
            "Pipfile.lock",
            "Pipfile",
            "pyproject.toml",
            "application.py",
            "manage.py",
        ],
        installs: "a virtualenv with the first of requirements.txt, Pipfile.lock, Pipfile, pyproject.toml",
        starts: "gunicorn or uvicorn, with what WSGIPath names or sources make",
        version: ".python-version, runtime.txt",
        eb: "Python",
        verified: &[
            (
                "gunicorn and packages of the registry",
                Some("examples::python_hello"),
            ),
            ("Flask found by itself", INSTALLED),
            (
                "FastAPI found by itself, uvicorn, pyproject.toml",
                INSTALLED,
            ),
            ("Django, Pipfile", None),
        ],
    },
    About {
        platform: Platform::Ruby,
        known_by: &["Gemfile", "config.ru"],
        installs: "bundle install, unless the host's own gems will do",
        starts: "Puma, else rackup",
        version: "the host's",
        eb: "Ruby",
        verified: &[
            ("Rack and Puma with the distribution's gems", INSTALLED),
            ("gems of a registry, Rails", None),
        ],
    },
    About {
        platform: Platform::Php,
        known_by: &["composer.json", "index.php", "public/index.php"],
        installs: "composer install, unless vendor is there",
        starts: "php-fpm behind a web server of the agent",
        version: "the host's",
        eb: "PHP",
        verified: &[
            (
                "php-fpm, front controller, files, options of php.ini",
                INSTALLED,
            ),
            ("Composer", None),
        ],
    },
    About {
        platform: Platform::Go,
        known_by: &["go.mod", "application.go", "bin/application"],
        installs: "go build, with a cache of modules for the application",
        starts: "bin/application",
        version: "the host's",
        eb: "Go",
        verified: &[("module built on the host", INSTALLED)],
    },
    About {
        platform: Platform::Tomcat,
        known_by: &["WEB-INF", "*.war"],
        installs: "nothing",
        starts: "Tomcat, with a CATALINA_BASE for each instance",
        version: "java.runtime.version of system.properties",
        eb: "Tomcat",
        verified: &[
            ("exploded WAR, JSP, properties, heap", INSTALLED),
            ("several WARs", None),
        ],
    },
    About {
        platform: Platform::Java,
        known_by: &[
            "*.jar",
            "META-INF/MANIFEST.MF",
            "pom.xml",
            "build.gradle",
            "build.gradle.kts",
        ],
        installs: "what the Buildfile does, else Maven or Gradle where there is a project and no JAR",
        starts: "java -jar with the one JAR",
        version: "java.runtime.version of system.properties",
        eb: "Corretto (Java SE)",
        verified: &[("Buildfile, JAR, heap", INSTALLED), ("Maven, Gradle", None)],
    },
    About {
        platform: Platform::Dotnet,
        known_by: &["*.runtimeconfig.json"],
        installs: "nothing",
        starts: "dotnet with the published DLL, or what brings its runtime",
        version: "the host's",
        eb: ".NET on Linux",
        verified: &[
            (
                "published DLL on .NET Core 3.1",
                Some("platforms::what_was_published_for_dotnet_runs_on_it"),
            ),
            ("self-contained executable, ASP.NET Core", None),
        ],
    },
    About {
        platform: Platform::Docker,
        known_by: &[
            "Dockerrun.aws.json",
            "Dockerfile",
            "compose.yaml",
            "compose.yml",
            "docker-compose.yml",
            "docker-compose.yaml",
        ],
        installs: "images, built by the Dockerfile or pulled; Docker Engine",
        starts: "containers: one, those of Dockerrun.aws.json version 2, or Compose's services",
        version: "none",
        eb: "Docker; ECS",
        verified: &[
            ("Dockerfile built on the host", CONTAINERS),
            ("Dockerrun.aws.json version 1, pulled from a registry", None),
            ("Dockerrun.aws.json version 2, volumes", CONTAINERS),
            ("docker-compose.yml", CONTAINERS),
            ("a language in an image (BaseImage)", CONTAINERS),
        ],
    },
    About {
        platform: Platform::Procfile,
        known_by: &["Procfile"],
        installs: "nothing",
        starts: "what the Procfile says",
        version: "none",
        eb: "none: any executable",
        verified: &[
            ("one process", Some("examples::procfile_hello")),
            (
                "several processes",
                Some(
                    "processes::a_second_process_takes_over_its_paths_and_hosts_without_a_lost_request",
                ),
            ),
        ],
    },
    About {
        platform: Platform::Static,
        known_by: &[
            "dist/index.html",
            "build/index.html",
            "public/index.html",
            "_site/index.html",
            "out/index.html",
            "index.html",
        ],
        installs: "nothing",
        starts: "the agent's web server, with 404.html or the option Fallback",
        version: "none",
        eb: "none: files",
        verified: &[("directory, 404.html", INSTALLED)],
    },
];

/// The file by which a platform is found in a bundle; none where it was chosen.
pub fn sign<T: Top>(top: &T, platform: Platform) -> Option<String> {
    let about = ABOUT.iter().find(|about| about.platform == platform)?;
    about
        .known_by
        .iter()
        .find_map(|name| match name.strip_prefix('*') {
            Some(ending) => super::ending_in(top, ending).into_iter().next(),
            None if *name == "WEB-INF" => super::is_exploded_war(top).then(|| (*name).to_owned()),
            None => top.has_file(name).then(|| (*name).to_owned()),
        })
}
