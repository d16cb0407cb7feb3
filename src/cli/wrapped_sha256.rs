//! `claviger wrapped-sha256`: what a narrow grant lists, from a value as it is stored.

use std::path::PathBuf;

use claviger_provider_api::public_key::sha256;
use serde_json::json;

use super::failure::Failure;
use super::{input_output, stored};

/// The arguments of `claviger wrapped-sha256`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger wrapped-sha256 /etc/bitwarden/data.json
  psql --no-align --tuples-only --command 'SELECT \"SymmetricKey\" FROM \"ApplicationDatas\"' | claviger wrapped-sha256

The output is an entry of wrapped_sha256 = [\"…\"] in a grant.")]
pub struct Args {
    /// The stored value: bytes, Base64, or a Key Connector's data.json [default: stdin]
    file: Option<PathBuf>,
}

/// Prints the SHA-256 of the value in the file, or on stdin.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let mut stored = Vec::new();
    if let Some(file) = &args.file {
        stored = stored::read_file(file, "stored value")?;
    } else {
        input_output::each_piece(None, "stored value", |piece| stored.extend_from_slice(piece))?;
    }
    let wrapped = stored::wrapped_value(&stored)?;
    let digest = hex::encode(sha256(&wrapped));
    if json {
        let result = json!({ "wrapped_sha256": digest, "bytes": wrapped.len() });
        return input_output::print(&result.to_string());
    }
    input_output::print(&digest)
}
