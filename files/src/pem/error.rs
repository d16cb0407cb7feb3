//! What is wrong with a PEM file: sentences that begin with the line, and say what to do.

/// Why a PEM file was not taken. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// The file begins with the byte order mark of UTF-16.
    #[error("it is UTF-16; save it as UTF-8, as PEM is written")]
    Utf16,
    /// A line resembles a BEGIN line.
    #[error(
        "line {0}: not a BEGIN line; write -----BEGIN LABEL----- with five hyphens on each side, on \
         a line of its own"
    )]
    NotBegin(usize),
    /// An END line that no BEGIN line belongs to.
    #[error("line {0}: an END line without its BEGIN line")]
    NotBegun(usize),
    /// A BEGIN line that no END line follows.
    #[error("line {line}: {label} has no END line of its own")]
    NotEnded {
        /// Of the BEGIN line.
        line: usize,
        /// The block's label.
        label: String,
    },
    /// A line inside a block that is not base64.
    #[error("line {0}: not base64; the file is damaged")]
    NotBase64(usize),
    /// The base64 of a block is cut short or empty.
    #[error("line {line}: {label} is empty or cut short")]
    CutShort {
        /// Of the BEGIN line.
        line: usize,
        /// The block's label.
        label: String,
    },
    /// A block that does not belong into this file.
    #[error("line {line}: it holds {label}, where only {wanted} belongs")]
    Unexpected {
        /// Of the BEGIN line.
        line: usize,
        /// The block's label.
        label: String,
        /// What belongs into the file.
        wanted: &'static str,
    },
    /// The file holds no block of the wanted kind.
    #[error("it holds no {wanted} in PEM{}", but(.labels))]
    Nothing {
        /// The kind.
        wanted: &'static str,
        /// The labels of the blocks that are there.
        labels: Vec<String>,
    },
    /// A private key that only a passphrase opens.
    #[error(
        "line {line}: its private key is encrypted, and no passphrase is asked for here; decrypt it: \
         openssl pkey -in OLD -out NEW"
    )]
    Encrypted {
        /// Of the BEGIN line.
        line: usize,
    },
    /// More than one block where one is needed.
    #[error("line {line}: a second {wanted}; put the one to use into a file of its own")]
    Several {
        /// Of the second one's BEGIN line.
        line: usize,
        /// The kind.
        wanted: &'static str,
    },
    /// A private key of another form than PKCS#8, PKCS#1 or SEC 1.
    #[error("line {line}: it holds {label}; write it as PKCS#8: openssl pkey -in OLD -out NEW")]
    UnknownKey {
        /// Of the BEGIN line.
        line: usize,
        /// The block's label.
        label: String,
    },
    /// An OpenSSL `TRUSTED CERTIFICATE` whose trust settings would be ignored.
    #[error(
        "line {0}: a TRUSTED CERTIFICATE with trust settings of OpenSSL, which have no effect here; \
         write it without them: openssl x509 -in OLD -out NEW"
    )]
    TrustSettings(usize),
}

fn but(labels: &[String]) -> String {
    if labels.is_empty() { String::new() } else { format!("; it holds {}", labels.join(", ")) }
}
