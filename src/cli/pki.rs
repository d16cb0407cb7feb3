//! `claviger pki`: a development CA, the certificates it issues, and what it revokes.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Exit, Failure};
use super::input_output;
use crate::pki::{Ca, CaOptions, CertificateRequest, ClientName, Issued, IssuedRecord, PkiError};

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
  claviger pki issue ./pki --spiffe spiffe://example.org/key-connector --out key-connector
  claviger pki issue ./pki --dns kc.example.org --request kc.csr --out kc")]
    Issue(IssueArgs),
    /// Revoke a certificate and make the revocation list anew
    #[command(after_help = "\
Examples:
  claviger pki revoke ./pki --certificate key-connector.crt
  claviger pki revoke ./pki --serial 5f0c…")]
    Revoke(RevokeArgs),
    /// Issue a certificate again, for a new key: the same names, a later end
    #[command(after_help = "\
Example:
  claviger pki renew ./pki --certificate key-connector.crt --out key-connector-2027")]
    Renew(RenewArgs),
    /// Show what was issued: serial, name, end, and whether it is revoked
    #[command(after_help = "\
Examples:
  claviger pki list ./pki
  claviger pki list ./pki --all --json")]
    List {
        /// The CA's folder
        dir: PathBuf,
        /// Those that have ended, too
        #[arg(long)]
        all: bool,
    },
    /// Make the revocation list anew before it ends
    #[command(after_help = "\
Examples:
  claviger pki crl ./pki
  claviger pki crl ./pki --days 30")]
    Crl {
        /// The CA's folder
        dir: PathBuf,
        /// How long this list and later ones last [default: as long as the one before; at first 7]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: Option<u32>,
    },
}

/// The arguments of `claviger pki issue`.
#[derive(clap::Args, Debug)]
pub struct IssueArgs {
    /// The CA's folder
    dir: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// For the key of this request (PKCS#10, PEM or DER); its names and extensions are not looked at
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Where to write: PATH.crt and, without --request, PATH.key, neither of which may exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How long the certificate lasts
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
}

/// The arguments of `claviger pki renew`.
#[derive(clap::Args, Debug)]
pub struct RenewArgs {
    /// The CA's folder
    dir: PathBuf,
    /// The certificate to renew, PEM; it stays valid until it ends or is revoked
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Where to write: PATH.crt and PATH.key, neither of which may exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How long the new certificate lasts
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
        Command::Renew(args) => renew(args),
        Command::List { dir, all } => list(&Ca::load(dir)?, *all),
        Command::Crl { dir, days } => crl(&Ca::load(dir)?, *days),
    }?;
    input_output::print(&if json { result.to_string() } else { text })
}

fn init(dir: &Path, name: Option<&str>) -> Result<(String, Value), Failure> {
    let mut options = CaOptions::default();
    if let Some(name) = name {
        name.clone_into(&mut options.common_name);
    }
    let ca = Ca::create(dir, &options)?;
    let crl = ca.write_crl(None)?.0.display().to_string();
    let certificate = dir.join("ca.crt").display().to_string();
    let text = format!("wrote {certificate} (give it to servers and clients) and {crl}");
    Ok((text, json!({ "certificate": certificate, "crl": crl })))
}

fn issue(args: &IssueArgs) -> Result<(String, Value), Failure> {
    let ca = Ca::load(&args.dir)?;
    let validity = DAY * args.days;
    let Subject { server, spiffe, dns } = &args.subject;
    let client = spiffe.clone().map(ClientName::Spiffe).or(dns.clone().map(ClientName::Dns));
    if let Some(file) = &args.request {
        let request = CertificateRequest::parse(&read(file, "--request")?)?;
        let signed = match &client {
            Some(name) => ca.sign_client(name, &request, validity)?,
            None => ca.sign_server(server, &request, validity)?,
        };
        let certificate = with_suffix(&args.out, "crt");
        signed.write(&certificate)?;
        return Ok(told(&certificate, None, &signed.serial, signed.not_after));
    }
    let issued = match &client {
        Some(name) => ca.issue_client(name, validity)?,
        None => ca.issue_server(server, validity)?,
    };
    written(&issued, &args.out)
}

fn renew(args: &RenewArgs) -> Result<(String, Value), Failure> {
    let old = read(&args.certificate, "--certificate")?;
    let issued = Ca::load(&args.dir)?.renew(&old, DAY * args.days)?;
    written(&issued, &args.out)
}

/// Writes certificate and key, and tells so.
fn written(issued: &Issued, out: &Path) -> Result<(String, Value), Failure> {
    let [certificate, private_key] = ["crt", "key"].map(|kind| with_suffix(out, kind));
    issued.write(&certificate, &private_key)?;
    Ok(told(&certificate, Some(&private_key), &issued.serial, issued.not_after))
}

fn told(
    certificate: &Path,
    private_key: Option<&Path>,
    serial: &str,
    not_after: OffsetDateTime,
) -> (String, Value) {
    let shown = certificate.display();
    let and = private_key.map_or(String::new(), |key| format!(" and {}", key.display()));
    let text = format!("wrote {shown}{and}: serial {serial}, until {}", not_after.date());
    let mut result = json!({
        "certificate": shown.to_string(),
        "serial": serial,
        "not_after": not_after.unix_timestamp(),
    });
    if let Some(key) = private_key {
        result["private_key"] = json!(key.display().to_string());
    }
    (text, result)
}

fn list(ca: &Ca, all: bool) -> Result<(String, Value), Failure> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut issued = ca.issued()?;
    issued.retain(|record| all || record.not_after > now);
    let date = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map(OffsetDateTime::date);
    let state = |record: &IssuedRecord| match record.revoked_at {
        Some(_) => "revoked",
        None if record.not_after <= now => "ended",
        None => "valid",
    };
    let line = |record: &IssuedRecord| {
        let until = date(record.not_after).map_or_else(|_| "?".to_owned(), |day| day.to_string());
        format!("{}  {until}  {:<7}  {}", record.serial, state(record), record.name)
    };
    let lines: Vec<_> = issued.iter().map(line).collect();
    let text = if lines.is_empty() {
        "nothing was issued that has not ended".to_owned()
    } else {
        lines.join("\n")
    };
    let objects: Vec<_> = issued
        .iter()
        .map(|record| {
            json!({
                "serial": record.serial,
                "name": record.name,
                "not_after": record.not_after,
                "revoked_at": record.revoked_at,
                "state": state(record),
            })
        })
        .collect();
    Ok((text, json!({ "issued": objects })))
}

fn crl(ca: &Ca, days: Option<u32>) -> Result<(String, Value), Failure> {
    let (path, validity) = ca.write_crl(days.map(|days| DAY * days))?;
    let (path, days) = (path.display().to_string(), validity.as_secs() / DAY.as_secs());
    Ok((format!("wrote {path}: for {days} days"), json!({ "crl": path, "days": days })))
}

fn read(file: &Path, option: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| {
        let file = file.display();
        Failure::new(Exit::Usage, format!("{option}: cannot read {file}: {error}"))
    })
}

fn revoke(args: &RevokeArgs) -> Result<(String, Value), Failure> {
    let ca = Ca::load(&args.dir)?;
    let newly = match (&args.serial, &args.certificate) {
        (Some(serial), _) => ca.revoke_serial(serial)?,
        (None, Some(file)) => ca.revoke_certificate(&read(file, "--certificate")?)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let crl = ca.write_crl(None)?.0.display().to_string();
    let what = if newly { "revoked" } else { "was revoked before" };
    let text = format!("{what}; wrote {crl}, which the daemon must be given");
    Ok((text, json!({ "newly_revoked": newly, "crl": crl })))
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
