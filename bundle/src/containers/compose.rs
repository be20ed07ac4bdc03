//! Several containers as Compose's specification has them: `docker-compose.yml` (EB guide, "create_deploy_docker",
//! "docker-compose.yml"). All services share a network, in which they meet by their names.

use super::keys;
use super::variables::{self, Lacks, Variables};
use super::{Container, Containers, From, INVALID, Image, LONGEST, MOST, Mount, Published};
use crate::Refused;
use crate::config::File;
use crate::platform::Top;
use crate::yaml::{Node, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Where EB has a directory for the logs of each service.
const LOGS: &str = "/var/log/eb-docker/containers";
/// Keys of a service that change nothing that matters here: what they are for is had otherwise.
const OF_NO_USE: [&str; 9] = [
    "container_name",
    "expose",
    "labels",
    "logging",
    "networks",
    "pull_policy",
    "stdin_open",
    "stop_grace_period",
    "tty",
];
/// Keys by which a service would share what belongs to its host.
const OF_ROOT: [&str; 9] = [
    "devices",
    "ipc",
    "network_mode",
    "pid",
    "security_opt",
    "sysctls",
    "userns_mode",
    "cgroup_parent",
    "uts",
];

/// Reads the file `name`.
pub(super) fn read<T: Top>(
    top: &mut T,
    name: &str,
    variables: Option<&BTreeMap<String, String>>,
) -> Result<Containers, T::Error> {
    let file = File {
        name: name.to_owned(),
        code: INVALID,
        longest: LONGEST,
    };
    let bytes = top.head(name, LONGEST + 1)?.unwrap_or_default();
    let Some(mut node) = file.parse(&bytes)? else {
        return Err(file.line(1).refuse("it names no service").into());
    };
    // EB writes the properties to `.env`, unless the bundle has one, which Compose reads.
    let mut all = match top.head(".env", LONGEST + 1)? {
        Some(bytes) => environment_file(".env", &bytes)?,
        None => BTreeMap::new(),
    };
    all.extend(variables.cloned().unwrap_or_default());
    all.insert("EB_LOG_BASE_DIR".to_owned(), LOGS.to_owned());
    let fills = Variables {
        known: &all,
        others: variables.is_none(),
    };
    variables::fill(&mut node, &fills).map_err(|(line, Lacks(name))| {
        file.line(line).refuse(format!(
            "the variable `{}` is needed and not set: beanpole setenv ENV {}=VALUE",
            crate::shown(&name),
            crate::shown(&name)
        ))
    })?;
    let mut reading = Reading {
        file: &file,
        found: Containers::default(),
        volumes: BTreeSet::new(),
        ports: Vec::new(),
        environment_files: Vec::new(),
        depends: Vec::new(),
    };
    reading.all(&node)?;
    let files = std::mem::take(&mut reading.environment_files);
    for (index, path, line) in files {
        // What EB writes is what the container gets anyway.
        let read = match top.head(&path, LONGEST + 1)? {
            Some(bytes) => environment_file(&path, &bytes)?,
            None if path == ".env" => BTreeMap::new(),
            None => {
                return Err(file
                    .line(line)
                    .refuse(format!(
                        "`env_file` names {path}, which the bundle does not have"
                    ))
                    .into());
            }
        };
        let own = &mut reading.found.containers[index].environment;
        for (name, value) in read {
            own.entry(name).or_insert(value);
        }
    }
    Ok(reading.finish()?)
}

/// The variables of a file with lines `NAME=VALUE`.
fn environment_file(name: &str, bytes: &[u8]) -> Result<BTreeMap<String, String>, Refused> {
    let refuse = |line: usize, why: &str| {
        Err(Refused::new(
            INVALID,
            format!("{}, line {line}: {why}.", crate::shown(name)),
        ))
    };
    if bytes.len() as u64 > LONGEST {
        return refuse(1, &format!("the file is longer than {LONGEST} bytes"));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return refuse(1, "the file is not UTF-8 text");
    };
    let mut all = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            // Without a value it is the environment's, which the container has anyway.
            continue;
        };
        let name = name.trim();
        if name.is_empty() || line.contains('\0') {
            return refuse(number + 1, "is no line `NAME=VALUE`");
        }
        let value = value.trim();
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        all.insert(name.to_owned(), value.to_owned());
    }
    Ok(all)
}

struct Reading<'r> {
    file: &'r File,
    found: Containers,
    /// The names of the volumes.
    volumes: BTreeSet<String>,
    ports: Vec<Published>,
    /// Whose, which, and the line that names it.
    environment_files: Vec<(usize, String, usize)>,
    /// Which container starts after which, and the line that says so.
    depends: Vec<(usize, String, usize)>,
}

impl Reading<'_> {
    fn all(&mut self, node: &Node) -> Result<(), Refused> {
        let file = self.file;
        let pairs = file.pairs(node, &file.name)?;
        let mut services = None;
        for (line, key, value) in pairs {
            match key {
                "services" => services = Some(value),
                "version" | "name" | "networks" => {}
                key if key.starts_with("x-") => {}
                "volumes" => {
                    if !value.is_null() {
                        for (_, name, options) in
                            file.named(value, "volumes", ("a volume", super::is_name))?
                        {
                            self.volumes.insert(name.to_owned());
                            if !options.is_null() {
                                self.over(
                                    &format!("the options of the volume `{name}`"),
                                    options.line,
                                );
                            }
                        }
                    }
                }
                other => self.over(&format!("`{}`", crate::shown(other)), line),
            }
        }
        let Some(services) = services else {
            return Err(file.line(node.line).refuse("it has no `services`"));
        };
        let named = file.named(services, "services", ("a service", super::is_name))?;
        for (line, name, service) in named {
            if self.found.containers.len() == MOST {
                return Err(file
                    .line(line)
                    .refuse(format!("there are more services than the {MOST} allowed")));
            }
            self.service(line, name, service)?;
        }
        if self.found.containers.is_empty() {
            return Err(file.at(services).refuse("it names no service"));
        }
        Ok(())
    }

    fn over(&mut self, what: &str, line: usize) {
        let text = format!("{what} in {}, line {line}", self.file.name);
        self.found.passed_over.push(text);
    }

    fn service(&mut self, line: usize, name: &str, node: &Node) -> Result<(), Refused> {
        let file = self.file;
        let index = self.found.containers.len();
        let pairs = file.pairs(node, &format!("the service `{name}`"))?;
        let value_of = |key: &str| {
            let found = pairs.iter().find(|(_, known, _)| *known == key);
            found.map(|pair| pair.2).filter(|value| !value.is_null())
        };
        if let Some(profiles) = value_of("profiles") {
            // As `docker compose up` without any profile.
            self.over(&format!("the service `{name}` of a profile"), profiles.line);
            return Ok(());
        }
        let image = match (value_of("build"), value_of("image")) {
            (Some(build), _) => self.build(build, name)?,
            (None, Some(image)) => {
                let text = file.text(image, "`image`")?;
                if !super::is_image(text) {
                    return Err(file.wrong(
                        image,
                        &format!("`image` of `{name}`"),
                        "the name of an image",
                    ));
                }
                Image::Pull {
                    name: text.to_owned(),
                    update: false,
                }
            }
            (None, None) => {
                return Err(file.line(line).refuse(format!(
                    "the service `{name}` has neither `image` nor `build`"
                )));
            }
        };
        let mut one = super::container(name, image);
        // What is not to be started again ends alone.
        one.essential = value_of("restart").is_none_or(|restart| restart.text() != Some("no"));
        for (line, key, value) in &pairs {
            if !value.is_null() {
                self.key(&mut one, index, (*line, key, value))?;
            }
        }
        self.found.containers.push(one);
        Ok(())
    }

    fn build(&mut self, node: &Node, name: &str) -> Result<Image, Refused> {
        let file = self.file;
        let what = format!("`build` of `{name}`");
        let (mut context, mut dockerfile) = (String::new(), super::DOCKERFILE.to_owned());
        let (mut arguments, mut target) = (BTreeMap::new(), None);
        let in_bundle = |node: &Node| {
            let text = file.text(node, &what)?;
            super::in_bundle(text).ok_or_else(|| {
                file.at(node).refuse(format!(
                    "{what} leads out of the bundle: `{}`",
                    crate::shown(text)
                ))
            })
        };
        if let Value::Scalar { .. } = node.value {
            context = in_bundle(node)?;
        } else {
            for (line, key, value) in file.pairs(node, &what)? {
                match key {
                    "context" => context = in_bundle(value)?,
                    "dockerfile" => dockerfile = in_bundle(value)?,
                    "args" => arguments = self.variables(value, &what)?,
                    "target" => target = Some(file.text(value, &what)?.to_owned()),
                    other => self.over(&format!("`{}` of {what}", crate::shown(other)), line),
                }
            }
        }
        Ok(Image::Build {
            context,
            file: dockerfile,
            arguments,
            target,
        })
    }

    /// A mapping, or a list of `NAME=VALUE`.
    fn variables(&self, node: &Node, what: &str) -> Result<BTreeMap<String, String>, Refused> {
        if let Value::Mapping(_) = node.value {
            return Ok(self.file.environment(node, what)?.0);
        }
        let mut all = BTreeMap::new();
        for text in self.file.texts(node, what)? {
            // A name alone is the environment's, which the container has anyway.
            if let Some((name, value)) = text.split_once('=') {
                if name.is_empty() || text.contains('\0') {
                    return Err(self.file.wrong(node, what, "`NAME=VALUE`"));
                }
                all.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(all)
    }

    fn key(
        &mut self,
        one: &mut Container,
        index: usize,
        (line, key, value): (usize, &str, &Node),
    ) -> Result<(), Refused> {
        let file = self.file;
        let what = format!("`{key}` of `{}`", one.name);
        match key {
            "image" | "build" | "restart" => {}
            "command" => one.command = keys::command(file, value, &what)?,
            "entrypoint" => one.entrypoint = keys::command(file, value, &what)?,
            "environment" => one.environment.extend(self.variables(value, &what)?),
            "env_file" => self.environment_file(index, value, &what)?,
            "ports" => self.published(index, value, &what)?,
            "volumes" => self.mounts(one, value, &what)?,
            "tmpfs" => {
                for text in file.texts(value, &what)? {
                    let path = text.split(':').next().unwrap_or_default();
                    one.tmpfs.push(keys::inside(file, value, path, &what)?);
                }
            }
            "depends_on" => {
                let names = match &value.value {
                    Value::Mapping(_) => {
                        let pairs = file.pairs(value, &what)?;
                        pairs
                            .into_iter()
                            .map(|(_, name, _)| name.to_owned())
                            .collect()
                    }
                    _ => file.texts(value, &what)?,
                };
                let depends = names.into_iter().map(|name| (index, name, line));
                self.depends.extend(depends);
            }
            "links" => {
                for link in file.texts(value, &what)? {
                    let name = link.split(':').next().unwrap_or_default();
                    self.depends.push((index, name.to_owned(), line));
                    if link.contains(':') {
                        self.over(&format!("the other name in {what}"), line);
                    }
                }
            }
            "user" => one.user = Some(file.text(value, &what)?.to_owned()),
            "working_dir" => {
                let text = file.text(value, &what)?;
                one.directory = Some(keys::inside(file, value, text, &what)?);
            }
            "hostname" => {
                let text = file.text(value, &what)?;
                if !super::is_name(text) {
                    return Err(file.wrong(value, &what, "the name of a host"));
                }
                one.host_names.push(text.to_owned());
            }
            "mem_limit" => one.memory_bytes = Some(keys::bytes(file, value, &what)?),
            "cpus" => one.cpu_millis = Some(self.cpus(value, &what)?),
            "deploy" => self.deploy(one, value, &what)?,
            "read_only" => one.read_only = file.flag(value, &what)?,
            "init" => one.init = file.flag(value, &what)?,
            "stop_signal" => one.stop_signal = Some(keys::signal(file, value, &what)?),
            "extra_hosts" => {
                one.extra_hosts = match &value.value {
                    Value::Mapping(_) => {
                        let pairs = file.environment(value, &what)?.0.into_iter();
                        pairs
                            .map(|(name, address)| format!("{name}:{address}"))
                            .collect()
                    }
                    _ => file.texts(value, &what)?,
                };
            }
            "privileged" => {
                if file.flag(value, &what)? {
                    self.root(line, &what);
                    one.rights.privileged = true;
                }
            }
            "cap_add" => {
                self.root(line, &what);
                one.rights.capabilities = file.texts(value, &what)?;
            }
            other if OF_NO_USE.contains(&other) || other.starts_with("x-") => {}
            other if OF_ROOT.contains(&other) => {
                return Err(file.line(line).refuse(format!(
                    "{what} would have the container share what is its host's, which is not had here"
                )));
            }
            other => self.over(
                &format!("`{}` of `{}`", crate::shown(other), one.name),
                line,
            ),
        }
        Ok(())
    }

    fn root(&mut self, line: usize, what: &str) {
        keys::root(&mut self.found.needs_root, self.file, line, what.to_owned());
    }

    fn cpus(&self, node: &Node, what: &str) -> Result<u64, Refused> {
        let number = node.text().and_then(|text| text.parse::<f64>().ok());
        let number = number.filter(|cpus| (0.01..=1024.0).contains(cpus));
        let number = number.ok_or_else(|| self.file.wrong(node, what, "a number of CPUs"))?;
        Ok((number * 1000.0) as u64)
    }

    fn deploy(&mut self, one: &mut Container, node: &Node, what: &str) -> Result<(), Refused> {
        let file = self.file;
        for (line, key, value) in file.pairs(node, what)? {
            if key != "resources" {
                self.over(&format!("`{}` of {what}", crate::shown(key)), line);
                continue;
            }
            for (_, key, value) in file.pairs(value, what)? {
                if key != "limits" {
                    continue;
                }
                for (_, key, value) in file.pairs(value, what)? {
                    match key {
                        "memory" => one.memory_bytes = Some(keys::bytes(file, value, what)?),
                        "cpus" => one.cpu_millis = Some(self.cpus(value, what)?),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn environment_file(&mut self, index: usize, node: &Node, what: &str) -> Result<(), Refused> {
        let file = self.file;
        let mut paths = Vec::new();
        match &node.value {
            Value::Sequence(items) => {
                for item in items {
                    let path = match &item.value {
                        Value::Mapping(_) => {
                            let pairs = file.pairs(item, what)?;
                            let path = pairs.iter().find(|(_, key, _)| *key == "path");
                            path.map_or(item, |pair| pair.2)
                        }
                        _ => item,
                    };
                    paths.push((file.text(path, what)?, item.line));
                }
            }
            _ => paths.push((file.text(node, what)?, node.line)),
        }
        for (path, line) in paths {
            let Some(path) = super::in_bundle(path) else {
                return Err(file.line(line).refuse(format!(
                    "{what} leads out of the bundle: `{}`",
                    crate::shown(path)
                )));
            };
            self.environment_files.push((index, path, line));
        }
        Ok(())
    }

    /// `80`, `80:8080`, `127.0.0.1:80:8080/tcp`, or a mapping.
    fn published(&mut self, index: usize, node: &Node, what: &str) -> Result<(), Refused> {
        let file = self.file;
        let Value::Sequence(items) = &node.value else {
            return Err(file.wrong(node, what, "a list"));
        };
        for item in items {
            let wrong = || {
                file.wrong(
                    item,
                    what,
                    "a port such as `80:8080`, or a mapping with `target`",
                )
            };
            let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
            let (container, host, protocol) = match &item.value {
                Value::Mapping(_) => {
                    let (mut target, mut published, mut protocol) = (None, None, "tcp".to_owned());
                    for (_, key, value) in file.pairs(item, what)? {
                        match key {
                            "target" => target = Some(keys::port(file, value, what)?),
                            "published" => published = value.text().and_then(number),
                            "protocol" => file.text(value, what)?.clone_into(&mut protocol),
                            _ => {}
                        }
                    }
                    (target.ok_or_else(wrong)?, published, protocol)
                }
                _ => {
                    let text = file.text(item, what)?;
                    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                    let (before, container) = match ports.rsplit_once(':') {
                        Some((before, container)) => (Some(before), container),
                        None => (None, ports),
                    };
                    let host = before.map(|before| before.rsplit(':').next().unwrap_or(before));
                    let container = number(container).ok_or_else(wrong)?;
                    (container, host.and_then(number), protocol.to_owned())
                }
            };
            if protocol != "tcp" {
                self.over(
                    &format!("port {container}/{}", crate::shown(&protocol)),
                    item.line,
                );
                continue;
            }
            self.ports.push(Published {
                index,
                container,
                host,
                line: item.line,
            });
        }
        Ok(())
    }

    /// `volume:/path`, `./path:/path:ro`, `/path`, or a mapping.
    fn mounts(&mut self, one: &mut Container, node: &Node, what: &str) -> Result<(), Refused> {
        let file = self.file;
        let Value::Sequence(items) = &node.value else {
            return Err(file.wrong(node, what, "a list"));
        };
        for item in items {
            let (mut source, mut target, mut read_only) = (None, None, false);
            match &item.value {
                Value::Mapping(_) => {
                    let mut in_memory = false;
                    for (_, key, value) in file.pairs(item, what)? {
                        match key {
                            "type" => in_memory = value.text() == Some("tmpfs"),
                            "source" => source = Some(file.text(value, what)?.to_owned()),
                            "target" => target = Some(file.text(value, what)?.to_owned()),
                            "read_only" => read_only = file.flag(value, what)?,
                            _ => {}
                        }
                    }
                    if in_memory {
                        let path = target.unwrap_or_default();
                        one.tmpfs.push(keys::inside(file, item, &path, what)?);
                        continue;
                    }
                }
                _ => {
                    let text = file.text(item, what)?;
                    let mut parts = text.split(':');
                    match (parts.next(), parts.next(), parts.next()) {
                        (Some(own), None, _) => target = Some(own.to_owned()),
                        (Some(from), Some(to), how) => {
                            source = Some(from.to_owned());
                            target = Some(to.to_owned());
                            let mut how = how.unwrap_or_default().split(',');
                            read_only = how.any(|word| word == "ro");
                        }
                        _ => {}
                    }
                }
            }
            let to = keys::inside(file, item, &target.unwrap_or_default(), what)?;
            // EB's directory of logs.
            let source = source.map(|source| {
                let name = source.strip_prefix(LOGS).map(|rest| rest.trim_matches('/'));
                match name {
                    Some(name) if super::is_name(name) => format!("logs-{name}"),
                    _ => source,
                }
            });
            let mount = match source {
                None => Mount {
                    from: From::Own,
                    to,
                    read_only,
                },
                Some(name) if name.starts_with("logs-") || self.volumes.contains(&name) => Mount {
                    from: From::Volume(name),
                    to,
                    read_only,
                },
                Some(path) if path.starts_with(['/', '.', '~']) => {
                    let mount = (path.as_str(), to, read_only);
                    keys::host_mount(file, item, mount, &mut self.found.needs_root)?
                }
                Some(name) => {
                    return Err(file.at(item).refuse(format!(
                        "{what} names the volume `{}`, which `volumes` of the file has not; a directory is written `./{0}`",
                        crate::shown(&name)
                    )));
                }
            };
            one.mounts.push(mount);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Containers, Refused> {
        for (index, name, line) in std::mem::take(&mut self.depends) {
            if !self.found.containers.iter().any(|one| one.name == name) {
                return Err(self.file.line(line).refuse(format!(
                    "`{}` is to start after `{}`, which is no service",
                    self.found.containers[index].name,
                    crate::shown(&name)
                )));
            }
            self.found.containers[index].after.push(name);
        }
        super::take_requests(&mut self.found, self.file, &self.ports);
        Ok(self.found)
    }
}
