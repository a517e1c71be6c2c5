//! A port for probes and Prometheus: the pages of [`super::pages`] over plain HTTP, and nothing else.
//!
//! The pages are also on the port of clients. There TLS may ask for a certificate that a kubelet does not have, and clients
//! may use all connections and calls. This port has neither TLS nor a password, and limits of its own.

use std::{convert::Infallible, future::ready, pin::pin, sync::Arc};

use hyper::{server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    api::{Api, Counted, stopped},
    connections::{PAGE_BYTES, PATIENCE, accept},
    listener::Listener,
    pages,
};

/// Connections at once. One that sends no request ends after [`PATIENCE`].
const MOST_CONNECTIONS: usize = 256;

/// Serves until the server stops.
pub(super) async fn serve(api: Arc<Api>, listener: impl Listener) {
    let serve = |stream, counted| converse(Arc::clone(&api), stream, counted);
    accept(&api, listener, MOST_CONNECTIONS, |api| &api.observers, serve).await;
}

async fn converse(
    api: Arc<Api>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    _counted: Counted,
) {
    let mut stopping = api.stopping.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        ready(Ok::<_, Infallible>(pages::page_of_path(&api, request.uri().path())))
    });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(PAGE_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            end = connection.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!("a connection to the metrics port broke: {error}");
                }
                return;
            }
            () = stopped(&mut stopping), if !told => {
                connection.as_mut().graceful_shutdown();
                told = true;
            }
        }
    }
}
