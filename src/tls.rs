//! Reads certificates and keys, and names the file that cannot be used and the reason.
//!
//! The TLS library reports a broken file only as a failed handshake, if at all. Each file is therefore checked before
//! a connection is opened or a port is served. The verifiers decide whether a certificate is trusted.

use std::{fmt, path::PathBuf, sync::Arc};

use tokio_rustls::rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_cert::{Certificate, der::Decode, spki::SubjectPublicKeyInfoOwned};

use crate::error::{Error, Result};

/// A certificate or key in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, which is read again for each connection, because certificates of long-running jobs are renewed.
    File(PathBuf),
    /// The content itself.
    Bytes(Vec<u8>),
}

impl Pem {
    fn read(&self, what: &str) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => std::fs::read(path).map_err(|error| Error::Setting {
                message: format!("the {what} cannot be read from `{}`: {error}", path.display()),
            }),
        }
    }

    fn unusable(&self, what: &str, why: &str) -> Error {
        let place = match self {
            Self::File(path) => format!("`{}`", path.display()),
            Self::Bytes(bytes) => format!("{} bytes in memory", bytes.len()),
        };
        Error::Setting { message: format!("the {what} cannot be used: {why}: {place}") }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            // It may be a private key.
            Self::Bytes(bytes) => write!(formatter, "Bytes({} bytes)", bytes.len()),
        }
    }
}

/// The cryptography of all TLS connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Returns the certificates in a PEM file, of which there is at least one.
///
/// # Errors
/// [`Error::Setting`] with the file and its actual content.
pub(crate) fn certificates(pem: &Pem, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = pem.read(what)?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| pem.unusable(what, &format!("its PEM encoding is broken ({error})")))?;
    if all.is_empty() {
        return Err(pem.unusable(what, &describe_instead(&bytes, Part::Certificate)));
    }
    Ok(all)
}

/// Returns the CA certificates in a PEM file, as given and as a store of trust anchors.
///
/// # Errors
/// As [`certificates`], and if none of them is an X.509 certificate.
pub(crate) fn authorities(pem: &Pem, what: &str) -> Result<(Vec<CertificateDer<'static>>, RootCertStore)> {
    let all = certificates(pem, what)?;
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(all.iter().cloned());
    if added == 0 {
        return Err(pem.unusable(what, "it holds no X.509 certificate that can be decoded"));
    }
    Ok((all, store))
}

/// A certificate chain and its private key.
///
/// # Errors
/// [`Error::Setting`] if a file cannot be used, or the key is that of another certificate.
pub(crate) fn certified_key(cert: &Pem, key: &Pem, whose: &str) -> Result<CertifiedKey> {
    let (of_cert, of_key) = (format!("{whose} certificate"), format!("{whose} key"));
    let chain = certificates(cert, &of_cert)?;
    let bytes = key.read(&of_key)?;
    let der = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| key.unusable(&of_key, &describe_instead(&bytes, Part::Key)))?;
    // An encrypted key in the old format has the label of an unencrypted one.
    let signing =
        provider().key_provider.load_private_key(der).map_err(|_| {
            let why = match content(&bytes) {
            Content::EncryptedKey => describe_instead(&bytes, Part::Key),
            _ => "it is damaged or of a kind that TLS does not support; expected RSA of 2,048 to 8,192 bits, \
                  ECDSA on P-256, P-384, or P-521, or Ed25519"
                .to_owned(),
        };
            key.unusable(&of_key, &why)
        })?;
    let certified = CertifiedKey::new(chain, signing);
    if is_of_another_key(&certified) {
        let place = |pem: &Pem| match pem {
            Pem::File(path) => format!("`{}`", path.display()),
            Pem::Bytes(_) => "in memory".to_owned(),
        };
        return Err(Error::Setting {
            message: format!(
                "the {of_key} does not belong to the {of_cert}; pass the key with which that certificate was \
                 requested: key {}, certificate {}",
                place(key),
                place(cert)
            ),
        });
    }
    Ok(certified)
}

/// Whether the certificate is known to contain another public key. The check of the TLS library rejects X.509 v1.
fn is_of_another_key(certified: &CertifiedKey) -> bool {
    let own = certified.key.public_key();
    let own = own.and_then(|der| SubjectPublicKeyInfoOwned::from_der(&der).ok());
    let shown = certified.cert.first().and_then(|der| Certificate::from_der(der).ok());
    match (own, shown) {
        (Some(own), Some(shown)) => {
            own.subject_public_key != shown.tbs_certificate.subject_public_key_info.subject_public_key
        }
        _ => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Certificate,
    Key,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Certificate,
    Key,
    EncryptedKey,
    Der,
    Nothing,
    Other,
}

fn content(bytes: &[u8]) -> Content {
    let text = String::from_utf8_lossy(bytes);
    if text.trim().is_empty() {
        Content::Nothing
    } else if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        Content::EncryptedKey
    } else if text.contains("PRIVATE KEY-----") {
        Content::Key
    } else if text.contains("-----BEGIN CERTIFICATE-----") {
        Content::Certificate
    } else if matches!(bytes, [0x30, length, ..] if length & 0x80 != 0 || usize::from(*length) + 2 == bytes.len())
    {
        Content::Der
    } else {
        Content::Other
    }
}

/// Describes the content of a file that does not contain the required part.
fn describe_instead(bytes: &[u8], wanted: Part) -> String {
    let (wanted, convert) = match wanted {
        Part::Certificate => ("certificate", "openssl x509 -inform DER -in FILE -out FILE.pem"),
        Part::Key => ("private key", "openssl pkey -inform DER -in FILE -out FILE.pem"),
    };
    match content(bytes) {
        Content::Nothing => format!("the file is empty; expected a {wanted} in PEM form"),
        Content::EncryptedKey => format!(
            "it holds an encrypted private key; expected a {wanted} that needs no passphrase \
             (`openssl pkey -in FILE -out FILE.pem` decrypts a key)"
        ),
        Content::Key => format!(
            "it holds a private key that is no {wanted} of a supported form; if it was swapped with the other file, \
             exchange the two"
        ),
        Content::Certificate => {
            format!(
                "it holds a certificate and no {wanted}; if it was swapped with the other file, exchange the two"
            )
        }
        Content::Der => {
            format!("it is in DER form; expected a {wanted} in PEM form (`{convert}` converts it)")
        }
        Content::Other => format!("it is not in PEM form; expected a {wanted} in PEM form"),
    }
}
