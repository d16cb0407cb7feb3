//! The RSA key of a local daemon: in a file, or in a fresh SoftHSM token.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_files::pem;
use claviger_provider_api::PublicKey;

use super::{LocalDaemon, failed, make_private_dir, write};
use crate::cli::failure::{Exit, Failure};

/// The file of a key that lies in one, in the folder `keys`.
pub const KEY_FILE: &str = "user-keys.pem";

/// Where the key is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In a file of the local daemon's folder.
    Software,
    /// In a SoftHSM token of the local daemon's folder; `SOFTHSM2_CONF` must name its `softhsm2.conf`.
    #[cfg(feature = "pkcs11")]
    SoftHsm,
}

impl Backend {
    /// The one whose provider has this `type`.
    pub(super) fn named(type_name: &str) -> Option<Self> {
        match type_name {
            "software" => Some(Self::Software),
            #[cfg(feature = "pkcs11")]
            "pkcs11" => Some(Self::SoftHsm),
            _ => None,
        }
    }

    /// The `type` of its provider.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::Software => "software",
            #[cfg(feature = "pkcs11")]
            Self::SoftHsm => "pkcs11",
        }
    }
}

/// What the configuration says of the key.
#[derive(Debug)]
pub struct LocalKey {
    /// Its providers: whole tables of the configuration.
    pub providers: String,
    /// Provider and locator of each place where it lives.
    pub replicas: Vec<(&'static str, &'static str)>,
    /// As a TOML array.
    pub algorithms: &'static str,
    /// Its public half.
    pub public_key: PublicKey,
}

impl LocalDaemon {
    /// The key of this folder, made with a modulus of `bits` if it is missing: 2048, 3072 or 4096.
    pub fn prepare_key(&self, backend: Backend, bits: u16) -> Result<LocalKey, Failure> {
        match backend {
            Backend::Software => in_a_file(self, bits),
            #[cfg(feature = "pkcs11")]
            Backend::SoftHsm => super::softhsm::prepare(&self.dir, bits),
        }
    }
}

/// The public half of the key in the folder.
pub fn read_public(path: &Path) -> Result<PublicKey, Failure> {
    let shown = path.display().to_string();
    let spki = std::fs::read(path).map_err(|error| failed(&shown, &error))?;
    PublicKey::from_spki(&spki).map_err(|error| failed(&shown, &error))
}

fn in_a_file(local: &LocalDaemon, bits: u16) -> Result<LocalKey, Failure> {
    let directory = local.dir.join("keys");
    make_private_dir(&directory)?;
    let (key_file, public_file) = (directory.join(KEY_FILE), directory.join("user-keys.spki"));
    if !key_file.exists() || !public_file.exists() {
        write(&public_file, &make_key_file(&key_file, bits)?)?;
    }
    let public_key = read_public(&public_file)?;
    Ok(LocalKey {
        providers: "[providers.demo]\ntype      = \"software\"\ndirectory = \"keys\"\n".into(),
        replicas: vec![("demo", KEY_FILE)],
        algorithms: r#"["RSA-OAEP", "RSA-OAEP-256"]"#,
        public_key,
    })
}

/// Makes an RSA key of 2048, 3072 or 4096 bits in a file for ourselves alone: PKCS#8, PEM. Gives its
/// SubjectPublicKeyInfo, DER.
pub fn make_key_file(path: &Path, bits: u16) -> Result<Vec<u8>, Failure> {
    let size = match bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        4096 => KeySize::Rsa4096,
        _ => {
            let message = format!("no RSA key of {bits} bits: 2048, 3072 and 4096 are possible");
            return Err(Failure::new(Exit::Usage, message));
        }
    };
    let refused = |_| Failure::new(Exit::Failure, "no RSA key could be made");
    let key = PrivateDecryptingKey::generate(size).map_err(refused)?;
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(refused)?;
    write(path, pem::encode_secret("PRIVATE KEY", der.as_ref()).as_bytes())?;
    Ok(key.public_key().as_der().map_err(refused)?.as_ref().to_vec())
}
