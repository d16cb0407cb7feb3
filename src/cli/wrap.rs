//! `claviger wrap`: key material in, the wrapped value out.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use claviger_client::WrapOptions;
use claviger_provider_api::Algorithm;
use serde_json::json;
use zeroize::Zeroizing;

use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output::{self, BytesArgs};

/// The arguments of `claviger wrap`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  head -c 32 /dev/urandom | claviger wrap user-keys > wrapped
  claviger wrap user-keys --base64-out key > wrapped.txt
  claviger wrap user-keys --generate 32 --base64")]
pub struct Args {
    /// The key's name
    key: String,
    /// The key material [default: stdin]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Instead of an input, wrap this many random bytes (1 to 1024), which are never shown
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
        conflicts_with_all = ["file", "base64_in"])]
    generate: Option<u16>,
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

/// Wraps one value, given or made.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    args.bytes.output().check(json)?;
    let material = match args.generate {
        Some(length) => random(length)?,
        None => args.bytes.read(args.file.as_deref(), "key material")?,
    };
    let options =
        WrapOptions { algorithm: args.parameters.algorithm(), label: args.parameters.label() };
    let wrapped =
        args.connection.call(async |client| client.wrap(&args.key, &material, &options).await)?;
    if !json {
        return args.bytes.output().write(&wrapped.wrapped);
    }
    let result = json!({
        "wrapped": input_output::encode(&wrapped.wrapped).as_str(),
        "key_version": wrapped.key_version,
        "algorithm": wrapped.algorithm,
        "request_id": wrapped.request_id,
    });
    input_output::print(&result.to_string())
}

/// Random bytes, zeroed when dropped.
fn random(length: u16) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(vec![0; length.into()]);
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::new(Exit::Failure, "the system gives no random bytes"))?;
    Ok(bytes)
}
