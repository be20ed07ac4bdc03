//! One container: a `Dockerfile`, `Dockerrun.aws.json` version 1, or both (EB guide,
//! "single-container-docker-configuration").

use super::dockerfile::Dockerfile;
use super::keys;
use super::{Container, Containers, DOCKERFILE, DOCKERRUN, Dockerrun, From, INVALID, Image, Mount};
use crate::Refused;
use crate::platform::WEB;
use std::collections::BTreeMap;

fn built() -> Image {
    Image::Build {
        context: String::new(),
        file: DOCKERFILE.to_owned(),
        arguments: BTreeMap::new(),
        target: None,
    }
}

/// A Dockerfile alone.
pub(super) fn of_dockerfile(dockerfile: Dockerfile) -> Result<Containers, Refused> {
    let Some(port) = dockerfile.port else {
        return Err(Refused::new(
            INVALID,
            format!(
                "{DOCKERFILE} says no TCP port that its image listens on. Add a line such as `EXPOSE 8080`, or name the \
                 port in `Ports` of a {DOCKERRUN}."
            ),
        ));
    };
    let container = Container {
        port: Some(port),
        ..super::container(WEB, built())
    };
    Ok(Containers {
        containers: vec![container],
        ..Containers::default()
    })
}

/// Version 1; with what its Dockerfile says where there is one, which builds its image then.
pub(super) fn read(run: &Dockerrun, dockerfile: Option<Dockerfile>) -> Result<Containers, Refused> {
    let file = &run.file;
    let mut found = Containers::default();
    let mut image = None;
    let mut one = super::container(WEB, built());
    let mut logging = None;
    for (line, key, value) in file.pairs(&run.node, "Dockerrun.aws.json")? {
        if value.is_null() {
            continue;
        }
        match key {
            "AWSEBDockerrunVersion" => {}
            "Authentication" => found.passed_over.push(super::no_login(DOCKERRUN, line)),
            "Image" => {
                let mut name = None;
                let mut update = true;
                for (_, key, value) in file.fields(value, "`Image`", &["Name", "Update"])? {
                    match key {
                        "Name" => {
                            let text = file.text(value, "`Name` of `Image`")?;
                            if !super::is_image(text) {
                                return Err(file.wrong(
                                    value,
                                    "`Name` of `Image`",
                                    "the name of an image",
                                ));
                            }
                            name = Some(text.to_owned());
                        }
                        _ => update = file.flag(value, "`Update` of `Image`")?,
                    }
                }
                let Some(name) = name else {
                    return Err(file.line(line).refuse("`Image` has no `Name`"));
                };
                image = Some(Image::Pull { name, update });
            }
            "Ports" => {
                for (number, port) in items(run, value, "`Ports`")?.iter().enumerate() {
                    let known = ["ContainerPort", "HostPort"];
                    for (line, key, value) in file.fields(port, "an entry of `Ports`", &known)? {
                        let number_of = keys::port(file, value, &format!("`{key}`"))?;
                        match key {
                            "ContainerPort" if number == 0 => one.port = Some(number_of),
                            "ContainerPort" => found.passed_over.push(format!(
                                "port {number_of} in {DOCKERRUN}, line {line}: the first one alone takes requests"
                            )),
                            _ => {}
                        }
                    }
                }
            }
            "Volumes" => {
                for volume in items(run, value, "`Volumes`")? {
                    let known = ["HostDirectory", "ContainerDirectory"];
                    let (mut from, mut to) = (None, None);
                    for (_, key, value) in file.fields(volume, "an entry of `Volumes`", &known)? {
                        let text = file.text(value, &format!("`{key}`"))?;
                        match key {
                            "HostDirectory" => from = Some(text.to_owned()),
                            _ => {
                                to = Some(keys::inside(file, value, text, "`ContainerDirectory`")?);
                            }
                        }
                    }
                    let (Some(from), Some(to)) = (from, to) else {
                        return Err(file.at(volume).refuse(
                            "an entry of `Volumes` lacks its `HostDirectory` or its `ContainerDirectory`",
                        ));
                    };
                    let mount = (from.as_str(), to, false);
                    one.mounts.push(keys::host_mount(
                        file,
                        volume,
                        mount,
                        &mut found.needs_root,
                    )?);
                }
            }
            "Logging" => {
                let text = file.text(value, "`Logging`")?;
                logging = Some(keys::inside(file, value, text, "`Logging`")?);
            }
            "Command" => one.command = keys::command(file, value, "`Command`")?,
            "Entrypoint" => one.entrypoint = keys::command(file, value, "`Entrypoint`")?,
            other => found.passed_over.push(format!(
                "`{}` in {DOCKERRUN}, line {line}",
                crate::shown(other)
            )),
        }
    }
    if let Some(to) = logging {
        // The directory outlives the container, as on EB's hosts.
        one.mounts.push(Mount {
            from: From::Volume("logs".to_owned()),
            to,
            read_only: false,
        });
    }
    match (dockerfile, image) {
        // "If you include both, the Dockerfile builds."
        (Some(dockerfile), _) => one.port = one.port.or(dockerfile.port),
        (None, Some(image)) => one.image = image,
        (None, None) => {
            return Err(file.line(run.node.line).refuse(format!(
                "there is neither an `Image` nor a {DOCKERFILE} in the bundle"
            )));
        }
    }
    if one.port.is_none() {
        return Err(file.line(run.node.line).refuse(
            "nothing says which port the container listens on: `Ports` has no `ContainerPort`, and no Dockerfile an \
             `EXPOSE`",
        ));
    }
    found.containers.push(one);
    Ok(found)
}

/// The items of a list.
fn items<'n>(
    run: &'n Dockerrun,
    node: &'n crate::yaml::Node,
    what: &str,
) -> Result<&'n [crate::yaml::Node], Refused> {
    match &node.value {
        crate::yaml::Value::Sequence(items) => Ok(items),
        _ => Err(run.file.wrong(node, what, "a list")),
    }
}
