//! Maps a path to its implementation: the supported calls of etcd, HTTP pages, and an error for all other paths.
//!
//! Calls are dispatched by hand and not by generated service traits, because two of `Auth`'s messages have no public
//! name in etcd-client, 30 of its methods would be stubs, and the generated codecs allocate 16 KB of buffers for each
//! stream.

use std::{
    convert::Infallible,
    future::ready,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering},
    task,
};

use etcd_client::proto::{PbLeaseLeasesRequest, PbMemberListRequest, PbStatusRequest};
use futures_util::Stream;
use prost::Message;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    codegen::{Service, http},
    server::Grpc,
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::{
    api::Api,
    auth,
    bodies::{self, Meter},
    budget::Share,
    pages,
    requests::Call,
};
use crate::backend::memory::engine::MAX_REQUEST_BYTES;

/// What etcd takes on the wire: the largest request, and half a MiB around it.
const MOST_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;
/// Of a request that is taken in before it is known who asks.
const MOST_BYTES_OF_ANYBODY: usize = 4096;
/// Buffers begin this small: most messages are, and most streams are silent.
const BUFFER_BYTES: usize = 256;
const YIELD_BYTES: usize = 32 * 1024;

type Reply = http::Response<Body>;
type Incoming = http::Request<bodies::Request>;

/// Serves one request, with what its connection may use.
pub(super) async fn dispatch(
    api: Arc<Api>,
    share: Arc<Share>,
    request: Incoming,
) -> Result<http::Response<bodies::Answer>, Infallible> {
    let meter = Meter::new(share);
    let (permit, reply) = match meter.share.call() {
        Ok(permit) => (Some(permit), reply(api, &meter, request).await),
        Err(status) => (None, status.into_http()),
    };
    Ok(reply.map(|body| bodies::Answer::new(body, meter, permit)))
}

async fn reply(api: Arc<Api>, meter: &Meter, request: Incoming) -> Reply {
    let path = request.uri().path();
    let Some(call) = Call::of_path(path) else {
        return pages::page(&api, &request).unwrap_or_else(|| unserved(path).into_http());
    };
    if let Err(status) = admit(&api, call, request.headers()) {
        return status.into_http();
    }
    api.counters.count(call);
    let most_bytes = if is_of_anybody(call) { MOST_BYTES_OF_ANYBODY } else { MOST_MESSAGE_BYTES };
    let asked = Asked { api, request, most_bytes, meter: meter.clone() };
    match call {
        Call::Range => unary(asked, Api::range).await,
        Call::Put => unary(asked, Api::put).await,
        Call::DeleteRange => unary(asked, Api::delete_range).await,
        Call::Txn => unary(asked, Api::txn).await,
        Call::Compact => small(asked, Api::compact).await,
        Call::Watch => streaming(asked, Api::watch).await,
        Call::LeaseGrant => small(asked, Api::lease_grant).await,
        Call::LeaseRevoke => small(asked, Api::lease_revoke).await,
        Call::LeaseKeepAlive => streaming(asked, Api::lease_keep_alive).await,
        Call::LeaseTimeToLive => small(asked, |api, request| Ok(api.lease_time_to_live(&request))).await,
        Call::LeaseLeases => small(asked, |api, _: PbLeaseLeasesRequest| Ok(api.lease_leases())).await,
        Call::MemberList => small(asked, |api, _: PbMemberListRequest| Ok(api.member_list())).await,
        Call::Status => small(asked, |api, _: PbStatusRequest| Ok(api.status())).await,
        Call::Alarm => small(asked, |api, request| api.alarm(&request)).await,
        Call::Authenticate => {
            auth::in_turn(&meter.share.login, small(asked, |api, request| api.authenticate(&request))).await
        }
    }
}

/// What is taken in before it is known who asks.
fn is_of_anybody(call: Call) -> bool {
    matches!(call, Call::Status | Call::Authenticate)
}

/// Who it is it says to everybody, as etcd does; all else only once it is admitted, and to those who may.
fn admit(api: &Api, call: Call, headers: &http::HeaderMap) -> Result<(), Status> {
    if is_of_anybody(call) {
        return Ok(());
    }
    if !api.admitted.load(Ordering::Acquire) {
        return Err(Status::unavailable("etcdserver: not serving yet"));
    }
    api.gatekeeper.admit(headers)
}

/// What answers to all that only an etcd does.
pub(super) fn unserved(call: &str) -> Status {
    let call = call.trim_start_matches('/');
    Status::unimplemented(format!(
        "the embedded store of lattice-rdzv does not serve this call; an etcd does: {call}"
    ))
}

/// A request, whom it was made to, how large its messages may be, and what counts the answers.
struct Asked {
    api: Arc<Api>,
    request: Incoming,
    most_bytes: usize,
    meter: Meter,
}

/// Answers one message with one, which the method counts before it makes it.
async fn unary<Q, A>(asked: Asked, answer: impl Fn(&Api, Q, &Meter) -> Result<A, Status>) -> Reply
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let Asked { api, request, most_bytes, meter } = asked;
    let answer = move |request: Request<Q>| answer(&api, request.into_inner(), &meter).map(Response::new);
    grpc(most_bytes).unary(Handler(answer), request).await
}

/// Answers one message with one, whose size does not depend on values and is counted afterwards.
async fn small<Q, A>(asked: Asked, answer: impl Fn(&Api, Q) -> Result<A, Status>) -> Reply
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    unary(asked, |api: &Api, request, meter: &Meter| {
        let answer = answer(api, request)?;
        // A lease's answer must not be lost for want of a few bytes: what is small enough rides with its call.
        if answer.encoded_len() > BUFFER_BYTES {
            meter.count(answer.encoded_len())?;
        }
        Ok(answer)
    })
    .await
}

/// Answers a stream of messages with one.
async fn streaming<Q, A, S>(asked: Asked, answer: fn(Arc<Api>, Streaming<Q>, Meter) -> S) -> Reply
where
    Q: Message + Default + 'static,
    A: Message + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    let Asked { api, request, most_bytes, meter } = asked;
    let handler = Handler(move |request: Request<Streaming<Q>>| {
        Ok(Response::new(answer(Arc::clone(&api), request.into_inner(), meter.clone())))
    });
    grpc(most_bytes).streaming(handler, request).await
}

fn grpc<A, Q>(most_bytes: usize) -> Grpc<SmallBuffers<A, Q>>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(SmallBuffers(PhantomData)).max_decoding_message_size(most_bytes)
}

/// What tonic asks of a method: a service that is always ready.
struct Handler<F>(F);

impl<F, Q, A> Service<Request<Q>> for Handler<F>
where
    F: FnMut(Request<Q>) -> Result<Response<A>, Status>,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = std::future::Ready<Result<Response<A>, Status>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Status>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request))
    }
}

/// Protobuf, with buffers that begin small.
struct SmallBuffers<A, Q>(PhantomData<(A, Q)>);

impl<A, Q> Codec for SmallBuffers<A, Q>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    type Encode = A;
    type Decode = Q;
    type Encoder = Exact<A>;
    type Decoder = ProstDecoder<Q>;

    fn encoder(&mut self) -> Self::Encoder {
        Exact(ProstCodec::<A, Q>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<A, Q>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}

/// An encoder that takes as much memory as a message needs; a buffer that doubles would take up to twice of it.
struct Exact<A>(ProstEncoder<A>);

impl<A: Message> Encoder for Exact<A> {
    type Item = A;
    type Error = Status;

    fn encode(&mut self, item: A, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        self.0.encode(item, buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
