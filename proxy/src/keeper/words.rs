//! What the keeper and the processes that serve say to each other: lines of JSON over a socket that is the
//! standard input of each of them. Its end tells that the other side is gone.
//!
//! Versions meet here: the keeper may be older or newer than a process that it starts. A field that is added
//! has a default, and a line that is not understood is passed over.

use crate::carried::{Counts, Elder};
use crate::listen::Scheme;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::ProxyReport;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The longest first word, in bytes.
const LONGEST_FIRST: usize = 64 * 1024;

/// How long the first word, which nobody reads yet, may take to fit into the socket.
const FIRST_FITS: Duration = Duration::from_secs(1);

/// What the keeper says first, together with the listeners: which of them speaks what, in their order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct First {
    /// `http` or `https`.
    pub listeners: Vec<Scheme>,
}

/// What the keeper says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Serve.
    Take {
        /// What the one before handed over, if there was one and it could.
        #[serde(default)]
        told: Option<Box<Told>>,
        /// Processes that finish what they began, and the last that each told.
        #[serde(default)]
        alive: Vec<(u32, Option<Counts>)>,
        /// Whether another process serves until this one does.
        #[serde(default)]
        replaces: bool,
        /// How long to wait for the controller to say which table is the newest, in milliseconds.
        #[serde(default)]
        newest_ms: u64,
    },
    /// Take no more from the controller, and tell what the next one has to know. Clients are served on.
    HandOver,
    /// The next one is not fit: take from the controller again.
    Resume {
        /// Processes that finish what they began, and the last that each told: it may have told the other one.
        #[serde(default)]
        alive: Vec<(u32, Option<Counts>)>,
    },
    /// The next one serves: accept nothing more, finish what there is, and end.
    Drain,
    /// Follow the table on disk, which has this generation.
    Follow {
        /// Its generation.
        generation: Generation,
    },
    /// What another process tells that finishes what it began.
    Elder {
        /// Which one.
        pid: u32,
        /// What it has counted.
        counts: Counts,
        /// The table that it follows, if it says so.
        #[serde(default)]
        follows: Option<Generation>,
    },
    /// That process has ended.
    Gone {
        /// Which one.
        pid: u32,
    },
}

/// What a process that serves says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// All is read that serving takes.
    Prepared,
    /// It serves.
    Serving,
    /// It cannot go on.
    Failed {
        /// Why, with all causes.
        why: String,
    },
    /// The answer to [`Order::HandOver`].
    Told(Box<Told>),
    /// What it has counted, while it finishes.
    Counts {
        /// That.
        counts: Counts,
    },
    /// Every other process shall follow the table on disk, which has this generation.
    Follow {
        /// Its generation.
        generation: Generation,
    },
    /// It follows that table.
    Follows {
        /// Its generation.
        generation: Generation,
        /// What it has counted from then on.
        counts: Counts,
    },
    /// Those do not answer, and are to be ended.
    Stuck {
        /// Which ones.
        pids: Vec<u32>,
    },
    /// It was told to stop by somebody else.
    Leaving,
}

/// What a process hands over to the next one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Its process id.
    pub pid: u32,
    /// How the controller knows it, and the last report that it was given: the next one goes on with these.
    pub run: String,
    /// The number of that report.
    pub sequence: u64,
    /// What it sees itself.
    pub report: ProxyReport,
    /// What those before it counted that are gone.
    #[serde(default)]
    pub past: Counts,
    /// Those that are not.
    #[serde(default)]
    pub elders: Vec<(u32, Elder)>,
}

/// A line of it.
pub fn line<T: Serialize>(word: &T) -> Vec<u8> {
    // Names and numbers: writing them to memory does not fail.
    let mut line = serde_json::to_vec(word).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Sends the first word with what is handed along.
pub fn send_first<T: Serialize>(
    socket: &UnixStream,
    word: &T,
    handed: &[impl AsFd],
) -> io::Result<()> {
    let text = serde_json::to_vec(word)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let count = u32::try_from(handed.len()).map_err(io::Error::other)?;
    if text.len() > LONGEST_FIRST {
        return Err(odd("the first word is too long"));
    }
    // Nobody may be there yet to read it: what does not fit must not be waited for.
    socket.set_write_timeout(Some(FIRST_FITS))?;
    let mut socket_ref = socket;
    socket_ref.write_all(&length.to_be_bytes())?;
    socket_ref.write_all(&count.to_be_bytes())?;
    socket_ref.write_all(&text)?;
    for one in handed {
        let fds = [one.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        with.push(SendAncillaryMessage::ScmRights(&fds));
        // Descriptors go with at least one byte.
        sendmsg(
            socket,
            &[IoSlice::new(b".")],
            &mut with,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Receives what [`send_first`] sent.
pub fn receive_first<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let number = || {
        let mut bytes = [0; 4];
        let mut socket = socket;
        socket.read_exact(&mut bytes)?;
        Ok::<_, io::Error>(u32::from_be_bytes(bytes) as usize)
    };
    let (length, count) = (number()?, number()?);
    if length > LONGEST_FIRST {
        return Err(odd("the first word is too long"));
    }
    let mut text = vec![0; length];
    let mut socket_ref = socket;
    socket_ref.read_exact(&mut text)?;
    let word = serde_json::from_slice(&text)?;
    let mut handed = Vec::new();
    while handed.len() < count {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut with,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let before = handed.len();
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                handed.extend(fds);
            }
        }
        if received.bytes == 0 || handed.len() == before {
            return Err(odd("fewer descriptors came than were told"));
        }
    }
    Ok((word, handed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carried::TargetCounts;
    use beanpole_protocol::latency::Latencies;
    use beanpole_protocol::proxy::{ReleaseTraffic, Traffic};
    use beanpole_protocol::{EnvironmentId, Incarnation, InstanceId, ReleaseNumber};

    #[test]
    fn counts_are_heard_as_they_were_said() {
        let counts = Counts {
            targets: vec![TargetCounts {
                instance: InstanceId::from_bits(1),
                process: "api".to_owned(),
                incarnation: Incarnation(2),
                in_flight: 3,
                traffic: Traffic::default(),
            }],
            environments: Vec::new(),
            releases: vec![ReleaseTraffic {
                environment: EnvironmentId::from_bits(1),
                release: ReleaseNumber(4),
                requests: 5,
                errors: 6,
                latency: Latencies([(35, 7)].into()),
            }],
        };
        let said = line(&Word::Counts {
            counts: counts.clone(),
        });
        match serde_json::from_slice(&said).expect("understood") {
            Word::Counts { counts: heard } => assert_eq!(heard, counts),
            other => panic!("{other:?}"),
        }
    }
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn listeners_go_along_with_the_first_word() {
        let bound: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("bind"))
            .collect();
        let (from, to) = UnixStream::pair().expect("a pair");
        let first = First {
            listeners: vec![Scheme::Http, Scheme::Https, Scheme::Http],
        };
        send_first(&from, &first, &bound).expect("sent");
        (&from).write_all(&line(&Word::Prepared)).expect("sent");
        drop(from);
        let (told, handed) = receive_first::<First>(&to).expect("received");
        assert_eq!(told.listeners, first.listeners);
        for (handed, bound) in handed.into_iter().zip(&bound) {
            let address = bound.local_addr().expect("address");
            let handed = TcpListener::from(handed);
            assert_eq!(handed.local_addr().expect("address"), address);
            TcpStream::connect(address).expect("connect");
            handed.accept().expect("the same socket");
        }
        let mut rest = String::new();
        (&to).read_to_string(&mut rest).expect("read");
        assert_eq!(rest, "\"prepared\"\n");
    }
}
