//! What each kind of PEM file may hold.

use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs1KeyDer,
    PrivatePkcs8KeyDer, PrivateSec1KeyDer, SubjectPublicKeyInfoDer,
};

use super::{Block, PemError, blocks};

const CERTIFICATE: [&str; 3] = ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"];
const TRUSTED: &str = "TRUSTED CERTIFICATE";
const PARAMETERS: [&str; 2] = ["EC PARAMETERS", "DH PARAMETERS"];

/// What may stand beside the certificates of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: a bundle of CAs.
    Nothing,
    /// The private key and its parameters, as in files for several programs. They are left alone.
    Keys,
}

/// Every certificate of a file; at least one.
pub fn certificates(file: &[u8], beside: Beside) -> Result<Vec<CertificateDer<'static>>, PemError> {
    const WANTED: &str = "certificate";
    let mut found = Vec::new();
    let mut labels = Vec::new();
    for block in blocks(file)? {
        let Block { label, line, der, .. } = &block;
        if CERTIFICATE.contains(&label.as_str()) {
            let der = if label == TRUSTED { without_settings(der, *line)? } else { der };
            found.push(CertificateDer::from(der.to_vec()));
        } else if beside == Beside::Keys && (is_private_key(&block) || is_parameters(&block)) {
            labels.push(block.label);
        } else {
            return Err(unexpected(block, WANTED));
        }
    }
    if found.is_empty() { Err(PemError::Nothing { wanted: WANTED, labels }) } else { Ok(found) }
}

/// Every revocation list of a file; at least one.
pub fn crls(file: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    const WANTED: &str = "X509 CRL";
    let mut found = Vec::new();
    for block in blocks(file)? {
        if block.label != WANTED {
            return Err(unexpected(block, WANTED));
        }
        found.push(CertificateRevocationListDer::from(block.der.to_vec()));
    }
    if found.is_empty() {
        return Err(PemError::Nothing { wanted: WANTED, labels: Vec::new() });
    }
    Ok(found)
}

/// The one private key of a file that is not encrypted; certificates and parameters may stand
/// beside it. The caller zeroes it, or hands it to rustls or rcgen, which do.
pub fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let Block { label, line, has_encryption_header, der } = private_key_block(file)?;
    if has_encryption_header || label == "ENCRYPTED PRIVATE KEY" {
        return Err(PemError::Encrypted { line });
    }
    let der = der.to_vec();
    match label.as_str() {
        "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        _ => Err(PemError::UnknownKey { line, label }),
    }
}

/// The block of the one private key of a file, encrypted or not; certificates and parameters may
/// stand beside it.
pub fn private_key_block(file: &[u8]) -> Result<Block, PemError> {
    const WANTED: &str = "private key";
    let (mut found, mut labels) = (None, Vec::new());
    for block in blocks(file)? {
        if is_private_key(&block) {
            if found.is_some() {
                return Err(PemError::Several { line: block.line, wanted: WANTED });
            }
            found = Some(block);
        } else if CERTIFICATE.contains(&block.label.as_str()) || is_parameters(&block) {
            labels.push(block.label);
        } else {
            return Err(unexpected(block, WANTED));
        }
    }
    found.ok_or(PemError::Nothing { wanted: WANTED, labels })
}

/// The one public key (SPKI, `PUBLIC KEY`) of a file that holds nothing else.
pub fn public_key(file: &[u8]) -> Result<SubjectPublicKeyInfoDer<'static>, PemError> {
    const WANTED: &str = "PUBLIC KEY";
    let mut found = None;
    for block in blocks(file)? {
        if block.label != WANTED {
            return Err(unexpected(block, WANTED));
        }
        if found.is_some() {
            return Err(PemError::Several { line: block.line, wanted: WANTED });
        }
        found = Some(SubjectPublicKeyInfoDer::from(block.der.to_vec()));
    }
    found.ok_or(PemError::Nothing { wanted: WANTED, labels: Vec::new() })
}

fn is_private_key(block: &Block) -> bool {
    block.label.ends_with("PRIVATE KEY")
}

fn is_parameters(block: &Block) -> bool {
    PARAMETERS.contains(&block.label.as_str())
}

fn unexpected(block: Block, wanted: &'static str) -> PemError {
    PemError::Unexpected { line: block.line, label: block.label, wanted }
}

/// The certificate of OpenSSL's `TRUSTED CERTIFICATE`: behind it stands CertAux, in which `trust`
/// and `reject` say what it may be used for.
fn without_settings(der: &[u8], line: usize) -> Result<&[u8], PemError> {
    let cut = || PemError::CutShort { line, label: TRUSTED.to_owned() };
    let (length, _) = element(der).ok_or_else(cut)?;
    let (certificate, settings) = der.split_at(length);
    if settings.is_empty() {
        return Ok(certificate);
    }
    let (_, content) = element(settings).ok_or_else(cut)?;
    // SEQUENCE of the trusted purposes, or [0] of the rejected ones; a name or a key id is neither.
    match content.first() {
        Some(0x30 | 0xa0) => Err(PemError::TrustSettings(line)),
        _ => Ok(certificate),
    }
}

/// The whole length and the content of the DER element at the start.
fn element(der: &[u8]) -> Option<(usize, &[u8])> {
    let (header, length) = match *der.get(1)? {
        short @ ..=0x7f => (2, usize::from(short)),
        long @ 0x81..=0x84 => {
            let octets = usize::from(long - 0x80);
            let length = der.get(2..2 + octets)?;
            (2 + octets, length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)))
        }
        _ => return None,
    };
    let whole = header.checked_add(length)?;
    Some((whole, der.get(header..whole)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64ct::{Base64, Encoding};

    fn pem(label: &str, der: &[u8]) -> String {
        let text = Base64::encode_string(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    const DER: &[u8] = &[0x30, 1, 5];

    #[test]
    fn certificates_are_taken_under_each_of_their_labels() {
        let file: String = CERTIFICATE.iter().map(|label| pem(label, DER)).collect();
        let found = certificates(file.as_bytes(), Beside::Nothing).unwrap();
        assert_eq!(found, [DER; 3].map(CertificateDer::from));
    }

    #[test]
    fn no_block_of_another_kind_is_passed_over() {
        let file = pem("CERTIFICATE", DER) + &pem("X509 CRL", DER);
        let said = certificates(file.as_bytes(), Beside::Keys).unwrap_err().to_string();
        assert_eq!(said, "line 4: it holds X509 CRL, where only certificate belongs");
        let said = crls(file.as_bytes()).unwrap_err().to_string();
        assert_eq!(said, "line 1: it holds CERTIFICATE, where only X509 CRL belongs");
        let file = pem("CERTIFICATE", DER) + &pem("PRIVATE KEY", DER);
        assert!(certificates(file.as_bytes(), Beside::Nothing).is_err());
        assert_eq!(certificates(file.as_bytes(), Beside::Keys).unwrap().len(), 1);
        private_key(file.as_bytes()).unwrap();
        let said = public_key(file.as_bytes()).unwrap_err().to_string();
        assert!(said.starts_with("line 1: it holds CERTIFICATE"), "{said}");
    }

    #[test]
    fn an_empty_file_and_one_with_the_wrong_content_are_told_apart() {
        let said = |file: &str| private_key(file.as_bytes()).unwrap_err().to_string();
        assert_eq!(said(""), "it holds no private key in PEM");
        let expected = "it holds no private key in PEM; it holds CERTIFICATE";
        assert_eq!(said(&pem("CERTIFICATE", DER)), expected);
    }

    #[test]
    fn an_encrypted_key_is_called_encrypted() {
        let old = pem("RSA PRIVATE KEY", DER)
            .replace("KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES,00\n\nM");
        for file in [pem("ENCRYPTED PRIVATE KEY", DER), old] {
            let error = private_key(file.as_bytes()).unwrap_err();
            assert_eq!(error, PemError::Encrypted { line: 1 }, "{file}");
        }
    }

    #[test]
    fn keys_of_other_forms_and_second_ones_are_refused() {
        let unknown = private_key(pem("OPENSSH PRIVATE KEY", DER).as_bytes()).unwrap_err();
        let label = "OPENSSH PRIVATE KEY".to_owned();
        assert_eq!(unknown, PemError::UnknownKey { line: 1, label });
        for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"] {
            private_key((pem("EC PARAMETERS", DER) + &pem(label, DER)).as_bytes()).unwrap();
            let twice = pem(label, DER).repeat(2);
            let error = private_key(twice.as_bytes()).unwrap_err();
            assert_eq!(error, PemError::Several { line: 4, wanted: "private key" });
        }
    }

    #[test]
    fn trust_settings_that_would_be_ignored_are_refused() {
        let with = |settings: &[u8]| pem(TRUSTED, &[DER, settings].concat());
        // Empty settings, and an alias.
        for settings in [&[][..], &[0x30, 0], &[0x30, 3, 0x0c, 1, b'x']] {
            let found = certificates(with(settings).as_bytes(), Beside::Nothing).unwrap();
            assert_eq!(found, [CertificateDer::from(DER)]);
        }
        for settings in [&[0x30, 2, 0x30, 0][..], &[0x30, 2, 0xa0, 0]] {
            let error = certificates(with(settings).as_bytes(), Beside::Nothing).unwrap_err();
            assert_eq!(error, PemError::TrustSettings(1));
        }
        for torn in [&[][..], &[0x30], &[0x30, 5, 1], &[0x30, 0x85, 1, 1, 1, 1, 1]] {
            assert!(element(torn).is_none());
        }
    }
}
