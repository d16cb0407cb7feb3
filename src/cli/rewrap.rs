//! `claviger rewrap`: a wrapped value in, the same key material wrapped for another key out.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use claviger_client::{Approval, Recipient, RewrapItem, RewrapSource, RewrapTarget, Rewrapped};
use claviger_files::pem::{self, Beside};
use claviger_provider_api::{Algorithm, PublicKey};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output::{self, BytesArgs};
use super::rewrap_files;
use super::stored;
use super::wrap::ParameterArgs;

/// The arguments of `claviger rewrap`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger rewrap old --to new < wrapped > rewrapped
  claviger rewrap old --to new --base64 < row.txt > new-row.txt
  claviger rewrap old --to new --out rewrapped values/*
  claviger rewrap user-keys --to-public-key device.pem --to-algorithm RSA-OAEP-256 < wrapped > for-device
  claviger rewrap recovery --to-public-key device.pem --to-algorithm RSA-OAEP --approval id-token \\
    --approval-expires 1800000000 < wrapped > for-device")]
pub struct Args {
    /// The name of the key that unwraps
    key: String,
    #[command(flatten)]
    target: TargetArgs,
    /// The version that wrapped [default: those that fit are tried, newest first]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    #[command(flatten)]
    parameters: ParameterArgs,
    /// The algorithm to wrap with [default: the target key's own; a public key needs one]
    #[arg(long, value_name = "NAME",
        value_parser = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name)))]
    to_algorithm: Option<String>,
    /// The OAEP label to wrap with, as text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    to_label: String,
    /// The longest key material that is expected, where the target has less room than the source
    #[arg(long, value_name = "BYTES")]
    max_key_material_len: Option<u32>,
    /// A file with the ID token of a person who approved it, where the grant asks for one
    #[arg(long, value_name = "FILE", requires = "approval_expires", conflicts_with = "out")]
    approval: Option<PathBuf>,
    /// Until when the approval is good, in seconds since 1970, as the nonce of the ID token has it
    #[arg(long, value_name = "SECONDS", requires = "approval")]
    approval_expires: Option<u64>,
    /// Wrapped values, one in each file [default: one value, stdin to stdout]
    #[arg(value_name = "FILE", requires = "out")]
    files: Vec<PathBuf>,
    /// The folder for the results of FILE..., each under its file's name
    #[arg(long, value_name = "DIR", requires = "files")]
    out: Option<PathBuf>,
    /// Pass over files whose results are in the folder already
    #[arg(long, requires = "out")]
    resume: bool,
    #[command(flatten)]
    bytes: BytesArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// For whom to wrap.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Wrap for a key of the daemon's, by name
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// Wrap for an RSA public key: PEM or DER, or a certificate in PEM
    #[arg(long, value_name = "FILE")]
    to_public_key: Option<PathBuf>,
}

/// Rewraps what is on stdin, or each file.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let template = template(args)?;
    match &args.out {
        None => rewrap_stdin(args, template, json),
        Some(folder) => {
            let plan = rewrap_files::Plan {
                files: &args.files,
                folder,
                resume: args.resume,
                bytes: &args.bytes,
                json,
            };
            rewrap_files::run(&plan, &template, &args.connection)
        }
    }
}

fn rewrap_stdin(args: &Args, template: RewrapItem, json: bool) -> Result<(), Failure> {
    args.bytes.output().check(json)?;
    let wrapped = args.bytes.read(None, "wrapped value")?.to_vec();
    let item = RewrapItem { wrapped, ..template };
    let rewrapped = args.connection.call(async |client| client.rewrap(&item).await)?;
    if json {
        let mut result = describe(&rewrapped);
        result["wrapped"] = input_output::encode(&rewrapped.wrapped).as_str().into();
        return input_output::print(&result.to_string());
    }
    args.bytes.output().write(&rewrapped.wrapped)
}

/// All of a rewrap but its value.
pub fn describe(rewrapped: &Rewrapped) -> Value {
    json!({
        "source_key_version": rewrapped.source_key_version,
        "target_key_version": rewrapped.target_key_version,
        "target_algorithm": rewrapped.target_algorithm,
        "target_public_key_sha256": hex::encode(&rewrapped.target_public_key_sha256),
        "request_id": rewrapped.request_id,
    })
}

fn template(args: &Args) -> Result<RewrapItem, Failure> {
    let recipient = match (&args.target.to, &args.target.to_public_key) {
        (Some(name), _) => Recipient::Key(name.clone()),
        (None, Some(file)) => Recipient::PublicKey(read_public_key(file)?),
        (None, None) => unreachable!("clap requires one of them"),
    };
    if matches!(recipient, Recipient::PublicKey(_)) && args.to_algorithm.is_none() {
        return Err(Failure::new(Exit::Usage, "--to-public-key needs --to-algorithm")
            .advise("Ask the owner of the public key; RSA-OAEP-256 is a good choice."));
    }
    Ok(RewrapItem {
        source: RewrapSource {
            key: args.key.clone(),
            key_version: args.key_version,
            algorithm: args.parameters.algorithm(),
            label: args.parameters.label(),
        },
        wrapped: Vec::new(),
        target: RewrapTarget {
            recipient,
            algorithm: args.to_algorithm.clone().unwrap_or_default(),
            label: args.to_label.clone().into_bytes(),
        },
        max_key_material_len: args.max_key_material_len,
        approval: approval(args)?,
    })
}

fn approval(args: &Args) -> Result<Option<Approval>, Failure> {
    let (Some(file), Some(expires)) = (&args.approval, args.approval_expires) else {
        return Ok(None);
    };
    let token = String::from_utf8(stored::read_file(file, "ID token")?);
    let token = token.ok().map(|token| token.trim().to_owned());
    let token = token.filter(|token| token.split('.').count() == 3).ok_or_else(|| {
        let message = format!("--approval: {} holds no ID token", file.display());
        Failure::new(Exit::Usage, message)
            .advise("Name a file with the token as the issuer gave it.")
    })?;
    Ok(Some(Approval { id_token: token, expires }))
}

/// The end of the label of every certificate's block.
const CERTIFICATE: &[u8] = b"CERTIFICATE-----";

/// The SubjectPublicKeyInfo in a file: a public key in PEM or DER, or a certificate in PEM.
fn read_public_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let content = stored::read_file(path, "public key")?;
    let refused = |reason: String| {
        Failure::new(Exit::Usage, format!("--to-public-key: {}: {reason}", path.display()))
    };
    let key = if !pem::is_pem(&content) {
        PublicKey::from_spki(&content)
    } else if content.windows(CERTIFICATE.len()).any(|part| part == CERTIFICATE) {
        let chain = pem::certificates(&content, Beside::Nothing)
            .map_err(|error| refused(error.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(&chain[0])
            .map_err(|_| refused("its certificate is not X.509".to_owned()))?;
        PublicKey::from_spki(certificate.public_key().raw)
    } else {
        PublicKey::from_spki(
            &pem::public_key(&content).map_err(|error| refused(error.to_string()))?,
        )
    };
    let key = key.map_err(|error| refused(error.to_string()))?;
    Ok(key.spki().to_vec())
}
