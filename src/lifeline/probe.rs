//! Asks at an address which node listens there.

use std::{io, net::SocketAddr, time::Duration};

use nix::sys::{
    socket::{MsgFlags, recv, setsockopt, sockopt},
    utsname::uname,
};
use socket2::{Domain, Socket, Type};
use std::os::fd::AsRawFd;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    confirm::{Answer, BETWEEN, Confirmation, Verdict},
    frame::{FRAME_BYTES, Frame},
};

/// How long a node may take to greet. If a busy machine takes longer, the lease decides.
const GREETING_LIMIT: Duration = Duration::from_secs(1);

/// Whether this kernel can distinguish a refusal by TCP from one that an ICMP message caused: Linux 5.9 and newer.
pub(super) fn is_supported() -> bool {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    tells_icmp_apart(&release)
}

fn tells_icmp_apart(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 9))
}

/// Asks until the responses are conclusive.
pub(super) async fn confirm(address: SocketAddr, question: Frame) -> Verdict {
    let began = Instant::now();
    let mut confirmation = Confirmation::of(question.to);
    loop {
        let answer = ask(address, question).await;
        tracing::debug!(node = %question.to, %address, ?answer, "asked a node whose lifeline ended");
        if let Some(verdict) = confirmation.apply(answer, began.elapsed()) {
            return verdict;
        }
        let due = Instant::now() + BETWEEN;
        sleep_until(due).await;
        confirmation.resume(due.elapsed());
    }
}

/// Whether this address refuses connections by TCP, twice in a row.
pub(super) async fn is_refused_twice(address: SocketAddr) -> bool {
    let is_refused = async || {
        let connected = timeout(GREETING_LIMIT, connect(address)).await;
        matches!(connected, Ok(Err(Failure::Refused)))
    };
    if !is_refused().await {
        return false;
    }
    sleep(BETWEEN).await;
    is_refused().await
}

/// Asks once, and returns the result.
async fn ask(address: SocketAddr, question: Frame) -> Answer {
    timeout(GREETING_LIMIT, exchange(address, question)).await.unwrap_or(Answer::Nothing)
}

async fn exchange(address: SocketAddr, question: Frame) -> Answer {
    let mut stream = match connect(address).await {
        Ok(stream) => stream,
        Err(Failure::Refused) => return Answer::Refused,
        Err(Failure::Ended) => return Answer::Ended,
        Err(Failure::Other) => return Answer::Nothing,
    };
    let mut bytes = [0; FRAME_BYTES];
    let answered = match stream.write_all(&question.encode()).await {
        Ok(()) => stream.read_exact(&mut bytes).await.map(drop),
        Err(error) => Err(error),
    };
    match answered {
        Ok(()) => Frame::decode(&bytes).map_or(Answer::Nothing, |frame| Answer::Greeted(frame.from)),
        Err(error) if is_end(&error) => Answer::Ended,
        Err(_) => Answer::Nothing,
    }
}

/// Whether the other side ended the stream, in an orderly way or not. A timeout of the keep-alive counts as silence.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

enum Failure {
    Refused,
    /// The kernel had accepted the connection, and the listening socket was closed.
    Ended,
    Other,
}

/// Connects, and distinguishes a refusal by TCP from every other failure. Linux also reports "connection refused" for
/// some ICMP messages, which firewalls and routers send for live nodes. With `IP_RECVERR`, it also queues those
/// messages (`tcp_v4_err` and `tcp_v6_err`, Linux 5.9).
async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let open = || -> io::Result<(Socket, Socket)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        // A failed connection consumes its stream, but the queue must still be read.
        let errors = socket.try_clone()?;
        Ok((socket, errors))
    };
    let (socket, errors) = open().map_err(|_| Failure::Other)?;
    let connected = async {
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from_std(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    };
    connected.await.map_err(|error| {
        let by_icmp = || recv(errors.as_raw_fd(), &mut [0; 512], MsgFlags::MSG_ERRQUEUE).is_ok();
        match error.kind() {
            io::ErrorKind::ConnectionRefused if is_supported() && !by_icmp() => Failure::Refused,
            _ if is_end(&error) => Failure::Ended,
            _ => Failure::Other,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::{lifeline::frame::Kind, protocol::identity::NodeId};

    /// As in a process that dies: its kernel closes the listening socket while the question is under way.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn listener_that_is_closed_meanwhile_refuses_or_ends_the_connection() {
        let node = NodeId::from_random(2);
        let question = Frame { kind: Kind::Probe, world: 1, from: node, to: node };
        let (mut ended, mut nothing) = (0, 0);
        for _ in 0..3_000 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let closing = tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(listener);
            });
            let answer = ask(address, question).await;
            closing.await.unwrap();
            ended += usize::from(answer == Answer::Ended);
            nothing += usize::from(answer == Answer::Nothing);
        }
        // Very rarely, the kernel drops the first packet of a connection, and the next one would come after a second.
        assert!(nothing * 100 <= ended, "{nothing} without an answer, {ended} ended");
        assert!(ended > 0, "no connection was under way");
    }

    #[test]
    fn kernels_that_cannot_distinguish_a_refusal_from_an_icmp_message_are_known_by_release() {
        for (release, expected) in [
            ("5.9.0", true),
            ("6.1.0-18-amd64", true),
            ("5.8.18", false),
            ("4.18.0-553.el8", false),
            ("", false),
        ] {
            assert_eq!(tells_icmp_apart(release), expected, "{release}");
        }
    }
}
