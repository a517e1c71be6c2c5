//! The pages for people, probes and Prometheus, on the port of clients and on that of [`super::observers`].

use std::sync::atomic::Ordering;

use tonic::{
    body::Body,
    codegen::{Bytes, http},
};

use super::{api::Api, metrics};
use crate::exposition;

type Reply = http::Response<Body>;

/// The page of this path. `None` if the request is not for a page.
pub(super) fn page(api: &Api, request: &http::Request<impl Sized>) -> Option<Reply> {
    let grpc = request.headers().get(http::header::CONTENT_TYPE);
    if grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return None;
    }
    Some(page_of_path(api, request.uri().path(), ""))
}

pub(super) const METRICS: &str = "/metrics";

/// The page of this path, with more metrics. If there is none, a page that lists the existing ones.
pub(super) fn page_of_path(api: &Api, path: &str, more_metrics: &str) -> Reply {
    let (status, kind, text) = match path {
        // etcd has all three: the first for older probes, the other two since 3.5.11.
        "/health" => {
            (http::StatusCode::OK, "application/json", r#"{"health":"true","reason":""}"#.to_owned())
        }
        "/livez" => (http::StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" if api.admitted.load(Ordering::Acquire) => {
            (http::StatusCode::OK, "text/plain", "ok\n".to_owned())
        }
        "/readyz" => (http::StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not serving yet\n".to_owned()),
        "/version" => (http::StatusCode::OK, "application/json", version(api)),
        METRICS => (http::StatusCode::OK, exposition::CONTENT_TYPE, metrics::text(api) + more_metrics),
        _ => (
            http::StatusCode::NOT_FOUND,
            "text/plain",
            "known: /health /livez /readyz /version /metrics\n".to_owned(),
        ),
    };
    let mut reply = Reply::new(Body::new(Page(Some(Bytes::from(text)))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    reply
}

fn version(api: &Api) -> String {
    format!(
        r#"{{"etcdserver":"{}","etcdcluster":"3.5.0","lattice-rdzv":"{}"}}"#,
        api.version,
        env!("CARGO_PKG_VERSION")
    )
}

/// A body that consists of one piece.
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
