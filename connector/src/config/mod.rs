//! The configuration: one TOML file, parsed and checked as a whole; afterwards it is trusted.

mod database;
mod sections;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_configuration::{ConfigErrors, read, read_file};
use claviger_tokens::{Person, Settings};
use ipnet::IpNet;
use zeroize::Zeroizing;

pub use values::Rate;

/// Where the configuration is unless `--config` names another file.
pub const DEFAULT_PATH: &str = "/etc/claviger/connector.toml";

const MAX_BYTES: u64 = 1 << 20;

/// The whole configuration.
#[derive(Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Where users' clients connect.
    pub server: Server,
    /// Where `/metrics` and `/health` are for operators, without TLS; none: nowhere.
    pub operations: Option<SocketAddr>,
    /// Who signs users' tokens.
    pub issuer: Settings,
    /// Where keys are unwrapped, and how they are stored.
    pub keys: Keys,
    /// Where users' wrapped keys are stored.
    pub database: Database,
    /// What one user and one address can take.
    pub limits: Limits,
    /// Approvals of new devices; none: they are off.
    pub approvals: Option<Approvals>,
    /// The log.
    pub log: Log,
}

/// `[server]`.
#[derive(Debug)]
pub struct Server {
    /// The address of the one listener.
    pub listen: SocketAddr,
    /// HTTPS, or plain HTTP behind a proxy.
    pub transport: Transport,
    /// The web vault's origin, as a browser writes it: `https://vault.example.org`.
    pub web_vault: String,
    /// Open connections; a further one waits to be accepted. Default: 1024.
    pub max_connections: u32,
    /// How long a stop waits for requests in flight. Default: 20 seconds.
    pub drain_timeout: Duration,
}

/// How requests arrive.
#[derive(Debug)]
pub enum Transport {
    /// TLS 1.2 or 1.3 with this certificate; both files are PEM, and read again when they change.
    Tls {
        /// The certificate, followed by its intermediates.
        certificate: PathBuf,
        /// Its private key.
        private_key: PathBuf,
    },
    /// Plain HTTP, from these proxies alone. What they write into `X-Forwarded-For` is believed.
    Proxied(Vec<IpNet>),
}

/// `[keys]`.
#[derive(Debug)]
pub struct Keys {
    /// The client file of the daemon's callers.
    pub client: PathBuf,
    /// The name of the wrapping key.
    pub key: String,
    /// How users' keys are stored.
    pub mode: Mode,
    /// The deadline of a call to the daemon, waiting and trying again included. Default: 10 seconds.
    pub timeout: Duration,
}

/// How the keys of users are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the original does: each under one AES key, which is unwrapped at the start and kept.
    SharedKey,
    /// Each under the RSA key, and unwrapped for each request; nothing is kept.
    PerUser,
}

/// `[database]`.
pub enum Database {
    /// A file of this process's own; made if it is missing.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(DatabaseServer),
    /// A MySQL or MariaDB server.
    MySql(DatabaseServer),
}

/// Where a database server is, and who we are there.
pub struct DatabaseServer {
    /// A name or an address; with a slash at its beginning the Unix socket (MySQL) or its folder
    /// (PostgreSQL).
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The password; none where the socket or the server needs none.
    pub password: Option<Zeroizing<String>>,
    /// The database.
    pub name: String,
    /// The CA of the server's certificate, PEM; none: no TLS.
    pub ca: Option<PathBuf>,
    /// Connections at most. Default: 16.
    pub connections: u32,
}

/// `[limits]`; none: no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests with a good token, per user. Default: 60 a minute.
    pub user: Option<Rate>,
    /// Requests without a good token, per address (IPv6: per /64). Default: 120 a minute.
    pub refused: Option<Rate>,
}

/// `[approvals]`.
#[derive(Debug)]
pub struct Approvals {
    /// The daemon's name of the organisation's key.
    pub key: String,
    /// Who signs the ID tokens of approvers.
    pub issuer: Settings,
    /// The client that approvers sign in with, which is the audience of their ID tokens.
    pub client_id: String,
    /// Which of the issuer's people may approve.
    pub approvers: Person,
    /// What else the page asks for when an approver signs in, beside `openid`.
    pub scope: String,
    /// How long an approval may be good; the daemon's grant says so too. Default: 15 minutes.
    pub max_age: Duration,
    /// How long another device of the user has time to approve. Default: 15 minutes.
    pub device_expiry: Duration,
    /// How long an approver has time. Default: 7 days.
    pub admin_expiry: Duration,
    /// New requests, and looks at them with a wrong code, per address. Default: 30 an hour.
    pub requests: Option<Rate>,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// One JSON object per line instead of text.
    pub json: bool,
    /// What to log, as tracing's filters say it.
    pub filter: String,
}

impl Config {
    /// Reads, parses and checks a file. Others may read it, as it holds no secret, but not write it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let hint =
            if path == Path::new(DEFAULT_PATH) { "; name another file with --config" } else { "" };
        Self::parse(path, &read_file(path, MAX_BYTES, hint)?)
    }

    /// Parses and checks `text`, which came from `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigErrors> {
        let config = read(path, text, |root| sections::config(path, root))?;
        Ok(config.expect("what is left out was reported"))
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Sqlite(file) => format!("SQLite {}", file.display()),
            Self::Postgres(server) => format!("PostgreSQL {} on {}", server.name, server.host),
            Self::MySql(server) => format!("MySQL {} on {}", server.name, server.host),
        })
    }
}

#[cfg(test)]
mod tests;
