//! TLS of the server: a certificate and its key, and if asked the authority that clients' certificates must be of.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use crate::{
    backend::etcd::Pem,
    error::{Error, Result},
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
            message: format!("the {what} cannot be used; expected PEM: {error}"),
        };
        let certificates = |pem: &Pem, what: &str| {
            let bytes = pem.read(what)?;
            let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
            all.map_err(|error| wrong(what, &error))
        };
        let chain = certificates(&self.cert, "server's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key.read("server's key")?)
            .map_err(|error| wrong("server's key", &error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("TLS library", &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(pem, "clients' CA certificate")?);
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| wrong("clients' CA certificate", &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong("server's certificate and key", &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
