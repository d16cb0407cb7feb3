//! The configuration: one TOML file, parsed and checked as a whole; afterwards it is trusted.
//!
//! These are the checked types. [`Config::parse`] makes them from text, and says file, line, field
//! and what to write instead where it cannot.
//!
//! - `places`, `rights`: the types of keys and where they live, and of callers and what they may do
//! - `load`: the file itself, and what only `serve` asks for
//! - `parse`: the sections together; `server`, `sinks`, `telemetry`, `providers`, `keys`, `issuers`,
//!   `callers`, `grants`: each one; `token_matches`: callers by token; `narrowness`: whether lists of values restrict
//!   anything
//! - `values`: what one may look like; its place in the file and what is wrong: `claviger-configuration`
//! - `canonical`, `signers`: what signers sign, and who they are
//! - `changes`: what differs between two configurations

mod callers;
mod canonical;
mod changes;
mod grants;
mod issuers;
mod keys;
mod load;
mod narrowness;
mod parse;
mod places;
mod providers;
mod rights;
mod server;
mod signers;
mod sinks;
mod telemetry;
mod token_matches;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use claviger_configuration::joined;
pub use claviger_configuration::{ConfigError, ConfigErrors};
use claviger_tokens::{Rules, Settings};

pub use self::changes::{changes, needs_restart};
pub(crate) use self::load::version_path;
pub use self::load::{DEFAULT_PATH, PATH_VARIABLE, path_or_default};
pub use self::places::{Balance, Key, Provider, Replica, State, Version};
pub use self::rights::{
    Caller, Grant, Identity, Limits, Match, Operation, PublicKeys, Rate, ToApproved, TokenMatch,
};
pub use self::signers::{Policy, Refused as SignatureRefused, Signature, Signer, SignerKey};
pub use self::telemetry::{OtlpCollector, OtlpEndpoint, Telemetry};
pub(crate) use self::values::name as check_name;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, for logs and audit.
    pub sha256: [u8; 32],
    /// What was parsed.
    pub source: Arc<str>,
    /// Sockets, TLS, limits of the server as a whole.
    pub server: Server,
    /// The operations listener, if there is one.
    pub operations: Option<Operations>,
    /// Providers by name.
    pub providers: BTreeMap<String, Provider>,
    /// Keys by name.
    pub keys: BTreeMap<String, Key>,
    /// Issuers of tokens by name.
    pub issuers: BTreeMap<String, Issuer>,
    /// Who may call, and what for. `callers[i]` has the caller slot `i + 1`.
    pub callers: Vec<Caller>,
    /// The audit log.
    pub audit: Audit,
    /// The log.
    pub log: Log,
    /// `[telemetry]`: where traces go; none: there are none.
    pub telemetry: Option<Telemetry>,
    /// Who must have signed it.
    pub policy: Option<Policy>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where to listen; at least one.
    pub listen: Vec<Listen>,
    /// The addresses among `listen` where `client_certificate = "optional"`: a token is enough there.
    pub without_certificate: Vec<SocketAddr>,
    /// Durable and our own; without it no PIN is ever used.
    pub state_dir: Option<PathBuf>,
    /// Callers to refuse at once.
    pub denied_callers: Option<PathBuf>,
    /// Required where a TCP socket listens.
    pub tls: Option<Tls>,
    /// Whether authenticated callers may use server reflection. Default: true.
    pub reflection: bool,
    /// Open connections in all; beyond it an idle one makes room, or else the new one is closed.
    /// Fewer, where there are not so many file descriptors. Default: 16384.
    pub max_connections: usize,
    /// Open connections of one identity or uid, and handshakes of one address; more are closed.
    /// Default: a quarter of `max_connections`, and at least 16.
    pub max_connections_per_caller: usize,
    /// Calls in flight in all; of one caller an eighth of it, at least 128. More wait for room. Default:
    /// 1024.
    pub max_concurrent_calls: usize,
    /// Streams of one connection. Default: 128.
    pub max_streams_per_connection: u32,
    /// TLS handshakes at a time. Default: 256.
    pub max_handshakes: usize,
    /// How long a TLS handshake may take. Default: 5 s.
    pub handshake_timeout: Duration,
    /// After this a connection is asked to go (GOAWAY) and its calls may end. Default: 1 h.
    pub max_connection_age: Duration,
    /// How many daemons serve the same callers: `rate` and `failed_unwraps` are for all of them together,
    /// so each takes its share. 1 to 100. Default: 1.
    pub fleet: u32,
    /// How long connections are still accepted after `/readyz` has gone down. Default: 0 s.
    pub drain_delay: Duration,
    /// How long a drain waits for calls without an answer. Default: 30 s.
    pub drain_timeout: Duration,
}

/// A socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `"0.0.0.0:8443"`: mutual TLS.
    Tcp(SocketAddr),
    /// `"unix:/run/claviger/claviger.sock"`: peer credentials, no TLS.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    /// As in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[server.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM; a secret file.
    pub private_key: PathBuf,
    /// Bundles of client CAs, PEM, by name; at least one.
    pub client_ca: BTreeMap<String, PathBuf>,
    /// CRLs, PEM or DER. If there is one, every client CA needs one.
    pub crl: Vec<PathBuf>,
    /// How long after `nextUpdate` a CRL is still accepted. Default: 72 h.
    pub crl_grace: Duration,
    /// `min_version = "1.2"` allows TLS 1.2; default "1.3".
    pub allow_tls12: bool,
}

/// `[operations]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operations {
    /// Where /livez, /readyz and /metrics are. Off loopback it speaks TLS.
    pub listen: SocketAddr,
    /// Names of callers that may read /metrics. On loopback without TLS any user of the host may.
    pub readers: Vec<String>,
}

/// `[issuers.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What `iss` is and where its keys are.
    pub settings: Settings,
    /// A SPIFFE trust domain: its JWT-SVIDs need no `iss`, and no other `sub` is good.
    pub trust_domain: Option<String>,
    /// What is demanded of its tokens.
    pub rules: Rules,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audit {
    /// `off = true`.
    Off,
    /// `file = "…"`: one JSON line per record, synced before key material leaves.
    File(Box<AuditFile>),
}

/// `[audit]` with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFile {
    /// The file.
    pub path: PathBuf,
    /// `group_readable = true`: files that are made have mode 0640, for what ships the log.
    pub group_reads: bool,
    /// When the daemon goes on in a new file by itself; by default never.
    pub rotation: Rotation,
    /// `checkpoints = { … }`: signed statements of how long the log is and what its last line is.
    pub checkpoints: Option<Checkpoints>,
    /// `[audit.sinks.NAME]`: where lines go beside the file.
    pub sinks: Vec<Sink>,
    /// A call whose line is not where it must be after so long is refused. Default: 1.5 s.
    pub hang_limit: Duration,
}

/// `[audit.sinks.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SinkKind,
    /// Whether calls are answered without it.
    pub best_effort: bool,
    /// So many bytes of the log it may be behind before calls are refused; of one that no call needs, before
    /// lines are left out. Default: 0, and 1 GiB where no call needs it.
    pub spool: u64,
}

/// The kinds of sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// `type = "syslog"`: RFC 5424.
    Syslog {
        /// `address`.
        address: SyslogAddress,
    },
    /// `type = "journald"`: systemd's journal, in its native protocol.
    Journald {
        /// `socket`. Default: `/run/systemd/journal/socket`.
        socket: PathBuf,
    },
    /// `type = "otlp"`: log records of OpenTelemetry.
    Otlp {
        /// Where they go.
        collector: Box<OtlpCollector>,
        /// `service_name`. Default: `claviger`.
        service_name: String,
    },
}

/// Where a syslog collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// `"unix:/dev/log"`: a socket of datagrams.
    Unix(PathBuf),
    /// `"tls:siem.example.org:6514"` (RFC 5425).
    Tls(TlsSink),
}

/// A collector over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSink {
    /// Its DNS name or address, which its certificate must have.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `ca`: the CAs that vouch for it, PEM.
    pub ca: PathBuf,
    /// `certificate` and `private_key`: what it is shown, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[cfg(test)]
impl AuditFile {
    /// This file and nothing else, on a machine that is slow.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            group_reads: false,
            rotation: Rotation::default(),
            checkpoints: None,
            sinks: Vec::new(),
            hang_limit: Duration::from_mins(1),
        }
    }
}

/// `audit.max_size`, `audit.max_age` and `audit.keep`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// A file of so many bytes is left for a new one.
    pub max_size: Option<u64>,
    /// A file is left at the first record of another period of this length; periods are counted from
    /// 1970 on, so that a day begins at midnight UTC.
    pub max_age: Option<Duration>,
    /// So many files that the daemon left stay; none: all.
    pub keep: Option<usize>,
}

/// `audit.checkpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// The log's name in its checkpoints.
    pub origin: String,
    /// What signs them.
    pub signed_by: SignedBy,
    /// The second file that they are kept in.
    pub file: PathBuf,
    /// The longest time from a record to the checkpoint behind it. Default: 10 minutes.
    pub every: Duration,
}

/// What signs checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// `key = "…"`: the file with an Ed25519 key (PKCS#8 in PEM).
    File(PathBuf),
    /// `signed_by = "…"`: the newest active version of a key in `[keys]`, with its first signing
    /// algorithm. No caller is granted to sign with it.
    Key(String),
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `format = "text"` (default) or `"json"`.
    pub json: bool,
    /// A filter as of the `tracing` crates, such as `info` or `claviger=debug`. Default: `info`.
    pub filter: String,
}
