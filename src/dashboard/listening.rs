//! Serves a router on a port, with limits on the cost of a client that is silent, sends too much, or does not read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::watch,
    time::{Sleep, sleep},
};
use tower::ServiceExt;

use crate::server::{Counted, Heard, PAGE_BYTES, PATIENCE, Renewed, Tcp, accept, serve_unless_silent};

/// The maximum number of connections. Further connections are closed.
const MOST_CONNECTIONS: usize = 256;
/// A client that receives nothing for this time, although there is something to send, is disconnected.
const STALL: Duration = Duration::from_secs(30);
/// The maximum number of headers of one HTTP/1 request.
const MOST_HEADERS: usize = 64;
/// The maximum number of concurrent requests on one HTTP/2 connection: one event stream for each tab of a browser.
const MOST_REQUESTS: u32 = 64;
/// How much is passed to one HTTP/2 stream before the client has received it.
const SEND_BYTES: usize = 64 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves until the dashboard stops.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Renewed>,
    router: Router,
    stopping: watch::Receiver<bool>,
) {
    let open = Arc::new(AtomicUsize::new(0));
    let serve = |stream| {
        let counted = Counted::new(&open);
        let (tls, router, stopping) = (tls.clone(), router.clone(), stopping.clone());
        async move {
            let _counted = counted;
            connection(stream, tls, router, stopping).await;
        }
    };
    accept(stopping.clone(), Tcp::from(listener), MOST_CONNECTIONS, || open.load(Ordering::Relaxed), serve)
        .await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<Renewed>,
    router: Router,
    stopping: watch::Receiver<bool>,
) {
    let (stream, heard) = Heard::new(Taken { stream, stalled: None });
    match tls {
        None => converse(stream, router, stopping, &heard).await,
        Some(tls) => match tls.accept(stream, PATIENCE).await {
            Ok(stream) => converse(stream, router, stopping, &heard).await,
            Err(error) => tracing::debug!("a TLS handshake with a browser failed: {error}"),
        },
    }
}

async fn converse(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    stopping: watch::Receiver<bool>,
    heard: &AtomicUsize,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(MOST_HEADERS)
        .max_buf_size(PAGE_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(16 * 1024)
        .max_send_buf_size(SEND_BYTES)
        .max_concurrent_streams(MOST_REQUESTS);
    let service = service_fn(move |request| router.clone().oneshot(request));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    if let Err(error) = serve_unless_silent(connection, stopping, heard).await {
        tracing::debug!("a connection to the dashboard ended: {error}");
    }
}

/// A connection that fails if its client receives nothing for [`STALL`].
struct Taken<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Taken<S> {
    fn limit<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(context, written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limit(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_nothing_is_disconnected() {
        let (near, _far) = tokio::io::duplex(1024);
        let (_stop, stopping) = watch::channel(false);
        let began = Instant::now();
        connection(near, None, Router::new(), stopping).await;
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_takes_nothing_is_disconnected() {
        let (near, far) = tokio::io::duplex(1024);
        let mut taken = Taken { stream: near, stalled: None };
        let began = Instant::now();
        let error = taken.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, STALL));
        drop(far);
    }
}
