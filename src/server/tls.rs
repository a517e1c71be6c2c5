//! TLS of the server: a certificate and its key, and optionally the CA of client certificates.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, server::WebPkiClientVerifier, sign::SingleCertAndKey},
};

use crate::{
    error::{Error, Result},
    tls::{Pem, authorities, certified_key, provider},
};

/// What the server shows, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The server's certificate, with those that it was signed by.
    pub cert: Pem,
    /// Its key.
    pub key: Pem,
    /// Clients must show a certificate of this authority.
    pub client_ca: Option<Pem>,
}

/// Makes handshakes with the files as they are now, so that renewed certificates count without a restart; or as they last
/// were of use, for they may be half written.
#[derive(Clone, Debug)]
pub(super) struct Renewed {
    files: Arc<ServerTls>,
    last: Arc<Mutex<Last>>,
}

struct Last {
    acceptor: TlsAcceptor,
    /// Whether it was told that they are of no use.
    told: bool,
}

impl std::fmt::Debug for Last {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Last").finish_non_exhaustive()
    }
}

impl Renewed {
    /// # Errors
    /// [`Error::Setting`] if they are of no use from the beginning.
    pub(super) fn new(files: ServerTls) -> Result<Self> {
        let last = Last { acceptor: files.acceptor()?, told: false };
        Ok(Self { files: Arc::new(files), last: Arc::new(Mutex::new(last)) })
    }

    pub(super) async fn acceptor(&self) -> TlsAcceptor {
        let files = Arc::clone(&self.files);
        let read = spawn_blocking(move || files.acceptor()).await;
        // Replaced whole, so that a poisoned one is still a sound one.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Ok(acceptor)) => *last = Last { acceptor, told: false },
            Ok(Err(error)) => {
                if !std::mem::replace(&mut last.told, true) {
                    tracing::warn!("the server goes on with the certificate that it had: {error}");
                }
            }
            // The runtime ends.
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
