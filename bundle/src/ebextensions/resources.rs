//! `Resources`: what EB would have CloudFormation make beside the environment. Here they are only collected, by
//! name and type.

use crate::Refused;
use crate::config::File;
use crate::yaml::{Node, Value};

/// Something that is to be there beside the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name in the bundle.
    pub name: String,
    /// For example `AWS::SQS::Queue`; none where it is not told.
    pub kind: Option<String>,
    /// For example `.ebextensions/01.config`.
    pub file: String,
    /// Its line, counted from 1.
    pub line: usize,
}

/// Types that have a meaning on machines of one's own.
const KNOWN: [&str; 6] = [
    "AWS::SQS::Queue",
    "AWS::SNS::Topic",
    "AWS::DynamoDB::Table",
    "AWS::RDS::DBInstance",
    "AWS::S3::Bucket",
    "AWS::CloudWatch::Alarm",
];
/// And all that begin with this.
const CACHES: &str = "AWS::ElastiCache::";

impl Resource {
    /// Whether it is of a type that has a meaning on machines of one's own.
    pub fn is_known(&self) -> bool {
        let known = |kind: &str| KNOWN.contains(&kind) || kind.starts_with(CACHES);
        self.kind.as_deref().is_some_and(known)
    }
}

/// What becomes of it, without a full stop.
impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.as_deref().unwrap_or("of no type");
        let why = if self.is_known() {
            "is not made here yet"
        } else {
            "is of a type that Beanpole does not make"
        };
        let Self {
            name, file, line, ..
        } = self;
        write!(
            f,
            "the resource {name} ({kind}) in {file}, line {line}, {why}"
        )
    }
}

/// The resources of one file. Of each only its type is looked at: the rest is CloudFormation's, with tags and
/// references of its own.
pub(super) fn read(file: &File, node: &Node) -> Result<Vec<Resource>, Refused> {
    let mut resources = Vec::new();
    for (line, name, body) in file.pairs(node, "`Resources`")? {
        let kind = match &body.value {
            Value::Mapping(pairs) => pairs
                .iter()
                .find(|(key, _)| key.text() == Some("Type"))
                .and_then(|(_, kind)| kind.text())
                .map(super::shown),
            _ => None,
        };
        resources.push(Resource {
            name: super::shown(name),
            kind,
            file: file.name.clone(),
            line,
        });
    }
    Ok(resources)
}
