//! The application that test bundles run: a small web server that does as its arguments say.
//!
//! `testapp VERSION [--status N] [--exit CODE] [--no-listen] [--start-delay MS] [--hog MIB]
//! [--lives MS] [--errors PERCENT]`
//!
//! It answers `VERSION INSTANCE PID` on `$PORT`. `/slow?MS` answers late, `/exit` ends the process,
//! `/env?NAME` shows a variable, `/headers` what the proxy sent, `/echo` sends a body back and `/ws` the
//! frames of a WebSocket. On SIGTERM it ends at once: what it
//! was still answering is lost, so that a drain that comes too late shows.
//! With `--lives` it serves well for that long, then gives up with exit code 9. With `--errors` it answers
//! that share of the requests for `/` with 500.

mod websocket;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let version = arguments
        .first()
        .cloned()
        .unwrap_or_else(|| "v0".to_owned());
    say(&format!("{version} is starting"));
    if let Some(delay) = number("--start-delay") {
        pause(delay);
    }
    if let Some(mebibytes) = number("--hog") {
        let mut hoard = Vec::new();
        for _ in 0..mebibytes {
            hoard.push(vec![1_u8; 1 << 20]);
        }
        say(&format!("holding {} MiB", hoard.len()));
    }
    if let Some(code) = number("--exit") {
        say("cannot find the database, giving up");
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    if arguments.iter().any(|argument| argument == "--no-listen") {
        loop {
            pause(1_000);
        }
    }
    let status = number("--status").unwrap_or(200);
    let errors = number("--errors").unwrap_or(0);
    let Some(port) = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse::<u16>().ok())
    else {
        say("PORT is not set");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => listener,
        Err(error) => {
            say(&format!("cannot listen on {port}: {error}"));
            return ExitCode::from(3);
        }
    };
    say(&format!("{version} listens on {port}"));
    let serving = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let version = version.clone();
            std::thread::spawn(move || serve(stream, &version, status, errors));
        }
    });
    if let Some(lives) = number("--lives") {
        pause(lives);
        say("the database went away, giving up");
        return ExitCode::from(9);
    }
    let _ = serving.join();
    ExitCode::SUCCESS
}

/// Requests for `/` so far.
static ASKED: AtomicU64 = AtomicU64::new(0);

fn serve(stream: TcpStream, version: &str, status: u64, errors: u64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let mut head = String::new();
        let mut length = 0;
        let mut key = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                let value = value.trim();
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap_or(0);
                } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                    key = Some(value.to_owned());
                }
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let target = first.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if let ("/ws", Some(key), 200) = (path, &key, status) {
            writer.write_all(websocket::accepted(key).as_bytes()).ok()?;
            return websocket::echo(reader, writer).ok();
        }
        let answer = match path {
            "/slow" => {
                pause(query.parse().unwrap_or(0));
                format!("{version} slow\n")
            }
            "/exit" => {
                say("asked to end");
                // The one thing that this program is for; nothing is lost by it.
                rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                )
                .ok()?;
                return None;
            }
            "/env" => format!("{}\n", std::env::var(query).unwrap_or_default()),
            "/headers" => head,
            "/echo" => String::from_utf8_lossy(&body).into_owned(),
            "/big" => "x".repeat(query.parse().unwrap_or(0)),
            _ => format!(
                "{version} {} {}\n",
                std::env::var("BEANPOLE_INSTANCE").unwrap_or_default(),
                std::process::id()
            ),
        };
        // What only one version has.
        let status = match path.strip_prefix("/only/") {
            Some(which) if which != version => 404,
            // Evenly: one in five for a fifth.
            None if path == "/" && ASKED.fetch_add(errors, Ordering::Relaxed) % 100 < errors => 500,
            _ => status,
        };
        let reply = format!(
            "HTTP/1.1 {status} Told So\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        writer.write_all(reply.as_bytes()).ok()?;
    }
}

fn pause(milliseconds: u64) {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

#[expect(clippy::print_stdout, reason = "this is the application's log")]
fn say(text: &str) {
    println!("{text}");
}
