//! Certificates over a public key without its private half: a wrapping key's, whose private half
//! stays in its backend.

use std::time::Duration;

use rcgen::{
    CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SigningKey,
    SubjectPublicKeyInfo,
};

use super::database::{IssuedRecord, Locked};
use super::{Ca, PkiError, name, random_serial, set_validity};

/// What a certificate over a wrapping key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverKey {
    /// The RSA public key: SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// The common name; X.520 allows 64 characters.
    pub common_name: String,
    /// How long it lasts.
    pub validity: Duration,
}

/// How a backend signs for its own key: RS256 over these bytes.
pub type SignWithKey<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, String> + 'a;

impl OverKey {
    /// Issued by a CA that exists for this one certificate, whose key is forgotten at once: for
    /// programs that read the public key and nothing else. DER.
    pub fn by_throw_away_ca(&self) -> Result<Vec<u8>, PkiError> {
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = name("Claviger throw-away issuer", None);
        issuer.is_ca = IsCa::NoCa;
        Ok(self.signed_by(&Issuer::new(issuer, KeyPair::generate()?))?.0)
    }

    /// Signed by the key itself. DER.
    pub fn self_signed(&self, sign: &SignWithKey<'_>) -> Result<Vec<u8>, PkiError> {
        let key = Remote { public_key: self.public_key()?, sign };
        let certificate = self.parameters()?.self_signed(&key).map_err(refused)?;
        Ok(certificate.der().to_vec())
    }

    /// A request for a certificate (PKCS#10, RFC 2986), signed by the key itself. DER.
    pub fn request(&self, sign: &SignWithKey<'_>) -> Result<Vec<u8>, PkiError> {
        let key = Remote { public_key: self.public_key()?, sign };
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name(&self.common_name, None);
        let request = parameters.serialize_request(&key).map_err(refused)?;
        Ok(request.der().to_vec())
    }

    /// By a CA's own key. DER, and what it says.
    pub(super) fn signed_by(
        &self,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<(Vec<u8>, CertificateParams), PkiError> {
        let mut parameters = self.parameters()?;
        parameters.use_authority_key_identifier_extension = true;
        let der = parameters.signed_by(&self.public_key()?, issuer)?.der().to_vec();
        Ok((der, parameters))
    }

    fn parameters(&self) -> Result<CertificateParams, PkiError> {
        let label_len = self.common_name.chars().count();
        if !(1..=64).contains(&label_len) {
            return Err(PkiError::Invalid(format!(
                "a common name has 1 to 64 characters, not {label_len}"
            )));
        }
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name(&self.common_name, None);
        parameters.key_usages =
            vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DataEncipherment];
        parameters.serial_number = Some(random_serial()?);
        set_validity(&mut parameters, self.validity)?;
        Ok(parameters)
    }

    fn public_key(&self) -> Result<SubjectPublicKeyInfo, PkiError> {
        Ok(SubjectPublicKeyInfo::from_der(&self.spki)?)
    }
}

impl Ca {
    /// Issues a certificate over a wrapping key's public key, and writes that down. DER.
    pub fn issue_over_key(&self, over: &OverKey) -> Result<Vec<u8>, PkiError> {
        let (der, parameters) = over.signed_by(&self.issuer)?;
        let serial = parameters.serial_number.as_ref().map(|serial| hex::encode(serial.as_ref()));
        let locked = Locked::open(&self.directory)?;
        let mut database = locked.read()?;
        database.issued.push(IssuedRecord {
            serial: serial.unwrap_or_default(),
            name: over.common_name.clone(),
            not_after: parameters.not_after.unix_timestamp(),
            revoked_at: None,
        });
        locked.write(&database)?;
        Ok(der)
    }
}

/// A key pair of which only the public half is here.
struct Remote<'a> {
    public_key: SubjectPublicKeyInfo,
    sign: &'a SignWithKey<'a>,
}

impl PublicKeyData for Remote<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public_key.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl SigningKey for Remote<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        (self.sign)(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The caller knows best why its own key did not sign.
fn refused(error: rcgen::Error) -> PkiError {
    match error {
        rcgen::Error::RemoteKeyError => {
            PkiError::Invalid("the key did not sign its certificate".to_owned())
        }
        other => other.into(),
    }
}
