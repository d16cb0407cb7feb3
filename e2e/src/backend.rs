//! Where the keys under test live: the software provider, SoftHSM or kryoptic, told apart in one
//! place so that a test is written once for all of them.

use toml::Value;

use crate::daemon_files::{DaemonFiles, Version};
use crate::faults::Faults;
use crate::rsa_key::RsaKey;
use crate::token::Token;

/// One kind of backend, with its token where it has one. Its provider in a configuration is named
/// `backend`.
#[derive(Debug)]
pub struct Backend {
    /// For messages: which backend was wrong.
    pub name: &'static str,
    token: Option<Token>,
    options: Vec<(&'static str, Value)>,
}

impl Backend {
    /// Keys in files beside the daemon's.
    pub fn software() -> Self {
        Self { name: "software", token: None, options: Vec::new() }
    }

    /// A fresh SoftHSM token, which by itself has OAEP with SHA-1 only.
    pub fn softhsm() -> Self {
        Self { name: "SoftHSM", token: Some(Token::softhsm()), options: Vec::new() }
    }

    /// A fresh SoftHSM token whose calls are counted.
    pub fn softhsm_with_faults() -> (Self, Faults) {
        let (token, faults) = Token::softhsm().through_fault_module();
        (Self { name: "SoftHSM", token: Some(token), options: Vec::new() }, faults)
    }

    /// A fresh SoftHSM token with the padding removed by the daemon.
    pub fn softhsm_with_software_oaep() -> Self {
        let options = vec![("oaep", "software".into())];
        Self { name: "SoftHSM, software OAEP", token: Some(Token::softhsm()), options }
    }

    /// A fresh kryoptic token.
    pub fn kryoptic() -> Self {
        Self { name: "kryoptic", token: Some(Token::kryoptic()), options: Vec::new() }
    }

    /// Adds the provider to the daemon's configuration.
    pub fn configure(&self, files: &mut DaemonFiles) {
        if let Some(token) = &self.token {
            files.token("backend", token);
            for (option, value) in &self.options {
                files.set(&format!("providers.backend.{option}"), value.clone());
            }
        } else {
            files.key_folder("backend", "keys");
        }
    }

    /// Puts a private key into the backend and gives an active version of it. `id` is unique in
    /// the backend.
    pub fn version(&self, files: &DaemonFiles, number: i64, key: &RsaKey, id: u16) -> Version {
        let label = format!("object-{id}");
        let locator = if let Some(token) = &self.token {
            token.import(key, &label, &format!("{id:04x}"));
            format!("pkcs11:object={label}")
        } else {
            let file = format!("{label}.pem");
            key.write_pem(&files.path("keys").join(&file));
            file
        };
        Version::active(number, key, "backend", &locator)
    }
}
