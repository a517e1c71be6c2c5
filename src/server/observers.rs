//! A port for probes and Prometheus: the pages of [`super::pages`] over plain HTTP, and nothing else.
//!
//! The pages are also on the port of clients. But there TLS may require a certificate that a kubelet does not have, and
//! clients may use all connections and calls. This port has neither TLS nor a password, and separate limits.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
};

use futures_util::future::BoxFuture;
use hyper::{server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    api::{Api, Counted},
    connections::{PAGE_BYTES, PATIENCE, accept, serve_until_stopped},
    listener::Listener,
    pages,
};

/// The maximum number of connections. A connection without a request ends after [`PATIENCE`].
const MOST_CONNECTIONS: usize = 256;

/// Makes the text of further metrics, in Prometheus' format.
pub type MoreMetrics = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// Serves until the server stops.
pub(super) async fn serve(api: Arc<Api>, listener: impl Listener, more: Option<MoreMetrics>) {
    let open = || api.observers.load(Ordering::Relaxed);
    let serve = |stream| {
        let counted = Counted::new(&api.observers);
        converse(Arc::clone(&api), stream, more.clone(), counted)
    };
    accept(api.stopping.clone(), listener, MOST_CONNECTIONS, open, serve).await;
}

async fn converse(
    api: Arc<Api>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    more: Option<MoreMetrics>,
    _counted: Counted,
) {
    let stopping = api.stopping.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (api, more) = (Arc::clone(&api), more.clone());
        async move {
            let path = request.uri().path();
            let more = match more {
                Some(more) if path == pages::METRICS => more().await,
                _ => String::new(),
            };
            Ok::<_, Infallible>(pages::page_of_path(&api, path, &more))
        }
    });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(PAGE_BYTES);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    if let Err(error) = serve_until_stopped(connection, stopping).await {
        tracing::debug!("a connection to the metrics port broke: {error}");
    }
}
