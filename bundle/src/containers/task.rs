//! Several containers as a task: `Dockerrun.aws.json` version 2 (EB guide, "create_deploy_docker_v2config"). Its keys are
//! ECS's.

use super::keys;
use super::{Container, Containers, DOCKERRUN, Dockerrun, From, Image, MOST, Mount, Published};
use crate::Refused;
use crate::config::File;
use crate::yaml::{Node, Value};
use std::collections::BTreeMap;

/// Keys of a container that change nothing that matters here.
const OF_NO_USE: [&str; 4] = [
    "logConfiguration",
    "dockerLabels",
    "ulimits",
    "memoryReservation",
];

/// Reads a task.
pub(super) fn read(run: &Dockerrun) -> Result<Containers, Refused> {
    let file = &run.file;
    let mut found = Containers::default();
    let mut volumes: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut definitions: &[Node] = &[];
    for (line, key, value) in file.pairs(&run.node, DOCKERRUN)? {
        match key {
            "AWSEBDockerrunVersion" => {}
            _ if value.is_null() => {}
            "authentication" | "Authentication" => {
                found.passed_over.push(super::no_login(DOCKERRUN, line));
            }
            "containerDefinitions" => definitions = list(file, value, "`containerDefinitions`")?,
            "volumes" => {
                for volume in list(file, value, "`volumes`")? {
                    let (name, path) = self::volume(file, volume)?;
                    volumes.insert(name, path);
                }
            }
            other => found.passed_over.push(format!(
                "`{}` in {DOCKERRUN}, line {line}",
                crate::shown(other)
            )),
        }
    }
    if definitions.is_empty() {
        return Err(file
            .line(run.node.line)
            .refuse("`containerDefinitions` names no container"));
    }
    if definitions.len() > MOST {
        return Err(file.at(&definitions[MOST]).refuse(format!(
            "there are {} containers; {MOST} are allowed",
            definitions.len()
        )));
    }
    let mut ports = Vec::new();
    for (index, node) in definitions.iter().enumerate() {
        let mut reading = Reading {
            file,
            volumes: &volumes,
            found: &mut found,
            ports: Vec::new(),
        };
        let one = reading.container(node)?;
        ports.extend(
            reading
                .ports
                .into_iter()
                .map(|port| Published { index, ..port }),
        );
        if found.containers.iter().any(|other| other.name == one.name) {
            return Err(file
                .at(node)
                .refuse(format!("there are two containers `{}`", one.name)));
        }
        found.containers.push(one);
    }
    links(file, definitions, &mut found.containers)?;
    volumes_from(file, definitions, &mut found.containers)?;
    super::take_requests(&mut found, file, &ports);
    Ok(found)
}

fn list<'n>(file: &File, node: &'n Node, what: &str) -> Result<&'n [Node], Refused> {
    match &node.value {
        Value::Sequence(items) => Ok(items),
        _ => Err(file.wrong(node, what, "a list")),
    }
}

/// A volume of the task, and the host's path that it is.
fn volume(file: &File, node: &Node) -> Result<(String, Option<String>), Refused> {
    let (mut name, mut path) = (None, None);
    for (_, key, value) in file.fields(node, "a volume", &["name", "host"])? {
        if key == "name" {
            let text = file.text(value, "`name` of a volume")?;
            if !super::is_name(text) {
                return Err(file.wrong(
                    value,
                    "`name` of a volume",
                    "1 to 48 letters, digits, `-` and `_`",
                ));
            }
            name = Some(text.to_owned());
        } else {
            for (_, _, value) in file.fields(value, "`host` of a volume", &["sourcePath"])? {
                if !value.is_null() {
                    path = Some(file.text(value, "`sourcePath`")?.to_owned());
                }
            }
        }
    }
    match name {
        Some(name) => Ok((name, path)),
        None => Err(file.at(node).refuse("a volume has no `name`")),
    }
}

struct Reading<'r> {
    file: &'r File,
    volumes: &'r BTreeMap<String, Option<String>>,
    found: &'r mut Containers,
    ports: Vec<Published>,
}

impl Reading<'_> {
    fn container(&mut self, node: &Node) -> Result<Container, Refused> {
        let file = self.file;
        let lacks = |key: &str| file.at(node).refuse(format!("a container has no `{key}`"));
        let pairs = file.pairs(node, "a container")?;
        let value_of = |key: &str| {
            pairs
                .iter()
                .find(|(_, name, _)| *name == key)
                .map(|pair| pair.2)
        };
        let name_node = value_of("name").ok_or_else(|| lacks("name"))?;
        let name = file.text(name_node, "`name` of a container")?;
        if !super::is_name(name) {
            return Err(file.wrong(
                name_node,
                "`name` of a container",
                "1 to 48 letters, digits, `-` and `_`",
            ));
        }
        let image_node = value_of("image").ok_or_else(|| lacks("image"))?;
        let image = file.text(image_node, "`image` of a container")?;
        if !super::is_image(image) {
            return Err(file.wrong(image_node, "`image` of a container", "the name of an image"));
        }
        let mut one = super::container(
            name,
            Image::Pull {
                name: image.to_owned(),
                update: true,
            },
        );
        for (line, key, value) in &pairs {
            if !value.is_null() {
                self.key(&mut one, (*line, key, value))?;
            }
        }
        Ok(one)
    }

    fn key(
        &mut self,
        one: &mut Container,
        (line, key, value): (usize, &str, &Node),
    ) -> Result<(), Refused> {
        let file = self.file;
        let what = format!("`{key}` of `{}`", one.name);
        match key {
            // Links and volumes of others need all containers.
            "name" | "image" | "links" | "volumesFrom" => {}
            "memory" => one.memory_bytes = Some(keys::number(file, value, &what, 1 << 20)? << 20),
            // A share of 1024 is a core.
            "cpu" => {
                let share = value.text().and_then(|text| text.parse::<u64>().ok());
                let share = share.ok_or_else(|| file.wrong(value, &what, "a number"))?;
                one.cpu_millis = (share > 0).then(|| share.min(1 << 20) * 1000 / 1024);
            }
            "essential" => one.essential = file.flag(value, &what)?,
            "environment" => {
                for pair in list(file, value, &what)? {
                    let (mut name, mut text) = (None, String::new());
                    for (_, key, value) in file.fields(pair, &what, &["name", "value"])? {
                        match key {
                            "name" => name = Some(file.text(value, &what)?.to_owned()),
                            _ if value.is_null() => {}
                            _ => file.text(value, &what)?.clone_into(&mut text),
                        }
                    }
                    let fits = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
                    let Some(name) = name.filter(fits) else {
                        return Err(file
                            .at(pair)
                            .refuse(format!("{what} has a variable without a name")));
                    };
                    one.environment.insert(name, text);
                }
            }
            "portMappings" => {
                for mapping in list(file, value, &what)? {
                    let known = ["containerPort", "hostPort", "protocol"];
                    let (mut container, mut host, mut tcp) = (None, None, true);
                    for (_, key, value) in file.fields(mapping, &what, &known)? {
                        match key {
                            "containerPort" => container = Some(keys::port(file, value, &what)?),
                            // 0 has ECS choose one.
                            "hostPort" if value.text() == Some("0") => {}
                            "hostPort" => host = Some(keys::port(file, value, &what)?),
                            _ => tcp = value.text() == Some("tcp"),
                        }
                    }
                    let Some(container) = container else {
                        return Err(file
                            .at(mapping)
                            .refuse(format!("{what} lacks a `containerPort`")));
                    };
                    if tcp {
                        self.ports.push(Published {
                            index: 0,
                            container,
                            host,
                            line: mapping.line,
                        });
                    } else {
                        self.found.passed_over.push(format!(
                            "UDP port {container} in {}, line {}",
                            file.name, mapping.line
                        ));
                    }
                }
            }
            "mountPoints" => {
                for point in list(file, value, &what)? {
                    self.mount_point(one, point, &what)?;
                }
            }
            "command" => one.command = keys::command(file, value, &what)?,
            "entryPoint" => one.entrypoint = keys::command(file, value, &what)?,
            "workingDirectory" => {
                let text = file.text(value, &what)?;
                one.directory = Some(keys::inside(file, value, text, &what)?);
            }
            "user" => one.user = Some(file.text(value, &what)?.to_owned()),
            "hostname" => {
                let text = file.text(value, &what)?;
                if !super::is_name(text) {
                    return Err(file.wrong(value, &what, "the name of a host"));
                }
                one.host_names.push(text.to_owned());
            }
            "readonlyRootFilesystem" => one.read_only = file.flag(value, &what)?,
            "extraHosts" => {
                for host in list(file, value, &what)? {
                    let (mut name, mut address) = (None, None);
                    for (_, key, value) in file.fields(host, &what, &["hostname", "ipAddress"])? {
                        let text = file.text(value, &what)?.to_owned();
                        match key {
                            "hostname" => name = Some(text),
                            _ => address = Some(text),
                        }
                    }
                    if let (Some(name), Some(address)) = (name, address) {
                        one.extra_hosts.push(format!("{name}:{address}"));
                    }
                }
            }
            "privileged" => {
                if file.flag(value, &what)? {
                    keys::root(
                        &mut self.found.needs_root,
                        file,
                        line,
                        format!("`privileged` of `{}`", one.name),
                    );
                    one.rights.privileged = true;
                }
            }
            "linuxParameters" => self.linux(one, value, &what)?,
            other if OF_NO_USE.contains(&other) => {}
            other => self.found.passed_over.push(format!(
                "`{}` of the container `{}` in {}, line {line}",
                crate::shown(other),
                one.name,
                file.name
            )),
        }
        Ok(())
    }

    fn mount_point(
        &mut self,
        one: &mut Container,
        point: &Node,
        what: &str,
    ) -> Result<(), Refused> {
        let file = self.file;
        let known = ["sourceVolume", "containerPath", "readOnly"];
        let (mut volume, mut to, mut read_only) = (None, None, false);
        for (_, key, value) in file.fields(point, what, &known)? {
            match key {
                "sourceVolume" => volume = Some(file.text(value, what)?.to_owned()),
                "containerPath" => {
                    let text = file.text(value, what)?;
                    to = Some(keys::inside(file, value, text, what)?);
                }
                _ => read_only = file.flag(value, what)?,
            }
        }
        let (Some(volume), Some(to)) = (volume, to) else {
            return Err(file.at(point).refuse(format!(
                "{what} lacks a `sourceVolume` or a `containerPath`"
            )));
        };
        let mount = match self.volumes.get(&volume) {
            Some(Some(path)) => keys::host_mount(
                file,
                point,
                (path, to, read_only),
                &mut self.found.needs_root,
            )?,
            // EB makes these for each container.
            None if volume.starts_with("awseb-logs-") && super::is_name(&volume) => Mount {
                from: From::Volume(volume),
                to,
                read_only,
            },
            Some(None) => Mount {
                from: From::Volume(volume),
                to,
                read_only,
            },
            None => {
                return Err(file.at(point).refuse(format!(
                    "{what} names the volume `{}`, which `volumes` has not",
                    crate::shown(&volume)
                )));
            }
        };
        one.mounts.push(mount);
        Ok(())
    }

    fn linux(&mut self, one: &mut Container, node: &Node, what: &str) -> Result<(), Refused> {
        let file = self.file;
        for (line, key, value) in file.pairs(node, what)? {
            match key {
                "initProcessEnabled" => one.init = file.flag(value, what)?,
                "capabilities" => {
                    for (line, key, value) in file.pairs(value, what)? {
                        let names = file.texts(value, what)?;
                        if key == "add" && !names.is_empty() {
                            keys::root(
                                &mut self.found.needs_root,
                                file,
                                line,
                                format!("`capabilities` of `{}`", one.name),
                            );
                            one.rights.capabilities.extend(names);
                        }
                    }
                }
                other => self.found.passed_over.push(format!(
                    "`{}` of {what} in {}, line {line}",
                    crate::shown(other),
                    file.name
                )),
            }
        }
        Ok(())
    }
}

/// `name` or `name:alias`: the other starts before, and is met by both.
fn links(file: &File, definitions: &[Node], containers: &mut [Container]) -> Result<(), Refused> {
    for (index, node) in definitions.iter().enumerate() {
        for (_, key, value) in file.pairs(node, "a container")? {
            if key != "links" {
                continue;
            }
            for link in file.texts(value, "`links`")? {
                let (name, alias) = link.split_once(':').unwrap_or((&link, &link));
                let Some(other) = containers.iter_mut().find(|one| one.name == name) else {
                    return Err(file.at(value).refuse(format!(
                        "`links` names the container `{}`, and there is none",
                        crate::shown(name)
                    )));
                };
                if !super::is_name(alias) {
                    return Err(file
                        .at(value)
                        .refuse(format!("`{}` in `links` is no name", crate::shown(alias))));
                }
                if !other.host_names.iter().any(|known| known == alias) {
                    other.host_names.push(alias.to_owned());
                }
                containers[index].after.push(name.to_owned());
            }
        }
    }
    Ok(())
}

/// The mounts of another container.
fn volumes_from(
    file: &File,
    definitions: &[Node],
    containers: &mut [Container],
) -> Result<(), Refused> {
    for (index, node) in definitions.iter().enumerate() {
        for (_, key, value) in file.pairs(node, "a container")? {
            if key != "volumesFrom" || value.is_null() {
                continue;
            }
            for entry in list(file, value, "`volumesFrom`")? {
                let (mut source, mut read_only) = (None, false);
                let known = ["sourceContainer", "readOnly"];
                for (_, key, value) in file.fields(entry, "`volumesFrom`", &known)? {
                    match key {
                        "sourceContainer" => source = Some(file.text(value, "`volumesFrom`")?),
                        _ => read_only = file.flag(value, "`readOnly`")?,
                    }
                }
                let other = containers
                    .iter()
                    .find(|one| Some(one.name.as_str()) == source);
                let Some(other) = other else {
                    return Err(file
                        .at(entry)
                        .refuse("`volumesFrom` names no container that there is"));
                };
                let name = other.name.clone();
                let mut mounts = other.mounts.clone();
                for mount in &mut mounts {
                    mount.read_only |= read_only;
                }
                containers[index].mounts.extend(mounts);
                containers[index].after.push(name);
            }
        }
    }
    Ok(())
}
