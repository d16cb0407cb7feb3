//! `claviger verify`: says whether a signature is good.

use std::path::PathBuf;

use serde_json::json;

use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output;
use super::sign::DigestArgs;

/// The arguments of `claviger verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  claviger verify releases --algorithm PS256 --signature release.sig release.tar")]
pub struct Args {
    /// The key's name
    key: String,
    /// The file with the signature
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// The file holds Base64 text
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    digest: DigestArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Verifies a signature; one that is not valid is a failure.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let mut signature = std::fs::read(&args.signature).map_err(|error| {
        let file = args.signature.display();
        Failure::new(Exit::Usage, format!("--signature: cannot read {file}: {error}"))
    })?;
    if args.base64 {
        signature = input_output::decode(&signature, "signature")?.to_vec();
    }
    let (digest, options) = (args.digest.digest()?, args.digest.options());
    let algorithm = args.digest.algorithm();
    let verified = args.connection.call(async |client| {
        client.verify(&args.key, &digest, algorithm, &signature, options).await
    })?;
    if json {
        let result = json!({
            "valid": verified.key_version.is_some(),
            "key_version": verified.key_version,
            "request_id": verified.request_id,
        });
        input_output::print(&result.to_string())?;
    }
    match verified.key_version {
        Some(_) if json => Ok(()),
        Some(version) => {
            input_output::print(&format!("valid under version {version} of {}", args.key))
        }
        None => Err(Failure::new(
            Exit::Data,
            format!("the signature is not valid under any version of {} that was tried", args.key),
        )),
    }
}
