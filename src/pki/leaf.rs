//! What a server's or a client's certificate says: its names and its usage.

use std::net::IpAddr;

use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::{ClientName, PkiError};
use crate::spiffe;

/// The names and the usage of a certificate that is not a CA's.
pub(super) struct Leaf {
    pub(super) label: String,
    pub(super) names: Vec<SanType>,
    pub(super) usage: ExtendedKeyUsagePurpose,
}

impl Leaf {
    pub(super) fn server(names: &[String]) -> Result<Self, PkiError> {
        let Some(first) = names.first() else {
            return Err(PkiError::Invalid("a server needs at least one name".to_owned()));
        };
        let sans = names.iter().map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => dns_san(name),
        });
        let names = sans.collect::<Result<_, _>>()?;
        Ok(Self { label: first.clone(), names, usage: ExtendedKeyUsagePurpose::ServerAuth })
    }

    pub(super) fn client(name: &ClientName) -> Result<Self, PkiError> {
        let (label, san) = match name {
            ClientName::Spiffe(id) if spiffe::is_id(id) => {
                let san = SanType::URI(id.as_str().try_into()?);
                (id.rsplit('/').next().unwrap_or(id), san)
            }
            ClientName::Spiffe(id) => {
                return Err(PkiError::Invalid(format!(
                    "{id:?} is no SPIFFE ID; write spiffe://trust-domain/path in plain characters"
                )));
            }
            ClientName::Dns(name) if name.contains('*') => {
                return Err(PkiError::Invalid(format!(
                    "{name:?}: a wildcard does not identify a client"
                )));
            }
            ClientName::Dns(name) => (name.as_str(), dns_san(name)?),
        };
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        Ok(Self { label: label.to_owned(), names: vec![san], usage })
    }
}

fn dns_san(name: &str) -> Result<SanType, PkiError> {
    let character = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'*');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(character) {
        return Err(PkiError::Invalid(format!("{name:?} is neither a DNS name nor an IP address")));
    }
    Ok(SanType::DnsName(name.to_ascii_lowercase().try_into()?))
}
