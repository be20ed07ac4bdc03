//! Tomcat: the host's, with a `CATALINA_BASE` of its own for each instance, made when it starts.

use super::build::{Made, Site};
use super::install::Packages;
use super::platform::Plan;
use super::{Fault, Workshop, java, programs};
use beanpole_bundle::platform::{self, Directory};
use std::fs;
use std::path::{Path, PathBuf};

const TOMCAT: Packages = Packages {
    what: "Tomcat",
    // Without the service that Debian's `tomcat10` starts at port 8080.
    apt: "tomcat10-user",
    dnf: "tomcat",
    apk: "",
    zypper: "tomcat",
    stop: "tomcat.service",
    otherwise: "or unpack it to /opt/tomcat",
};
/// Where distributions and people put Tomcat, the newest first.
const HOMES: [&str; 7] = [
    "/usr/share/tomcat11",
    "/usr/share/tomcat10",
    "/usr/share/tomcat9",
    "/usr/share/tomcat",
    "/opt/tomcat",
    "/usr/local/tomcat",
    "/usr/libexec/tomcat",
];
/// The heap, unless an option says otherwise (EB guide, "java-tomcat-namespaces").
const HEAP: [(&str, &str); 2] = [("Xms", "256m"), ("Xmx", "256m")];
/// What a request for anything that begins with a dot gets: configuration files are in the bundle, too.
const REWRITE: &str = "RewriteRule ^.*/\\.(?!well-known/).*$ - [F]\n";

/// Writes what Tomcat is configured by, and says how it starts.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let mut made = java::install(workshop, site, plan).await?;
    if plan.from_procfile {
        return Ok(made);
    }
    if home().is_none() {
        workshop
            .install_packages(site, "catalina.sh", &TOMCAT)
            .await?;
    }
    let home = home().ok_or_else(|| {
        Fault::new(
            "interpreter-missing",
            format!("The host has no Tomcat. {}", TOMCAT.advice()),
        )
    })?;
    let directory = site.platform_directory()?;
    let place = workshop.layout.release(&site.order.key);
    let app = place.join("app");
    let conf = directory.join("conf");
    let write = |name: &str, text: &str| {
        let path = conf.join(name);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| Fault::io("write", &path, &error))
    };
    let exploded = platform::is_exploded_war(&Directory(&site.tree));
    write("server.xml", &server(exploded.then_some(app.as_path())))?;
    write("Catalina/localhost/rewrite.config", REWRITE)?;
    let web = configuration(&home, "web.xml")?;
    write("web.xml", &web)?;
    // What it says becomes system properties, as properties of the environment do on EB. Nobody else can read it.
    let mut properties = configuration(&home, "catalina.properties")?;
    properties.push('\n');
    for (name, value) in &site.order.properties.0 {
        properties.push_str(&format!("{}={}\n", escaped(name), escaped(value)));
    }
    write("catalina.properties", &properties)?;
    site.keep_private(&conf.join("catalina.properties"))?;
    let mut lines = String::from(
        "base=$HOME/tomcat\nrm -rf \"$base\"\nmkdir -p \"$base/webapps\" \"$base/work\" \"$base/temp\" \"$base/logs\"\n",
    );
    let quoted = |path: &Path| programs::quoted(&path.to_string_lossy());
    let final_conf = place.join(super::PLATFORM).join("conf");
    lines.push_str(&format!("ln -s {} \"$base/conf\"\n", quoted(&final_conf)));
    if !exploded {
        for war in platform::wars(&Directory(&site.tree)).map_err(Fault::from)? {
            lines.push_str(&format!(
                "ln -s {} \"$base/webapps\"/{}\n",
                quoted(&app.join(&war.file)),
                programs::quoted(&format!("{}.war", war.context)),
            ));
        }
    }
    let mut options = site.order.options.clone();
    for (name, value) in HEAP {
        options
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    let words = platform::jvm_words(&options).map_err(Fault::from)?;
    let words: Vec<String> = words.iter().map(|word| programs::quoted(word)).collect();
    let bin = quoted(&home.join("bin"));
    lines.push_str(&format!(
        "exec java {} -Djava.util.logging.SimpleFormatter.format='%4$s %3$s %5$s%6$s%n' \
         -Dcatalina.home={} -Dcatalina.base=\"$base\" -Djava.io.tmpdir=\"$base/temp\" -Dbeanpole.port=\"$PORT\" \
         -Djdk.tls.ephemeralDHKeySize=2048 -classpath {bin}/bootstrap.jar:{bin}/tomcat-juli.jar \
         org.apache.catalina.startup.Bootstrap start\n",
        words.join(" "),
        quoted(&home),
    ));
    let start = directory.join("start-tomcat");
    fs::write(&start, lines).map_err(|error| Fault::io("write", &start, &error))?;
    let start = place.join(super::PLATFORM).join("start-tomcat");
    made.processes = Some(vec![(
        "web".to_owned(),
        format!("exec /bin/sh {}", quoted(&start)),
    )]);
    Ok(made)
}

fn home() -> Option<PathBuf> {
    let own = std::env::var_os("CATALINA_HOME").map(PathBuf::from);
    own.into_iter()
        .chain(HOMES.map(PathBuf::from))
        .find(|home| home.join("bin/bootstrap.jar").exists())
}

/// A file that Tomcat brings: beside it, or in `/etc` where distributions put them.
fn configuration(home: &Path, name: &str) -> Result<String, Fault> {
    let etc = Path::new("/etc").join(home.file_name().unwrap_or_default());
    let places = [
        home.join("conf").join(name),
        home.join("skel/conf").join(name),
        home.join("etc").join(name),
        etc.join(name),
    ];
    for place in &places {
        if let Ok(text) = fs::read_to_string(place) {
            return Ok(text);
        }
    }
    Err(Fault::new(
        "interpreter-missing",
        format!(
            "The host's Tomcat in {} has no {name} that the agent can read. {}",
            home.display(),
            TOMCAT.advice()
        ),
    ))
}

/// One connector at the port of the instance, without a port for shutting down: SIGTERM does.
fn server(context: Option<&Path>) -> String {
    let context = context.map_or(String::new(), |path| {
        let path = path.to_string_lossy();
        let path = path
            .replace('&', "&amp;")
            .replace('"', "&quot;")
            .replace('<', "&lt;");
        format!("\n        <Context path=\"\" docBase=\"{path}\" reloadable=\"false\"/>")
    });
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Server port="-1">
  <Listener className="org.apache.catalina.core.JreMemoryLeakPreventionListener"/>
  <Listener className="org.apache.catalina.core.ThreadLocalLeakPreventionListener"/>
  <Service name="Catalina">
    <Connector port="${{beanpole.port}}" protocol="HTTP/1.1" connectionTimeout="20000" maxPostSize="-1" server=" "/>
    <Engine name="Catalina" defaultHost="localhost">
      <Host name="localhost" appBase="webapps" unpackWARs="true" autoDeploy="false" deployOnStartup="true">
        <Valve className="org.apache.catalina.valves.rewrite.RewriteValve"/>
        <Valve className="org.apache.catalina.valves.RemoteIpValve" remoteIpHeader="x-forwarded-for" protocolHeader="x-forwarded-proto"/>
        <Valve className="org.apache.catalina.valves.ErrorReportValve" showReport="false" showServerInfo="false"/>{context}
      </Host>
    </Engine>
  </Service>
</Server>
"#
    )
}

/// `text` as a file of properties has it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' ' | ':' | '=' | '#' | '!' | '\\' => {
                out.push('\\');
                out.push(one);
            }
            one if one.is_ascii() => out.push(one),
            one => {
                for unit in one.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_keep_what_they_say() {
        assert_eq!(escaped("a b=c\\d\ne"), "a\\ b\\=c\\\\d\\ne");
        assert_eq!(escaped("Zürich 𝄞"), "Z\\u00fcrich\\ \\ud834\\udd1e");
    }

    #[test]
    fn a_path_in_xml_is_one_attribute() {
        let text = server(Some(Path::new("/srv/a\"b&c")));
        assert!(text.contains("docBase=\"/srv/a&quot;b&amp;c\""), "{text}");
        assert!(text.contains("port=\"${beanpole.port}\""), "{text}");
    }
}
