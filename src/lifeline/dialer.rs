//! The end of a lifeline at the node that watches another one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    Suspicion,
    ends::Ends,
    frame::{Frame, Kind},
    listener::HOLD_LIMIT,
    probe::is_end,
    stream::Stream,
    until,
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

/// How a lifeline ended.
enum End {
    /// Without evidence: it was not connected, did not greet in time, or was silent.
    Nothing,
    /// One of the two sides said goodbye, or another node is at this address.
    Orderly,
    /// The other side's kernel ended the stream, after its node had greeted from this address.
    Broken(SocketAddr, String),
}

/// Keeps a lifeline open until one side says goodbye. `is_open` is set once both sides have named the world.
pub(super) async fn watch_over(
    charge: Charge,
    mut is_over: watch::Receiver<bool>,
    suspicions: mpsc::UnboundedSender<Suspicion>,
    ends: Arc<Ends>,
    is_open: watch::Sender<bool>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        match hold(&charge, &mut is_over, &is_open).await {
            End::Orderly => return,
            End::Nothing => {}
            End::Broken(address, sign) => {
                pause = FIRST_PAUSE;
                ends.note(charge.neighbor.id);
                let Charge { world, neighbor, .. } = charge.clone();
                if suspicions.send(Suspicion { world, neighbor, address, sign, at: Instant::now() }).is_err()
                {
                    return;
                }
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = until(&mut is_over, |is_over| *is_over) => return,
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

async fn hold(charge: &Charge, is_over: &mut watch::Receiver<bool>, is_open: &watch::Sender<bool>) -> End {
    let Charge { own, world, neighbor } = charge;
    let say = |kind| Frame { kind, world: *world, from: *own, to: neighbor.id };
    let greeted = async {
        let stream = TcpStream::connect((neighbor.address.as_str(), neighbor.port)).await?;
        let address = stream.peer_addr()?;
        let mut stream = Stream::new(stream, address)?;
        stream.send(say(Kind::Greeting)).await?;
        let answer = stream.receive().await?;
        std::io::Result::Ok((stream, answer))
    };
    let greeted = tokio::select! {
        () = until(is_over, |is_over| *is_over) => return End::Orderly,
        greeted = timeout(CONNECT_LIMIT + HOLD_LIMIT, greeted) => greeted,
    };
    let Ok(Ok((mut stream, answer))) = greeted else { return End::Nothing };
    match answer {
        Some(Frame { kind: Kind::Greeting, from, .. }) if from == neighbor.id => {}
        _ => {
            tracing::debug!(node = %neighbor.id, address = %stream.address, "another node greets at this address");
            return End::Orderly;
        }
    }
    is_open.send_replace(true);
    tokio::select! {
        () = until(is_over, |is_over| *is_over) => {
            // The other side does not need a response, and may be gone.
            let _ = stream.send(say(Kind::Goodbye)).await;
            End::Orderly
        }
        received = stream.receive() => match received {
            Ok(_) => End::Orderly,
            Err(error) if is_end(&error) => {
                let sign = match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => "connection closed",
                    _ => "connection reset",
                };
                End::Broken(stream.address, sign.to_owned())
            }
            Err(_) => End::Nothing,
        }
    }
}
