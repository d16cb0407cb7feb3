//! The entries of the list of denied callers, one a line.

use std::collections::HashSet;

use aws_lc_rs::digest::{SHA256, digest};

use crate::daemon::transport::caller::{Peer, PeerAddress};
use crate::daemon::transport::verdicts::TokenIdentity;
use crate::spiffe;

/// What an entry denies: every connection with this name, certificate or user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A URI SAN, whole.
    Uri(String),
    /// A DNS SAN, in lower case.
    Dns(String),
    /// SHA-256 of a certificate.
    Sha256([u8; 32]),
    /// A user on a Unix socket.
    Uid(u32),
    /// The tokens of one subject.
    Token {
        /// The issuer's name in the configuration.
        issuer: String,
        /// `sub`, to the letter.
        subject: String,
    },
}

/// A line that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadEntry {
    /// From 1.
    pub line: usize,
    /// What is wrong and what to write.
    pub reason: String,
}

/// Each entry of a list, or what is wrong with its line.
pub fn entries(text: &str) -> impl Iterator<Item = Result<Entry, BadEntry>> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let entry = line.split('#').next().unwrap_or_default().trim();
        let parsed = entry.parse().map_err(|reason| BadEntry { line: index + 1, reason });
        (!entry.is_empty()).then_some(parsed)
    })
}

impl std::str::FromStr for Entry {
    type Err = String;

    fn from_str(entry: &str) -> Result<Self, String> {
        if let Some(uid) = entry.strip_prefix("uid:") {
            return uid
                .parse()
                .map(Self::Uid)
                .map_err(|_| format!("{entry:?} is no user; write uid:1000"));
        }
        if let Some(token) = entry.strip_prefix("token:") {
            let (issuer, subject) = token.split_once(':').unwrap_or_default();
            if issuer.is_empty() || subject.is_empty() {
                return Err(format!("{entry:?} names no subject; write token:ISSUER:SUBJECT"));
            }
            let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
            return Ok(Self::Token { issuer, subject });
        }
        if let Some(sha256) = parse_sha256(entry) {
            return Ok(Self::Sha256(sha256));
        }
        if entry.contains("://") {
            // An ID in capitals would never match.
            if entry.to_ascii_lowercase().starts_with("spiffe:") {
                spiffe::check(entry).map_err(|reason| format!("{entry:?} {reason}"))?;
            }
            if !entry.bytes().all(|c| c.is_ascii_graphic()) {
                return Err(format!("{entry:?} is no URI"));
            }
            return Ok(Self::Uri(entry.to_owned()));
        }
        let of_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'*');
        // Only digits of a hash can be that long without a dot.
        let cut_hash = entry.len() > 32 && entry.bytes().all(|c| c.is_ascii_hexdigit());
        if !entry.bytes().all(of_name) || cut_hash {
            return Err(format!(
                "{entry:?} is no entry; write a URI SAN, a DNS SAN, a certificate's SHA-256 (64 \
                 hexadecimal digits), uid:N or token:ISSUER:SUBJECT"
            ));
        }
        Ok(Self::Dns(entry.to_ascii_lowercase()))
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uri(name) | Self::Dns(name) => f.write_str(name),
            Self::Sha256(sha256) => f.write_str(&hex::encode(sha256)),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Token { issuer, subject } => write!(f, "token:{issuer}:{subject}"),
        }
    }
}

fn parse_sha256(entry: &str) -> Option<[u8; 32]> {
    let digits: String = entry.chars().filter(|c| *c != ':').collect();
    hex::decode(digits).ok()?.try_into().ok()
}

/// The entries, as calls ask for them.
#[derive(Debug, Default)]
pub(super) struct List {
    uris: HashSet<Box<str>>,
    dns: HashSet<Box<str>>,
    sha256: HashSet<[u8; 32]>,
    uids: HashSet<u32>,
    /// Issuer and subject.
    tokens: HashSet<(Box<str>, Box<str>)>,
    file_sha256: [u8; 32],
}

impl List {
    /// An empty list, of a file with this content.
    pub(super) fn of_file(content: &[u8]) -> Self {
        let sha256 = digest(&SHA256, content).as_ref().try_into().expect("SHA-256 has 32 bytes");
        Self { file_sha256: sha256, ..Self::default() }
    }

    pub(super) fn file_sha256(&self) -> [u8; 32] {
        self.file_sha256
    }

    pub(super) fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Uri(name) => self.uris.insert(name.into()),
            Entry::Dns(name) => self.dns.insert(name.into()),
            Entry::Sha256(sha256) => self.sha256.insert(sha256),
            Entry::Uid(uid) => self.uids.insert(uid),
            Entry::Token { issuer, subject } => self.tokens.insert((issuer.into(), subject.into())),
        };
    }

    pub(super) fn denies(&self, peer: &Peer) -> bool {
        if let PeerAddress::Unix { uid, .. } = peer.address
            && self.uids.contains(&uid)
        {
            return true;
        }
        peer.certificate.as_ref().is_some_and(|certificate| {
            self.sha256.contains(&certificate.sha256)
                || certificate.uris.iter().any(|uri| self.uris.contains(uri))
                || certificate.dns.iter().any(|name| self.dns.contains(name))
        })
    }

    pub(super) fn denies_token(&self, token: &TokenIdentity) -> bool {
        // No call pays for a list without such entries.
        !self.tokens.is_empty()
            && self.tokens.contains(&((&*token.issuer).into(), token.subject.clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.uris.len() + self.dns.len() + self.sha256.len() + self.uids.len() + self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_entry_is_read_and_written_back() {
        let (plain, colons) = ("ab".repeat(32), ["CD"; 32].join(":"));
        let text = format!(
            "# none yet\n\nspiffe://a/kc # gone\n KC.example.org\nuid:1000\n{plain}\n{colons}\n*.a\n\
             token:corp:https://a/b c\n"
        );
        let found: Vec<Entry> = entries(&text).collect::<Result<_, _>>().unwrap();
        let expected = [
            Entry::Uri("spiffe://a/kc".to_owned()),
            Entry::Dns("kc.example.org".to_owned()),
            Entry::Uid(1000),
            Entry::Sha256([0xab; 32]),
            Entry::Sha256([0xcd; 32]),
            Entry::Dns("*.a".to_owned()),
            Entry::Token { issuer: "corp".to_owned(), subject: "https://a/b c".to_owned() },
        ];
        assert_eq!(found, expected);
        for entry in expected {
            assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }

    #[test]
    fn what_would_have_no_effect_is_refused_with_its_line() {
        let (short, plain) = ("ab:".repeat(31), "ab".repeat(31));
        let names = ["SPIFFE://a/kc", "spiffe://a", "two words"];
        for entry in
            [&["uid:x", "uid:-1", "token:corp", "token::a", &short, &plain][..], &names].concat()
        {
            let text = format!("# list\n{entry}\n");
            let error = entries(&text).next().unwrap().unwrap_err();
            assert_eq!(error.line, 2, "{entry}: {error}");
        }
    }
}
