//! A process that serves: from the keeper's first word to the end of the last connection.

use super::opened::Asks;
use super::words::{self, First, Order, Told, Word};
use crate::carried::{Carried, Counts};
use crate::control::{self, Control, Kept, Known, Since};
use crate::network::Binder;
use crate::serve::{self, Server};
use crate::shared::Shared;
use crate::{CONTROL_PATIENCE, ProxyConfig, ProxyError};
use beanpole_daemon::socket::{self, BindError, Socket};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long the keeper's first word may take.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long a process of a keeper that is gone may take to leave the control socket.
const LEAVES_SOCKET: Duration = Duration::from_secs(5);
/// From one look at what is under way to the next, while a process finishes.
const TELLS_EVERY: Duration = Duration::from_millis(100);
/// By how much the numbers of reports rise that are told after a successor was not fit: it may have told some.
const SUCCESSORS_REPORTS: u64 = 1_000_000;

/// Serves as the keeper says, which is at the other end of standard input: until it says otherwise or is gone,
/// or until `stop`.
pub async fn serve_kept(config: ProxyConfig, stop: CancellationToken) -> Result<(), ProxyError> {
    let (socket, first, listeners, binder) = hear_first().map_err(ProxyError::Keeper)?;
    let (from_keeper, mut to_keeper) = socket.into_split();
    let orders = BufReader::new(from_keeper).lines();
    let (words, mut said) = mpsc::unbounded_channel();
    let writer = tokio::spawn(async move {
        while let Some(word) = said.recv().await {
            if to_keeper.write_all(&words::line(&word)).await.is_err() {
                return;
            }
        }
        // What was written last is read even so: it ends with the process.
        to_keeper.forget();
    });
    let listeners = first.listeners.iter().copied().zip(listeners).collect();
    let result = live(config, (listeners, binder), orders, &words, stop).await;
    if let Err(error) = &result {
        let why = chain(error);
        let _ = words.send(Word::Failed { why });
    }
    drop(words);
    let _ = timeout(CONTROL_PATIENCE, writer).await;
    result
}

type Orders = Lines<BufReader<OwnedReadHalf>>;
type Listeners = Vec<(crate::Scheme, tokio::net::TcpListener)>;

/// The socket for orders, the first word, the listeners, and who opens more.
type Heard = (
    tokio::net::UnixStream,
    First,
    Vec<tokio::net::TcpListener>,
    Binder,
);

fn hear_first() -> io::Result<Heard> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_read_timeout(Some(FIRST_WORD))?;
    let (first, mut handed) = words::receive_first::<First>(&socket)?;
    // A keeper of before hands no socket along by which listeners are asked for.
    let asks = handed
        .split_off(first.listeners.len().min(handed.len()))
        .pop();
    let binder = match asks {
        Some(asks) => Binder::Kept(Arc::new(Asks::by(UnixStream::from(asks))?)),
        None => Binder::Own,
    };
    let listener = |fd| {
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    let listeners = handed.into_iter().map(listener).collect::<Result<_, _>>()?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(socket)?;
    Ok((socket, first, listeners, binder))
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// The controller's way in, while it is open.
struct Open {
    control: Arc<Control>,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

struct Life<'a> {
    config: &'a ProxyConfig,
    server: Server,
    words: &'a mpsc::UnboundedSender<Word>,
    carried: Arc<Carried>,
    open: Option<Open>,
    /// What was handed over last.
    handed: Option<Told>,
    /// Ends when clients may be accepted.
    may_accept: Option<JoinHandle<()>>,
}

/// What ends a life in which nothing failed.
#[derive(PartialEq, Eq)]
enum End {
    /// It is to stop now.
    Stop,
    /// Another one serves.
    Drain,
}

async fn live(
    config: ProxyConfig,
    (listeners, binder): (Listeners, Binder),
    mut orders: Orders,
    words: &mpsc::UnboundedSender<Word>,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    serve::make_directory(&config)?;
    let server = Server::prepare(&config, listeners, binder)?;
    control::is_readable(&server.kept.table).map_err(ProxyError::Kept)?;
    let mut life = Life {
        config: &config,
        server,
        words,
        carried: Arc::default(),
        open: None,
        handed: None,
        may_accept: None,
    };
    life.say(Word::Prepared);
    let end = life.follow_orders(&mut orders, &stop).await;
    life.close().await;
    let Life { server, .. } = life;
    if matches!(end, Ok(End::Drain)) {
        drain(server, orders, words, &stop, config.linger).await;
    } else {
        server.stop().await;
    }
    end.map(|_| ())
}

impl Life<'_> {
    fn say(&self, word: Word) {
        // Without a keeper, the end of its orders tells.
        let _ = self.words.send(word);
    }

    async fn follow_orders(
        &mut self,
        orders: &mut Orders,
        stop: &CancellationToken,
    ) -> Result<End, ProxyError> {
        loop {
            let order = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.say(Word::Leaving);
                    return Ok(End::Stop);
                }
                () = ended(&mut self.may_accept) => {
                    self.server.accept();
                    self.say(Word::Serving);
                    continue;
                }
                served = served(&mut self.open) => {
                    // Without a way in for the controller there is no point in going on.
                    let why = served.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Err(ProxyError::System(why));
                }
                line = orders.next_line() => match line {
                    Ok(Some(line)) => line,
                    _ => {
                        tracing::warn!("the keeper is gone: finishing what is in flight");
                        return Ok(End::Stop);
                    }
                },
            };
            let Some(order) = read(&order) else { continue };
            match order {
                Order::Take {
                    told,
                    alive,
                    replaces,
                    newest_ms,
                } => {
                    let alive = alive.into_iter().collect();
                    let carried = Carried::taken_over(told.as_deref(), &alive, self.words.clone());
                    self.carried = Arc::new(carried);
                    let newest = Duration::from_millis(newest_ms);
                    self.take(told.as_deref(), replaces, newest).await?;
                }
                Order::HandOver => {
                    self.close().await;
                    if let Some(told) = &self.handed {
                        self.say(Word::Told(Box::new(told.clone())));
                    }
                }
                Order::Resume { alive } => {
                    self.carried.only(&alive.into_iter().collect());
                    if let Some(told) = self.handed.take() {
                        let since = Since {
                            run: told.run,
                            sequence: told.sequence + SUCCESSORS_REPORTS,
                            carried: self.carried.clone(),
                            trusts_first: false,
                        };
                        self.open(self.bind().await?, since);
                    }
                }
                Order::Drain => return Ok(End::Drain),
                Order::Follow { .. } => {
                    let Server { shared, kept, .. } = &self.server;
                    follow(shared, kept, self.words);
                }
                Order::Elder {
                    pid,
                    counts,
                    follows,
                } => {
                    self.carried.tells(pid, counts, follows);
                    self.server.shared.changes.tell();
                }
                Order::Gone { pid } => {
                    self.carried.ended(pid);
                    self.server.shared.changes.tell();
                }
            }
        }
    }

    /// Begins to serve with what was in force a moment ago.
    async fn take(
        &mut self,
        told: Option<&Told>,
        replaces: bool,
        newest: Duration,
    ) -> Result<(), ProxyError> {
        let Server { shared, kept, .. } = &self.server;
        // Both may have changed since this process was made ready.
        control::restore_certificates(&shared.certificates, &kept.certificates)
            .map_err(ProxyError::Kept)?;
        shared.own_pages.follow();
        shared.statics.follow();
        let known = told.map_or(Known::Served, |told| Known::Seen(&told.report));
        control::restore(shared, &kept.table, known).map_err(ProxyError::Kept)?;
        let since = Since {
            carried: self.carried.clone(),
            trusts_first: self.config.table_wait.is_some(),
            ..Since::default()
        };
        let since = match told {
            Some(told) => Since {
                run: told.run.clone(),
                sequence: told.sequence,
                ..since
            },
            None => since,
        };
        let socket = if replaces {
            socket::bind_over(&self.config.socket, 0o600, None).map_err(ProxyError::Socket)?
        } else {
            self.bind().await?
        };
        let control = self.open(socket, since);
        let wait = if self.server.has_table() || self.config.table_wait.is_some() {
            newest
        } else {
            Duration::ZERO
        };
        self.may_accept = Some(tokio::spawn(async move {
            if !wait.is_zero() {
                control.told_within(wait).await;
            }
        }));
        Ok(())
    }

    /// Listens for the controller. A process whose keeper was killed leaves the place by itself.
    async fn bind(&self) -> Result<Socket, ProxyError> {
        let end = Instant::now() + LEAVES_SOCKET;
        loop {
            match socket::bind(&self.config.socket, 0o600, None).await {
                Err(BindError::InUse { .. }) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                bound => return bound.map_err(ProxyError::Socket),
            }
        }
    }

    fn open(&mut self, socket: Socket, since: Since) -> Arc<Control> {
        let stop = CancellationToken::new();
        let control = Control::new(
            self.server.shared.clone(),
            self.server.kept.clone(),
            self.server.addresses.clone(),
            since,
            stop.clone(),
        );
        let router = control.clone().router();
        let serving = tokio::spawn(socket::serve(socket, router, stop.clone()));
        self.open = Some(Open {
            control: control.clone(),
            stop,
            serving,
        });
        control
    }

    /// Takes nothing more from the controller.
    async fn close(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        open.stop.cancel();
        // A call that never ends must not keep the next one waiting.
        if timeout(CONTROL_PATIENCE, &mut open.serving).await.is_err() {
            open.serving.abort();
        }
        self.handed = Some(open.control.hand_over());
    }
}

/// Done when the task has ended; never where there is none.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(handle) => {
            let _ = handle.await;
            *task = None;
        }
        None => std::future::pending().await,
    }
}

async fn served(open: &mut Option<Open>) -> io::Result<()> {
    match open {
        Some(open) => (&mut open.serving)
            .await
            .map_err(io::Error::other)
            .and_then(|result| result),
        None => std::future::pending().await,
    }
}

fn read(line: &str) -> Option<Order> {
    serde_json::from_str(line)
        .inspect_err(|error| tracing::warn!(%error, "the keeper said what is not understood"))
        .ok()
}

/// Puts the table in force that is on disk, and says so.
fn follow(shared: &Shared, kept: &Kept, words: &mpsc::UnboundedSender<Word>) {
    match control::restore(shared, &kept.table, Known::Nothing) {
        Ok(()) => {
            let report = control::seen(shared);
            let _ = words.send(Word::Follows {
                generation: report.generation,
                counts: Counts::of(&report),
            });
        }
        Err(error) => tracing::error!(error = chain(&error), "cannot follow the table"),
    }
}

/// Finishes what there is, and tells how much that is.
async fn drain(
    mut server: Server,
    orders: Orders,
    words: &mpsc::UnboundedSender<Word>,
    stop: &CancellationToken,
    linger: Duration,
) {
    let mut finishing = Finishing {
        shared: server.shared.clone(),
        kept: server.kept.clone(),
        words,
        orders: Some(orders),
        last: None,
    };
    let late = async {
        tokio::time::sleep(linger).await;
        tracing::warn!(
            after_s = linger.as_secs(),
            "requests of an earlier process of this load balancer have lingered for too long: they are ended"
        );
    };
    let over = tokio::select! {
        () = finishing.during(server.retire()) => true,
        () = stop.cancelled() => false,
        () = late => false,
    };
    if over && finishing.orders.is_some() {
        server.end().await;
    } else {
        finishing.during(server.stop()).await;
    }
    finishing.tell();
}

/// A process that finishes what it began.
struct Finishing<'a> {
    shared: Arc<Shared>,
    kept: Kept,
    words: &'a mpsc::UnboundedSender<Word>,
    /// None once the keeper is gone.
    orders: Option<Orders>,
    last: Option<Counts>,
}

impl Finishing<'_> {
    /// Tells what changes until `work` is done, or the keeper is gone.
    async fn during(&mut self, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        let had_keeper = self.orders.is_some();
        loop {
            self.tell();
            tokio::select! {
                biased;
                () = &mut work => return,
                line = next(&mut self.orders) => match line {
                    Some(line) => {
                        if let Some(Order::Follow { .. }) = read(&line) {
                            follow(&self.shared, &self.kept, self.words);
                        }
                    }
                    None => self.orders = None,
                },
                () = tokio::time::sleep(TELLS_EVERY) => {}
            }
            if had_keeper && self.orders.is_none() {
                return;
            }
        }
    }

    fn tell(&mut self) {
        let counts = Counts::of(&control::seen(&self.shared));
        if self.last.as_ref() != Some(&counts) {
            self.last = Some(counts.clone());
            let _ = self.words.send(Word::Counts { counts });
        }
    }
}

/// The next order; none once nobody is there to give one, and then none ever comes.
async fn next(orders: &mut Option<Orders>) -> Option<String> {
    match orders {
        Some(orders) => orders.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}
