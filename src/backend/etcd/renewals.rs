//! Renews the leases of a client over one stream.
//!
//! A response to a renewal names the lease, but not the request. A stream is therefore in use for one renewal at a
//! time, and is kept for the next one only after the response has arrived. A renewal that is given up, for example at
//! its deadline, drops its stream, so that a late response cannot be taken for that of a later renewal. Renewals at the
//! same time use separate streams, of which one is kept.

use std::{sync::Mutex, time::Duration};

use etcd_client::{
    Channel,
    proto::{PbLeaseKeepAliveRequest as Request, PbLeaseKeepAliveResponse as Response},
};
use futures_util::{FutureExt, stream::unfold};
use tokio::sync::mpsc;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codegen::http::{HeaderValue, uri::PathAndQuery},
    metadata::MetadataValue,
};
use tonic_prost::ProstCodec;

use super::{
    classify::{Failure, classify, classify_reason},
    convert::seconds,
};
use crate::{backend::LeaseId, lock::lock};

/// The renewals on one connection.
pub(super) struct Renewals {
    channel: Channel,
    idle: Mutex<Option<Stream>>,
}

/// A stream on which every request was answered.
struct Stream {
    requests: mpsc::Sender<Request>,
    responses: Streaming<Response>,
    /// The token that it was opened with.
    token: Option<HeaderValue>,
}

impl Renewals {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, idle: Mutex::default() }
    }

    /// Renews a lease once, and returns its TTL. `token` is the token that the channel adds to a new stream.
    pub(super) async fn renew(
        &self,
        lease: LeaseId,
        token: Option<HeaderValue>,
    ) -> Result<Duration, Failure> {
        let request = Request { id: lease };
        let kept = lock(&self.idle).take().filter(|kept| kept.token == token);
        let mut stream = match kept.and_then(Stream::if_open) {
            Some(stream) if stream.requests.try_send(request).is_ok() => stream,
            _ => self.open(request, token).await.map_err(failure)?,
        };
        let response = stream.responses.message().await.map_err(failure)?;
        let response = response.ok_or_else(|| classify_reason("the stream of renewals ended"))?;
        if response.id != lease {
            return Err(classify_reason("the response to a renewal is about another lease"));
        }
        *lock(&self.idle) = Some(stream);
        if response.ttl > 0 {
            Ok(seconds(response.ttl))
        } else {
            Err(classify_reason("etcdserver: requested lease not found"))
        }
    }

    /// Opens a stream with this request. etcd sends the headers of its response together with the first response.
    async fn open(&self, request: Request, token: Option<HeaderValue>) -> Result<Stream, Status> {
        let (requests, receiver) = mpsc::channel(1);
        let first = requests.try_send(request);
        first.map_err(|error| Status::internal(error.to_string()))?;
        let sent = unfold(receiver, async |mut receiver: mpsc::Receiver<Request>| {
            receiver.recv().await.map(|request| (request, receiver))
        });
        let mut call = tonic::Request::new(sent);
        call.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let opened = grpc.streaming(call, path, ProstCodec::<Request, Response>::default()).await?;
        Ok(Stream { requests, responses: opened.into_inner(), token })
    }
}

impl Stream {
    /// The stream, unless it has ended or holds a response to an abandoned request.
    fn if_open(mut self) -> Option<Self> {
        self.responses.message().now_or_never().is_none().then_some(self)
    }
}

fn failure(status: Status) -> Failure {
    classify(&etcd_client::Error::GRpcStatus(status))
}
