//! What holds a port where no etcd answers: torch's `TCPStore`, a process that is silent, or anything else.
//!
//! A `TCPStore` keeps as silent towards an etcd's client as a process that hangs, so it is asked in its own protocol, for
//! the number of its keys, which changes nothing.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::discovery::Endpoint;

/// Whatever takes a connection answers within this, or is silent.
const LIMIT: Duration = Duration::from_secs(1);

/// The messages `VALIDATE` and `GETNUMKEYS` of a `TCPStore`, and what follows the first: `TCPStoreBackend.hpp`. The number
/// of keys comes as 8 bytes.
const VALIDATE: u8 = 0;
const MAGIC: u32 = 0x3c85_f7ce;
const COUNT_KEYS: u8 = 7;

/// What was found at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A store of torch.
    TcpStore,
    /// Something that takes connections and sends nothing.
    Silent,
    /// Something that answers or hangs up, or nothing.
    Other,
}

impl Holder {
    /// Connects, asks, and looks at what comes.
    pub(super) async fn find(endpoint: &Endpoint) -> Self {
        let address = (endpoint.host.to_string(), endpoint.port);
        let Ok(Ok(mut stream)) = timeout(LIMIT, TcpStream::connect(address)).await else {
            return Self::Other;
        };
        let [a, b, c, d] = MAGIC.to_ne_bytes();
        if stream.write_all(&[VALIDATE, a, b, c, d, COUNT_KEYS]).await.is_err() {
            return Self::Other;
        }
        let mut answer = [0; 64];
        match timeout(LIMIT, stream.read(&mut answer)).await {
            Ok(Ok(8)) => Self::TcpStore,
            Ok(_) => Self::Other,
            Err(_) => Self::Silent,
        }
    }

    /// What to say of it, and what to do.
    pub(super) fn describe(self, endpoint: &Endpoint) -> Option<String> {
        let port = endpoint.port;
        match self {
            Self::TcpStore => Some(format!(
                "port {port} is held by a `TCPStore` of torch, such as a job with the backend `c10d` or its workers \
                 have; pass an endpoint with another port, the same on every node, or end that job"
            )),
            Self::Silent => Some(format!(
                "a process accepts connections on port {port} and sends nothing, so it is no etcd, or it is paused; \
                 `ss -ltnp sport = :{port}` on its machine shows the process; end it, or pass an endpoint with another \
                 port, the same on every node"
            )),
            Self::Other => None,
        }
    }
}
