//! `claviger keys byok`: a key in a transfer file for Azure, which only the vault's HSM can open.
//!
//! The form is Azure's "Bring your own key specification": the key under an AES-256 key
//! (AES-KWP, RFC 5649) that is under the vault's key exchange key (RSAES-OAEP with SHA-1), in JSON.

use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claviger_files::pem;
use claviger_provider_api::{Algorithm, PublicKey};
use serde_json::json;

use super::import::FileArgs;
use super::making::of_error;
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;

/// The arguments of `claviger keys byok`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The key exchange key is an RSA-HSM key of the same vault with `import` as its only operation. Its public
half: az keyvault key download --id KID --file kek.pem --encoding PEM

Example:
  claviger keys byok --from kc.pfx --passphrase kc.password --kek kek.pem \\
    --kek-id https://contoso.managedhsm.azure.net/keys/kek/0123456789abcdef0123456789abcdef --out user-keys.byok")]
pub struct Args {
    #[command(flatten)]
    file: FileArgs,
    /// The public half of the vault's key exchange key, PEM
    #[arg(long, value_name = "FILE")]
    kek: PathBuf,
    /// The key exchange key's identifier, with its version
    #[arg(long, value_name = "URL")]
    kek_id: String,
    /// The transfer file to make; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Writes the transfer file.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    check_kek_id(&args.kek_id)?;
    let kek = read_kek(args)?;
    let private = args.file.read()?;
    let wrapped =
        private.wrapped_under(&kek, Algorithm::RsaOaep).map_err(|error| of_error(&error))?;
    let transfer = json!({
        "schema_version": "1.0.0",
        "header": { "kid": args.kek_id, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP" },
        "ciphertext": URL_SAFE_NO_PAD.encode(wrapped),
        "generator": concat!("claviger ", env!("CARGO_PKG_VERSION")),
    });
    let out = args.out.display();
    claviger_files::create(&args.out, format!("{transfer}\n").as_bytes(), 0o600).map_err(
        |error| {
            let failure = Failure::new(Exit::Configuration, format!("cannot make {out}: {error}"));
            match error.kind() {
                io::ErrorKind::AlreadyExists => failure.advise("Name another file with --out."),
                _ => failure,
            }
        },
    )?;
    let public = private.public_key();
    let (bits, sha256) = (public.modulus_bits(), hex::encode(public.sha256()));
    if json {
        let made = json!({ "file": args.out, "kek": args.kek_id, "bits": bits, "public_key_sha256": sha256 });
        return input_output::print(&made.to_string());
    }
    input_output::print(&format!(
        "wrote {out}: the RSA-{bits} key with public_key_sha256 {sha256}, for the HSM of\n  {}\n\n\
         Next:\n  az keyvault key import --name NAME --byok-file {out} --ops unwrapKey --vault-name VAULT (or --hsm-name)\n  \
         add the replica to the configuration, then: claviger config pin",
        args.kek_id
    ))
}

/// `https://HOST/keys/NAME/VERSION`: the HSM finds its key by it.
fn check_kek_id(id: &str) -> Result<(), Failure> {
    let parts: Vec<_> = id.strip_prefix("https://").unwrap_or_default().split('/').collect();
    match parts[..] {
        [host, "keys", name, version] if ![host, name, version].contains(&"") => Ok(()),
        _ => Err(Failure::new(Exit::Usage, format!("--kek-id {id} is no key of a vault"))
            .advise("Write https://HOST/keys/NAME/VERSION, as `az keyvault key show` prints it.")),
    }
}

fn read_kek(args: &Args) -> Result<PublicKey, Failure> {
    let path = args.kek.display();
    let refused = |reason: String| {
        Failure::new(Exit::Configuration, format!("{path}: {reason}"))
            .advise("Name what `az keyvault key download --encoding PEM` has written.")
    };
    let file = std::fs::read(&args.kek).map_err(|error| refused(error.to_string()))?;
    let spki = pem::public_key(&file).map_err(|error| refused(error.to_string()))?;
    PublicKey::from_spki(&spki).map_err(|error| refused(error.to_string()))
}
