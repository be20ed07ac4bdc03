//! A language platform in an image: the application added to a base image that has the language, its packages installed
//! there (EB guide, "create_deploy_dockerpreconfig"). What starts is what starts on a host.

use super::{Container, Containers, INVALID, Image};
use crate::Refused;
use crate::platform::{
    PackageManager, Plan, Requirements, Top, WEB, has_gemfile, package_manager, requirements,
};
use beanpole_protocol::agent::Platform;

/// The option that names the base image.
pub const BASE_IMAGE: &str = "BaseImage";
/// Where the web process listens, which its `PORT` says.
const PORT: u16 = 8080;
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// What runs a bundle, which `plan` says how to run on a host, on top of the image `base`.
pub(crate) fn made<T: Top>(top: &mut T, plan: &Plan, base: &str) -> Result<Containers, T::Error> {
    if !super::is_image(base) {
        return Err(Refused::new(
            "option-invalid",
            format!(
                "The option {BASE_IMAGE} is `{}`, which is not the name of an image.",
                crate::shown(base)
            ),
        )
        .into());
    }
    let steps = steps(top, plan)?;
    let image = Image::Made {
        base: base.to_owned(),
        steps,
    };
    let mut found = Containers::default();
    for (name, command) in &plan.processes {
        found.containers.push(Container {
            entrypoint: Some(SHELL.map(str::to_owned).to_vec()),
            command: Some(vec![command.clone()]),
            port: (name == WEB).then_some(PORT),
            ..super::container(name, image.clone())
        });
    }
    if found.containers.is_empty() {
        return Err(Refused::new(
            INVALID,
            format!(
                "Nothing says what to start in the image of {BASE_IMAGE}: put a Procfile with a line such as `web: java \
                 -jar target/app.jar` at the top of the bundle."
            ),
        )
        .into());
    }
    if plan.release_command.is_some() {
        found
            .passed_over
            .push("the `release` command, which would not find its image".to_owned());
    }
    Ok(found)
}

/// What installs and builds it, a line for a shell each.
fn steps<T: Top>(top: &mut T, plan: &Plan) -> Result<Vec<String>, T::Error> {
    let mut steps: Vec<String> = Vec::new();
    match plan.platform {
        Platform::Node => steps.extend(node(top)),
        Platform::Python => {
            if let Some(found) = requirements(top)? {
                steps.push(pip(&found).to_owned());
            }
            let server = plan.processes.iter().find(|(name, _)| name == WEB);
            let server = server.and_then(|(_, command)| command.split(' ').next());
            if let Some(server @ ("gunicorn" | "uvicorn")) = server.filter(|_| !plan.from_procfile)
            {
                steps.push(format!("pip install --no-cache-dir {server}"));
            }
        }
        Platform::Ruby if has_gemfile(top) => steps.push("bundle install".to_owned()),
        Platform::Php | Platform::Tomcat | Platform::Static => {
            return Err(Refused::new(
                INVALID,
                format!(
                    "The option {BASE_IMAGE} is not for {}: write a Dockerfile, or take the option out.",
                    plan.platform.title()
                ),
            )
            .into());
        }
        _ => {}
    }
    steps.extend(plan.build.iter().map(|(_, command)| command.clone()));
    Ok(steps)
}

fn node<T: Top>(top: &T) -> Option<String> {
    let has_modules = top
        .names()
        .iter()
        .any(|(name, is_directory)| *is_directory && name == "node_modules");
    if has_modules || !top.has_file("package.json") {
        return None;
    }
    let manager = package_manager(top);
    let is_locked = manager.lock_files().iter().any(|name| top.has_file(name));
    let step = match (manager, is_locked) {
        (PackageManager::Npm, true) => "npm ci --omit=dev",
        (PackageManager::Npm, false) => "npm install --omit=dev",
        (PackageManager::Yarn, _) => "yarn install --production --frozen-lockfile",
        (PackageManager::Pnpm, _) => "corepack enable && pnpm install --prod --frozen-lockfile",
    };
    Some(step.to_owned())
}

fn pip(found: &Requirements) -> &'static str {
    match found {
        Requirements::Text(_) => "pip install --no-cache-dir -r requirements.txt",
        Requirements::Locked(_) => {
            "pip install --no-cache-dir pipenv && pipenv install --system --deploy"
        }
        Requirements::Pipfile(_) => {
            "pip install --no-cache-dir pipenv && pipenv install --system --skip-lock"
        }
        Requirements::Project(_) => "pip install --no-cache-dir .",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{self, Directory, Options};
    use std::fs;

    fn found(files: &[(&str, &str)], base: &str) -> Result<Plan, Refused> {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            fs::write(tree.path().join(name), content).expect("written");
        }
        let options = Options::from([(BASE_IMAGE.to_owned(), base.to_owned())]);
        platform::find(&mut Directory(tree.path()), Platform::Auto, &options)
    }

    #[test]
    fn a_language_platform_runs_in_an_image_with_its_packages_installed_there() {
        let app = "from flask import Flask\napp = Flask(__name__)\n";
        let files = [("requirements.txt", "flask\n"), ("app.py", app)];
        let plan = found(&files, "python:3.12-slim").expect("it runs");
        assert_eq!(plan.platform, Platform::Docker);
        assert_eq!(plan.processes[0].1, "docker run, made of python:3.12-slim");
        let containers = plan.containers.expect("containers");
        let [web] = &containers.containers[..] else {
            panic!("{containers:?}");
        };
        assert_eq!(web.port, Some(PORT));
        let command = web.command.as_ref().expect("a command");
        assert!(
            command[0].starts_with("gunicorn --bind 0.0.0.0:$PORT"),
            "{command:?}"
        );
        let steps = [
            "pip install --no-cache-dir -r requirements.txt",
            "pip install --no-cache-dir gunicorn",
        ];
        assert!(matches!(&web.image, Image::Made { steps: made, .. } if *made == steps));

        let files = [
            ("package.json", "{}"),
            ("package-lock.json", "{}"),
            ("Procfile", "web: node a.js\njobs: node b.js\n"),
        ];
        let containers = found(&files, "node:20")
            .expect("it runs")
            .containers
            .expect("containers");
        assert_eq!(containers.containers.len(), 2);
        assert_eq!(containers.containers[1].port, None);
        assert!(
            matches!(&containers.containers[1].image, Image::Made { steps, .. } if *steps == ["npm ci --omit=dev"])
        );
    }

    #[test]
    fn what_cannot_be_made_so_is_refused_with_what_to_do() {
        let node = [("package.json", "{}"), ("app.js", "")];
        for (files, base, says) in [
            (&node[..], "a b", "not the name of an image"),
            (&[("index.html", "")][..], "nginx", "write a Dockerfile"),
            (&[("pom.xml", "")][..], "maven", "put a Procfile"),
        ] {
            let refused = found(files, base).expect_err(says);
            assert!(refused.message.contains(says), "{refused}");
        }
        let dockerfile = [("Dockerfile", "FROM a\nEXPOSE 1\n")];
        let plan = found(&dockerfile, "python:3").expect("it says itself what it begins with");
        let containers = plan.containers.expect("containers");
        assert!(matches!(
            containers.containers[0].image,
            Image::Build { .. }
        ));
    }
}
