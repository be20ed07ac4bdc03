//! Somebody else's collection of requests: what others refuse is refused here, and what others serve is served, but
//! for what is listed with the reason.

use super::*;

const REQUESTS: &[u8] = include_bytes!("gunicorn.txt");

struct Case {
    name: String,
    valid: bool,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let lines: Vec<&[u8]> = REQUESTS.split(|byte| *byte == b'\n').collect();
    let mut cases: Vec<Case> = Vec::new();
    for line in lines {
        if let Some(name) = line.strip_prefix(b"== ") {
            let name = String::from_utf8_lossy(name).into_owned();
            cases.push(Case {
                valid: name.starts_with("valid "),
                name,
                bytes: Vec::new(),
            });
        } else if let Some(case) = cases.last_mut() {
            case.bytes.extend(meant(line));
        }
    }
    cases
}

/// The bytes that a line of the collection stands for.
fn meant(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (kind, after) = after.split_first().expect("an escape");
        rest = after;
        bytes.push(match kind {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            _ => {
                let digits = std::str::from_utf8(&after[..2]).expect("digits");
                rest = &after[2..];
                u8::from_str_radix(digits, 16).expect("digits")
            }
        });
    }
    bytes
}

/// What is refused there and served here, and the other way round, with the reason.
const OTHERWISE: [(&str, &str); 25] = [
    (
        "invalid 003c",
        "`-` is a letter of methods like others (RFC 9110, section 5.6.2)",
    ),
    ("invalid 009", "a limit of theirs: 100 headers"),
    ("invalid 040", "names with `_` are dropped, not refused"),
    (
        "invalid chunked_07",
        "names with `_` are dropped, not refused",
    ),
    (
        "invalid chunked_09",
        "blanks behind the size of a chunk do not go on",
    ),
    (
        "invalid rfc9110_trailer_forbidden_cl_01",
        "trailers do not go on",
    ),
    (
        "invalid rfc9110_trailer_forbidden_host_01",
        "trailers do not go on",
    ),
    (
        "invalid rfc9110_trailer_forbidden_te_01",
        "trailers do not go on",
    ),
    (
        "invalid rfc9112_leading_crlf_02",
        "several empty lines before a request are forgiven, not one alone",
    ),
    (
        "invalid rfc9112_target_non_ascii_02",
        "browsers and programs send such paths",
    ),
    ("valid 002", "a host without `=`"),
    ("valid 003", "a host without `=`"),
    (
        "valid 014",
        "quotes in a path are to be escaped (RFC 3986, section 2)",
    ),
    ("valid 025", "no coding but `chunked`"),
    ("valid 025_line", "no coding but `chunked`"),
    (
        "valid 028",
        "a blank before the colon, which is forgiven there by a setting",
    ),
    ("valid 029", "no coding but `chunked`"),
    ("valid 030", "no coding but `chunked`"),
    (
        "valid compat_obs_fold",
        "a header over two lines, which is forgiven there by a setting",
    ),
    (
        "valid compat_obs_fold_huge",
        "a header over several lines, which is forgiven there by a setting",
    ),
    (
        "valid rfc9112_smuggle_gzip_chunked_01",
        "no coding but `chunked`",
    ),
    (
        "valid rfc9112_smuggle_te_identity_chunked_01",
        "no coding but `chunked`",
    ),
    (
        "valid rfc9112_target_absolute_userinfo_01",
        "a name of a user in a target (RFC 9110, section 4.2.4)",
    ),
    ("valid rfc9112_target_authority_connect_01", "no tunnels"),
    ("valid rfc9112_target_authority_ipv6_01", "no tunnels"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_public_collection_refuses_is_refused_and_what_it_serves_is_served() {
    let witness = Witness::start().await;
    let hosts = [
        HOST,
        "localhost",
        "example.com",
        "0.0.0.0",
        "a",
        "x",
        "victim.com",
        "whatever",
        "[::1]",
    ];
    let proxy = witness.behind_a_proxy(&hosts).await;
    let mut faults = Vec::new();
    for case in &cases() {
        let mut bytes = case.bytes.clone();
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        // Most name no host; here every request of HTTP/1.1 does.
        if !text.contains("host:")
            && let Some(end) = first_line_end(&bytes)
        {
            bytes.splice(end..end, *b"\r\nHost: app.localhost");
        }
        bytes.extend_from_slice(NEXT.as_bytes());
        for way in WAYS {
            witness.take();
            let answer = way.send(&proxy, &bytes).await;
            let seen = witness.take();
            let odd = seen.iter().any(Result::is_err);
            let came = seen.iter().flatten().any(|one| one.target != "/next");
            let otherwise = OTHERWISE.iter().any(|(name, _)| *name == case.name);
            if odd || came != (case.valid != otherwise) {
                let got = answers(&answer, &[]);
                faults.push(format!("{way:?} {}: {seen:?}, {got:?}", case.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
