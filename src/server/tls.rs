//! TLS of the server: a certificate and its key, and optionally the CA of client certificates.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, server::WebPkiClientVerifier, sign::SingleCertAndKey},
    server::TlsStream,
};

use crate::{
    error::{Error, Result},
    lock::lock,
    tls::{Pem, authorities, certified_key, provider},
};

/// The server's certificate, and the requirements for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate and its chain.
    pub cert: Pem,
    /// Its private key.
    pub key: Pem,
    /// The CA of the certificates that clients must have.
    pub client_ca: Option<Pem>,
}

/// Performs handshakes with the current files, so that renewed certificates take effect without a restart. If the
/// current files are invalid, for example half written, the last valid ones are used.
#[derive(Clone, Debug)]
pub(crate) struct Renewed {
    files: Arc<ServerTls>,
    last: Arc<Mutex<Last>>,
}

struct Last {
    acceptor: TlsAcceptor,
    /// Whether the invalid files were already logged.
    told: bool,
}

impl std::fmt::Debug for Last {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Last").finish_non_exhaustive()
    }
}

impl Renewed {
    /// # Errors
    /// [`Error::Setting`] if the files cannot be used from the beginning.
    pub(crate) fn new(files: ServerTls) -> Result<Self> {
        let last = Last { acceptor: files.acceptor()?, told: false };
        Ok(Self { files: Arc::new(files), last: Arc::new(Mutex::new(last)) })
    }

    /// Performs the handshake with a client within `limit`.
    pub(crate) async fn accept<S>(&self, stream: S, limit: Duration) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = async { self.acceptor().await.accept(stream).await };
        timeout(limit, handshake).await.unwrap_or_else(|_| {
            let text = format!("the handshake was not complete within {} s", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    async fn acceptor(&self) -> TlsAcceptor {
        let files = Arc::clone(&self.files);
        let read = spawn_blocking(move || files.acceptor()).await;
        // The value is always replaced as a whole, so a poisoned lock still protects a valid one.
        let mut last = lock(&self.last);
        match read {
            Ok(Ok(acceptor)) => *last = Last { acceptor, told: false },
            Ok(Err(error)) => {
                if !std::mem::replace(&mut last.told, true) {
                    tracing::warn!("the server keeps its previous certificate: {error}");
                }
            }
            // The runtime is stopping.
            Err(_) => {}
        }
        last.acceptor.clone()
    }
}

impl ServerTls {
    fn acceptor(&self) -> Result<TlsAcceptor> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| Error::Setting {
            message: format!("the {what} cannot be used: {error}"),
        };
        let certified = certified_key(&self.cert, &self.key, "server")?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("TLS library", &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let (_, roots) = authorities(pem, "clients' CA certificate")?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|error| wrong("clients' CA certificate", &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
