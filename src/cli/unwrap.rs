//! `claviger unwrap`: the wrapped value in, key material out.

use std::path::PathBuf;

use claviger_client::{UnwrapOptions, Unwrapped};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::connection::ConnectionArgs;
use super::failure::Failure;
use super::input_output::{self, BytesArgs};
use super::wrap::ParameterArgs;

/// The arguments of `claviger unwrap`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger unwrap user-keys < wrapped > key
  claviger unwrap user-keys --base64-in wrapped.txt | sha256sum
  claviger unwrap user-keys --discard wrapped")]
pub struct Args {
    /// The key's name
    key: String,
    /// The wrapped value [default: stdin]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The version that wrapped [default: those that fit are tried, newest first]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    #[command(flatten)]
    parameters: ParameterArgs,
    /// Only check that it unwraps: the key material is dropped, and its length printed
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    bytes: BytesArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Unwraps one value.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if !args.discard {
        args.bytes.output().check(json)?;
    }
    let wrapped = args.bytes.read(args.file.as_deref(), "wrapped value")?;
    let options = UnwrapOptions {
        key_version: args.key_version,
        algorithm: args.parameters.algorithm(),
        label: args.parameters.label(),
    };
    let unwrapped = args
        .connection
        .call(async |client| client.unwrap_key(&args.key, &wrapped, &options).await)?;
    if args.discard {
        return tell(&unwrapped, json);
    }
    if !json {
        return args.bytes.output().write(&unwrapped.key_material);
    }
    // Put together by hand: a JSON value would keep a copy of the key material.
    let material = input_output::encode(&unwrapped.key_material);
    let request_id = Value::from(unwrapped.request_id).to_string();
    let version = unwrapped.key_version.to_string();
    let pieces = [
        "{\"key_material\":\"",
        &material,
        "\",\"key_version\":",
        &version,
        ",\"request_id\":",
        &request_id,
        "}",
    ];
    let mut line = Zeroizing::new(String::with_capacity(pieces.iter().map(|p| p.len()).sum()));
    for piece in pieces {
        line.push_str(piece);
    }
    input_output::print(&line)
}

/// All that is said about key material that is not to be shown.
fn tell(unwrapped: &Unwrapped, json: bool) -> Result<(), Failure> {
    let (len, version) = (unwrapped.key_material.len(), unwrapped.key_version);
    if json {
        let request_id = &unwrapped.request_id;
        let result = json!({ "bytes": len, "key_version": version, "request_id": request_id });
        return input_output::print(&result.to_string());
    }
    input_output::print(&format!("unwraps with version {version}: {len} bytes, not shown"))
}
