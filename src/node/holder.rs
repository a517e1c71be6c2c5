//! Finds out what listens on a port at which no etcd responds: torch's `TCPStore`, a server with or without TLS where
//! the endpoint specifies the opposite, a process that is silent, or anything else.
//!
//! A `TCPStore` is as silent towards an etcd client as a process that is stuck. Therefore it is asked in its own
//! protocol for the number of its keys, which changes nothing.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::discovery::{Endpoint, Scheme};

/// A process that has not responded within this time is considered silent.
const LIMIT: Duration = Duration::from_secs(1);
/// A server responds in its own protocol at once.
const SCHEME_LIMIT: Duration = Duration::from_millis(500);

/// The messages `VALIDATE` and `GETNUMKEYS` of a `TCPStore`, and the value that follows the first:
/// `TCPStoreBackend.hpp`. The response, the number of keys, has 8 bytes.
const VALIDATE: u8 = 0;
const MAGIC: u32 = 0x3c85_f7ce;
const COUNT_KEYS: u8 = 7;

/// The first bytes of an HTTP/2 connection, with empty settings: RFC 9113, sections 3.4 and 6.5.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The type of a settings frame, which is the first frame of every HTTP/2 server, after the three bytes of its length.
const SETTINGS: u8 = 4;

/// A `ClientHello` of TLS 1.2 without extensions and with one cipher suite: RFC 5246, section 7.4.1.2. Every TLS server
/// responds to it with a handshake or with an alert.
///
/// It is a handshake record of TLS 1.0 with 45 bytes, which contains a hello of 41 bytes for TLS 1.2: 32 random bytes
/// (zeros suffice), no session, the suite `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`, and no compression.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \0\0\x02\xc0\x2f\x01\0";
/// The record types of TLS with which a server responds: alert and handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// What was found at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A store of torch.
    TcpStore,
    /// A server with TLS, where the endpoint has `http`.
    Tls,
    /// A server without TLS, where the endpoint has `https`.
    Plain,
    /// Something that accepts connections and sends nothing.
    Silent,
    /// Something that responds otherwise or closes the connection, or nothing.
    Other,
}

impl Holder {
    /// Connects, sends, and examines the response.
    pub(super) async fn find(endpoint: &Endpoint) -> Self {
        if let Some(server) = Self::find_other_scheme(endpoint).await {
            return server;
        }
        let [a, b, c, d] = MAGIC.to_ne_bytes();
        match exchange(endpoint, &[VALIDATE, a, b, c, d, COUNT_KEYS], LIMIT).await {
            Some(Answer::Bytes(bytes)) if bytes.len() == 8 => Self::TcpStore,
            Some(Answer::Nothing) => Self::Silent,
            _ => Self::Other,
        }
    }

    /// Finds a server with TLS if the endpoint has `http`, or one without TLS if it has `https`.
    pub(super) async fn find_other_scheme(endpoint: &Endpoint) -> Option<Self> {
        let (question, is_wanted, found): (&[u8], fn(&Answer) -> bool, _) = match endpoint.scheme {
            Scheme::Http => (CLIENT_HELLO, is_tls, Self::Tls),
            Scheme::Https => (HTTP2, is_http2, Self::Plain),
        };
        let answer = exchange(endpoint, question, SCHEME_LIMIT).await;
        answer.filter(is_wanted).map(|_| found)
    }

    /// Whether no etcd can respond at this endpoint while this process listens there.
    pub(super) fn is_definite(self) -> bool {
        matches!(self, Self::TcpStore | Self::Tls | Self::Plain)
    }

    /// Describes it, and what to do about it.
    pub(super) fn describe(self, endpoint: &Endpoint) -> Option<String> {
        let port = endpoint.port;
        match self {
            Self::TcpStore => Some(format!(
                "port {port} is held by a `TCPStore` of torch, such as a job with the backend `c10d` or its workers \
                 have; pass an endpoint with another port, the same on every node, or end that job"
            )),
            Self::Tls => Some(format!(
                "the server on port {port} requires TLS, but the endpoint has `http`; pass `https://{}:{port}`, and its CA \
                 certificate as `cacert`",
                endpoint.host
            )),
            Self::Plain => Some(format!(
                "the server on port {port} does not use TLS, but the endpoint has `https`; pass `http://{}:{port}` \
                 without `cacert`, `cert` and `key`, or enable TLS in that server",
                endpoint.host
            )),
            Self::Silent => Some(format!(
                "a process accepts connections on port {port} and sends nothing, so it is not an etcd, or is paused; \
                 `ss -ltnp sport = :{port}` on its machine shows the process; end it, or pass an endpoint with another \
                 port, the same on every node"
            )),
            Self::Other => None,
        }
    }
}

enum Answer {
    Bytes(Vec<u8>),
    Nothing,
}

/// The first bytes of a response. `None` if there is no connection, or if it ends without a response.
async fn exchange(endpoint: &Endpoint, question: &[u8], limit: Duration) -> Option<Answer> {
    let address = (endpoint.host.to_string(), endpoint.port);
    let mut stream = timeout(limit, TcpStream::connect(address)).await.ok()?.ok()?;
    stream.write_all(question).await.ok()?;
    let mut bytes = [0; 64];
    match timeout(limit, stream.read(&mut bytes)).await {
        Ok(Ok(0) | Err(_)) => None,
        Ok(Ok(length)) => Some(Answer::Bytes(bytes[..length].to_vec())),
        Err(_) => Some(Answer::Nothing),
    }
}

fn is_tls(answer: &Answer) -> bool {
    matches!(answer, Answer::Bytes(bytes) if matches!(bytes[..], [kind, 3, ..] if TLS_RECORDS.contains(&kind)))
}

fn is_http2(answer: &Answer) -> bool {
    matches!(answer, Answer::Bytes(bytes) if matches!(bytes[..], [0, _, _, SETTINGS, ..]))
}
