//! Opens the gRPC channel of an endpoint, with TLS if the endpoint is `https`.
//!
//! The TLS of the client library does not accept a verifier, and its login accepts only a token that it obtains
//! itself. Therefore TLS and the token are added below and above tonic's channel, and the client library gets the
//! result.

use std::{io, sync::Arc, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tonic::{
    codegen::http::{HeaderValue, Request, Uri},
    transport::{Channel, Endpoint},
};
use tower::{BoxError, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

use super::{
    classify::{Failure, Kind},
    health::Condition,
};

/// Makes the channel of an endpoint instead of using the network of this machine. The channel connects when it is first
/// used.
#[doc(hidden)]
pub type Channels = Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>;

/// How to reach one endpoint.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) endpoint: String,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) channels: Option<Channels>,
    pub(super) connect_timeout: Duration,
}

/// When a connection that does not respond to pings is given up.
#[derive(Clone, Copy)]
pub(super) struct Pings {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl Route {
    /// A channel that connects when it is first used, and reconnects after it broke.
    pub(super) fn open(&self, pings: Pings) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(|error| Failure {
            kind: Kind::Setting,
            cause: error.to_string(),
            condition: Condition::Sound,
        })?;
        let endpoint = endpoint
            .keep_alive_while_idle(false)
            .http2_keep_alive_interval(pings.interval)
            .keep_alive_timeout(pings.timeout);
        if let Some(channels) = &self.channels {
            return Ok(channels(&endpoint));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        Ok(match &self.tls {
            None => endpoint.connect_with_connector_lazy(tcp),
            Some(config) => {
                let (connector, limit) = (TlsConnector::from(Arc::clone(config)), HANDSHAKE_LIMIT);
                endpoint.connect_with_connector_lazy(service_fn(move |uri| {
                    let (tcp, connector) = (tcp.clone(), connector.clone());
                    async move { handshake(tcp, connector, uri, limit).await.map(TokioIo::new) }
                }))
            }
        })
    }
}

/// The limit is high, because a server whose processors are busy with logins takes long for a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

async fn handshake(
    mut tcp: HttpConnector,
    connector: TlsConnector,
    uri: Uri,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, BoxError> {
    let host = uri.host().unwrap_or_default();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let stream = tcp.ready().await?.call(uri).await?.into_inner();
    let stream = timeout(limit, connector.connect(name, stream)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no TLS handshake within {} s", limit.as_secs()))
    })??;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the server did not agree to HTTP/2 in the TLS handshake".into());
    }
    Ok(stream)
}

/// A channel whose requests carry the token that is valid when each of them is sent.
pub(super) fn with_token(
    channel: Channel,
    token: impl Fn() -> Option<HeaderValue> + Clone + Send + Sync + 'static,
) -> etcd_client::Channel {
    let carry = channel.map_request(move |mut request: Request<_>| {
        if let Some(token) = token() {
            request.headers_mut().insert("token", token);
        }
        request
    });
    etcd_client::Channel::Custom(BoxCloneSyncService::new(carry.map_err(BoxError::from)))
}
