//! The demo's RSA key: in a file, or in a fresh SoftHSM token.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::PublicKey;
use zeroize::Zeroizing;

use super::state::{State, make_private_dir, write};
use super::{Args, failed};
use crate::cli::failure::{Exit, Failure};

/// What the configuration says of the key.
pub(super) struct DemoKey {
    /// The lines of `[providers.demo]`.
    pub provider: String,
    /// Where the key lives.
    pub locator: String,
    /// As a TOML array.
    pub algorithms: &'static str,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub public_key_sha256: [u8; 32],
}

impl DemoKey {
    /// The key of this folder, made if it is missing: step 2.
    pub(super) fn prepare(state: &State, args: &Args) -> Result<Self, Failure> {
        #[cfg(feature = "pkcs11")]
        if args.softhsm {
            return super::softhsm::prepare(&state.dir);
        }
        let _ = args;
        in_a_file(state)
    }
}

fn in_a_file(state: &State) -> Result<DemoKey, Failure> {
    let directory = state.dir.join("keys");
    make_private_dir(&directory)?;
    let (key_file, public_file) =
        (directory.join("user-keys.pem"), directory.join("user-keys.spki"));
    if !key_file.exists() || !public_file.exists() {
        let refused = |_| Failure::new(Exit::Failure, "no RSA key could be made");
        let key = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(refused)?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(refused)?;
        write(&public_file, key.public_key().as_der().map_err(refused)?.as_ref())?;
        write(&key_file, pem("PRIVATE KEY", der.as_ref()).as_bytes())?;
    }
    let public = std::fs::read(&public_file)
        .map_err(|error| failed(&public_file.display().to_string(), &error))?;
    let public = PublicKey::from_spki(&public)
        .map_err(|error| failed(&public_file.display().to_string(), &error))?;
    println!(
        "2. An RSA-{} key: keys/user-keys.pem\n   \
         It lies in a file, not in hardware: good for first steps, not for secrets.\n",
        public.modulus_bits()
    );
    Ok(DemoKey {
        provider: "type      = \"software\"\ndirectory = \"keys\"".into(),
        locator: "user-keys.pem".into(),
        algorithms: r#"["RSA-OAEP", "RSA-OAEP-256"]"#,
        public_key_sha256: public.sha256(),
    })
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    // Sized beforehand: a text that grows would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(base64.len() * 66 / 64 + 128));
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in base64.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}
