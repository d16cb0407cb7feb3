//! RSA keys that tests make or bring along.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use claviger_provider_api::{Algorithm, PublicKey};

use crate::process::{command, run};

/// An RSA key pair that the test itself has, so that it knows what a token must answer.
#[derive(Clone)]
pub struct RsaKey {
    pkcs8: Arc<[u8]>,
    public_key: Arc<PublicKey>,
}

impl RsaKey {
    /// A fresh key of 2048, 3072, 4096 or 8192 bits.
    pub fn generate(bits: usize) -> Self {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            8192 => KeySize::Rsa8192,
            other => panic!("no key of {other} bits: 2048, 3072, 4096 or 8192"),
        };
        let key = PrivateDecryptingKey::generate(size).expect("a key is generated");
        let der: Pkcs8V1Der<'_> = key.as_der().expect("a key has a PKCS#8 form");
        Self::from_pkcs8(der.as_ref())
    }

    /// A key that all tests of this process share, where nothing depends on it being fresh.
    /// Generating 4096 bits takes seconds.
    pub fn shared(bits: usize) -> Self {
        static KEYS: LazyLock<Mutex<HashMap<usize, RsaKey>>> = LazyLock::new(Mutex::default);
        let mut keys = KEYS.lock().expect("no test panicked while generating");
        keys.entry(bits).or_insert_with(|| Self::generate(bits)).clone()
    }

    /// A key from PKCS#8 (DER, not encrypted; RFC 5208).
    pub fn from_pkcs8(der: &[u8]) -> Self {
        let key = PrivateDecryptingKey::from_pkcs8(der).expect("an RSA key in PKCS#8");
        let spki = key.public_key().as_der().expect("a key has an SPKI form");
        let public_key = PublicKey::from_spki(spki.as_ref()).expect("2048 to 8192 bits");
        Self { pkcs8: der.into(), public_key: Arc::new(public_key) }
    }

    /// PKCS#8, DER.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// What a configuration pins: SHA-256 of the SPKI, in hexadecimal.
    pub fn public_key_sha256(&self) -> String {
        hex::encode(self.public_key.sha256())
    }

    /// What `wrapped` holds under RSAES-OAEP; none if it does not unwrap. RSA1_5 is a panic.
    pub fn unwrap_oaep(
        &self,
        wrapped: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Option<Vec<u8>> {
        let key = PrivateDecryptingKey::from_pkcs8(&self.pkcs8).expect("an RSA key in PKCS#8");
        let key = OaepPrivateDecryptingKey::new(key).expect("OAEP with any RSA key");
        let oaep = claviger_provider_api::public_key::oaep(algorithm).expect("an OAEP algorithm");
        let mut material = vec![0; self.public_key.modulus_len()];
        let material = key.decrypt(oaep, wrapped, &mut material, Some(label)).ok()?;
        Some(material.to_vec())
    }

    /// Writes the key as PKCS#8 PEM, readable by its owner only.
    pub fn write_pem(&self, path: &Path) {
        let der = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(der.path(), &self.pkcs8).expect("the temporary file is writable");
        // umask 077 of openssl's own: it makes private key files 0600.
        run(command("openssl")
            .args(["pkey", "-inform", "DER", "-in"])
            .arg(der.path())
            .arg("-out")
            .arg(path));
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.public_key.fmt(f)
    }
}
