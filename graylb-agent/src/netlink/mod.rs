//! Follows the kernel's links, routes and neighbours by route netlink, so that the daemon need not ask.
//!
//! In: the kernel's messages. Out: [`Seen`], at most one each [`PACE`], the first one at once. It reads
//! only, and decides nothing.

mod message;
mod socket;
mod table;

use std::{future, os::fd::OwnedFd, time::Duration};

use rustix::io::Errno;
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    task,
    time::{self, Instant},
};
use tracing::{debug, error, warn};

use self::{
    socket::Heard,
    table::{Effect, Table},
};
use crate::model::interfaces::Device;

/// Bursts become one [`Seen`] for each stretch of this length.
const PACE: Duration = Duration::from_millis(20);
/// Datagrams that are read before other tasks have their turn.
const BATCH: usize = 256;
/// How soon a socket that failed is opened anew.
const RETRY: Duration = Duration::from_secs(1);

/// What has changed since the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Routes, rules, addresses, neighbours' MAC addresses or links' states: a next hop that was looked up
    /// before may be another now.
    pub next_hops: bool,
    /// All devices, if they or their names are others now.
    pub devices: Option<Vec<Device>>,
}

/// What was tried, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {error}")]
pub struct NetlinkError {
    tried: &'static str,
    error: Errno,
}

impl NetlinkError {
    const fn because(tried: &'static str) -> impl Fn(Errno) -> Self {
        move |error| Self { tried, error }
    }
}

/// Hears of changes in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Watcher {
    socket: OwnedFd,
    table: Table,
}

impl Watcher {
    /// Begins to listen, and asks what there is. Waits for the kernel's answer, which takes about a
    /// millisecond.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn open() -> Result<Self, NetlinkError> {
        // In this order: what changes in between is heard of.
        let socket = socket::listen()?;
        Ok(Self { socket, table: socket::dump()? })
    }

    /// The devices that there are.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.table.devices()
    }

    /// Reports changes for as long as somebody listens.
    pub async fn run(self, out: mpsc::Sender<Seen>) {
        let Self { mut socket, mut table } = self;
        loop {
            #[expect(
                deprecated,
                reason = "an OwnedFd stays open and the same for as long as it lives"
            )]
            let registered = AsyncFd::new(socket);
            let why = match registered {
                Ok(socket) => match follow(&socket, &mut table, &out).await {
                    Ok(Gone) => return,
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            error!("changes of links and routes are not heard of: {why}; trying again");
            socket = loop {
                time::sleep(RETRY).await;
                match socket::listen() {
                    Ok(socket) => break socket,
                    Err(error) => debug!("{error}"),
                }
            };
            let seen = resynchronise(&mut table).await;
            if report(seen, &table, &out).await.is_err() {
                return;
            }
        }
    }
}

/// Nobody listens any more.
struct Gone;

async fn follow(
    socket: &AsyncFd<OwnedFd>,
    table: &mut Table,
    out: &mpsc::Sender<Seen>,
) -> Result<Gone, std::io::Error> {
    let mut next_at = Instant::now();
    let mut pending = Effect::default();
    loop {
        let waiting = pending.any();
        let due = async {
            if waiting { time::sleep_until(next_at).await } else { future::pending().await }
        };
        tokio::select! {
            () = due => {
                // What has arrived meanwhile belongs to it.
                pending = pending.and(drain(socket.get_ref(), table).await?);
                if report(pending, table, out).await.is_err() {
                    return Ok(Gone);
                }
                pending = Effect::default();
                next_at = Instant::now() + PACE;
            }
            ready = socket.readable() => {
                let mut ready = ready?;
                ready.clear_ready();
                pending = pending.and(drain(socket.get_ref(), table).await?);
            }
            () = out.closed() => return Ok(Gone),
        }
    }
}

/// Reads all that there is.
async fn drain(socket: &OwnedFd, table: &mut Table) -> Result<Effect, Errno> {
    let mut buffer = Vec::new();
    let mut effect = Effect::default();
    let mut lost = false;
    loop {
        for _ in 0..BATCH {
            match socket::hear(socket, &mut buffer)? {
                Heard::Events(events) => {
                    for event in events {
                        effect = effect.and(table.take(event));
                    }
                }
                Heard::Lost => lost = true,
                Heard::Nothing if lost => {
                    warn!("the kernel dropped messages about links and routes: asking for all");
                    return Ok(resynchronise(table).await);
                }
                Heard::Nothing => return Ok(effect),
            }
        }
        task::yield_now().await;
    }
}

/// Asks for everything; whatever is now may be a change.
async fn resynchronise(table: &mut Table) -> Effect {
    match task::spawn_blocking(socket::dump).await {
        Ok(Ok(new)) => *table = new,
        Ok(Err(error)) => warn!("{error}"),
        Err(error) => warn!("asking for links and neighbours: {error}"),
    }
    Effect::ALL
}

async fn report(effect: Effect, table: &Table, out: &mpsc::Sender<Seen>) -> Result<(), Gone> {
    let devices = effect.devices.then(|| table.devices());
    out.send(Seen { next_hops: effect.next_hops, devices }).await.map_err(|_| Gone)
}
