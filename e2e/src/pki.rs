//! A CA of the test's own: server and client certificates, revocation lists (EC P-256, RFC 5280).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_hours(24);

/// A CA that issues for one test.
#[derive(Debug)]
pub struct Pki {
    issuer: Issuer,
    revoked: Mutex<Vec<SerialNumber>>,
    crl_number: AtomicU64,
}

struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a test CA")
    }
}

/// A certificate with its private key.
#[derive(Clone, Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    private_key: Vec<u8>,
    private_key_pem: String,
    serial: SerialNumber,
}

impl Pki {
    /// A fresh CA.
    #[expect(clippy::new_without_default, reason = "each call makes another CA")]
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = common_name("Claviger test CA");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (parameters.not_before, parameters.not_after) = validity(30 * DAY);
        let key = KeyPair::generate().expect("an EC key is generated");
        let issuer = CertifiedIssuer::self_signed(parameters, key).expect("a CA signs itself");
        Self { issuer: Issuer(issuer), revoked: Mutex::default(), crl_number: AtomicU64::new(1) }
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> String {
        self.issuer.0.pem()
    }

    /// The CA's certificate, DER.
    pub fn ca_der(&self) -> CertificateDer<'static> {
        self.issuer.0.der().clone()
    }

    /// A server certificate for localhost and the loopback addresses.
    pub fn server(&self) -> Identity {
        self.server_named(&["localhost", "127.0.0.1", "::1"])
    }

    /// A server certificate for these names.
    pub fn server_named(&self, names: &[&str]) -> Identity {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names).expect("names are ASCII");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(parameters, DAY)
    }

    /// A client certificate with one URI SAN, such as `spiffe://example.org/key-connector`.
    pub fn client(&self, spiffe: &str) -> Identity {
        self.client_with(vec![uri(spiffe)], DAY)
    }

    /// A client certificate with one DNS SAN and no URI.
    pub fn client_dns(&self, name: &str) -> Identity {
        self.client_with(vec![dns(name)], DAY)
    }

    /// A client certificate with any SANs that is valid for `validity` from now.
    pub fn client_with(&self, names: Vec<SanType>, validity: Duration) -> Identity {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = names;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(parameters, validity)
    }

    fn issue(&self, mut parameters: CertificateParams, valid_for: Duration) -> Identity {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let serial = SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed));
        parameters.serial_number = Some(serial.clone());
        parameters.distinguished_name = common_name("never looked at");
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        (parameters.not_before, parameters.not_after) = validity(valid_for);
        let key = KeyPair::generate().expect("an EC key is generated");
        let certificate = parameters.signed_by(&key, &self.issuer.0).expect("the CA signs");
        Identity {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            private_key: key.serialize_der(),
            private_key_pem: key.serialize_pem(),
            serial,
        }
    }

    /// Puts a certificate on the lists that [`Pki::crl_pem`] makes from now on.
    pub fn revoke(&self, identity: &Identity) {
        self.revoked.lock().expect("no test panicked here").push(identity.serial.clone());
    }

    /// A revocation list, PEM, due for renewal after `next_update`; a negative one is stale already.
    pub fn crl_pem(&self, next_update: time::Duration) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = self.revoked.lock().expect("no test panicked here");
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: now - time::Duration::MINUTE,
            reason_code: None,
            invalidity_date: None,
        });
        let parameters = CertificateRevocationListParams {
            this_update: now.min(now + next_update) - time::Duration::MINUTE,
            next_update: now + next_update,
            crl_number: SerialNumber::from(self.crl_number.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = parameters.signed_by(&self.issuer.0).expect("the CA signs");
        list.pem().expect("a CRL has a PEM form")
    }
}

impl Identity {
    /// The certificate, DER.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Its private key, PKCS#8 DER.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.private_key.clone()).into()
    }

    /// Writes `NAME.crt` and `NAME.key` (0600) into a folder, each by rename; gives both paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let certificate = folder.join(format!("{name}.crt"));
        let private_key = folder.join(format!("{name}.key"));
        replace(&certificate, &self.certificate_pem, 0o644);
        replace(&private_key, &self.private_key_pem, 0o600);
        (certificate, private_key)
    }
}

/// A URI SAN.
pub fn uri(name: &str) -> SanType {
    SanType::URI(Ia5String::try_from(name).expect("URIs are ASCII"))
}

/// A DNS SAN.
pub fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).expect("DNS names are ASCII"))
}

/// Writes a file by rename, as an operator's tools should.
pub fn replace(path: &Path, content: &str, mode: u32) {
    let new = path.with_added_extension("new");
    fs::write(&new, content).expect("the test's folder is writable");
    fs::set_permissions(&new, Permissions::from_mode(mode)).expect("it is our own file");
    fs::rename(&new, path).expect("the test's folder is writable");
}

fn common_name(name: &str) -> rcgen::DistinguishedName {
    let mut distinguished = rcgen::DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From an hour ago, for clocks that differ, until `valid_for` from now.
fn validity(valid_for: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - time::Duration::HOUR, now + valid_for)
}
