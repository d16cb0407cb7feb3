//! Finds the blocks of a PEM file and decodes them.

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use super::PemError;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One block: what stands between a BEGIN line and its END line.
#[derive(PartialEq, Eq)]
pub struct Block {
    /// Such as `CERTIFICATE`.
    pub label: String,
    /// The line of its BEGIN line, from 1.
    pub line: usize,
    /// Whether it has the headers of OpenSSL's encryption of before PKCS#8 (RFC 1421 `Proc-Type`,
    /// `DEK-Info`).
    pub has_encryption_header: bool,
    /// The decoded bytes.
    pub der: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { label, line, .. } = self;
        f.debug_struct("Block").field("label", label).field("line", line).finish_non_exhaustive()
    }
}

/// Whether a file is meant as PEM: somewhere in it a block begins. DER never holds this.
pub fn is_pem(file: &[u8]) -> bool {
    file.windows(BEGIN.len()).any(|window| window == BEGIN)
}

/// Every block of a file, in its order.
pub fn blocks(file: &[u8]) -> Result<Vec<Block>, PemError> {
    if file.starts_with(&[0xff, 0xfe]) || file.starts_with(&[0xfe, 0xff]) {
        return Err(PemError::Utf16);
    }
    let mut lines = lines(file);
    let mut blocks = Vec::new();
    while let Some((number, line)) = lines.next() {
        if let Some(label) = label_of(BEGIN, line) {
            blocks.push(block(label, number, &mut lines)?);
        } else if line.starts_with(END) {
            return Err(PemError::NotBegun(number));
        } else if resembles_begin(line) {
            return Err(PemError::NotBegin(number));
        }
    }
    Ok(blocks)
}

/// One block as text, in lines of 64 characters. Not for secrets: the text is not zeroed.
pub fn encode(label: &str, der: &[u8]) -> String {
    encode_secret(label, der).as_str().to_owned()
}

/// The same for a private key: the text is zeroed when dropped.
pub fn encode_secret(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(Base64::encode_string(der));
    // Sized beforehand: a text that grows would leave copies of the key behind.
    let room = base64.len() + base64.len() / 64 + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.extend([line, "\n"]);
        rest = more;
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

/// The rest of a block whose BEGIN line was read.
fn block<'a>(
    label: &str,
    begun: usize,
    lines: &mut impl Iterator<Item = (usize, &'a [u8])>,
) -> Result<Block, PemError> {
    let mut digits = Zeroizing::new(Vec::new());
    let (mut in_headers, mut has_encryption_header) = (true, false);
    let not_ended = || PemError::NotEnded { line: begun, label: label.to_owned() };
    loop {
        let (number, line) = lines.next().ok_or_else(not_ended)?;
        if line.starts_with(DASHES) {
            return match label_of(END, line) {
                Some(ended) if ended == label => Ok(Block {
                    label: label.to_owned(),
                    line: begun,
                    has_encryption_header,
                    der: decode(&digits).ok_or_else(|| PemError::CutShort {
                        line: begun,
                        label: label.to_owned(),
                    })?,
                }),
                _ => Err(not_ended()),
            };
        }
        if in_headers && line.contains(&b':') {
            has_encryption_header |=
                line.starts_with(b"Proc-Type:") || line.starts_with(b"DEK-Info:");
            continue;
        }
        in_headers &= line.is_empty();
        let is_base64 = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=');
        let of_line = line.iter().copied().filter(|c| !c.is_ascii_whitespace());
        if !of_line.clone().all(|c| is_base64(&c)) {
            return Err(PemError::NotBase64(number));
        }
        append(&mut digits, of_line);
    }
}

/// Appends without leaving the digits of a secret behind in a buffer that was too small.
fn append(digits: &mut Zeroizing<Vec<u8>>, more: impl Iterator<Item = u8> + Clone) {
    let needed = digits.len() + more.clone().count();
    if needed > digits.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2048).next_power_of_two()));
        larger.extend_from_slice(digits);
        *digits = larger;
    }
    digits.extend(more);
}

/// The bytes, in a buffer of exactly their size; at least one.
fn decode(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let padding = digits.iter().rev().take_while(|digit| **digit == b'=').count();
    let length = (digits.len() / 4 * 3).checked_sub(padding).filter(|length| *length > 0)?;
    let mut der = Zeroizing::new(vec![0; length]);
    let decoded = Base64::decode(digits, &mut der).ok()?.len();
    (decoded == length).then_some(der)
}

fn label_of<'a>(word: &[u8], line: &'a [u8]) -> Option<&'a str> {
    let label = line.strip_prefix(word)?.strip_suffix(DASHES)?;
    let label = std::str::from_utf8(label).ok()?;
    let good = |c: u8| c.is_ascii_graphic() || c == b' ';
    // Dashes in it: BEGIN and END stand on one line.
    let whole = !label.is_empty() && label.trim() == label && !label.contains("--");
    (whole && label.bytes().all(good)).then_some(label)
}

/// A BEGIN line with text beside it, or with the dashes that a word processor makes of hyphens.
fn resembles_begin(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let dash = |c: char| matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}');
    text.match_indices("BEGIN ").any(|(at, _)| text[..at].trim_end().ends_with(dash))
}

/// The lines with their numbers, without blanks and byte order marks around them.
fn lines(file: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let end = if file.contains(&b'\n') { b'\n' } else { b'\r' };
    file.split(move |byte| *byte == end).enumerate().map(|(index, line)| {
        let line = line.trim_ascii();
        (index + 1, line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";

    fn labels(file: &str) -> Result<Vec<(String, usize)>, PemError> {
        let found = blocks(file.as_bytes())?;
        Ok(found.into_iter().map(|block| (block.label, block.line)).collect())
    }

    #[test]
    fn blocks_are_found_among_everything_that_editors_and_tools_leave() {
        let one = [("PRIVATE KEY".to_owned(), 1)];
        let third = [("PRIVATE KEY".to_owned(), 3)];
        for (file, expected) in [
            (KEY.to_owned(), &one),
            (format!("\u{feff}{KEY}"), &one),
            (KEY.replace('\n', "\r\n"), &one),
            (KEY.replace('\n', "\r"), &one),
            (KEY.replace('\n', " \t\n  "), &one),
            (KEY.replace("AAEC", "A\n A E\n\nC"), &one),
            (KEY.trim_end().to_owned(), &one),
            (format!("Bag Attributes\n  friendlyName: x\n{KEY}after"), &third),
            (format!("subject=CN = x\n\n\u{feff}{KEY}"), &third),
        ] {
            assert_eq!(labels(&file).as_deref(), Ok(&expected[..]), "{file:?}");
            assert_eq!(**blocks(file.as_bytes()).unwrap()[0].der, [0, 1, 2]);
        }
        assert_eq!(labels("just text"), Ok(Vec::new()));
    }

    #[test]
    fn what_resembles_a_block_and_is_none_is_an_error_with_its_line() {
        let label = "PRIVATE KEY".to_owned();
        for (file, expected) in [
            (format!("text\nx {KEY}"), PemError::NotBegin(2)),
            (KEY.replace("KEY-----\nA", "KEY----\nA"), PemError::NotBegin(1)),
            (KEY.replace("-----B", "——B"), PemError::NotBegin(1)),
            (KEY.replace('\n', "\\n"), PemError::NotBegin(1)),
            (KEY.replace('\n', " "), PemError::NotBegin(1)),
            (KEY[..40].to_owned(), PemError::NotEnded { line: 1, label: label.clone() }),
            (
                KEY.replace("END PRIVATE", "END PUBLIC"),
                PemError::NotEnded { line: 1, label: label.clone() },
            ),
            (KEY.replace("AAEC", KEY), PemError::NotEnded { line: 1, label: label.clone() }),
            (KEY[28..].to_owned(), PemError::NotBegun(2)),
            (KEY.replace("AAEC", "AA\n!C"), PemError::NotBase64(3)),
            (KEY.replace("AAEC", "AAE"), PemError::CutShort { line: 1, label: label.clone() }),
            (KEY.replace("AAEC", ""), PemError::CutShort { line: 1, label: label.clone() }),
        ] {
            let found = labels(&file);
            assert_eq!(found, Err(expected), "{file:?}");
        }
        let utf16: Vec<u8> = "\u{feff}x".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(blocks(&utf16), Err(PemError::Utf16));
    }

    #[test]
    fn headers_of_the_old_encryption_are_seen() {
        let header = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAEC";
        let found = blocks(KEY.replace("AAEC", header).as_bytes()).unwrap();
        assert!(found[0].has_encryption_header);
        assert_eq!(**found[0].der, [0, 1, 2]);
        assert_eq!(format!("{:?}", found[0]), "Block { label: \"PRIVATE KEY\", line: 1, .. }");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, begin in 0..2_usize) {
            let _ = blocks(&[&KEY.as_bytes()[..28 * begin], &bytes].concat());
        }

        #[test]
        fn any_content_is_read_back(content in proptest::collection::vec(any::<u8>(), 1..3000)) {
            let file = encode("PRIVATE KEY", &content);
            prop_assert_eq!(&**blocks(file.as_bytes()).unwrap()[0].der, &content);
        }
    }
}
