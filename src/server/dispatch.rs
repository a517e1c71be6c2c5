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
    bodies::{self, Meter},
    budget::Share,
    logins, pages,
    requests::Call,
};
use crate::backend::memory::engine::MAX_REQUEST_BYTES;

/// The maximum message size that etcd accepts: the largest request plus 0.5 MiB.
const MOST_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;
/// The maximum size of a request that is read before the client is authenticated.
const MOST_BYTES_OF_ANYBODY: usize = 4096;
/// Initial buffer size. It is small, because most messages are small and most streams are silent.
const BUFFER_BYTES: usize = 256;
const YIELD_BYTES: usize = 32 * 1024;

type Reply = http::Response<Body>;
type Incoming = http::Request<bodies::Request>;

/// Serves one request within the limits of its connection.
pub(super) async fn dispatch(
    api: Arc<Api>,
    share: Arc<Share>,
    request: Incoming,
) -> Result<http::Response<bodies::Answer>, Infallible> {
    let meter = Meter::new(share);
    // Pages are small, and if a probe were refused, a busy server would be restarted.
    let permit = Call::of_path(request.uri().path()).map(|_| meter.share.call()).transpose();
    let (permit, reply) = match permit {
        Ok(permit) => (permit, reply(api, &meter, request).await),
        Err(status) => (None, status.into_http()),
    };
    Ok(reply.map(|body| bodies::Answer::new(body, meter, permit)))
}

async fn reply(api: Arc<Api>, meter: &Meter, mut request: Incoming) -> Reply {
    let path = request.uri().path();
    let Some(call) = Call::of_path(path) else {
        return pages::page(&api, &request).unwrap_or_else(|| unserved(path).into_http());
    };
    if let Err(status) = admit(&api, call, request.headers()) {
        return status.into_http();
    }
    api.counters.count(call);
    if !call.streams() {
        request.body_mut().expect_end();
    }
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
            let login = async {
                asked.api.authenticator.refresh().await;
                small(asked, |api, request| api.authenticate(&request)).await
            };
            logins::in_turn(&meter.share.login, login).await
        }
    }
}

/// The requests that are read before the client is authenticated.
fn is_of_anybody(call: Call) -> bool {
    matches!(call, Call::Status | Call::Authenticate)
}

/// The version is available to every client, as in etcd. All other calls are available only after admission and only
/// to authorized clients.
fn admit(api: &Api, call: Call, headers: &http::HeaderMap) -> Result<(), Status> {
    if is_of_anybody(call) {
        return Ok(());
    }
    if !api.admitted.load(Ordering::Acquire) {
        return Err(Status::unavailable("etcdserver: not serving yet"));
    }
    api.authenticator.authorize(headers)
}

/// Responds to calls that only etcd supports.
pub(super) fn unserved(call: &str) -> Status {
    let call = call.trim_start_matches('/');
    Status::unimplemented(format!(
        "the embedded server of lattice-rdzv does not serve this call; an etcd does: {call}"
    ))
}

/// A request, its path, the limit of its messages, and the budget of its responses.
struct Asked {
    api: Arc<Api>,
    request: Incoming,
    most_bytes: usize,
    meter: Meter,
}

/// Serves a unary call whose method counts the response before it creates it.
async fn unary<Q, A>(asked: Asked, answer: impl Fn(&Api, Q, &Meter) -> Result<A, Status>) -> Reply
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let Asked { api, request, most_bytes, meter } = asked;
    let answer = move |request: Request<Q>| answer(&api, request.into_inner(), &meter).map(Response::new);
    grpc(most_bytes).unary(Handler(answer), request).await
}

/// Serves a unary call whose response size does not depend on values and is counted afterwards.
async fn small<Q, A>(asked: Asked, answer: impl Fn(&Api, Q) -> Result<A, Status>) -> Reply
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    unary(asked, |api: &Api, request, meter: &Meter| {
        let answer = answer(api, request)?;
        // The response of a lease call must not be lost because of a few bytes, so a small response is covered by the
        // cost of its call.
        if answer.encoded_len() > BUFFER_BYTES {
            meter.count(answer.encoded_len())?;
        }
        Ok(answer)
    })
    .await
}

/// Serves a stream of requests with a stream of responses.
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

/// Adapts a method to the service trait of tonic. It is always ready.
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

/// A protobuf codec with small initial buffers.
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

/// An encoder that allocates exactly the size of a message. A doubling buffer would allocate up to twice as much.
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
