//! A certificate again, for a new key: what it says is taken from the one that this CA has issued.

use std::time::Duration;

use claviger_files::pem::{self, Beside};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, Issued, Leaf, PkiError};

impl Ca {
    /// Issues a certificate with the names and the purpose of an old one (PEM), which stays valid
    /// until it ends or is revoked. The old one must be this CA's and not revoked.
    pub fn renew(&self, old: &[u8], validity: Duration) -> Result<Issued, PkiError> {
        let chain = pem::certificates(old, Beside::Keys)
            .map_err(|error| PkiError::Invalid(error.to_string()))?;
        let (_, old) = X509Certificate::from_der(&chain[0])
            .map_err(|_| PkiError::Invalid("this certificate is not X.509".to_owned()))?;
        let serial = hex::encode(old.raw_serial());
        let issued = self.issued()?;
        let record = issued.iter().find(|record| record.serial == serial).ok_or_else(|| {
            PkiError::Invalid(format!(
                "this CA has issued no certificate with the serial {serial}; issue a new one"
            ))
        })?;
        if record.revoked_at.is_some() {
            return Err(PkiError::Invalid(
                "this certificate is revoked, so it is not renewed; issue a new one".to_owned(),
            ));
        }
        let names = old.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let names = names.map(name).collect::<Result<Vec<_>, _>>()?;
        let usage = old.extended_key_usage().ok().flatten();
        let purpose = match usage {
            Some(usage) if usage.value.server_auth => ExtendedKeyUsagePurpose::ServerAuth,
            Some(usage) if usage.value.client_auth => ExtendedKeyUsagePurpose::ClientAuth,
            _ => {
                let reason = "this certificate is neither a server's nor a client's";
                return Err(PkiError::Invalid(reason.to_owned()));
            }
        };
        let leaf = Leaf { label: record.name.clone(), names, usage: purpose };
        self.issue(&leaf, validity)
    }
}

fn name(name: &GeneralName<'_>) -> Result<SanType, PkiError> {
    match name {
        GeneralName::URI(uri) => Ok(SanType::URI((*uri).try_into()?)),
        GeneralName::DNSName(name) => Ok(SanType::DnsName((*name).try_into()?)),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(std::net::IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*octets).map(std::net::IpAddr::from);
            let address = v4.or_else(|_| v6());
            address.map(SanType::IpAddress).map_err(|_| not_ours(name))
        }
        other => Err(not_ours(other)),
    }
}

fn not_ours(name: &GeneralName<'_>) -> PkiError {
    PkiError::Invalid(format!("this certificate has a name that is never issued here: {name}"))
}
