//! Accepts connections and serves each, with limits on the cost of a client that is silent or sends invalid data.
//!
//! A connection has [`PATIENCE`] for its handshake and its first bytes. Later, HTTP/2 pings detect a peer that is gone.
//! When the server stops, it notifies its clients, which then have [`GRACE`] to end.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::{
    api::{Api, Counted, stopped},
    bodies::Request,
    dispatch::dispatch,
    listener::Listener,
    tls::Renewed,
};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulConnection},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// How long a client may take to send its first bytes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long clients may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(1);
/// How often a silent client is pinged, and how long it may take to respond.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after a failure to accept. Usually there are too many open files, and retries without a pause would occupy
/// a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A failure to accept is logged again if it recurs after it was absent for this time.
const ACCEPT_QUIET: Duration = Duration::from_secs(60);
/// The length of the first bytes of an HTTP/2 client.
const PREFACE_BYTES: usize = 24;
/// The maximum number of concurrent calls on one connection. Every wait of a run's store is one.
const STREAMS_PER_CONNECTION: u32 = 10_000;
/// How much a client may send before it is read. A request of 1.5 MiB takes 24 round trips.
const WINDOW_BYTES: u32 = 64 * 1024;
/// How much is passed to one HTTP/2 stream before the client has received it.
const SEND_BYTES: usize = 64 * 1024;
/// HTTP/1 serves pages only.
pub(crate) const PAGE_BYTES: usize = 16 * 1024;
/// The maximum number of connections, which is more than a run of 10,000 nodes has. Further connections are closed.
const MOST_CONNECTIONS: usize = 16_384;

/// Serves clients until the server stops.
pub(super) async fn serve(api: Arc<Api>, listener: impl Listener, tls: Option<Renewed>) {
    let open = || api.connections.load(Ordering::Relaxed);
    let serve = |stream| {
        let counted = Counted::new(&api.connections);
        connection(Arc::clone(&api), stream, tls.clone(), counted)
    };
    accept(api.stopping.clone(), listener, MOST_CONNECTIONS, open, serve).await;
}

/// Accepts connections up to a limit, and serves each until the server stops. Then it waits until the last one has
/// ended, for [`GRACE`] at most. `open` returns the number of open connections.
pub(crate) async fn accept<L: Listener, F>(
    mut stopping: watch::Receiver<bool>,
    mut listener: L,
    most_connections: usize,
    open: impl Fn() -> usize,
    serve: impl Fn(L::Stream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut failures = Failures::default();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(_) if open() >= most_connections => {
                    let text = format!("{most_connections} connections are open");
                    if failures.is_news(&text, Instant::now()) {
                        tracing::warn!("new connections are closed for now; logged once for as long as that lasts: {text}");
                    }
                }
                Ok(stream) => {
                    connections.spawn(serve(stream));
                }
                Err(error) => {
                    let text = error.to_string();
                    if failures.is_news(&text, Instant::now()) {
                        tracing::warn!("connections cannot be accepted for now; this is logged once while it lasts: {text}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // Connections that are still open after the grace period end when the set is dropped.
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// The last failure to accept. If files are exhausted, failures occur five times a second, and connections may be
/// accepted in between. A failure is logged again only if it differs or was absent for [`ACCEPT_QUIET`].
#[derive(Default)]
struct Failures(Option<(String, Instant)>);

impl Failures {
    fn is_news(&mut self, text: &str, now: Instant) -> bool {
        let last = self.0.replace((text.to_owned(), now));
        last.is_none_or(|(told, at)| told != text || now.duration_since(at) >= ACCEPT_QUIET)
    }
}

async fn connection<S>(api: Arc<Api>, stream: S, tls: Option<Renewed>, _counted: Counted)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, heard) = Heard::new(stream);
    match tls {
        None => converse(api, stream, &heard).await,
        Some(tls) => match tls.accept(stream, PATIENCE).await {
            Ok(stream) => converse(api, stream, &heard).await,
            Err(error) => tracing::debug!("a TLS handshake with a client failed: {error}"),
        },
    }
}

/// Serves HTTP/1 or HTTP/2, depending on the client.
async fn converse(
    api: Arc<Api>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    heard: &AtomicUsize,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(PAGE_BYTES);
    builder
        .http2()
        // No client of etcd reads the date, and it would come from the wall clock.
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let stopping = api.stopping.clone();
    let share = api.budget.share();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let request = request.map(|body| Request::new(body, Arc::clone(&share)));
        dispatch(Arc::clone(&api), Arc::clone(&share), request)
    });
    let connection = builder.serve_connection(TokioIo::new(io), service);
    if let Err(error) = serve_unless_silent(connection, stopping, heard).await {
        tracing::debug!("a connection broke: {error}");
    }
}

/// Serves a connection until it ends, or until [`PATIENCE`] has passed and its client has not sent its first bytes.
pub(crate) async fn serve_unless_silent<C: GracefulConnection>(
    connection: C,
    stopping: watch::Receiver<bool>,
    heard: &AtomicUsize,
) -> Result<(), C::Error> {
    let before = heard.load(Ordering::Relaxed);
    let mut served = pin!(serve_until_stopped(connection, stopping));
    tokio::select! {
        biased;
        end = served.as_mut() => end,
        () = sleep(PATIENCE) => {
            if heard.load(Ordering::Relaxed) < before + PREFACE_BYTES {
                tracing::debug!("closing a connection: its client sent no request within {PATIENCE:?}");
                return Ok(());
            }
            served.await
        }
    }
}

/// Serves a connection until it ends. If the server stops, the connection ends after the responses that are in
/// progress.
pub(super) async fn serve_until_stopped<C: GracefulConnection>(
    connection: C,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        end = connection.as_mut() => return end,
        () = stopped(&mut stopping) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A connection that counts what is read.
pub(crate) struct Heard<S> {
    stream: S,
    bytes: Arc<AtomicUsize>,
}

impl<S> Heard<S> {
    /// The connection, and the number of bytes that were read from it.
    pub(crate) fn new(stream: S) -> (Self, Arc<AtomicUsize>) {
        let bytes = Arc::new(AtomicUsize::new(0));
        (Self { stream, bytes: Arc::clone(&bytes) }, bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let end = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.bytes.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        end
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_failure_is_logged_once_and_again_when_it_differs_or_recurs() {
        let began = Instant::now();
        let mut failures = Failures::default();
        let mut news = |text, seconds| failures.is_news(text, began + Duration::from_secs(seconds));
        assert!(news("too many open files", 0));
        // For longer than it would have to be absent.
        assert!((1..100).all(|second| !news("too many open files", second)));
        assert!(news("no memory", 100));
        assert!(news("too many open files", 101));
        assert!(!news("too many open files", 160));
        assert!(news("too many open files", 220));
    }
}
