//! `claviger audit public-key`: what verifies the checkpoints that a key signs.

use std::path::PathBuf;

use serde_json::json;

use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::records::audit::Signer;

/// The arguments of `claviger audit public-key`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's name, as `audit.checkpoints.origin` gives it
    #[arg(long)]
    origin: String,
    /// The private key: Ed25519, PKCS#8 in PEM
    key: PathBuf,
}

/// Prints the public key as C2SP signed-note writes it.
pub(super) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let refused = |reason: String| {
        Failure::new(Exit::Configuration, format!("{}: {reason}", args.key.display()))
    };
    let signer = Signer::from_pem_file(&args.origin, &args.key).map_err(refused)?;
    let public_key = signer.verifier().to_string();
    if json {
        return input_output::print(&json!({ "public_key": public_key }).to_string());
    }
    input_output::print(&public_key)
}
