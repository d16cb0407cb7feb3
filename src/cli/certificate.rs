//! `claviger keys certificate`: an X.509 certificate for a key, for programs that want one.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use claviger_client::{Key, KeyVersion, SignOptions};
use claviger_provider_api::public_key::sha256;
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};
use serde_json::json;
use zeroize::Zeroizing;

use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output::{self, OutputArgs};
use super::keys::opened_version;
use crate::pki::{Ca, GivenCa, OverKey, PkiError};

/// What a self-signed certificate and a request are signed with.
const SIGN_ALGORITHM: &str = "RS256";

/// The arguments of `claviger keys certificate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger keys certificate user-keys > user-keys.crt
  claviger keys certificate user-keys --pkcs12 > key.pfx
  claviger keys certificate user-keys --issuer ./pki --days 365 > user-keys.crt
  claviger keys certificate user-keys --ca-certificate ca.crt --ca-key ca.key > user-keys.crt
  claviger keys certificate signing --request > signing.csr")]
pub struct Args {
    /// The key's name
    key: String,
    /// The version [default: the newest active one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    #[command(flatten)]
    issuer: IssuerArgs,
    /// The private key of --ca-certificate, PEM, not readable by others
    #[arg(long, value_name = "FILE", requires = "ca_certificate")]
    ca_key: Option<PathBuf>,
    /// The common name in it [default: the key's name]
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// How long it lasts
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    #[command(flatten)]
    form: FormArgs,
    /// The file with the password of the PKCS#12 [default: an empty one]
    #[arg(long, value_name = "FILE", requires = "pkcs12")]
    password_file: Option<PathBuf>,
    /// Write bytes even to a terminal
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Who signs it.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
pub struct IssuerArgs {
    /// Signed by the CA in this folder (`claviger pki init`) [default: a CA whose key is discarded]
    #[arg(long, value_name = "DIR")]
    issuer: Option<PathBuf>,
    /// The certificate of another CA that signs, PEM; no record of it is kept
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_certificate: Option<PathBuf>,
    /// Signed by the key itself, which must list the signing algorithm RS256
    #[arg(long)]
    self_signed: bool,
    /// A request for a certificate (PKCS#10), signed by the key itself
    #[arg(long)]
    request: bool,
}

/// How it is written.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
pub struct FormArgs {
    /// DER instead of PEM
    #[arg(long)]
    der: bool,
    /// PKCS#12 (a PFX file) with the certificate and no private key
    #[arg(long, conflicts_with = "request")]
    pkcs12: bool,
}

/// Makes a certificate for the key's public half and prints it.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let is_bytes = args.form.der || args.form.pkcs12;
    if is_bytes {
        OutputArgs { base64: false, force: args.force }.check(json)?;
    }
    let password = password(args)?;
    let key = args.connection.call(async |client| client.opened_key(&args.key).await)?;
    let version = opened_version(&key, args.key_version)?;
    let over = OverKey {
        spki: version.public_key.to_vec(),
        common_name: args.name.clone().unwrap_or_else(|| key.name.chars().take(64).collect()),
        validity: Duration::from_hours(24) * args.days,
    };
    let der = make(args, &key, version, &over)?;
    let label = if args.issuer.request { "CERTIFICATE REQUEST" } else { "CERTIFICATE" };
    let written = match (args.form.der, args.form.pkcs12) {
        (true, _) => der.clone(),
        (_, true) => pkcs12(&der, &key.name, &password)?,
        _ => input_output::pem(label, &der).into_bytes(),
    };
    if !json {
        return input_output::write(&written);
    }
    let text = match String::from_utf8(written) {
        Ok(text) if !is_bytes => text,
        Ok(text) => input_output::encode(text.as_bytes()).to_string(),
        Err(error) => input_output::encode(error.as_bytes()).to_string(),
    };
    let form = match (args.form.der, args.form.pkcs12) {
        (true, _) => "der",
        (_, true) => "pkcs12",
        _ => "pem",
    };
    let result = json!({
        "key": key.name,
        "version": version.version,
        "public_key_sha256": hex::encode(sha256(&over.spki)),
        "sha256": hex::encode(sha256(&der)),
        form: text,
    });
    input_output::print(&result.to_string())
}

fn make(args: &Args, key: &Key, version: &KeyVersion, over: &OverKey) -> Result<Vec<u8>, Failure> {
    let IssuerArgs { issuer, ca_certificate, self_signed, request } = &args.issuer;
    if let Some(folder) = issuer {
        return Ok(Ca::load(folder).map_err(instead)?.issue_over_key(over)?);
    }
    if let (Some(certificate), Some(key)) = (ca_certificate, &args.ca_key) {
        return Ok(GivenCa::read(certificate, key)?.issue_over_key(over)?);
    }
    if !self_signed && !request {
        return Ok(over.by_throw_away_ca()?);
    }
    if !version.sign_algorithms.iter().any(|algorithm| algorithm == SIGN_ALGORITHM) {
        let message = format!(
            "version {} of {} may not sign with {SIGN_ALGORITHM}",
            version.version, key.name
        );
        return Err(Failure::new(Exit::Usage, message).advise(
            "Have its certificate signed by a CA: --issuer, --ca-certificate with --ca-key, or nothing for one that is thrown away.",
        ));
    }
    // rcgen asks for the signature and passes no reason on.
    let failure = RefCell::new(None);
    let sign = |message: &[u8]| {
        let signed = args.connection.call(async |client| {
            let options = SignOptions { key_version: Some(version.version) };
            client.sign(&key.name, &sha256(message), SIGN_ALGORITHM, options).await
        });
        signed.map(|signed| signed.signature).map_err(|error| {
            let said = error.to_string();
            failure.replace(Some(error));
            said
        })
    };
    let made = if *request { over.request(&sign) } else { over.self_signed(&sign) };
    made.map_err(|error: PkiError| failure.take().unwrap_or_else(|| error.into()))
}

/// A CA that was not made here signs all the same.
fn instead(error: PkiError) -> Failure {
    let is_foreign = matches!(error, PkiError::NotOurs(_));
    let failure = Failure::from(error);
    if !is_foreign {
        return failure;
    }
    failure.advise("Name the files of another CA with --ca-certificate FILE and --ca-key FILE.")
}

/// Certificate only: programs that want a PFX for a public key get no private one.
fn pkcs12(der: &[u8], alias: &str, password: &str) -> Result<Vec<u8>, Failure> {
    let failed = |error: p12_keystore::error::Error| {
        Failure::new(Exit::Failure, format!("the PKCS#12 cannot be made: {error}"))
    };
    let certificate = Certificate::from_der(der).map_err(failed)?;
    let mut store = KeyStore::new();
    store.add_entry(alias, KeyStoreEntry::Certificate(certificate));
    store.writer(password).write().map_err(failed)
}

/// The first line of the file.
fn password(args: &Args) -> Result<Zeroizing<String>, Failure> {
    let Some(file) = &args.password_file else { return Ok(Zeroizing::default()) };
    let secret = claviger_provider_api::secret::read_secret_file(file)
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    let text = std::str::from_utf8(secret.expose()).map_err(|_| {
        Failure::new(Exit::Configuration, format!("{}: is not UTF-8", file.display()))
    })?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
