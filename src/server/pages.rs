//! What a person, a probe or Prometheus may ask by plain HTTP, on the same port.

use std::{fmt::Write, sync::atomic::Ordering};

use tonic::{
    body::Body,
    codegen::{Bytes, http},
};

use super::{api::Api, budget::MOST_BYTES, connections::CONNECTION_BYTES, requests::Call};

type Reply = http::Response<Body>;

/// The page of this path; `None` if it is no request for one.
pub(super) fn page(api: &Api, request: &http::Request<impl Sized>) -> Option<Reply> {
    let grpc = request.headers().get(http::header::CONTENT_TYPE);
    if grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return None;
    }
    let (status, kind, text) = match request.uri().path() {
        "/health" => {
            (http::StatusCode::OK, "application/json", r#"{"health":"true","reason":""}"#.to_owned())
        }
        "/readyz" if api.admitted.load(Ordering::Acquire) => {
            (http::StatusCode::OK, "text/plain", "ok\n".to_owned())
        }
        "/readyz" => (http::StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not serving yet\n".to_owned()),
        "/version" => (http::StatusCode::OK, "application/json", version(api)),
        "/metrics" => (http::StatusCode::OK, "text/plain; version=0.0.4", metrics(api)),
        _ => (
            http::StatusCode::NOT_FOUND,
            "text/plain",
            "known: /health /readyz /version /metrics\n".to_owned(),
        ),
    };
    let mut reply = Reply::new(Body::new(Page(Some(Bytes::from(text)))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Some(reply)
}

fn version(api: &Api) -> String {
    format!(
        r#"{{"etcdserver":"{}","etcdcluster":"3.5.0","lattice-rdzv":"{}"}}"#,
        api.version,
        env!("CARGO_PKG_VERSION")
    )
}

/// What clients can make it buffer at most, with the connections that are open.
fn most_buffered(api: &Api) -> usize {
    MOST_BYTES + api.connections.load(Ordering::Relaxed) * CONNECTION_BYTES
}

fn metrics(api: &Api) -> String {
    let live = &api.contents.live;
    let (usage, bounds, revision, compacted) =
        live.look(|engine, _| (engine.usage(), engine.bounds(), engine.revision(), engine.compacted()));
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: String| {
        // Writing to a text cannot fail.
        let _ = write!(
            text,
            "# HELP lattice_rdzv_{name} {help}\n# TYPE lattice_rdzv_{name} gauge\nlattice_rdzv_{name} {value}\n"
        );
    };
    gauge("revision", "The number of the last write.", revision.to_string());
    gauge("compacted_revision", "The oldest revision that can be read.", compacted.to_string());
    gauge("keys", "Keys that are there.", usage.keys.to_string());
    gauge("leases", "Leases that are there.", usage.leases.to_string());
    gauge("live_bytes", "Bytes of keys, values and leases that are there.", usage.live_bytes.to_string());
    gauge("live_bytes_limit", "Beyond it writes are refused.", bounds.live_bytes.to_string());
    gauge("history_bytes", "Bytes of what was overwritten or deleted.", usage.history_bytes.to_string());
    gauge("history_bytes_limit", "Beyond it history is compacted.", bounds.history_bytes.to_string());
    gauge("history_revisions", "Revisions that a watch can begin at.", usage.history_revisions.to_string());
    gauge("watches", "Watches that are open.", live.watches().to_string());
    gauge("watch_streams", "Streams that they are on.", api.streams.load(Ordering::Relaxed).to_string());
    gauge("connections", "Connections that are open.", api.connections.load(Ordering::Relaxed).to_string());
    gauge("buffered_bytes", "Bytes that clients make it buffer.", api.budget.used().to_string());
    gauge(
        "buffered_bytes_limit",
        "Beyond it requests are refused and watches wait.",
        most_buffered(api).to_string(),
    );
    gauge("up_seconds", "For how long it has been serving.", api.began.elapsed().as_secs().to_string());
    text.push_str(
        "# HELP lattice_rdzv_requests_total Calls by kind.\n# TYPE lattice_rdzv_requests_total counter\n",
    );
    for call in Call::ALL {
        let _ = writeln!(
            text,
            "lattice_rdzv_requests_total{{call=\"{}\"}} {}",
            call.name(),
            api.counters.of(*call)
        );
    }
    text
}

/// A body of one piece.
struct Page(Option<Bytes>);

impl hyper::body::Body for Page {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(hyper::body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
