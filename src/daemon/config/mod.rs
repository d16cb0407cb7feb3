//! The configuration: one TOML file, parsed and checked as a whole; afterwards it is trusted.
//!
//! These are the checked types. [`Config::parse`] makes them from text, and says file, line, field
//! and what to write instead where it cannot.
//!
//! - `load`: the file itself, and what only `serve` asks for
//! - `parse`: the sections together; `server`, `sinks`, `providers`, `keys`, `issuers`, `callers`,
//!   `grants`: each one; `token_matches`: callers by token; `narrowness`: whether lists of values restrict
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
mod providers;
mod server;
mod signers;
mod sinks;
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
use claviger_provider_api::{Algorithm, SecretSource, SignAlgorithm};
use claviger_tokens::{Audiences, ClaimValue, Rules, Settings};

pub use self::changes::{changes, needs_restart};
pub(crate) use self::load::version_path;
pub use self::load::{DEFAULT_PATH, PATH_VARIABLE, path_or_default};
pub use self::signers::{Policy, Refused as SignatureRefused, Signature, Signer, SignerKey};
pub(crate) use self::values::name as check_name;
use crate::daemon::backends::ProviderConfig;

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

/// `[providers.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Whether the daemon refuses to start while this backend cannot be reached.
    pub required: bool,
    /// The provider's own options.
    pub config: ProviderConfig,
    /// Where its secrets are read from, by the names of its options, such as `pin`.
    pub secrets: BTreeMap<String, SecretSource>,
    /// The files and folders it uses beside them, by the names of its options, such as `module`.
    pub files: BTreeMap<String, PathBuf>,
}

/// `[keys.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Newest (highest number) first; at least one.
    pub versions: Vec<Version>,
    /// Which of several replicas that serve is asked first. Default: in the order of the file.
    pub balance: Balance,
}

/// Which of several replicas that serve is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The first in the order of the configuration; the others only where it does not serve.
    #[default]
    Priority,
    /// The one with the fewest operations that it has not answered.
    LeastBusy,
}

/// `[[keys.NAME.versions]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// From 1.
    pub version: u32,
    /// What it may be used for.
    pub state: State,
    /// Its own list, else its key's; the default first. May be empty for a key that only signs.
    pub algorithms: Vec<Algorithm>,
    /// Its own list, else its key's.
    pub sign_algorithms: Vec<SignAlgorithm>,
    /// Where its private half lives; at least one.
    pub replicas: Vec<Replica>,
    /// SHA-256 of its SubjectPublicKeyInfo. Required by `serve`; `config pin` fills it in.
    pub public_key_sha256: Option<[u8; 32]>,
    /// An X.509 certificate for the public key, PEM.
    pub certificate: Option<PathBuf>,
}

/// What a version may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Wraps, unwraps, signs.
    Active,
    /// Unwraps and verifies.
    UnwrapOnly,
    /// Nothing; answers as a key that is not yours.
    Disabled,
}

/// One place where a version's private half lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    /// A name from `[providers]`.
    pub provider: String,
    /// In the backend's own standard form.
    pub locator: String,
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

/// `[[callers]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its name, in logs, metrics and audit.
    pub name: String,
    /// Any of these makes a peer this caller.
    pub matches: Vec<Match>,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// What it may spend, per key.
    pub limits: Limits,
}

/// One identity of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Match {
    /// The identity itself.
    pub identity: Identity,
    /// The client CA bundle that must have issued it; required where there are several bundles.
    pub ca: Option<String>,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The one URI SAN of a client certificate.
    Spiffe(String),
    /// A DNS SAN of a client certificate without a URI SAN, compared exactly, in lower case.
    Dns(String),
    /// The user of the process at the other end of a Unix socket; never 0 or 65534.
    Uid(u32),
    /// A token in the call's metadata.
    Token(TokenMatch),
}

/// Which tokens are a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenMatch {
    /// A name from `[issuers]`.
    pub issuer: String,
    /// `sub`, to the letter; none: any, as far as the claims are right.
    pub subject: Option<String>,
    /// Each of these claims is one of its values, or a list with one of them.
    pub claims: BTreeMap<String, Vec<ClaimValue>>,
    /// What the connection must show besides: a certificate's name or a uid; none: whatever lets it in.
    pub peer: Option<Box<Identity>>,
}

/// What a caller may do with which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Names from `[keys]`.
    pub keys: Vec<String>,
    /// What it may do with them.
    pub operations: Vec<Operation>,
    /// `wrapped_sha256`: the only wrapped values that may be unwrapped and rewrapped; none: all.
    pub wrapped_sha256: Option<Vec<[u8; 32]>>,
    /// `to`: the keys that a rewrap may wrap for, by their names in `[keys]`.
    pub to: Vec<String>,
    /// `to_public_keys`: the public keys of others that a rewrap may wrap for.
    pub to_public_keys: PublicKeys,
    /// `to_approved`: whose approval lets a rewrap wrap for any public key, for this value and a time.
    pub to_approved: Option<ToApproved>,
}

/// Whose approval lets a rewrap go to a public key that is not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToApproved {
    /// A name from `[issuers]`.
    pub issuer: String,
    /// For whom the ID token must be; none: as the issuer says.
    pub audiences: Option<Audiences>,
    /// `sub`, to the letter; none: any, as far as the claims are right.
    pub subject: Option<String>,
    /// Each of these claims is one of its values, or a list with one of them.
    pub claims: BTreeMap<String, Vec<ClaimValue>>,
    /// How long ago the person may have signed in, and how long the approval may hold. Default: 15
    /// minutes.
    pub max_age: Duration,
}

/// Public keys, by the SHA-256 of their SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKeys {
    /// `"any"`: a caller with this grant can read the key material, as with [`Operation::Unwrap`].
    Any,
    /// These; none where the option is left out.
    Only(Vec<[u8; 32]>),
}

/// What can be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Wrap.
    Wrap,
    /// Unwrap and UnwrapBatch.
    Unwrap,
    /// Rewrap and RewrapBatch, to the targets that the grant names.
    Rewrap,
    /// Sign.
    Sign,
    /// Verify.
    Verify,
    /// ListKeys, GetKey and the key's health.
    Read,
}

impl Operation {
    /// Every operation, in the order in which they are listed to callers.
    pub const ALL: [Self; 6] =
        [Self::Wrap, Self::Unwrap, Self::Rewrap, Self::Sign, Self::Verify, Self::Read];

    /// The word in configuration, audit, metrics and on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::Read => "read",
        }
    }
}

/// What a caller may spend on each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls. Default: none.
    pub rate: Option<Rate>,
    /// Unwraps that failed. Default: 100 an hour.
    pub failed_unwraps: Option<Rate>,
    /// Unwraps beyond which the daemon alarms; it refuses none for it. Default: 100 an hour where
    /// there is no `rate`.
    pub unwraps_alarm: Option<Rate>,
}

impl Limits {
    /// One daemon's share where `fleet` of them serve the same callers. None of a limit that is less
    /// than one for each.
    pub(crate) fn shared_by(rate: Rate, fleet: u32) -> Option<Rate> {
        let count = rate.count / fleet;
        (count > 0).then_some(Rate { count, ..rate })
    }
}

impl Default for Limits {
    fn default() -> Self {
        let hundred_an_hour = Some(Rate { count: 100, per: Duration::from_hours(1) });
        Self { rate: None, failed_unwraps: hundred_an_hour, unwraps_alarm: hundred_an_hour }
    }
}

/// So many in so long: `"50/s"`, `"100/h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    /// A second, a minute, an hour or a day.
    pub per: Duration,
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
