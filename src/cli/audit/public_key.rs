//! `claviger audit public-key`: what verifies the checkpoints that a key signs.

use std::path::{Path, PathBuf};

use claviger_files::pem;
use claviger_provider_api::SignAlgorithm;
use serde_json::json;

use crate::cli::audit::lines::cannot_read;
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::records::audit::{Signer, Verifier};

/// The arguments of `claviger audit public-key`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's name, as `audit.checkpoints.origin` gives it
    #[arg(long)]
    origin: String,
    /// With a public key: the first of the sign_algorithms of the key that `signed_by` names
    #[arg(long, value_parser = |name: &str| name.parse::<SignAlgorithm>())]
    algorithm: Option<SignAlgorithm>,
    /// The Ed25519 private key of `audit.checkpoints.key` (PKCS#8 in PEM), or the public key of a key in
    /// a backend, as `claviger keys public-key` prints it
    key: PathBuf,
}

/// Prints the public key as C2SP signed-note writes it.
pub(super) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let verifier = match args.algorithm {
        Some(algorithm) => of_backend(args, algorithm),
        None => of_file(args),
    };
    let public_key = verifier?.to_string();
    if json {
        return input_output::print(&json!({ "public_key": public_key }).to_string());
    }
    input_output::print(&public_key)
}

fn of_file(args: &Args) -> Result<Verifier, Failure> {
    let signer = Signer::from_pem_file(&args.origin, &args.key);
    Ok(signer.map_err(|reason| refused(&args.key, &reason))?.verifier())
}

fn of_backend(args: &Args, algorithm: SignAlgorithm) -> Result<Verifier, Failure> {
    let file = std::fs::read(&args.key).map_err(|error| cannot_read(&args.key, &error))?;
    let spki = pem::public_key(&file).map_err(|error| refused(&args.key, &error.to_string()))?;
    Verifier::rsa(&args.origin, algorithm, &spki)
        .map_err(|error| refused(&args.key, &error.to_string()))
}

fn refused(path: &Path, reason: &str) -> Failure {
    Failure::new(Exit::Configuration, format!("{}: {reason}", path.display()))
}
