//! An X.509 certificate for a key, taken apart into what its object shows.

use claviger_files::pem::{self, Beside};
use claviger_provider_api::PublicKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// A certificate. All fields are DER but the dates, which are as in CK_DATE: `YYYYMMDD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) der: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) serial_number: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
}

impl Certificate {
    /// From PEM (the first certificate of it) or DER.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, String> {
        let der = if pem::is_pem(content) {
            let chain = pem::certificates(content, Beside::Keys);
            chain.map_err(|error| format!("cannot be used: {error}"))?[0].to_vec()
        } else {
            content.to_vec()
        };
        let (rest, parsed) = X509Certificate::from_der(&der)
            .map_err(|_| "is neither a PEM nor a DER certificate".to_owned())?;
        if !rest.is_empty() {
            return Err("has bytes after the certificate".into());
        }
        Ok(Self {
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            serial_number: integer(parsed.raw_serial()),
            public_key: parsed.public_key().raw.to_vec(),
            not_before: date(parsed.validity().not_before),
            not_after: date(parsed.validity().not_after),
            der,
        })
    }

    /// Whether it certifies this public key (SubjectPublicKeyInfo, DER), however that is encoded.
    pub(crate) fn is_for(&self, spki: &[u8]) -> bool {
        let parse = |spki| PublicKey::from_spki(spki).map(|key| key.sha256());
        parse(&self.public_key).is_ok_and(|sha256| parse(spki) == Ok(sha256))
    }
}

/// A DER INTEGER of these bytes, of which there are at most 65,535 (RFC 5280 allows 20).
fn integer(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u16).to_be_bytes();
    let head = match bytes.len() {
        0..0x80 => vec![0x02, length[1]],
        0x80..0x100 => vec![0x02, 0x81, length[1]],
        _ => vec![0x02, 0x82, length[0], length[1]],
    };
    [head.as_slice(), bytes].concat()
}

fn date(time: ASN1Time) -> Vec<u8> {
    let time = time.to_datetime();
    format!("{:04}{:02}{:02}", time.year(), u8::from(time.month()), time.day()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_and_der_give_the_same() {
        let pair = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let certificate = Certificate::parse(pair.cert.pem().as_bytes()).unwrap();
        assert_eq!(Certificate::parse(pair.cert.der()).unwrap(), certificate);
        assert_eq!(certificate.subject, certificate.issuer);
        assert_eq!(certificate.serial_number[0], 2);
        assert_eq!(usize::from(certificate.serial_number[1]), certificate.serial_number.len() - 2);
        assert!(certificate.not_before < certificate.not_after);
        assert!(certificate.not_after.iter().all(u8::is_ascii_digit));
        assert_eq!(certificate.not_after.len(), 8);
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for (content, expected) in [
            (&b"text"[..], "neither a PEM nor a DER"),
            (
                b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
                "holds no certificate in PEM",
            ),
        ] {
            let reason = Certificate::parse(content).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
