//! `docs/reference/options.md` is generated from `protocol::options::KNOWN`. `./dev docs` writes
//! it; without `BEANPOLE_WRITE_DOCS` this test fails when it is stale.

use beanpole_protocol::options::{Change, KNOWN, Kind, NAMED};
use std::path::Path;

fn page() -> String {
    let mut page = String::from(
        "# Options\n\nGenerated from `protocol/src/options/known.rs` by `./dev docs`; do not edit.\n\n\
         Options are namespaced as Elastic Beanstalk's. Set them in `deploy.toml` or by the JSON \
         API. Environment properties live in `aws:elasticbeanstalk:application:environment`, under \
         any name, and directories of the bundle that the load balancer serves itself in \
         `aws:elasticbeanstalk:environment:proxy:staticfiles`: an option is the path that URLs begin with (`/assets`), \
         its value the directory (`static/assets`), and a change restarts instances by the deployment policy \
         ([more](../guides/content.md#static-files)). The older \
         `aws:elasticbeanstalk:container:{golang,java,nodejs,python}:staticfiles` mean the same. A namespace \
         that ends in `NAME` or `PORT` stands for as many as there are names for it.\n",
    );
    let mut namespace = "";
    for option in KNOWN.iter().chain(NAMED) {
        if option.namespace != namespace {
            namespace = option.namespace;
            page.push_str(&format!(
                "\n## {namespace}\n\n| Option | Default | Values | A change | What it is for |\n|---|---|---|---|---|\n"
            ));
        }
        let default = if option.default.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", option.default)
        };
        let change = match option.change {
            Change::Nothing => "interrupts nothing",
            Change::Check => "has to be passed by what is in service, then interrupts nothing",
            Change::Restart => "restarts instances by the deployment policy",
            Change::Replace => "replaces instances, by `RollingUpdateType`",
            Change::Fixed => "is refused after creation",
        };
        page.push_str(&format!(
            "| `{}` | {default} | {} | {change} | {} |\n",
            option.name,
            values(option.kind),
            option.about
        ));
    }
    page
}

fn values(kind: Kind) -> String {
    match kind {
        Kind::Text => "any text".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Number(low, high) => format!("{low} to {high}"),
        Kind::OneOf(values) => values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect::<Vec<_>>()
            .join(", "),
        Kind::Path => "a path that begins with `/`".to_owned(),
        Kind::Labels => "labels: `disk=ssd,zone=a`".to_owned(),
        Kind::Steps => "steps: `10%`, `1%:90s,5%:10m,25%:1h`".to_owned(),
        Kind::Sticky => "`none`, `cookie`, `header:NAME`".to_owned(),
        Kind::StickyBy => "`cookie`, `address`, `header:NAME`".to_owned(),
        Kind::HashBy => "`address`, `path`, `header:NAME`, `cookie:NAME`".to_owned(),
        Kind::Encodings => "`none`, or some of `zstd`, `br`, `gzip`".to_owned(),
        Kind::Duration(low, high) => format!("a duration such as `PT5M`, {low} to {high} s"),
        Kind::Headers => "headers: `Host: shop.example.org`".to_owned(),
        Kind::BodyMatch => "`contains:TEXT`, `matches:REGEX`".to_owned(),
        Kind::GrpcCodes => "statuses of gRPC and ranges: `0`, `0,12`".to_owned(),
        Kind::GrpcService => "the name of a service: `shop.v1.Cart`".to_owned(),
        Kind::Command => "a command in one line".to_owned(),
        Kind::Names => "names: `api,admin`".to_owned(),
        Kind::Process => "`default`, or the name of a process".to_owned(),
        Kind::PathPatterns => "patterns: `/api/*,/v?/users`".to_owned(),
        Kind::HostPatterns => "patterns: `api.example.org,*.example.com`".to_owned(),
        Kind::Statuses => "statuses and ranges: `200-399`, `200,204`".to_owned(),
    }
}

#[test]
fn the_reference_of_options_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/options.md");
    if std::env::var_os("BEANPOLE_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("it has a directory"))
            .expect("it can be made");
        std::fs::write(&path, page()).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page(),
        "{} is stale: run `./dev docs` and commit it",
        path.display()
    );
}
