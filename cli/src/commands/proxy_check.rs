//! `beanpole proxy check`: whether a load balancer of ours answers at an address, for those that watch it.

use crate::output::errors::Failure;
use beanpole_daemon::clock;
use beanpole_protocol::problem::Problem;
use clap::Args;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a load balancer may take to answer.
const LIMIT: Duration = Duration::from_secs(1);
/// The most that is read of an answer, in bytes: far above any that a load balancer gives itself.
const LONGEST: usize = 16 * 1024;

/// Ask whether a load balancer answers by HTTP at an address, within a second
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  beanpole proxy check 127.0.0.1:80\n\nExit code 0: it answers; 1: it does not, or something else answers there."
)]
pub struct Check {
    /// Where
    #[arg(value_name = "ADDR", value_parser = super::daemons::listen_address)]
    address: SocketAddr,
    /// It is one with --proxy-protocol
    #[arg(long)]
    proxy_protocol: bool,
}

/// Asks for a tunnel, which load balancers refuse by themselves, whatever domains lead through them: no application is asked,
/// and none is kept awake. One that does not take requests yet, because it waits for the newest table, does not answer.
pub fn run(asked: &Check) -> Result<(), Failure> {
    let address = asked.address;
    let request = format!("check-{:032x}", clock::random_bits());
    let why = match ask(asked, &request) {
        Ok(answer) if is_ours(&answer, &request) => return Ok(()),
        Ok(answer) if answer.starts_with("HTTP/") => "something else answers by HTTP".to_owned(),
        Ok(_) => "what answers does not speak HTTP".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            format!("no answer within {} s", LIMIT.as_secs())
        }
        Err(error) => error.to_string(),
    };
    Err(
        Failure::new(format!("No load balancer answers at {address}: {why}.")).hint(
            "See where load balancers listen: beanpole edge list, or --http of `beanpole proxy`",
        ),
    )
}

/// What comes to a request of that id, as far as it comes in time.
fn ask(asked: &Check, request: &str) -> io::Result<String> {
    let end = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&asked.address, LIMIT)?;
    stream.set_write_timeout(Some(LIMIT))?;
    if asked.proxy_protocol {
        stream.write_all(b"PROXY UNKNOWN\r\n")?;
    }
    let head = format!(
        "CONNECT beanpole-check.invalid:443 HTTP/1.1\r\nHost: beanpole-check.invalid:443\r\n\
         Accept: application/problem+json\r\nX-Request-Id: {request}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while answer.len() < LONGEST {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) if answer.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What came may be all of an answer.
            Err(error) if answer.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    if answer.is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether an answer is what a load balancer says itself to a request of that id: that it opens no tunnels; or, before it looked
/// at any request, that there are too many connections.
fn is_ours(answer: &str, request: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    if let Ok(problem) = serde_json::from_str::<Problem>(body) {
        return problem.code == "no-tunnel" && problem.request_id.as_deref() == Some(request);
    }
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let id = headers.find(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
    head.split(' ').nth(1) == Some("503")
        && id.is_some_and(|(_, id)| body.ends_with(&format!("\nRequest {}\n", id.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_balancer_is_known_by_what_it_alone_says() {
        let answer = |status: &str, body: &str| {
            format!("HTTP/1.1 {status} X\r\nx-request-id: a\r\n\r\n{body}")
        };
        let refused = |code: &str| {
            let mut problem = Problem::new(405, code, "title", "detail");
            problem.request_id = Some("a".to_owned());
            answer("405", &serde_json::to_string(&problem).expect("JSON"))
        };
        assert!(is_ours(&refused("no-tunnel"), "a"));
        assert!(!is_ours(&refused("no-tunnel"), "b"));
        assert!(!is_ours(&refused("method-not-allowed"), "a"));
        let crowded = "Not available now\n\nThere are too many connections.\n\nRequest a\n";
        assert!(is_ours(&answer("503", crowded), "b"));
        assert!(!is_ours(&answer("200", crowded), "b"));
        assert!(!is_ours(&answer("503", "busy"), "b"));
        assert!(!is_ours("SSH-2.0-OpenSSH", "a"));
    }
}
