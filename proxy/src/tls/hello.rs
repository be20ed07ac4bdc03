//! The first thing that a client of TLS says, read before anything is decided.

use rustls::server::Acceptor;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest greeting, in bytes with all that frames it. Real ones have 2 kB with a post-quantum key share;
/// OpenSSL and BoringSSL draw the line at 16 KiB, too.
const LONGEST: usize = 16 * 1024;

/// Alerts that end a connection (RFC 8446, section 6.2).
#[derive(Clone, Copy, Debug)]
pub enum Alert {
    /// What was sent is longer than it may be.
    IllegalParameter = 47,
    /// There is nothing here by the name asked for (RFC 6066, section 3).
    UnrecognisedName = 112,
}

/// A greeting.
#[derive(Debug)]
pub struct Hello {
    /// The name that the client asks for, in lower case.
    pub name: Option<String>,
    /// The protocols that it offers.
    pub alpn: Vec<Vec<u8>>,
    /// All that was read.
    pub bytes: Vec<u8>,
}

/// What a client says first.
#[derive(Debug)]
pub enum First {
    /// A greeting.
    Hello(Hello),
    /// Something else, or a greeting that cannot be read.
    Odd {
        /// All that was read.
        bytes: Vec<u8>,
        /// What a client of TLS is to be told.
        alert: Vec<u8>,
        /// Why, for people.
        why: String,
    },
}

/// Reads a greeting. A client whose greeting is none has been told so when this returns an error.
pub async fn hear(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Hello> {
    match listen(io).await? {
        First::Hello(hello) => Ok(hello),
        First::Odd { alert, why, .. } => {
            io.write_all(&alert).await?;
            io.flush().await?;
            if alert == alert_of(Alert::IllegalParameter) {
                io.shutdown().await?;
            }
            Err(io::Error::other(why))
        }
    }
}

/// Reads a greeting, and tells the client nothing.
pub async fn listen(io: &mut (impl AsyncRead + Unpin)) -> io::Result<First> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(2048);
    loop {
        let room = (LONGEST - bytes.len()) as u64;
        if room == 0 {
            return Ok(First::Odd {
                bytes,
                alert: alert_of(Alert::IllegalParameter).to_vec(),
                why: "its greeting is too long".to_owned(),
            });
        }
        let before = bytes.len();
        if (&mut *io).take(room).read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fresh = &bytes[before..];
        while !fresh.is_empty() && acceptor.read_tls(&mut fresh)? > 0 {}
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let name = hello.server_name().map(str::to_ascii_lowercase);
                let alpn = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec);
                let alpn = alpn.collect();
                return Ok(First::Hello(Hello { name, alpn, bytes }));
            }
            Err((error, mut told)) => {
                let mut alert = Vec::new();
                told.write_all(&mut alert)?;
                let why = error.to_string();
                return Ok(First::Odd { bytes, alert, why });
            }
        }
    }
}

/// Ends a connection on which nothing was agreed yet.
pub async fn refuse(io: &mut (impl AsyncWrite + Unpin), alert: Alert) -> io::Result<()> {
    io.write_all(&alert_of(alert)).await?;
    io.flush().await?;
    io.shutdown().await
}

/// An alert as it is sent.
fn alert_of(alert: Alert) -> [u8; 7] {
    const KIND_ALERT: u8 = 21;
    const FATAL: u8 = 2;
    // A record of TLS 1.2's number, as every version sends them (RFC 8446, section 5.1).
    [KIND_ALERT, 3, 3, 0, 2, FATAL, alert as u8]
}
