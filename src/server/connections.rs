//! Accepting connections and serving each, with bounds on what one that says nothing, or nonsense, may cost.
//!
//! A connection has [`PATIENCE`] for its handshake and its first words. Later a peer that is gone is found by HTTP/2
//! pings. When the server stops, clients are told, then have [`GRACE`] to end.

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
    api::{Api, Counted, Counter, stopped},
    bodies::Request,
    dispatch::dispatch,
    listener::Listener,
    tls::Renewed,
};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// How long a client may take to begin.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long clients may take to end.
const GRACE: Duration = Duration::from_secs(1);
/// How often a silent client is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// After a failure to accept: most often there are too many open files, and trying at once would take a whole core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A failure to accept that was the last for so long and comes again is told again.
const ACCEPT_QUIET: Duration = Duration::from_secs(60);
/// The words an HTTP/2 client begins with.
const PREFACE_BYTES: usize = 24;
/// Calls at once on one connection: every wait of a run's store is one.
const STREAMS_PER_CONNECTION: u32 = 10_000;
/// What a client may send before it is read: a request of 1.5 MiB takes 24 round trips.
const WINDOW_BYTES: u32 = 64 * 1024;
/// What is handed to one HTTP/2 stream before the client has taken it.
const SEND_BYTES: usize = 64 * 1024;
/// HTTP/1 serves pages only.
pub(super) const PAGE_BYTES: usize = 16 * 1024;
/// Connections at once: more than a run of 10,000 nodes has. Beyond it, a new connection is closed.
const MOST_CONNECTIONS: usize = 16_384;
/// What a connection costs beside its calls: sockets' and frames' buffers, and [`WINDOW_BYTES`] of what a client has sent
/// and nobody reads.
pub(super) const CONNECTION_BYTES: usize = 128 * 1024;

/// Serves clients until the server stops.
pub(super) async fn serve(api: Arc<Api>, listener: impl Listener, tls: Option<Renewed>) {
    let serve = |stream, counted| connection(Arc::clone(&api), stream, tls.clone(), counted);
    accept(&api, listener, MOST_CONNECTIONS, |api| &api.connections, serve).await;
}

/// Accepts connections, as many at once as the limit says, and serves each until the server stops. Then it waits until the
/// last one has ended, for [`GRACE`] at most.
pub(super) async fn accept<L: Listener, F>(
    api: &Arc<Api>,
    mut listener: L,
    most_connections: usize,
    open: Counter,
    serve: impl Fn(L::Stream, Counted) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stopping = api.stopping.clone();
    let mut connections = JoinSet::new();
    let mut failures = Failures::default();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(_) if open(api).load(Ordering::Relaxed) >= most_connections => {
                    let text = format!("{most_connections} connections are open");
                    if failures.is_news(&text, Instant::now()) {
                        tracing::warn!("new connections are closed for now; logged once for as long as that lasts: {text}");
                    }
                }
                Ok(stream) => {
                    let counted = Counted::new(api, open);
                    connections.spawn(serve(stream, counted));
                }
                Err(error) => {
                    let text = error.to_string();
                    if failures.is_news(&text, Instant::now()) {
                        tracing::warn!("connections cannot be accepted for now; told once for as long as that lasts: {text}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // What is left after the grace ends with the set.
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Which failure to accept was the last. They come five times a second, and between those that lack a file one may be
/// accepted: what is the same and has not been away for [`ACCEPT_QUIET`] is no news.
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
    let heard = Arc::new(AtomicUsize::new(0));
    let stream = Heard { stream, bytes: Arc::clone(&heard) };
    match tls {
        None => converse(api, stream, &heard).await,
        Some(tls) => match timeout(PATIENCE, async { tls.acceptor().await.accept(stream).await }).await {
            Ok(Ok(stream)) => converse(api, stream, &heard).await,
            Ok(Err(error)) => tracing::debug!("a client was refused, no TLS came about: {error}"),
            Err(_) => tracing::debug!("a client was left, it did not finish its TLS handshake"),
        },
    }
}

/// Serves HTTP/1 or HTTP/2, whichever the client speaks.
async fn converse(
    api: Arc<Api>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    heard: &AtomicUsize,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(PAGE_BYTES);
    builder
        .http2()
        // No client of etcd reads it, and it is the wall clock's.
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let mut stopping = api.stopping.clone();
    let before = heard.load(Ordering::Relaxed);
    let share = api.budget.share();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let request = request.map(|body| Request::new(body, Arc::clone(&share)));
        dispatch(Arc::clone(&api), Arc::clone(&share), request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut patience = pin!(sleep(PATIENCE));
    let (mut begun, mut told) = (false, false);
    loop {
        tokio::select! {
            biased;
            end = connection.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!("a connection broke: {error}");
                }
                return;
            }
            () = patience.as_mut(), if !begun => {
                if heard.load(Ordering::Relaxed) < before + PREFACE_BYTES {
                    tracing::debug!("a client was left, it said nothing");
                    return;
                }
                begun = true;
            }
            () = stopped(&mut stopping), if !told => {
                connection.as_mut().graceful_shutdown();
                told = true;
            }
        }
    }
}

/// A connection that counts what is read.
struct Heard<S> {
    stream: S,
    bytes: Arc<AtomicUsize>,
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
    fn a_failure_that_lasts_is_told_once_and_again_when_it_is_another_or_comes_back() {
        let began = Instant::now();
        let mut failures = Failures::default();
        let mut news = |text, seconds| failures.is_news(text, began + Duration::from_secs(seconds));
        assert!(news("too many open files", 0));
        // For longer than it would have to be away.
        assert!((1..100).all(|second| !news("too many open files", second)));
        assert!(news("no memory", 100));
        assert!(news("too many open files", 101));
        assert!(!news("too many open files", 160));
        assert!(news("too many open files", 220));
    }
}
