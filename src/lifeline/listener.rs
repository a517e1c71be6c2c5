//! The end of a lifeline at the node that is watched.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    ends::Ends,
    forks::ClosedInChildren,
    frame::{Frame, Kind},
    presence::Presence,
    probe::is_end,
    stream::Stream,
    until,
};
use crate::protocol::identity::NodeId;

/// How long a connection may take to send its first frame.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(5);

/// How long a greeting waits until this node knows its world. Members read a new world at different times.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// The maximum number of open connections. A member has two at most, and four while worlds change. The others are
/// questions, and connections of other programs.
const MOST_CONNECTIONS: usize = 64;

/// A socket on all addresses of the machine. Port 0 lets the kernel choose.
pub(super) fn bind(port: u16) -> std::io::Result<std::net::TcpListener> {
    let open = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        Ok(socket.into())
    };
    // On machines without IPv6, only the second socket can be opened.
    open((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| open((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Accepts connections until it is dropped.
pub(super) async fn accept(
    listener: ClosedInChildren<TcpListener>,
    presence: watch::Receiver<Presence>,
    ends: Arc<Ends>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, address)) if connections.len() < MOST_CONNECTIONS => {
                    if let Ok(stream) = Stream::new(stream, address) {
                        connections.spawn(serve(stream, presence.clone(), Arc::clone(&ends)));
                    }
                }
                Ok(_) => {}
                // Out of descriptors, for example.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

async fn serve(mut stream: Stream, presence: watch::Receiver<Presence>, ends: Arc<Ends>) {
    let Ok(Ok(Some(first))) = timeout(FIRST_FRAME_LIMIT, stream.receive()).await else { return };
    match first.kind {
        Kind::Goodbye => {}
        Kind::Probe => {
            let own = presence.borrow().own;
            if let Some(own) = own {
                // The asking node handles the case that it does not arrive.
                let _ = stream.send(first.answer(own, Kind::Greeting)).await;
            }
        }
        Kind::Greeting => {
            if let Some(watching) = be_watched(first, stream, presence).await {
                ends.note(watching);
            }
        }
    }
}

/// Answers the greeting of each world on a lifeline, once this node knows that world. Returns the node at the other end if
/// its stream ended without a goodbye.
async fn be_watched(
    mut asked: Frame,
    mut stream: Stream,
    mut presence: watch::Receiver<Presence>,
) -> Option<NodeId> {
    // The last world that both sides have named.
    let mut named = None;
    let mut limit = Instant::now() + HOLD_LIMIT;
    loop {
        let waits = named != Some(asked.world);
        let is_due = |presence: &Presence| presence.has_left || presence.is_in(asked.world) == waits;
        tokio::select! {
            () = until(&mut presence, is_due) => {
                let (own, has_left) = { let now = presence.borrow(); (now.own?, now.has_left) };
                let kind = if has_left || !waits { Kind::Goodbye } else { Kind::Greeting };
                let is_sent = stream.send(asked.answer(own, kind)).await.is_ok();
                if kind == Kind::Goodbye {
                    return None;
                }
                // If it could not be sent, the stream has ended, which `receive` reports.
                named = is_sent.then_some(asked.world).or(named);
            }
            () = sleep_until(limit), if waits => {
                // The other side may connect again.
                let own = presence.borrow().own;
                if let (Some(world), Some(own)) = (named, own) {
                    let _ = stream.send(Frame { world, ..asked.answer(own, Kind::Goodbye) }).await;
                }
                return None;
            }
            received = stream.receive() => match received {
                Ok(Some(frame)) if frame.kind == Kind::Greeting => {
                    asked = frame;
                    limit = Instant::now() + HOLD_LIMIT;
                }
                // A goodbye ends the lifeline in an orderly way, and so does an unexpected frame.
                Ok(_) => return None,
                Err(error) => return (named.is_some() && is_end(&error)).then_some(asked.from),
            }
        }
    }
}
