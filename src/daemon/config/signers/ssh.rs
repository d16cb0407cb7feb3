//! Signatures by `ssh-keygen -Y sign` (OpenSSH's PROTOCOL.sshsig), with Ed25519 keys in a file or in a
//! security key (PROTOCOL.u2f).
//!
//! The crates that read this form bring cryptography of their own; it is a few length-prefixed strings, and
//! aws-lc-rs verifies.

use std::fmt;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Refused;

/// What `ssh-keygen -Y sign -n` must be given.
pub(super) const NAMESPACE: &str = "claviger-config";

const MAGIC: &[u8] = b"SSHSIG";
const ED25519_KEY: &[u8] = b"ssh-ed25519";
const SECURITY_KEY: &[u8] = b"sk-ssh-ed25519@openssh.com";
/// The user touched the key (PROTOCOL.u2f, "flags").
const USER_PRESENT: u8 = 1;

/// A public key as in `authorized_keys`: its blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey(Vec<u8>);

impl SshKey {
    /// From `ssh-ed25519 AAAA… comment`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (kind, blob) = (words.next()?, BASE64.decode(words.next()?).ok()?);
        let key = Self(blob);
        (key.parts()?.kind == kind.as_bytes()).then_some(key)
    }

    fn parts(&self) -> Option<KeyParts<'_>> {
        let mut blob = Strings(&self.0);
        let (kind, point) = (blob.next()?, blob.next()?);
        let application = match kind {
            ED25519_KEY => None,
            SECURITY_KEY => Some(blob.next()?),
            _ => return None,
        };
        (point.len() == 32 && blob.0.is_empty()).then_some(KeyParts { kind, point, application })
    }
}

impl fmt::Display for SshKey {
    /// As in `authorized_keys`, without a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.parts().map_or(&b""[..], |parts| parts.kind);
        write!(f, "{} {}", String::from_utf8_lossy(kind), BASE64.encode(&self.0))
    }
}

struct KeyParts<'a> {
    kind: &'a [u8],
    point: &'a [u8],
    /// Of a security key.
    application: Option<&'a [u8]>,
}

/// A signature, whose key may or may not be a signer's.
#[derive(Clone, Debug)]
pub struct SshSignature {
    /// The key that made it, as it says itself.
    pub key: SshKey,
    namespace: Vec<u8>,
    hash: Vec<u8>,
    signature: Vec<u8>,
}

impl SshSignature {
    /// Reads what `ssh-keygen -Y sign` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix("-----BEGIN SSH SIGNATURE-----")?;
        let body = body.strip_suffix("-----END SSH SIGNATURE-----")?;
        let body: String = body.split_whitespace().collect();
        let blob = BASE64.decode(body).ok()?;
        let mut rest = Strings(blob.strip_prefix(MAGIC)?.strip_prefix(&1_u32.to_be_bytes())?);
        let (key, namespace, reserved) = (rest.next()?, rest.next()?, rest.next()?);
        let (hash, signature) = (rest.next()?, rest.next()?);
        let is_whole = rest.0.is_empty() && reserved.is_empty();
        is_whole.then(|| Self {
            key: SshKey(key.to_vec()),
            namespace: namespace.to_vec(),
            hash: hash.to_vec(),
            signature: signature.to_vec(),
        })
    }

    /// Whether its key made it over `text`, for our namespace.
    pub fn verify(&self, text: &[u8]) -> Result<(), Refused> {
        if self.namespace != NAMESPACE.as_bytes() {
            let namespace = String::from_utf8_lossy(&self.namespace).into_owned();
            return Err(Refused::Namespace(namespace));
        }
        let message = match &*self.hash {
            b"sha512" => digest(&SHA512, text),
            b"sha256" => digest(&SHA256, text),
            _ => return Err(Refused::Unknown),
        };
        let signed = signed_data(&self.namespace, &self.hash, message.as_ref());
        let key = self.key.parts().ok_or(Refused::Unknown)?;
        let mut signature = Strings(&self.signature);
        if signature.next() != Some(key.kind) {
            return Err(Refused::Unknown);
        }
        let bytes = signature.next().ok_or(Refused::Unknown)?;
        let signed = match key.application {
            None if signature.0.is_empty() => signed,
            Some(application) if signature.0.len() == 5 => {
                if signature.0[0] & USER_PRESENT == 0 {
                    return Err(Refused::NoTouch);
                }
                let hashes = [digest(&SHA256, application), digest(&SHA256, &signed)];
                [hashes[0].as_ref(), signature.0, hashes[1].as_ref()].concat()
            }
            _ => return Err(Refused::Unknown),
        };
        UnparsedPublicKey::new(&ED25519, key.point)
            .verify(&signed, bytes)
            .map_err(|_| Refused::AnotherFile)
    }
}

/// What is signed (PROTOCOL.sshsig, "Signed Data, of which the signature goes over").
fn signed_data(namespace: &[u8], hash: &[u8], message: &[u8]) -> Vec<u8> {
    let mut signed = MAGIC.to_vec();
    for part in [namespace, b"", hash, message] {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        signed.extend_from_slice(&length.to_be_bytes());
        signed.extend_from_slice(part);
    }
    signed
}

/// Strings behind their lengths (RFC 4251 section 5), and what is behind those that were read.
struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = rest;
        Some(string)
    }
}
