//! Revoking certificates of the CA, and the list that says so.

use std::path::PathBuf;
use std::time::Duration;

use claviger_files::NewMode;
use claviger_files::pem::{self, Beside};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::database::Locked;
use super::error::io;
use super::{BACKDATED, Ca, DEFAULT_CRL_VALIDITY, PkiError, later};

impl Ca {
    /// Revokes a certificate by its serial number: hexadecimal digits, colons allowed. The CRL has
    /// to be made again to say so. Gives false if it was revoked before.
    pub fn revoke_serial(&self, serial: &str) -> Result<bool, PkiError> {
        let wanted = serial.replace(':', "").to_ascii_lowercase();
        let locked = Locked::open(&self.directory)?;
        let mut database = locked.read()?;
        let record = database.issued.iter_mut().find(|record| record.serial == wanted);
        let record = record.ok_or_else(|| {
            PkiError::Invalid(format!("this CA has issued no certificate with the serial {serial}"))
        })?;
        if record.revoked_at.is_some() {
            return Ok(false);
        }
        record.revoked_at = Some(OffsetDateTime::now_utc().unix_timestamp());
        locked.write(&database)?;
        Ok(true)
    }

    /// Revokes a certificate, given in PEM.
    pub fn revoke_certificate(&self, pem: &[u8]) -> Result<bool, PkiError> {
        let chain = pem::certificates(pem, Beside::Keys)
            .map_err(|error| PkiError::Invalid(error.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(&chain[0])
            .map_err(|_| PkiError::Invalid("this certificate is not X.509".to_owned()))?;
        self.revoke_serial(&hex::encode(certificate.raw_serial()))
    }

    /// Makes a new CRL with every revoked certificate that has not ended by itself, and puts it into
    /// `ca.crl`. `validity` becomes that of later lists too; without one, a list lasts as long as
    /// the one before, and the first one [`DEFAULT_CRL_VALIDITY`].
    pub fn write_crl(&self, validity: Option<Duration>) -> Result<(PathBuf, Duration), PkiError> {
        let path = self.directory.join("ca.crl");
        let before = Locked::open(&self.directory)?.read()?.crl_seconds.map(Duration::from_secs);
        let validity = validity.or(before).unwrap_or(DEFAULT_CRL_VALIDITY);
        let crl = self.crl(validity)?;
        claviger_files::replace(&path, crl.as_bytes(), NewMode::Exactly(0o644))
            .map_err(io(&path))?;
        Ok((path, validity))
    }

    /// Makes a new CRL, PEM, with every revoked certificate that has not ended by itself.
    pub fn crl(&self, validity: Duration) -> Result<String, PkiError> {
        let locked = Locked::open(&self.directory)?;
        let mut database = locked.read()?;
        database.crl_number += 1;
        database.crl_seconds = Some(validity.as_secs());
        locked.write(&database)?;
        let now = OffsetDateTime::now_utc();
        let revoked =
            database.issued.iter().filter(|record| record.not_after > now.unix_timestamp());
        let revoked_certs = revoked
            .filter_map(|record| {
                let revocation_time =
                    OffsetDateTime::from_unix_timestamp(record.revoked_at?).ok()?;
                Some(RevokedCertParams {
                    serial_number: SerialNumber::from(hex::decode(&record.serial).ok()?),
                    revocation_time,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect();
        let parameters = CertificateRevocationListParams {
            this_update: now - BACKDATED,
            next_update: later(now, validity)?,
            crl_number: SerialNumber::from(database.crl_number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(parameters.signed_by(&self.issuer)?.pem()?)
    }
}
