//! The reference page of platforms is what `beanpole_bundle::platform::ABOUT` says, and the tests that it names are there.

use beanpole_bundle::platform::ABOUT;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const PAGE: &str = "docs/reference/platforms.md";

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

fn page() -> String {
    let mut text = String::from(
        "# Platforms and what is tested of them\n\n\
         Written from the source by `./dev docs`. Every test that is named deploys a real application with the platform's real\n\
         runtime by `./dev e2e`. What has no test is written, and not yet run on a host.\n\n\
         | Platform | Elastic Beanstalk's | Feature | Verified by |\n|---|---|---|---|\n",
    );
    for about in ABOUT {
        for (feature, test) in about.verified {
            let test = test.map_or("not yet".to_owned(), |test| format!("`{test}`"));
            let _ = writeln!(
                text,
                "| {} (`{}`) | {} | {feature} | {test} |",
                about.platform.title(),
                about.platform,
                about.eb
            );
        }
    }
    text
}

#[test]
fn the_page_of_platforms_is_what_the_source_says() {
    let path = root().join(PAGE);
    let page = page();
    if std::env::var_os("BEANPOLE_WRITE_DOCS").is_some() {
        fs::write(&path, &page).expect("the page is written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{PAGE} is not up to date: ./dev docs");
}

#[test]
fn tests_that_platforms_name_are_there() {
    for (feature, test) in ABOUT.iter().flat_map(|about| about.verified) {
        let Some((module, name)) = test.and_then(|test| test.split_once("::")) else {
            continue;
        };
        let file = root().join(format!("tests/e2e/{module}.rs"));
        let source = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            source.contains(&format!("fn {name}()")),
            "{feature}: {} has no test {name}",
            file.display()
        );
    }
}
