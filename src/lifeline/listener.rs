//! The end of a lifeline at the node that is watched.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

use super::{
    ends::Ends,
    forks::ClosedInChildren,
    frame::{Frame, Kind},
    presence::Presence,
    probe::is_end,
    stream::Stream,
    until,
};

/// How long a connection may take to send its first frame.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(5);

/// How long a greeting waits until this node knows its world. Members read a new world at different times.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// The maximum number of open connections. A member has four at most, and eight while worlds change. The others are
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

async fn serve(mut stream: Stream, mut presence: watch::Receiver<Presence>, ends: Arc<Ends>) {
    let Ok(Ok(Some(first))) = timeout(FIRST_FRAME_LIMIT, stream.receive()).await else { return };
    let answer = |own, kind| Frame { kind, world: first.world, from: own, to: first.from };
    match first.kind {
        Kind::Goodbye => {}
        Kind::Probe => {
            let own = presence.borrow().own;
            if let Some(own) = own {
                // The asking node handles the case that it does not arrive.
                let _ = stream.send(answer(own, Kind::Greeting)).await;
            }
        }
        Kind::Greeting => {
            let knows = presence.wait_for(|presence| presence.has_left || presence.is_in(first.world));
            let Ok(Ok(own)) = timeout(HOLD_LIMIT, async { knows.await.map(|presence| presence.own) }).await
            else {
                return;
            };
            let Some(own) = own else { return };
            if stream.send(answer(own, Kind::Greeting)).await.is_err() {
                return;
            }
            let is_over = |presence: &Presence| presence.has_left || !presence.is_in(first.world);
            tokio::select! {
                () = until(&mut presence, is_over) => {
                    let _ = stream.send(answer(own, Kind::Goodbye)).await;
                }
                // A goodbye ends the lifeline in an orderly way, and so does an unexpected frame.
                received = stream.receive() => if received.is_err_and(|error| is_end(&error)) {
                    ends.note(first.from);
                }
            }
        }
    }
}
