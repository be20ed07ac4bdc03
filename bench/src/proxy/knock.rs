//! The client of the rows for which Debian has none: a connection for each request with the time
//! of its making in the latency, TLS sessions resumed or not; and connections that rest.
//!
//! It runs as a process of its own (`beanpole-bench knock ...`), so that it has a core to itself. It
//! does not check what the server signs, to spend less on a handshake than the server does.

use super::rows::CLIENTS;
use crate::Failed;
use rustls::HandshakeKind;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one visit may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is to be done.
#[derive(clap::Parser)]
pub struct Knock {
    /// The server.
    address: SocketAddr,
    /// The hostname that is asked for.
    #[arg(long)]
    host: String,
    /// What is asked for.
    #[arg(long)]
    path: String,
    /// Use TLS.
    #[arg(long)]
    tls: bool,
    /// Resume TLS sessions.
    #[arg(long)]
    resume: bool,
    /// One request per connection, for this many seconds.
    #[arg(long, conflicts_with = "hold", default_value_t = 0)]
    seconds: u32,
    /// Make this many connections with one request each, and keep them until the end of input.
    #[arg(long)]
    hold: Option<usize>,
}

/// What came of it.
#[derive(Default, Serialize, Deserialize)]
pub struct Tally {
    /// Requests answered.
    pub requests: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Median from the beginning of a connection to the last byte of its answer, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The share of sessions that were resumed.
    pub resumed: f64,
}

/// Does it; what there is to tell is one line of JSON.
#[expect(clippy::print_stdout, reason = "how it answers to its parent")]
pub fn run(knock: &Knock) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let Some(count) = knock.hold {
        let held = runtime.block_on(hold(knock, count))?;
        println!("{}", held.len());
        // The parent's end of it closes when it has seen enough.
        io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let tally = runtime.block_on(knock_on(knock))?;
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

/// What one client did.
#[derive(Default)]
struct Visits {
    latencies_us: Vec<u32>,
    resumed: u64,
}

async fn knock_on(knock: &Knock) -> Result<Tally, Failed> {
    let started = Instant::now();
    let end = started + Duration::from_secs(knock.seconds.into());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let visitor = Visitor::new(knock, "close")?;
        clients.spawn(async move {
            let mut visits = Visits::default();
            while Instant::now() < end {
                let begun = Instant::now();
                let visit = tokio::time::timeout(PATIENCE, visitor.visit_and_leave());
                let (answered, resumed) = visit.await.map_err(|_| io::ErrorKind::TimedOut)??;
                let latency = answered.duration_since(begun).as_micros();
                visits.latencies_us.push(latency as u32);
                visits.resumed += u64::from(resumed);
            }
            io::Result::Ok(visits)
        });
    }
    let mut all = Visits::default();
    while let Some(client) = clients.join_next().await {
        let visits = client??;
        all.latencies_us.extend(visits.latencies_us);
        all.resumed += visits.resumed;
    }
    let seconds = started.elapsed().as_secs_f64();
    all.latencies_us.sort_unstable();
    let requests = all.latencies_us.len();
    let at = |share: f64| {
        let index = ((requests as f64 * share) as usize).min(requests.saturating_sub(1));
        f64::from(all.latencies_us.get(index).copied().unwrap_or(0)) / 1_000.0
    };
    Ok(Tally {
        requests: requests as u64,
        seconds,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        resumed: all.resumed as f64 / (requests as f64).max(1.0),
    })
}

/// Connections after one request each. Of a TLS session only the socket is kept: the server cannot tell.
async fn hold(knock: &Knock, count: usize) -> Result<Vec<TcpStream>, Failed> {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let visitor = Visitor::new(knock, "keep-alive")?;
        clients.spawn(async move {
            let mut held = Vec::new();
            for _ in (client..count).step_by(CLIENTS) {
                let visit = tokio::time::timeout(PATIENCE, visitor.visit_and_stay());
                held.push(visit.await.map_err(|_| io::ErrorKind::TimedOut)??);
            }
            io::Result::Ok(held)
        });
    }
    let mut all = Vec::new();
    while let Some(client) = clients.join_next().await {
        all.extend(client??);
    }
    Ok(all)
}

/// A client, with its own memory of sessions.
struct Visitor {
    address: SocketAddr,
    request: Vec<u8>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Visitor {
    fn new(knock: &Knock, connection: &str) -> Result<Self, Failed> {
        let tls = if knock.tls {
            let name = ServerName::try_from(knock.host.clone())?;
            Some((TlsConnector::from(tls_config(knock.resume)?), name))
        } else {
            None
        };
        Ok(Self {
            address: knock.address,
            request: format!(
                "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
                knock.path, knock.host
            )
            .into_bytes(),
            tls,
        })
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// When the answer was there, and whether a session was resumed; then the server has closed.
    async fn visit_and_leave(&self) -> io::Result<(Instant, bool)> {
        let mut stream = self.connect().await?;
        match &self.tls {
            None => {
                let answered = ask(&mut stream, &self.request).await?;
                see_off(&mut stream).await?;
                Ok((answered, false))
            }
            Some((connector, name)) => {
                let mut stream = connector.connect(name.clone(), stream).await?;
                let kind = stream.get_ref().1.handshake_kind();
                let answered = ask(&mut stream, &self.request).await?;
                see_off(&mut stream).await?;
                Ok((answered, kind == Some(HandshakeKind::Resumed)))
            }
        }
    }

    async fn visit_and_stay(&self) -> io::Result<TcpStream> {
        let mut stream = self.connect().await?;
        match &self.tls {
            None => {
                ask(&mut stream, &self.request).await?;
                Ok(stream)
            }
            Some((connector, name)) => {
                let mut stream = connector.connect(name.clone(), stream).await?;
                ask(&mut stream, &self.request).await?;
                Ok(stream.into_inner().0)
            }
        }
    }
}

/// Sends the request and reads the answer whole; returns when its last byte was there.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
) -> io::Result<Instant> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(4 * 1024);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if is_whole(&answer)? {
            return Ok(Instant::now());
        }
    }
}

/// Whether `answer` is a 200 with all of its body.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("answered: {status}")));
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
    Ok(answer.len() >= end + 4 + length)
}

/// Waits until the server has closed: a client that closes first keeps its port for a minute.
async fn see_off(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut rest = [0; 64];
    loop {
        match stream.read(&mut rest).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Not every server ends TLS before it ends TCP.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

fn tls_config(resume: bool) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(schemes)))
        .with_no_client_auth();
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// Takes every server for the right one: this is a load generator.
#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn an_answer_is_whole_with_the_last_byte_of_its_body() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert!(!is_whole(&head[..20]).expect("no head yet"));
        assert!(!is_whole(&[head, &b"ab"[..]].concat()).expect("two of three"));
        assert!(is_whole(&[head, &b"abc"[..]].concat()).expect("all"));
        assert!(is_whole(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").is_err());
    }
}
