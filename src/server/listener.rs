//! The source of a server's connections: a socket of this machine, or any other source of streams.

use std::{
    future::Future,
    io,
    net::{Shutdown, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// A source of connections. It is closed when it is dropped.
pub trait Listener: Send + 'static {
    /// A connection. It is closed when it is dropped.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection. The future can be dropped at any time without losing a connection, so it must
    /// not perform handshakes.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The address on which it listens.
    fn address(&self) -> io::Result<SocketAddr>;
}

/// Listens on a socket.
#[derive(Debug)]
pub struct Tcp(TcpListener);

impl From<TcpListener> for Tcp {
    fn from(listener: TcpListener) -> Self {
        Self(listener)
    }
}

impl Listener for Tcp {
    type Stream = Socket;

    async fn accept(&mut self) -> io::Result<Socket> {
        loop {
            let (stream, _) = self.0.accept().await?;
            match stream.set_nodelay(true) {
                Ok(()) => return Ok(Socket(stream)),
                Err(error) => tracing::debug!("a connection ended at once: {error}"),
            }
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        end(&SockRef::from(&self.0));
    }
}

/// Shuts a socket down for all processes that have it. A forked process has a copy, which would keep the port
/// occupied and the peer waiting.
fn end(socket: &SockRef<'_>) {
    // The connection may already be closed.
    let _ = socket.shutdown(Shutdown::Both);
}

/// A connection on a socket.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Drop for Socket {
    fn drop(&mut self) {
        end(&SockRef::from(&self.0));
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
