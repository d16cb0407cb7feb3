//! `claviger wrap`: key material in, the wrapped value out.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use claviger_client::WrapOptions;
use claviger_provider_api::Algorithm;
use serde_json::json;

use super::bytes::{self, BytesArgs};
use super::connection::ConnectionArgs;
use super::failure::Failure;

/// The arguments of `claviger wrap`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  head -c 32 /dev/urandom | claviger wrap user-keys > wrapped
  claviger wrap user-keys --base64-out key > wrapped.txt")]
pub struct Args {
    /// The key's name
    key: String,
    /// The key material [default: stdin]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    parameters: ParameterArgs,
    #[command(flatten)]
    bytes: BytesArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Algorithm and label, the same for wrap and unwrap.
#[derive(clap::Args, Debug)]
pub struct ParameterArgs {
    /// The wrapping algorithm [default: the key's own]
    #[arg(long, value_name = "NAME",
        value_parser = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name)))]
    algorithm: Option<String>,
    /// The OAEP label, as text; unwrap needs the same one
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    label: String,
}

impl ParameterArgs {
    /// The JWA name; empty if none was given.
    pub fn algorithm(&self) -> String {
        self.algorithm.clone().unwrap_or_default()
    }

    /// The label's bytes.
    pub fn label(&self) -> Vec<u8> {
        self.label.clone().into_bytes()
    }
}

/// Wraps one value.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    args.bytes.output().check(json)?;
    let material = args.bytes.read(args.file.as_deref(), "key material")?;
    let options =
        WrapOptions { algorithm: args.parameters.algorithm(), label: args.parameters.label() };
    let wrapped =
        args.connection.call(async |client| client.wrap(&args.key, &material, &options).await)?;
    if !json {
        return args.bytes.output().write(&wrapped.wrapped);
    }
    let result = json!({
        "wrapped": bytes::encode(&wrapped.wrapped).as_str(),
        "key_version": wrapped.key_version,
        "algorithm": wrapped.algorithm,
        "request_id": wrapped.request_id,
    });
    bytes::print(&result.to_string())
}
