//! The other implementation: the `openssl` command line wraps for a key and verifies its signatures.

use std::path::{Path, PathBuf};
use std::process::Command;

use claviger_provider_api::{Algorithm, Digest, Hash, PublicKey, SignAlgorithm};
use tempfile::TempDir;

/// OpenSSL with one public key, in a temporary folder.
pub(crate) struct OpenSsl {
    directory: TempDir,
}

impl OpenSsl {
    pub(crate) fn new(public_key: &PublicKey) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("no folder: {error}"))?;
        let openssl = Self { directory };
        openssl.write("key.der", public_key.spki())?;
        Ok(openssl)
    }

    /// Wraps with the MGF1 hash that the algorithm has.
    pub(crate) fn wrap(
        &self,
        material: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Result<Vec<u8>, String> {
        self.wrap_with_mgf1(material, algorithm, algorithm.hash(), label)
    }

    /// Wraps with another MGF1 hash, as Java's and Android's defaults do.
    pub(crate) fn wrap_with_mgf1(
        &self,
        material: &[u8],
        algorithm: Algorithm,
        mgf1: Option<Hash>,
        label: &[u8],
    ) -> Result<Vec<u8>, String> {
        let mut options = match (algorithm.hash(), mgf1) {
            (Some(oaep), Some(mgf1)) => vec![
                "rsa_padding_mode:oaep".to_owned(),
                format!("rsa_oaep_md:{}", name(oaep)),
                format!("rsa_mgf1_md:{}", name(mgf1)),
            ],
            _ => vec!["rsa_padding_mode:pkcs1".to_owned()],
        };
        if !label.is_empty() {
            options.push(format!("rsa_oaep_label:{}", hex::encode(label)));
        }
        let input = self.write("material", material)?;
        let output = self.directory.path().join("wrapped");
        let files = [("-in", input.as_path()), ("-out", output.as_path())];
        self.pkeyutl("-encrypt", &files, &options)?;
        std::fs::read(&output).map_err(|error| format!("no output of openssl: {error}"))
    }

    /// Fails unless OpenSSL takes `signature` for a good one.
    pub(crate) fn verify(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        signature: &[u8],
    ) -> Result<(), String> {
        let hash = name(algorithm.hash());
        let mut options = vec![format!("digest:{hash}")];
        if algorithm.is_pss() {
            options.push("rsa_padding_mode:pss".to_owned());
            options.push("rsa_pss_saltlen:digest".to_owned());
            options.push(format!("rsa_mgf1_md:{hash}"));
        }
        let input = self.write("digest", digest.as_bytes())?;
        let signature = self.write("signature", signature)?;
        let files = [("-in", input.as_path()), ("-sigfile", signature.as_path())];
        self.pkeyutl("-verify", &files, &options)
    }

    fn pkeyutl(
        &self,
        operation: &str,
        files: &[(&str, &Path)],
        options: &[String],
    ) -> Result<(), String> {
        let key = self.directory.path().join("key.der");
        let mut command = Command::new("openssl");
        command.args(["pkeyutl", operation, "-pubin", "-keyform", "DER", "-inkey"]).arg(key);
        for (flag, path) in files {
            command.arg(flag).arg(path);
        }
        for option in options {
            command.args(["-pkeyopt", option]);
        }
        let output = command
            .output()
            .map_err(|error| format!("the suite needs the openssl command line: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("openssl {operation}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).map_err(|error| format!("cannot write {name}: {error}"))?;
        Ok(path)
    }
}

fn name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha256",
        Hash::Sha384 => "sha384",
        Hash::Sha512 => "sha512",
    }
}
