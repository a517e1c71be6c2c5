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
    connection: ClosedInChildren<TcpStream>,
    /// The bytes of the next frame that have arrived.
    received: ([u8; FRAME_BYTES], usize),
    /// The address of the other end.
    pub(super) address: SocketAddr,
}

impl Stream {
    pub(super) fn new(stream: TcpStream, address: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))?;
        Ok(Self { connection: ClosedInChildren::new(stream), received: ([0; FRAME_BYTES], 0), address })
    }

    pub(super) async fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.connection.socket.write_all(&frame.encode()).await
    }

    /// The next frame. `None` if the bytes are not a frame. The end of the stream is [`io::ErrorKind::UnexpectedEof`].
    /// Cancel-safe.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Frame>> {
        let (bytes, length) = &mut self.received;
        while let Some(rest) = bytes.get_mut(*length..).filter(|rest| !rest.is_empty()) {
            match self.connection.socket.read(rest).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => *length += count,
            }
        }
        *length = 0;
        Ok(Frame::decode(bytes))
    }
}
