//! The end of a lifeline at the node that watches another one. It stays open from one world to the next.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Suspicion,
    ends::Ends,
    frame::{Frame, Kind},
    listener::HOLD_LIMIT,
    probe::is_end,
    stream::Stream,
};
use crate::protocol::{identity::NodeId, records::Neighbor};

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A node that is watched in one world.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) own: NodeId,
    pub(super) world: u64,
    pub(super) neighbor: Neighbor,
}

impl Charge {
    fn frame(&self, kind: Kind) -> Frame {
        Frame { kind, world: self.world, from: self.own, to: self.neighbor.id }
    }
}

/// How a connection ended.
enum End {
    /// Its owner wants something else than at its start.
    Replaced,
    /// Without evidence: it was not connected, did not greet in time, or was silent.
    Nothing,
    /// The other side said goodbye to the present world, or another node is at this address.
    Orderly(u64),
    /// The other side's kernel ended the stream, after both sides had named this world.
    Broken { world: u64, neighbor: Neighbor, address: SocketAddr, sign: &'static str },
}

/// Keeps the lifeline to one node open.
#[derive(Debug)]
pub(super) struct Dialer {
    /// What it is for. `None` ends it with a goodbye.
    pub(super) wanted: watch::Receiver<Option<Charge>>,
    /// The last world for which nothing is left to do: both sides have named it, or the other side has left it.
    pub(super) settled: watch::Sender<Option<u64>>,
    pub(super) suspicions: mpsc::UnboundedSender<Suspicion>,
    pub(super) ends: Arc<Ends>,
}

impl Dialer {
    /// Ends when its owner no longer wants the lifeline.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        while let Some(charge) = self.charge() {
            match self.hold(charge).await {
                End::Replaced => continue,
                End::Orderly(world) => {
                    self.settled.send_replace(Some(world));
                    self.changed().await;
                    pause = FIRST_PAUSE;
                    continue;
                }
                End::Nothing => {}
                End::Broken { world, neighbor, address, sign } => {
                    pause = FIRST_PAUSE;
                    self.ends.note(neighbor.id);
                    let (sign, at) = (sign.to_owned(), Instant::now());
                    // If this fails, the owner is gone, and this task ends with it.
                    let _ = self.suspicions.send(Suspicion { world, neighbor, address, sign, at });
                }
            }
            tokio::select! {
                () = sleep(pause) => pause = LONGEST_PAUSE.min(pause * 2),
                () = self.changed() => pause = FIRST_PAUSE,
            }
        }
    }

    fn charge(&mut self) -> Option<Charge> {
        self.wanted.borrow_and_update().clone()
    }

    /// Waits until the owner wants something else. Never returns if the owner is gone, because then this task ends.
    async fn changed(&mut self) {
        if self.wanted.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Connects, and greets in each world for which the owner wants this lifeline, until the connection ends.
    async fn hold(&mut self, mut charge: Charge) -> End {
        let mut stream = tokio::select! {
            () = self.changed() => return End::Replaced,
            connected = timeout(CONNECT_LIMIT, connect(&charge.neighbor)) => match connected {
                Ok(Ok(stream)) => stream,
                _ => return End::Nothing,
            },
        };
        // The last world that both sides have named.
        let mut named = None;
        // If a frame cannot be sent, the stream has ended, which `receive` reports.
        let _ = stream.send(charge.frame(Kind::Greeting)).await;
        let mut limit = Instant::now() + HOLD_LIMIT;
        loop {
            tokio::select! {
                () = self.changed() => {
                    let Some(next) = self.charge() else {
                        let _ = stream.send(charge.frame(Kind::Goodbye)).await;
                        return End::Replaced;
                    };
                    charge = next;
                    let _ = stream.send(charge.frame(Kind::Greeting)).await;
                    limit = Instant::now() + HOLD_LIMIT;
                }
                () = sleep_until(limit), if named != Some(charge.world) => {
                    let _ = stream.send(charge.frame(Kind::Goodbye)).await;
                    return End::Nothing;
                }
                received = stream.receive() => match received {
                    Ok(Some(Frame { kind: Kind::Greeting, from, world, .. })) if from == charge.neighbor.id => {
                        named = Some(world);
                        self.settled.send_replace(named);
                    }
                    // It did not learn of the present world in time.
                    Ok(Some(Frame { kind: Kind::Goodbye, world, .. })) if world != charge.world => return End::Nothing,
                    Ok(frame) => {
                        tracing::debug!(node = %charge.neighbor.id, address = %stream.address, ?frame, "a lifeline is over");
                        return End::Orderly(charge.world);
                    }
                    Err(error) => return match named {
                        Some(world) if is_end(&error) => {
                            let sign = match error.kind() {
                                std::io::ErrorKind::UnexpectedEof => "connection closed",
                                _ => "connection reset",
                            };
                            End::Broken { world, neighbor: charge.neighbor, address: stream.address, sign }
                        }
                        _ => End::Nothing,
                    },
                }
            }
        }
    }
}

async fn connect(neighbor: &Neighbor) -> std::io::Result<Stream> {
    let stream = TcpStream::connect((neighbor.address.as_str(), neighbor.port)).await?;
    let address = stream.peer_addr()?;
    Stream::new(stream, address)
}
