//! TLS of a client: which servers are trusted, and which certificate the client presents.
//!
//! `webpki`, the usual verifier of rustls, rejects a server certificate that is marked as a CA, even if the user
//! trusts exactly this certificate. `openssl req -x509` creates such certificates, and `etcdctl` accepts them,
//! because Go treats a certificate in the pool of trusted ones as a complete chain (`crypto/x509`,
//! `Certificate.Verify`). [`Trust`] does so too. The validity period, the purpose, and the name are checked as for
//! any other certificate. `webpki` checks a certificate that is not in the pool.

use std::sync::Arc;

use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::SingleCertAndKey,
};
use x509_cert::{
    Certificate,
    der::{Decode, oid::ObjectIdentifier},
    ext::pkix::ExtendedKeyUsage,
};

use crate::{
    error::{Error, Result},
    tls::{Pem, authorities, certified_key, provider},
};

const SERVER_AUTHENTICATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// The configuration of a TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the authority that signed the server's certificate, or the server's own certificate. Without
    /// it, the authorities that the machine trusts.
    pub ca: Option<Pem>,
    /// The client certificate, with `key`.
    pub cert: Option<Pem>,
    /// The key of the client certificate, with `cert`.
    pub key: Option<Pem>,
}

impl TlsFiles {
    /// Reads the present files.
    ///
    /// # Errors
    /// [`Error::Setting`] with the file that cannot be used.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>> {
        let unusable = |error: &dyn std::fmt::Display| Error::Setting {
            message: format!("TLS cannot be set up with the given files: {error}"),
        };
        let (pool, store) = match &self.ca {
            Some(ca) => authorities(ca, "CA certificate (`cacert`)")?,
            None => (Vec::new(), native_roots()?),
        };
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| unusable(&error))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trust { webpki, pool }));
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let certified = certified_key(cert, key, "client")?;
                // Not `with_client_auth_cert`, which rejects certificates of X.509 v1.
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn native_roots() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::Setting {
            message: format!(
                "this machine trusts no certificate authority{why}; pass the service's as `cacert` (or \
                 `LATTICE_RDZV_CACERT`), or install the package `ca-certificates`"
            ),
        });
    }
    Ok(store)
}

/// Trusts what `webpki` trusts, and certificates that are themselves in the pool.
#[derive(Debug)]
struct Trust {
    webpki: Arc<WebPkiServerVerifier>,
    pool: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_trusted = self.pool.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref());
        if is_trusted && may_serve(end_entity, now) {
            // Also rejects critical extensions that it does not know.
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Whether a certificate is valid now and for a server. A certificate that cannot be decoded is left to `webpki`.
fn may_serve(der: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok(Certificate { tbs_certificate, .. }) = Certificate::from_der(der) else { return false };
    let (from, to) = (tbs_certificate.validity.not_before, tbs_certificate.validity.not_after);
    let is_valid =
        (from.to_unix_duration().as_secs()..=to.to_unix_duration().as_secs()).contains(&now.as_secs());
    let is_for_servers = match tbs_certificate.get::<ExtendedKeyUsage>() {
        Ok(None) => true,
        Ok(Some((_, ExtendedKeyUsage(purposes)))) => {
            purposes.iter().any(|purpose| [SERVER_AUTHENTICATION, ANY_PURPOSE].contains(purpose))
        }
        Err(_) => false,
    };
    is_valid && is_for_servers
}
