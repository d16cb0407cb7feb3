//! Finds the private keys among the sections of a PEM file (RFC 7468).

use zeroize::Zeroizing;

use crate::error::FileError;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// A section that holds a private key.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub(crate) label: &'a str,
    text: &'a str,
}

/// Whether a file is PEM; DER never holds this.
pub(crate) fn is_pem(file: &[u8]) -> bool {
    file.windows(BEGIN.len()).any(|window| window == BEGIN.as_bytes())
}

/// The one section with a private key. Certificates, parameters and text around it are passed over.
pub(crate) fn private_key(file: &[u8]) -> Result<Section<'_>, FileError> {
    let text = std::str::from_utf8(file).map_err(|_| damaged("it is not text"))?;
    let sections = sections(text)?;
    let mut keys = sections.iter().filter(|section| section.label.ends_with("PRIVATE KEY"));
    match (keys.next(), keys.count()) {
        (Some(key), 0) => Ok(Section { label: key.label, text: key.text }),
        (Some(_), more) => Err(FileError::SeveralKeys(more + 1)),
        (None, _) => {
            let labels: Vec<_> = sections.iter().map(|section| section.label).collect();
            Err(FileError::NoPrivateKey(labels.join(", ")))
        }
    }
}

impl Section<'_> {
    /// Whether it has the headers of OpenSSL's own encryption of before PKCS#8 (RFC 1421).
    pub(crate) fn has_encryption_header(&self) -> bool {
        self.text.contains("Proc-Type:") || self.text.contains("DEK-Info:")
    }

    /// The bytes, in a buffer of exactly their size.
    pub(crate) fn decode(&self) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let refused = |error: pem_rfc7468::Error| damaged(error.to_string());
        let mut decoder =
            pem_rfc7468::Decoder::new_detect_wrap(self.text.as_bytes()).map_err(refused)?;
        let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
        decoder.decode(&mut der).map_err(refused)?;
        Ok(der)
    }
}

fn sections(text: &str) -> Result<Vec<Section<'_>>, FileError> {
    let mut sections = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let from_label = &rest[begin + BEGIN.len()..];
        let label = from_label
            .split_once(DASHES)
            .map(|(label, _)| label)
            .filter(|label| !label.contains('\n'))
            .ok_or_else(|| damaged("a BEGIN line without its end"))?;
        let end_line = format!("-----END {label}-----");
        let end = rest[begin..]
            .find(&end_line)
            .ok_or_else(|| damaged(format!("{label} has no END line")))?;
        let after = begin + end + end_line.len();
        sections.push(Section { label, text: &rest[begin..after] });
        rest = &rest[after..];
    }
    Ok(sections)
}

fn damaged(reason: impl Into<String>) -> FileError {
    FileError::Damaged { what: "PEM file", reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";

    #[test]
    fn the_key_is_found_among_certificates_and_text() {
        let file = format!("Bag Attributes\n  none\n{CERTIFICATE}text\r\n{KEY}{CERTIFICATE}");
        let section = private_key(file.as_bytes()).unwrap();
        assert_eq!(section.label, "PRIVATE KEY");
        assert_eq!(*section.decode().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn several_keys_and_none_are_told_apart() {
        let error = private_key(format!("{KEY}{KEY}").as_bytes()).unwrap_err();
        assert!(matches!(error, FileError::SeveralKeys(2)), "{error}");
        let error = private_key(CERTIFICATE.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("holds CERTIFICATE and no private key"), "{error}");
    }

    #[test]
    fn a_torn_file_is_damaged() {
        for torn in
            [&KEY[..30], &KEY[..15], "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----"]
        {
            let outcome = private_key(torn.as_bytes()).and_then(|section| section.decode());
            assert!(matches!(outcome, Err(FileError::Damaged { .. })), "{torn}: {outcome:?}");
        }
    }
}
