//! Where the keys under test live: the software provider, SoftHSM or kryoptic, told apart in one
//! place so that a test is written once for all of them.

use toml::Value;

use crate::faults::Faults;
use crate::rsa_key::RsaKey;
use crate::site::{Site, Version};
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
    /// Keys in files of the site's folder.
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

    /// Adds the provider to the site's configuration.
    pub fn configure(&self, site: &mut Site) {
        if let Some(token) = &self.token {
            site.token("backend", token);
            for (option, value) in &self.options {
                site.set(&format!("providers.backend.{option}"), value.clone());
            }
        } else {
            site.files("backend", "keys");
        }
    }

    /// Puts a private key into the backend and gives an active version of it. `id` is unique in
    /// the backend.
    pub fn version(&self, site: &Site, number: i64, key: &RsaKey, id: u16) -> Version {
        let label = format!("object-{id}");
        let locator = if let Some(token) = &self.token {
            token.import(key, &label, &format!("{id:04x}"));
            format!("pkcs11:object={label}")
        } else {
            let file = format!("{label}.pem");
            key.write_pem(&site.path("keys").join(&file));
            file
        };
        Version::active(number, key, "backend", &locator)
    }
}
