//! `.platform/nginx`: fragments of a configuration for the web server that EB has on every host (EB guide,
//! "platforms-linux-extend.proxy"). Here load balancers do that work: what they can do as well becomes an option of the
//! environment, as `option_settings` would set it; what they do anyway is passed over in silence; everything else is told.

use crate::Refused;
use crate::ebextensions::Setting;
use crate::platform::Top;
use beanpole_protocol::options::{LOADBALANCER, PROXY, STATIC_FILES};

/// Where the files are, and how they end. The last one is in place of all that EB has.
const DIRECTORIES: [&str; 2] = [
    ".platform/nginx/conf.d",
    ".platform/nginx/conf.d/elasticbeanstalk",
];
const WHOLE: &str = ".platform/nginx/nginx.conf";
/// Apache's, where EB offers it: none of its directives is known here.
const APACHE: [&str; 2] = [".platform/httpd/conf.d", ".platform/httpd/conf"];
const ENDING: &str = ".conf";
/// Longest file in bytes.
const LONGEST: u64 = 64 * 1024;
/// Most files.
const MOST: usize = 32;
/// Where EB has the application.
const TREES: [&str; 2] = ["/var/app/current", "/var/app/staging"];
/// What load balancers do anyway, or what says how nginx itself runs.
const DONE: [&str; 47] = [
    "access_log",
    "chunked_transfer_encoding",
    "charset",
    "client_body_buffer_size",
    "client_body_timeout",
    "client_header_buffer_size",
    "client_header_timeout",
    "default_type",
    "error_log",
    "events",
    "expires",
    "gzip_comp_level",
    "gzip_disable",
    "gzip_http_version",
    "gzip_proxied",
    "gzip_types",
    "gzip_vary",
    "http",
    "include",
    "keepalive",
    "keepalive_requests",
    "keepalive_timeout",
    "large_client_header_buffers",
    "listen",
    "log_format",
    "map",
    "pid",
    "proxy_buffer_size",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_busy_buffers_size",
    "proxy_connect_timeout",
    "proxy_http_version",
    "proxy_pass",
    "proxy_set_header",
    "send_timeout",
    "sendfile",
    "server",
    "server_name",
    "server_names_hash_bucket_size",
    "server_tokens",
    "tcp_nodelay",
    "tcp_nopush",
    "types_hash_max_size",
    "upstream",
    "user",
    "worker_connections",
];

/// What fragments come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nginx {
    /// Options of the environment.
    pub(crate) settings: Vec<Setting>,
    /// Directives that do nothing here, each with its place.
    pub(crate) passed_over: Vec<String>,
}

/// Reads the fragments of a bundle.
pub(crate) fn read<T: Top>(top: &mut T) -> Result<Nginx, T::Error> {
    let mut paths: Vec<String> = Vec::new();
    if top.has_file(WHOLE) {
        paths.push(WHOLE.to_owned());
    }
    for directory in DIRECTORIES {
        let mut names = top.files_in(directory);
        names.retain(|name| name.ends_with(ENDING));
        names.sort();
        paths.extend(names.iter().map(|name| format!("{directory}/{name}")));
    }
    paths.truncate(MOST);
    let mut found = Nginx::default();
    for path in paths {
        let Some(bytes) = top.head(&path, LONGEST + 1)? else {
            continue;
        };
        let file = crate::shown(&path);
        let refuse = |line: usize, why: &str| {
            Refused::new("nginx-invalid", format!("{file}, line {line}: {why}."))
        };
        if bytes.len() as u64 > LONGEST {
            return Err(refuse(1, &format!("the file is longer than {LONGEST} bytes")).into());
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Err(refuse(1, "the file is not UTF-8 text").into());
        };
        let directives = parse(text).map_err(|(line, why)| refuse(line, why))?;
        found.take(&file, &directives);
    }
    for directory in APACHE {
        let names = top.files_in(directory).into_iter();
        let names = names.filter(|name| name.ends_with(ENDING));
        found.passed_over.extend(names.map(|name| {
            format!(
                "{}, a file for Apache",
                crate::shown(&format!("{directory}/{name}"))
            )
        }));
    }
    Ok(found)
}

/// `name argument …;` or `name argument … { … }`.
#[derive(Debug, PartialEq, Eq)]
struct Directive {
    line: usize,
    name: String,
    arguments: Vec<String>,
    inside: Option<Vec<Directive>>,
}

impl Nginx {
    fn take(&mut self, file: &str, directives: &[Directive]) {
        for directive in directives {
            let Directive {
                line, name, inside, ..
            } = directive;
            if let Some((namespace, option, value)) = option_of(directive) {
                self.settings.push(Setting {
                    namespace: namespace.to_owned(),
                    name: option,
                    resource: None,
                    value,
                    file: file.to_owned(),
                    line: *line,
                });
            } else if let ("http" | "server" | "location", Some(inside)) = (name.as_str(), inside) {
                let is_root = name != "location" || directive.arguments == ["/"];
                if is_root {
                    self.take(file, inside);
                } else {
                    self.over(file, directive);
                }
            } else if !DONE.contains(&name.as_str()) {
                self.over(file, directive);
            }
        }
    }

    fn over(&mut self, file: &str, directive: &Directive) {
        let first = directive
            .arguments
            .first()
            .filter(|_| directive.inside.is_some());
        let name = match first {
            Some(first) => format!("{} {first}", directive.name),
            None => directive.name.clone(),
        };
        self.passed_over.push(format!(
            "`{}` in {file}, line {}",
            crate::shown(&name),
            directive.line
        ));
    }
}

/// The option that does what a directive asks for.
fn option_of(directive: &Directive) -> Option<(&'static str, String, String)> {
    let first = directive.arguments.first()?.as_str();
    let option = |namespace, name: &str, value: String| Some((namespace, name.to_owned(), value));
    match directive.name.as_str() {
        "client_max_body_size" => {
            let bytes = size(first)?;
            option(PROXY, "MaxBodySize", bytes.div_ceil(1 << 20).to_string())
        }
        "proxy_read_timeout" => {
            let seconds = seconds(first)?.clamp(1, 3_600);
            option(LOADBALANCER, "IdleTimeout", seconds.to_string())
        }
        "gzip" if first == "on" => option(PROXY, "Compression", "gzip".to_owned()),
        "gzip" if first == "off" => option(PROXY, "Compression", "none".to_owned()),
        "gzip_min_length" => option(
            PROXY,
            "CompressionMinSize",
            first.parse::<u32>().ok()?.to_string(),
        ),
        "location" => {
            let (path, directory) = served(directive)?;
            option(STATIC_FILES, &path, directory)
        }
        _ => None,
    }
}

/// A location that serves a directory of the bundle and does nothing else: the path, and the directory.
fn served(location: &Directive) -> Option<(String, String)> {
    let path = match location.arguments.as_slice() {
        [path] => path,
        [how, path] if how == "^~" => path,
        _ => return None,
    };
    let path = path.trim_end_matches('/');
    let mut directory = None;
    for one in location.inside.as_ref()? {
        let below = || {
            let place = one.arguments.first()?;
            TREES.iter().find_map(|tree| place.strip_prefix(tree))
        };
        match one.name.as_str() {
            "alias" => directory = Some(below()?.to_owned()),
            "root" => directory = Some(format!("{}{path}", below()?)),
            "expires" | "access_log" | "gzip_static" | "autoindex" => {}
            _ => return None,
        }
    }
    let directory = directory?;
    let directory = directory.trim_matches('/');
    (path.starts_with('/') && !directory.is_empty())
        .then(|| (path.to_owned(), directory.to_owned()))
}

/// `10m`, `1g`, `512k`, `1048576`.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `60`, `60s`, `5m`, `1h`, `500ms`.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let number = number.parse::<u64>().ok()?;
    match unit {
        "" | "s" => Some(number),
        "ms" => Some(number.div_ceil(1000)),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3_600),
        _ => None,
    }
}

fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// What a text says, or the line on which it is none, and why.
fn parse(text: &str) -> Result<Vec<Directive>, (usize, &'static str)> {
    /// Deepest nesting: nginx's own blocks are four deep.
    const DEEPEST: usize = 10;
    let mut open: Vec<(Directive, Vec<Directive>)> = Vec::new();
    let mut here: Vec<Directive> = Vec::new();
    let mut words: Vec<(usize, String)> = Vec::new();
    let directive = |words: &mut Vec<(usize, String)>| {
        let mut all = words.drain(..);
        let (line, name) = all.next()?;
        Some(Directive {
            line,
            name,
            arguments: all.map(|(_, word)| word).collect(),
            inside: None,
        })
    };
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() || c == '\u{feff}' => {}
            '#' => {
                while rest.peek().is_some_and(|c| *c != '\n') {
                    rest.next();
                }
            }
            ';' => here.extend(directive(&mut words)),
            '{' => {
                let Some(begun) = directive(&mut words) else {
                    return Err((line, "`{` follows nothing"));
                };
                if open.len() == DEEPEST {
                    return Err((line, "its blocks are nested too deep"));
                }
                open.push((begun, std::mem::take(&mut here)));
            }
            '}' => {
                if !words.is_empty() {
                    return Err((line, "a `;` is missing before `}`"));
                }
                let Some((mut begun, outside)) = open.pop() else {
                    return Err((line, "`}` ends nothing"));
                };
                begun.inside = Some(std::mem::replace(&mut here, outside));
                here.push(begun);
            }
            quote @ ('"' | '\'') => {
                let (begins, mut word) = (line, String::new());
                loop {
                    match rest.next() {
                        None => return Err((begins, "a quote does not end")),
                        Some(c) if c == quote => break,
                        Some('\\') => word.extend(rest.next()),
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                    }
                }
                words.push((begins, word));
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = rest.peek() {
                    // `${name}` is part of a word.
                    let brace =
                        *c == '{' && word.ends_with('$') || *c == '}' && word.contains("${");
                    if !brace && (c.is_whitespace() || matches!(c, ';' | '{' | '}')) {
                        break;
                    }
                    word.push(*c);
                    rest.next();
                }
                words.push((line, word));
            }
        }
    }
    match (open.last(), words.first()) {
        (Some((begun, _)), _) => Err((begun.line, "its `{` has no `}`")),
        (None, Some((line, _))) => Err((*line, "a `;` is missing at the end")),
        (None, None) => Ok(here),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Directory;
    use proptest::prelude::*;
    use std::fs;

    fn found(files: &[(&str, &str)]) -> Result<Nginx, Refused> {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, content).expect("written");
        }
        read(&mut Directory(tree.path()))
    }

    #[test]
    fn what_load_balancers_can_do_becomes_an_option_and_everything_else_is_told() {
        let found = found(&[
            (
                ".platform/nginx/conf.d/proxy.conf",
                "# of the guide\nclient_max_body_size 20M;\ngzip on; gzip_types text/css;\nadd_header X-Frame-Options \"DENY; always\";\n",
            ),
            (
                ".platform/nginx/conf.d/elasticbeanstalk/app.conf",
                "location /static/ {\n  alias /var/app/current/public/;\n  expires 1h;\n}\nlocation / {\n  proxy_read_timeout 5m;\n  proxy_pass http://127.0.0.1:${PORT};\n}\n\
                 location ~ \\.php$ { deny all; }\n",
            ),
            (".platform/httpd/conf.d/a.conf", "Anything"),
        ])
        .expect("valid");
        let set: Vec<(&str, &str)> = found
            .settings
            .iter()
            .map(|one| (one.name.as_str(), one.value.as_str()))
            .collect();
        let expected = [
            ("MaxBodySize", "20"),
            ("Compression", "gzip"),
            ("/static", "public"),
            ("IdleTimeout", "300"),
        ];
        assert_eq!(set, expected);
        assert_eq!(found.settings[2].line, 1);
        assert_eq!(
            found.passed_over,
            [
                "`add_header` in .platform/nginx/conf.d/proxy.conf, line 4",
                "`location ~` in .platform/nginx/conf.d/elasticbeanstalk/app.conf, line 9",
                ".platform/httpd/conf.d/a.conf, a file for Apache",
            ]
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (text, says) in [
            ("gzip on", "line 1: a `;` is missing at the end"),
            ("\nserver {\n gzip on;\n", "line 2: its `{` has no `}`"),
            ("gzip on; }", "line 1: `}` ends nothing"),
            ("a { b }", "line 1: a `;` is missing before `}`"),
            ("a 'b\n;", "line 1: a quote does not end"),
            ("{", "line 1: `{` follows nothing"),
        ] {
            let refused = found(&[(".platform/nginx/conf.d/a.conf", text)]).expect_err(text);
            assert_eq!(refused.code, "nginx-invalid");
            assert!(refused.message.contains(says), "{text}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(location |server |/a |\\{|\\}|;|\n|'|\"|\\\\|#|gzip on|client_max_body_size 9+[kmgx]?|alias /var/app/current/x|\\$\\{a\\}|~ ){0,30}") {
            if let Ok(directives) = parse(&text) {
                Nginx::default().take("x", &directives);
            }
        }
    }
}
