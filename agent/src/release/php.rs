//! PHP: Composer installs what `composer.json` asks for; php-fpm runs scripts, behind a web server of the agent
//! ([`crate::web`]) that serves what is no script.

use super::build::{Made, Site, Step};
use super::install::Packages;
use super::node::{hand_over, take_back};
use super::{Fault, Workshop, programs, runtimes};
use std::fs;
use std::path::Path;

const COMPOSER: Packages = Packages {
    what: "Composer",
    apt: "composer",
    dnf: "composer",
    apk: "composer",
    zypper: "php-composer2",
    stop: "",
    otherwise: "or put `vendor` into the bundle",
};
/// Options that become settings of PHP (EB guide, "create_deploy_PHP.container").
const SETTINGS: [&str; 5] = [
    "memory_limit",
    "zlib.output_compression",
    "allow_url_fopen",
    "display_errors",
    "max_execution_time",
];
/// Most requests that one instance runs at once, each in a process of php-fpm. FPM's own example has 5.
const CHILDREN: u32 = 10;
/// The name of php-fpm's configuration, beside the release's tree.
const CONFIGURATION: &str = "php-fpm.conf";

/// Installs what a bundle needs, and says how its processes start.
pub async fn install(
    workshop: &Workshop,
    site: &Site<'_>,
    from_procfile: bool,
) -> Result<Made, Fault> {
    let others = site.user.is_some();
    composer(workshop, site).await?;
    let mut made = Made::default();
    if from_procfile {
        return Ok(made);
    }
    let fpm = workshop.runtime(site, &runtimes::PHP_FPM, None);
    let fpm = fpm.await?;
    let program = super::own_program(workshop, others)?;
    let root = document_root(site)?;
    let directory = site.platform_directory()?;
    let configuration = directory.join(CONFIGURATION);
    fs::write(&configuration, configuration_of(site)?)
        .map_err(|error| Fault::io("write", &configuration, &error))?;
    let place = workshop.layout.release(&site.order.key);
    let quoted = |path: &Path| programs::quoted(&path.to_string_lossy());
    made.processes = Some(vec![
        (
            "web".to_owned(),
            format!(
                "exec {} web {} --fastcgi \"$HOME/php.sock\"",
                quoted(&program),
                quoted(&place.join("app").join(root)),
            ),
        ),
        (
            "php".to_owned(),
            format!(
                "rm -f \"$HOME/php.sock\"; exec {} --nodaemonize --force-stderr --fpm-config {}",
                quoted(&fpm.program.path),
                quoted(&place.join(super::PLATFORM).join(CONFIGURATION)),
            ),
        ),
    ]);
    Ok(made)
}

async fn composer(workshop: &Workshop, site: &Site<'_>) -> Result<(), Fault> {
    if !site.tree.join("composer.json").is_file() || site.tree.join("vendor").is_dir() {
        return Ok(());
    }
    let composer = workshop.require(site, "composer", &COMPOSER).await?;
    let mut arguments = vec!["install", "--no-dev", "--no-interaction", "--prefer-dist"];
    let options = site.order.options.get("composer_options");
    arguments.extend(options.map_or("", |text| text).split_whitespace());
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let path = programs::path_with([composer.directory.as_path()]);
    let step = Step {
        program: &composer.path,
        arguments: &arguments,
        directory: &site.tree,
        path: &path,
    };
    hand_over(site).await?;
    workshop.run(site, &step).await?;
    take_back(site).await
}

/// The option `document_root`, below the tree.
fn document_root(site: &Site<'_>) -> Result<String, Fault> {
    let option = site.order.options.get("document_root");
    let root = option.map_or("", |text| text).trim_matches('/').to_owned();
    let inside = !Path::new(&root)
        .components()
        .any(|part| !matches!(part, std::path::Component::Normal(_)));
    if inside && site.tree.join(&root).is_dir() {
        return Ok(root);
    }
    Err(Fault::new(
        "option-invalid",
        format!(
            "The option document_root is `/{}`, and the bundle has no such directory.",
            root.escape_debug()
        ),
    ))
}

/// What php-fpm is told: its socket is in the home directory of the instance, which it starts in the place of.
fn configuration_of(site: &Site<'_>) -> Result<String, Fault> {
    let mut text = format!(
        "[global]\nerror_log = /dev/null\ndaemonize = no\n\n[web]\nlisten = ${{HOME}}/php.sock\n\
         pm = dynamic\npm.max_children = {CHILDREN}\npm.start_servers = 2\npm.min_spare_servers = 1\n\
         pm.max_spare_servers = 3\ncatch_workers_output = yes\ndecorate_workers_output = no\nclear_env = no\n\
         php_admin_flag[log_errors] = on\n"
    );
    for name in SETTINGS {
        let Some(value) = site.order.options.get(name) else {
            continue;
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if value.is_empty() || !value.bytes().all(plain) {
            return Err(Fault::new(
                "option-invalid",
                format!(
                    "The option {name} is `{}`, which is no value of PHP's.",
                    value.escape_debug()
                ),
            ));
        }
        text.push_str(&format!("php_value[{name}] = {value}\n"));
    }
    Ok(text)
}
