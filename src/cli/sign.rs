//! `claviger sign`: hashes a message here and has its digest signed.

use std::path::PathBuf;

use aws_lc_rs::digest;
use clap::builder::PossibleValuesParser;
use claviger_client::SignOptions;
use claviger_provider_api::SignAlgorithm;
use claviger_provider_api::public_key::aws_lc_digest;
use serde_json::json;

use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output::{self, OutputArgs};

/// The arguments of `claviger sign`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger sign releases --algorithm PS256 release.tar > release.sig
  claviger sign releases --algorithm PS256 --base64 --digest $(sha256sum < file | cut -c1-64)")]
pub struct Args {
    /// The key's name
    key: String,
    #[command(flatten)]
    digest: DigestArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What is signed, the same for sign and verify.
#[derive(clap::Args, Debug)]
pub struct DigestArgs {
    /// The signing algorithm
    #[arg(long, value_name = "NAME",
        value_parser = PossibleValuesParser::new(SignAlgorithm::ALL.map(SignAlgorithm::name)))]
    algorithm: String,
    /// The message [default: stdin]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The digest in hexadecimal, instead of a message
    #[arg(long, value_name = "HEX", conflicts_with = "file")]
    digest: Option<String>,
    /// The version to use [default: the newest active one signs, any of them verifies]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
}

impl DigestArgs {
    /// The JWA name.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The options for the call.
    pub fn options(&self) -> SignOptions {
        SignOptions { key_version: self.key_version }
    }

    /// The digest that was given, or that of the message.
    pub fn digest(&self) -> Result<Vec<u8>, Failure> {
        let algorithm: SignAlgorithm = self.algorithm.parse().expect("clap knows the names");
        let Some(hex) = &self.digest else {
            let mut context = digest::Context::new(aws_lc_digest(algorithm.hash()));
            let file = self.file.as_deref();
            input_output::each_piece(file, "message", |piece| context.update(piece))?;
            return Ok(context.finish().as_ref().to_vec());
        };
        let expected = algorithm.hash().len();
        hex::decode(hex).ok().filter(|digest| digest.len() == expected).ok_or_else(|| {
            let digits = 2 * expected;
            Failure::new(Exit::Usage, format!("--digest: {algorithm} needs {digits} hex digits"))
        })
    }
}

/// Signs a message, or a digest.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    args.output.check(json)?;
    let (digest, options) = (args.digest.digest()?, args.digest.options());
    let algorithm = args.digest.algorithm();
    let signed = args
        .connection
        .call(async |client| client.sign(&args.key, &digest, algorithm, options).await)?;
    if !json {
        return args.output.write(&signed.signature);
    }
    let result = json!({
        "signature": input_output::encode(&signed.signature).as_str(),
        "key_version": signed.key_version,
        "algorithm": signed.algorithm,
        "request_id": signed.request_id,
    });
    input_output::print(&result.to_string())
}
