//! `claviger pki`: a development CA, the certificates it issues, and what it revokes.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::bytes;
use super::failure::{Exit, Failure};
use crate::pki::{self, Ca, CaOptions, ClientName, Issued, PkiError};

const DAY: Duration = Duration::from_hours(24);

/// The commands below `claviger pki`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a CA in a folder: ca.crt, ca.key and an empty revocation list, ca.crl
    #[command(after_help = "Example:\n  claviger pki init ./pki")]
    Init {
        /// The CA's folder; made if it is missing
        dir: PathBuf,
        /// The name in the CA's certificate
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
    },
    /// Issue a certificate for a server or for a client
    #[command(after_help = "\
Examples:
  claviger pki issue ./pki --server localhost --server 127.0.0.1 --out server
  claviger pki issue ./pki --spiffe spiffe://example.org/key-connector --out key-connector")]
    Issue(IssueArgs),
    /// Revoke a certificate and make the revocation list anew
    #[command(after_help = "\
Examples:
  claviger pki revoke ./pki --certificate key-connector.crt
  claviger pki revoke ./pki --serial 5f0c…")]
    Revoke(RevokeArgs),
    /// Make the revocation list anew before it ends, after 7 days
    #[command(after_help = "Example:\n  claviger pki crl ./pki")]
    Crl {
        /// The CA's folder
        dir: PathBuf,
    },
}

/// The arguments of `claviger pki issue`.
#[derive(clap::Args, Debug)]
pub struct IssueArgs {
    /// The CA's folder
    dir: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// Where to write: PATH.crt and PATH.key, neither of which may exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How long the certificate lasts
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
}

/// Whom a certificate is for.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// A server's DNS name or IP address; may be given several times
    #[arg(long, value_name = "NAME")]
    server: Vec<String>,
    /// A client's SPIFFE ID
    #[arg(long, value_name = "ID")]
    spiffe: Option<String>,
    /// A client's DNS name
    #[arg(long, value_name = "NAME")]
    dns: Option<String>,
}

/// The arguments of `claviger pki revoke`.
#[derive(clap::Args, Debug)]
pub struct RevokeArgs {
    /// The CA's folder
    dir: PathBuf,
    /// The certificate's serial number, hexadecimal
    #[arg(long, value_name = "HEX", required_unless_present = "certificate")]
    serial: Option<String>,
    /// The certificate itself, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "serial")]
    certificate: Option<PathBuf>,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let (text, result) = match command {
        Command::Init { dir, name } => init(dir, name.as_deref()),
        Command::Issue(args) => issue(args),
        Command::Revoke(args) => revoke(args),
        Command::Crl { dir } => {
            let crl = write_crl(&Ca::load(dir)?, dir)?;
            Ok((format!("wrote {crl}"), json!({ "crl": crl })))
        }
    }?;
    bytes::print(&if json { result.to_string() } else { text })
}

fn init(dir: &Path, name: Option<&str>) -> Result<(String, Value), Failure> {
    let mut options = CaOptions::default();
    if let Some(name) = name {
        name.clone_into(&mut options.common_name);
    }
    let ca = Ca::create(dir, &options)?;
    let crl = write_crl(&ca, dir)?;
    let certificate = dir.join("ca.crt").display().to_string();
    let text = format!("wrote {certificate} (give it to servers and clients) and {crl}");
    Ok((text, json!({ "certificate": certificate, "crl": crl })))
}

fn issue(args: &IssueArgs) -> Result<(String, Value), Failure> {
    let ca = Ca::load(&args.dir)?;
    let validity = DAY * args.days;
    let Subject { server, spiffe, dns } = &args.subject;
    let client = spiffe.clone().map(ClientName::Spiffe).or(dns.clone().map(ClientName::Dns));
    let issued = match &client {
        Some(name) => ca.issue_client(name, validity)?,
        None => ca.issue_server(server, validity)?,
    };
    let [certificate, private_key] = ["crt", "key"].map(|kind| with_suffix(&args.out, kind));
    issued.write(&certificate, &private_key)?;
    let (certificate, private_key) = (certificate.display(), private_key.display());
    let Issued { serial, not_after, .. } = &issued;
    let until = not_after.date();
    let text = format!("wrote {certificate} and {private_key}: serial {serial}, until {until}");
    let result = json!({
        "certificate": certificate.to_string(),
        "private_key": private_key.to_string(),
        "serial": serial,
        "not_after": not_after.unix_timestamp(),
    });
    Ok((text, result))
}

fn revoke(args: &RevokeArgs) -> Result<(String, Value), Failure> {
    let ca = Ca::load(&args.dir)?;
    let newly = match (&args.serial, &args.certificate) {
        (Some(serial), _) => ca.revoke_serial(serial)?,
        (None, Some(file)) => {
            let pem = std::fs::read(file).map_err(|error| {
                let file = file.display();
                Failure::new(Exit::Usage, format!("--certificate: cannot read {file}: {error}"))
            })?;
            ca.revoke_certificate(&pem)?
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let crl = write_crl(&ca, &args.dir)?;
    let what = if newly { "revoked" } else { "was revoked before" };
    let text = format!("{what}; wrote {crl}, which the daemon must be given");
    Ok((text, json!({ "newly_revoked": newly, "crl": crl })))
}

fn write_crl(ca: &Ca, dir: &Path) -> Result<String, Failure> {
    let path = dir.join("ca.crl");
    pki::write_replacing(&path, ca.crl(pki::DEFAULT_CRL_VALIDITY)?.as_bytes())?;
    Ok(path.display().to_string())
}

/// Appends: `kc.example.org` becomes `kc.example.org.crt`.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        let exit = match &error {
            PkiError::Invalid(_) | PkiError::NotOurs(_) => Exit::Usage,
            PkiError::Damaged { .. } | PkiError::Secret(_) => Exit::Configuration,
            PkiError::Exists(_)
            | PkiError::FileExists(_)
            | PkiError::Io { .. }
            | PkiError::Generate(_) => Exit::Failure,
        };
        let message = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::new(exit, message)
    }
}
