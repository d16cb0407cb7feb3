//! The development CA that `claviger pki`, `claviger demo` and the tests share: EC P-256, one
//! folder, no intermediates.
//!
//! The folder holds `ca.crt`, `ca.key` (mode 0600), `issued.json` (what was issued and revoked) and
//! a lock file. A CA for a large company lives elsewhere; this one gives a team working mutual TLS.

mod database;
mod error;
mod given;
mod leaf;
mod over_key;
mod renewal;
mod request;
mod revocation;
#[cfg(test)]
mod tests;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};
use zeroize::Zeroizing;

pub use database::IssuedRecord;
use database::{Database, Locked};
pub use error::PkiError;
use error::{io, write_new};
use given::CaFiles;
pub use given::GivenCa;
use leaf::Leaf;
pub use over_key::{OverKey, SignWithKey};
pub use request::CertificateRequest;

/// The organisation in the name of a demo's CA: `serve` refuses what comes from it.
pub const DEMO_ORGANISATION: &str = "Claviger demo, never trust";
/// How long a server's or client's certificate lasts unless asked otherwise.
pub const DEFAULT_LEAF_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// How long a CRL lasts unless asked otherwise.
pub const DEFAULT_CRL_VALIDITY: Duration = Duration::from_hours(7 * 24);
/// How long a CA lasts unless asked otherwise.
pub const DEFAULT_CA_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// Certificates begin this long ago, so that clocks may differ.
const BACKDATED: Duration = Duration::from_mins(5);

/// A CA in its folder.
pub struct Ca {
    directory: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a new CA is to be.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// The name in its certificates. Two CAs of one name confuse clients and people: a certificate
    /// of the one then has a bad signature for the other.
    pub common_name: String,
    /// How long its certificate lasts.
    pub validity: Duration,
    /// Marks it as the demo's, so that `serve` refuses it.
    pub demo: bool,
}

impl Default for CaOptions {
    fn default() -> Self {
        let mut own = [0; 4];
        // Without random numbers `Ca::create` fails, and says so.
        let _ = aws_lc_rs::rand::fill(&mut own);
        let common_name = format!("Claviger development CA {}", hex::encode(own));
        Self { common_name, validity: DEFAULT_CA_VALIDITY, demo: false }
    }
}

/// Who a client certificate is for: its only SAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientName {
    /// A URI SAN: `spiffe://trust-domain/path`.
    Spiffe(String),
    /// A DNS SAN.
    Dns(String),
}

/// A new certificate for a key that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its serial number: 32 hexadecimal digits.
    pub serial: String,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// A new certificate with its key.
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its private key: PKCS#8, PEM.
    pub private_key_pem: Zeroizing<String>,
    /// Its serial number: 32 hexadecimal digits.
    pub serial: String,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

impl Ca {
    /// Makes a CA in a folder that has none. The folder is made, open to us only, if it is missing.
    pub fn create(directory: &Path, options: &CaOptions) -> Result<Self, PkiError> {
        let certificate_path = directory.join("ca.crt");
        let key_path = directory.join("ca.key");
        if certificate_path.exists() || key_path.exists() {
            return Err(PkiError::Exists(directory.to_owned()));
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
        let mut parameters = CertificateParams::default();
        let organisation = options.demo.then_some(DEMO_ORGANISATION);
        parameters.distinguished_name = name(&options.common_name, organisation);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.serial_number = Some(random_serial()?);
        set_validity(&mut parameters, options.validity)?;
        let key = KeyPair::generate()?;
        let certificate_pem = parameters.self_signed(&key)?.pem();
        let key_pem = Zeroizing::new(key.serialize_pem());
        write_new(&key_path, 0o600, key_pem.as_bytes())?;
        write_new(&certificate_path, 0o644, certificate_pem.as_bytes())?;
        Locked::open(directory)?.write(&Database::default())?;
        let issuer = Issuer::new(parameters, key);
        Ok(Self { directory: directory.to_owned(), certificate_pem, issuer })
    }

    /// Opens the CA in a folder that [`Ca::create`] has made.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        if !database::is_in(directory) {
            return Err(PkiError::NotOurs(directory.to_owned()));
        }
        let files = CaFiles::read(&directory.join("ca.crt"), &directory.join("ca.key"))?;
        let certificate_pem = files.certificate_pem.clone();
        Ok(Self { directory: directory.to_owned(), certificate_pem, issuer: files.issuer()? })
    }

    /// The CA's own certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a server's certificate for DNS names and IP addresses; at least one.
    pub fn issue_server(&self, names: &[String], validity: Duration) -> Result<Issued, PkiError> {
        self.issue(&Leaf::server(names)?, validity)
    }

    /// Issues a client's certificate.
    pub fn issue_client(&self, name: &ClientName, validity: Duration) -> Result<Issued, PkiError> {
        self.issue(&Leaf::client(name)?, validity)
    }

    /// Signs a server's certificate for the key of a request.
    pub fn sign_server(
        &self,
        names: &[String],
        request: &CertificateRequest,
        validity: Duration,
    ) -> Result<Signed, PkiError> {
        self.sign(&Leaf::server(names)?, &request.public_key, validity)
    }

    /// Signs a client's certificate for the key of a request.
    pub fn sign_client(
        &self,
        name: &ClientName,
        request: &CertificateRequest,
        validity: Duration,
    ) -> Result<Signed, PkiError> {
        self.sign(&Leaf::client(name)?, &request.public_key, validity)
    }

    /// Everything that was issued, oldest first.
    pub fn issued(&self) -> Result<Vec<IssuedRecord>, PkiError> {
        Ok(Locked::open(&self.directory)?.read()?.issued)
    }

    fn issue(&self, leaf: &Leaf, validity: Duration) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let Signed { certificate_pem, serial, not_after } = self.sign(leaf, &key, validity)?;
        let private_key_pem = Zeroizing::new(key.serialize_pem());
        Ok(Issued { certificate_pem, private_key_pem, serial, not_after })
    }

    fn sign(
        &self,
        leaf: &Leaf,
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<Signed, PkiError> {
        let mut parameters = CertificateParams::default();
        let serial = random_serial()?;
        // X.520 allows a common name of 64 characters.
        let label: String = leaf.label.chars().take(64).collect();
        parameters.distinguished_name = name(&label, None);
        parameters.subject_alt_names.clone_from(&leaf.names);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![leaf.usage.clone()];
        parameters.use_authority_key_identifier_extension = true;
        parameters.serial_number = Some(serial.clone());
        set_validity(&mut parameters, validity)?;
        let signed = Signed {
            certificate_pem: parameters.signed_by(public_key, &self.issuer)?.pem(),
            serial: hex::encode(serial.as_ref()),
            not_after: parameters.not_after,
        };
        // Recorded before it is handed out: what is not on record cannot be revoked.
        let locked = Locked::open(&self.directory)?;
        let mut database = locked.read()?;
        database.issued.push(IssuedRecord {
            serial: signed.serial.clone(),
            name: label,
            not_after: signed.not_after.unix_timestamp(),
            revoked_at: None,
        });
        locked.write(&database)?;
        Ok(signed)
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl Signed {
    /// Writes the certificate (mode 0644) into a new file; never over an old one.
    pub fn write(&self, certificate: &Path) -> Result<(), PkiError> {
        write_new(certificate, 0o644, self.certificate_pem.as_bytes())
    }
}

impl Issued {
    /// Writes certificate (mode 0644) and key (0600) into new files; never over old ones.
    pub fn write(&self, certificate: &Path, private_key: &Path) -> Result<(), PkiError> {
        write_new(private_key, 0o600, self.private_key_pem.as_bytes())?;
        write_new(certificate, 0o644, self.certificate_pem.as_bytes())
    }
}

/// Whether one of these certificates (DER) is the CA of a demo, or was issued by one.
pub fn is_demo_ca<'a, 'b: 'a>(
    certificates: impl IntoIterator<Item = &'a CertificateDer<'b>>,
) -> bool {
    certificates.into_iter().any(|der| {
        X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
            [certificate.subject(), certificate.issuer()]
                .into_iter()
                .flat_map(X509Name::iter_organization)
                .any(|organisation| organisation.as_str() == Ok(DEMO_ORGANISATION))
        })
    })
}

fn name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn set_validity(parameters: &mut CertificateParams, validity: Duration) -> Result<(), PkiError> {
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - BACKDATED;
    parameters.not_after = later(now, validity)?;
    Ok(())
}

/// That much later, before the year 10000, where X.509 ends.
fn later(now: OffsetDateTime, validity: Duration) -> Result<OffsetDateTime, PkiError> {
    let validity = time::Duration::try_from(validity).ok().filter(|v| v.is_positive());
    validity
        .and_then(|validity| now.checked_add(validity))
        .ok_or_else(|| PkiError::Invalid("this validity is no time from now".to_owned()))
}

/// 16 random bytes, positive (RFC 5280, 4.1.2.2).
fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| PkiError::Invalid("the system gave no random numbers".to_owned()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
