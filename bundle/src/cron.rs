//! Reads `cron.yaml`, the periodic tasks of a worker environment, by Elastic Beanstalk's rules.
//!
//! ```yaml
//! version: 1
//! cron:
//!  - name: "backup-job"
//!    url: "/backup"
//!    schedule: "0 */12 * * *"
//! ```
//!
//! Schedules have the five fields of cron, in UTC.

use crate::Refused;
use crate::config::File;
use crate::platform::Top;
use crate::yaml::{Node, Value};
use croner::parser::{CronParser, Seconds, Year};

/// Its name, at the top of a bundle.
pub const NAME: &str = "cron.yaml";
/// Longest file in bytes: nobody writes more by hand.
pub const LONGEST: u64 = 64 * 1024;
/// Most tasks.
pub const MOST_TASKS: usize = 100;
/// Longest name and longest path of a task, in bytes.
const LONGEST_TEXT: usize = 1024;
/// The only version of the format.
const VERSION: &str = "1";
/// What a refusal is called.
const INVALID: &str = "cron-invalid";

/// A periodic task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name, unlike that of any other.
    pub name: String,
    /// The path that is posted to, such as `/backup`.
    pub url: String,
    /// Five fields: minute, hour, day of the month, month, day of the week; in UTC.
    pub schedule: String,
    /// Its line, counted from 1.
    pub line: usize,
}

/// The tasks of a bundle, in the order of its file; none where it has no `cron.yaml`.
pub fn read<T: Top>(top: &mut T) -> Result<Vec<Task>, T::Error> {
    match top.head(NAME, LONGEST + 1)? {
        Some(bytes) => Ok(parse(&bytes)?),
        None => Ok(Vec::new()),
    }
}

/// The tasks in the bytes of a `cron.yaml`.
pub fn parse(bytes: &[u8]) -> Result<Vec<Task>, Refused> {
    let file = File {
        name: NAME.to_owned(),
        code: INVALID,
        longest: LONGEST,
    };
    let Some(tree) = file.parse(bytes)? else {
        return Err(file
            .line(1)
            .refuse("says nothing; it needs `version: 1` and `cron:`"));
    };
    let (mut version, mut tasks) = (false, None);
    if !matches!(tree.value, Value::Mapping(_)) {
        return Err(file.wrong(&tree, NAME, "a mapping, lines of `key: value`"));
    }
    for (_, key, value) in file.fields(&tree, NAME, &["version", "cron"])? {
        if key == "version" {
            version = value.text() == Some(VERSION);
            if !version {
                return Err(file.wrong(value, "`version`", "1, the only one there is"));
            }
        } else {
            tasks = Some(read_tasks(&file, value)?);
        }
    }
    let lacks = |key: &str| file.at(&tree).refuse(format!("{NAME} has no `{key}`"));
    if !version {
        return Err(lacks("version: 1"));
    }
    tasks.ok_or_else(|| lacks("cron"))
}

fn read_tasks(file: &File, node: &Node) -> Result<Vec<Task>, Refused> {
    if node.is_null() {
        return Ok(Vec::new());
    }
    let Value::Sequence(items) = &node.value else {
        return Err(file.wrong(node, "`cron`", "a list of tasks"));
    };
    let mut tasks: Vec<Task> = Vec::new();
    for item in items {
        let task = read_task(file, item)?;
        if let Some(first) = tasks.iter().find(|one| one.name == task.name) {
            return Err(file.at(item).refuse(format!(
                "the task `{}` is in line {}, too: each needs a name of its own",
                crate::shown(&task.name),
                first.line
            )));
        }
        if tasks.len() == MOST_TASKS {
            return Err(file
                .at(item)
                .refuse(format!("there are more than {MOST_TASKS} tasks")));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

fn read_task(file: &File, node: &Node) -> Result<Task, Refused> {
    const WHAT: &str = "a task in `cron`";
    if !matches!(node.value, Value::Mapping(_)) {
        return Err(file.wrong(node, WHAT, "a mapping, lines of `key: value`"));
    }
    let (mut name, mut url, mut schedule) = (None, None, None);
    for (_, key, value) in file.fields(node, WHAT, &["name", "url", "schedule"])? {
        let what = format!("`{key}` of {WHAT}");
        let text = file.text(value, &what)?;
        if text.is_empty() || text.len() > LONGEST_TEXT || text.chars().any(char::is_control) {
            return Err(file.wrong(
                value,
                &what,
                "1 to 1024 characters long without control characters",
            ));
        }
        match key {
            "name" => name = Some(text.to_owned()),
            "url" => {
                if !text.starts_with('/') || text.contains(char::is_whitespace) {
                    return Err(file.wrong(value, &what, "a path that begins with `/`"));
                }
                url = Some(text.to_owned());
            }
            _ => schedule = Some(read_schedule(file, value, text, &what)?),
        }
    }
    let lacks = |key: &str| file.at(node).refuse(format!("{WHAT} has no `{key}`"));
    Ok(Task {
        name: name.ok_or_else(|| lacks("name"))?,
        url: url.ok_or_else(|| lacks("url"))?,
        schedule: schedule.ok_or_else(|| lacks("schedule"))?,
        line: node.line,
    })
}

fn read_schedule(file: &File, node: &Node, text: &str, what: &str) -> Result<String, Refused> {
    // Words such as `@daily`, and fields for seconds and years, are not EB's.
    let fields: Vec<&str> = text.split_whitespace().collect();
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    if fields.len() != 5 {
        return Err(file.wrong(
            node,
            what,
            "five fields (minute, hour, day, month, day of the week) with blanks between them",
        ));
    }
    parser.parse(&fields.join(" ")).map_err(|error| {
        file.at(node).refuse(format!(
            "{what} is no schedule of cron: {}",
            crate::shown(error.to_string().trim_end_matches('.'))
        ))
    })?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAILY: &str =
        "version: 1\ncron:\n - name: \"a\"\n   url: \"/a\"\n   schedule: \"0 23 * * *\"\n";

    #[test]
    fn tasks_are_read_in_their_order() {
        let more = format!(
            "{DAILY} - name: b\n   url: /b/c?d=e\n   schedule: '*/5 0-6,8 1 JAN MON-FRI'\n"
        );
        let tasks = parse(more.as_bytes()).expect("valid");
        assert_eq!(tasks.len(), 2);
        assert_eq!(tasks[0].schedule, "0 23 * * *");
        assert_eq!((tasks[1].name.as_str(), tasks[1].line), ("b", 6));
        assert_eq!(tasks[1].url, "/b/c?d=e");
        assert_eq!(parse(b"version: 1\ncron:\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_line() {
        let task = |body: &str| format!("version: 1\ncron:\n - {body}\n");
        for (text, line, says) in [
            (String::new(), 1, "says nothing"),
            ("- a\n".to_owned(), 1, "is not a mapping"),
            ("cron: []\n".to_owned(), 1, "has no `version: 1`"),
            ("version: 1\n".to_owned(), 1, "has no `cron`"),
            ("version: 2\ncron: []\n".to_owned(), 1, "is not 1"),
            ("version: 1\ncrons: []\n".to_owned(), 2, "has a key `crons`"),
            ("version: 1\ncron: {}\n".to_owned(), 2, "is not a list"),
            (task("x"), 3, "is not a mapping"),
            (task("{name: a, url: /a}"), 3, "has no `schedule`"),
            (
                task("{name: a, url: a, schedule: '* * * * *'}"),
                3,
                "begins with `/`",
            ),
            (
                task("{name: a, url: /a, schedule: '* * * *'}"),
                3,
                "five fields",
            ),
            (
                task("{name: a, url: /a, schedule: '@daily'}"),
                3,
                "five fields",
            ),
            (
                task("{name: a, url: /a, schedule: '0 * * * * *'}"),
                3,
                "five fields",
            ),
            (
                task("{name: a, url: /a, schedule: '60 * * * *'}"),
                3,
                "no schedule of cron",
            ),
            (
                task("{name: a, url: /a, schedule: '* * 0 * *'}"),
                3,
                "no schedule of cron",
            ),
            (
                task("{name: a, url: /a, every: day}"),
                3,
                "has a key `every`",
            ),
            (format!("{DAILY}{}", &DAILY[17..]), 6, "in line 3, too"),
        ] {
            let refused = parse(text.as_bytes()).expect_err(&text);
            assert_eq!(refused.code, INVALID);
            let place = format!("cron.yaml, line {line}: ");
            assert!(refused.message.starts_with(&place), "{text:?}: {refused}");
            assert!(refused.message.contains(says), "{text:?}: {refused}");
        }
        let long = "#".repeat(usize::try_from(LONGEST).expect("small") + 1);
        assert!(parse(long.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(version: 1\n|cron:\n| - name: a\n|   url: /a\n|   schedule: '|[0-9*/,LW#? -]{1,9}|'\n|[A-Z]{3}|\\{|\\}){0,30}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn no_schedule_makes_it_panic(schedule in "([0-9]{1,7}|[*/,LW#?@-]|[A-Za-z]{1,3}| ){1,20}") {
            let task = format!("{{version: 1, cron: [{{name: a, url: /, schedule: '{schedule}'}}]}}");
            let _ = parse(task.as_bytes());
        }
    }
}
