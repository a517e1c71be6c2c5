//! One connection between two nodes, and the frames on it.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    forks::ClosedInChildren,
    frame::{FRAME_BYTES, Frame},
};

/// Address translators forget connections that are idle for longer, often after a few minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// An open lifeline.
#[derive(Debug)]
pub(super) struct Stream {
    stream: ClosedInChildren<TcpStream>,
    /// The address of the other end.
    pub(super) address: SocketAddr,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, address: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))?;
        Ok(Self { stream: ClosedInChildren::new(stream), address })
    }

    pub(super) async fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.stream.socket.write_all(&frame.encode()).await
    }

    /// The next frame. `None` if the bytes are not a frame. The end of the stream is [`io::ErrorKind::UnexpectedEof`].
    pub(super) async fn receive(&mut self) -> io::Result<Option<Frame>> {
        let mut bytes = [0; FRAME_BYTES];
        self.stream.socket.read_exact(&mut bytes).await?;
        Ok(Frame::decode(&bytes))
    }
}
