//! Bodies of requests and responses, counted against the memory that their connection may use.
//!
//! - A request is charged for the largest message that it has announced so far, complete or not. It must complete
//!   each message that it has started, and the first message in any case, within [`MESSAGE_LIMIT`].
//! - A response is charged from its creation until its last byte has left the process's buffers. The bytes carry the
//!   permit, because the HTTP/2 layer keeps them after the body has ended.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::Bytes};

use super::budget::{Permit, Share};
use crate::lock::lock;

/// How long a client may take to complete a message.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(60);
/// The prefix of each gRPC message: a flag, and the length.
const PREFIX_BYTES: usize = 5;

/// Tracks where the messages of a gRPC body begin and end.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// How many bytes of the current message have arrived, including its prefix.
    arrived: usize,
    /// The number of complete messages.
    complete: usize,
    /// The size of the largest message that was announced, complete or not.
    largest: usize,
}

impl Messages {
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            if self.arrived < PREFIX_BYTES {
                self.prefix[self.arrived] = byte;
                self.arrived += 1;
                bytes = &bytes[1..];
            } else {
                let more = (self.length() - self.arrived).min(bytes.len());
                self.arrived += more;
                bytes = &bytes[more..];
            }
            self.largest = self.largest.max(self.arrived);
            if self.arrived >= PREFIX_BYTES && self.arrived == self.length() {
                self.complete += 1;
                self.arrived = 0;
            }
        }
    }

    fn length(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        PREFIX_BYTES + usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX - PREFIX_BYTES)
    }

    /// Whether data is still expected from the client: the rest of a message, or the first message.
    fn owes(&self) -> bool {
        self.arrived > 0 || self.complete == 0
    }
}

/// The body of a request.
pub(super) struct Request<B = Incoming> {
    body: B,
    share: Arc<Share>,
    messages: Messages,
    permit: Option<Permit>,
    charged: usize,
    limit: Option<Pin<Box<Sleep>>>,
    /// Whether the end of the request must follow its first message.
    unary: bool,
}

impl<B> Request<B> {
    pub(super) fn new(body: B, share: Arc<Share>) -> Self {
        let messages = Messages::default();
        Self { body, share, messages, permit: None, charged: 0, limit: None, unary: false }
    }

    /// Expects the end of the request after its first message.
    pub(super) fn expect_end(&mut self) {
        self.unary = true;
    }

    fn charge(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let complete = self.messages.complete;
        self.messages.take(bytes);
        if self.messages.complete > complete {
            self.limit = None;
        }
        // Twice the size at a time, so that a large message does not take a permit for each of its frames.
        if self.messages.largest > self.charged {
            let bytes = self.messages.largest.max(self.charged * 2);
            // Growth of a buffer is not counted twice.
            self.permit = None;
            self.permit = Some(self.share.message(bytes)?);
            self.charged = bytes;
        }
        Ok(())
    }
}

impl<B> HttpBody for Request<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let charged = frame.data_ref().map_or(Ok(()), |bytes| self.charge(bytes));
                Poll::Ready(Some(charged.map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.unary || self.messages.owes() => {
                let limit = self.limit.get_or_insert_with(|| Box::pin(sleep(MESSAGE_LIMIT)));
                if limit.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                let seconds = MESSAGE_LIMIT.as_secs();
                Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                    "the client did not complete its request within {seconds} s"
                )))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Permits of created responses, for the next bytes that are sent.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    pub(super) share: Arc<Share>,
    made: Arc<Mutex<Vec<Permit>>>,
}

impl Meter {
    pub(super) fn new(share: Arc<Share>) -> Self {
        Self { share, made: Arc::default() }
    }

    /// Counts a response of this size, which is created next.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no room for it.
    pub(super) fn count(&self, bytes: usize) -> Result<(), Status> {
        self.hold(self.share.message(bytes)?);
        Ok(())
    }

    /// Keeps a permit until the next bytes are sent.
    pub(super) fn hold(&self, permit: Permit) {
        lock(&self.made).push(permit);
    }
}

/// The body of a response.
pub(super) struct Answer {
    body: Body,
    meter: Meter,
    _call: Option<Permit>,
}

impl Answer {
    pub(super) fn new(body: Body, meter: Meter, call: Option<Permit>) -> Self {
        Self { body, meter, _call: call }
    }
}

/// Bytes with the permits under which they were created.
struct Charged {
    bytes: Bytes,
    _permits: Vec<Permit>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let permits = std::mem::take(&mut *lock(&self.meter.made));
                if permits.is_empty() {
                    return bytes;
                }
                Bytes::from_owner(Charged { bytes, _permits: permits })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::poll_fn};

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::server::budget::Budget;

    /// A client that sends these bytes and nothing more.
    struct Sent(&'static [u8]);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match std::mem::take(&mut self.0) {
                [] => Poll::Pending,
                bytes => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(bytes))))),
            }
        }
    }

    /// When a request with these bytes is given up; `None` if it is not.
    async fn given_up_after(bytes: &'static [u8]) -> Option<Duration> {
        let began = Instant::now();
        let mut body = Request::new(Sent(bytes), Arc::new(Budget::default()).share());
        let read = async {
            loop {
                if let Some(Err(status)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                    return status;
                }
            }
        };
        let status = timeout(Duration::from_secs(3600), read).await.ok()?;
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        Some(began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_is_not_complete_is_given_up_and_a_quiet_stream_is_not() {
        let limit = Some(MESSAGE_LIMIT);
        assert_eq!(given_up_after(&[]).await, limit, "a call without a message");
        assert_eq!(given_up_after(&[0, 0, 0]).await, limit);
        assert_eq!(given_up_after(&[0, 0, 0, 0, 2, 1]).await, limit);
        assert_eq!(given_up_after(&[0, 0, 0, 0, 1, 1, 0]).await, limit, "the second message");
        assert_eq!(given_up_after(&[0, 0, 0, 0, 1, 1]).await, None, "a stream between two messages");
        assert!(MESSAGE_LIMIT <= Duration::from_secs(90));
    }

    #[test]
    fn messages_are_distinguished_however_they_are_split() {
        let two = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 9, 7]].concat();
        for size in 1..=two.len() {
            let mut messages = Messages::default();
            assert!(messages.owes(), "the first message");
            for piece in two.chunks(size) {
                messages.take(piece);
            }
            assert_eq!((messages.complete, messages.arrived, messages.largest), (2, 6, 8), "cut at {size}");
            assert!(messages.owes());
        }
    }
}
