//! Where the daemons are, and which certificate this program shows them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The default of [`Config::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The default of [`Config::patience`].
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// The default of [`Config::hedge`].
pub const DEFAULT_HEDGE: Duration = Duration::from_secs(1);
/// The default of [`Config::max_idle`]. The daemon cuts a connection that does not answer its ping
/// within 20 seconds, and a blocking client answers only while a call is under way.
pub const DEFAULT_MAX_IDLE: Duration = Duration::from_secs(10);

/// What a [`crate::Client`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the daemons listen: at least one, the preferred one first. Each can answer any call.
    pub endpoints: Vec<Endpoint>,
    /// The deadline of each call, connecting and trying again included; sent to the daemon.
    pub timeout: Duration,
    /// How long a call goes on trying while no endpoint can be reached, within `timeout`. Zero: it
    /// fails at once. Not looked at with `wait`.
    pub patience: Duration,
    /// Whether a call is tried again until its deadline while every endpoint fails it for a reason
    /// that passes by itself: it cannot be reached, the connection breaks, it answers UNAVAILABLE, or
    /// RESOURCE_EXHAUSTED with a RetryInfo that fits into the time that is left. When a call has
    /// waited its whole time without success, the next ones wait a second at most until one
    /// succeeds, as each waiting call of a blocking client holds a thread.
    pub wait: bool,
    /// An endpoint that has not answered an idempotent call (unwrap, verify, a description, health)
    /// or let itself be connected to for so long is left to it, and the next one is asked too: the
    /// first answer counts, the other call is cancelled. After its first five calls a client sends
    /// at most one call in ten twice. None: never.
    pub hedge: Option<Duration>,
    /// Only for [`crate::blocking::Client`]: a connection that was idle for longer is replaced
    /// before a call.
    pub max_idle: Duration,
    /// A file with a bearer token that is sent with each call, and read again as it is replaced: an access
    /// token, a Kubernetes service account's, a JWT-SVID. A secret file.
    pub token: Option<PathBuf>,
}

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TLS 1.3, with a client certificate unless the daemon lets tokens alone in there.
    Tls {
        /// A DNS name or an IP address, without brackets; the daemon's certificate must name it.
        host: String,
        /// The TCP port.
        port: u16,
        /// The certificates and the key.
        files: TlsFiles,
    },
    /// A Unix socket, where the daemon knows its callers by their uid.
    Unix(PathBuf),
}

/// The files that TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA certificates that the daemon's certificate must chain to.
    pub ca: PathBuf,
    /// What this program shows; none: nothing, which is enough where the daemon says so.
    pub identity: Option<IdentityFiles>,
}

/// A client certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// This program's certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// The private key of `certificate`; refused if others may read it.
    pub private_key: PathBuf,
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A field is missing or wrong.
    #[error("{field}: {reason}")]
    Field {
        /// `endpoint`, `ca`, `certificate` or `private_key`.
        field: &'static str,
        /// What is wrong with it, and what to write instead.
        reason: String,
    },
}

/// A client file: TOML with `endpoint`, which is one or a list, and, unless they are all Unix sockets,
/// `ca`, `certificate` and `private_key`; with `token` the latter two may be left out. Relative paths
/// start at the file's folder.
#[derive(Debug)]
pub struct ClientFile {
    path: PathBuf,
    file: File,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(deserialize_with = "one_or_many")]
    endpoint: Vec<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
    token: Option<PathBuf>,
}

impl ClientFile {
    /// Reads it; what it says is not judged yet.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason };
        let file: File =
            toml::from_str(&text).map_err(|error| invalid(error.to_string().trim().to_owned()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The endpoints, as they are written.
    pub fn endpoints(&self) -> &[String] {
        &self.file.endpoint
    }

    /// What it says, checked; `token` counts where it names none.
    pub fn config(self, token: Option<&Path>) -> Result<Config, ConfigError> {
        let Self { path, file } = self;
        let invalid = |reason| ConfigError::Invalid { path: path.clone(), reason };
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |path: Option<PathBuf>| path.map(|path| beside(folder, path));
        let [ca, certificate, private_key, own_token] =
            [file.ca, file.certificate, file.private_key, file.token].map(beside);
        let (ca, certificate) = (ca.as_deref(), certificate.as_deref());
        let (private_key, token) = (private_key.as_deref(), own_token.as_deref().or(token));
        let mut config = Config::with_token(&file.endpoint, ca, certificate, private_key, token)
            .map_err(|error| invalid(error.to_string()))?;
        for endpoint in &mut config.endpoints {
            if let Endpoint::Unix(socket) = endpoint {
                *socket = folder.join(&socket);
            }
        }
        Ok(config)
    }
}

impl Config {
    /// Reads a client file: see [`ClientFile`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        ClientFile::read(path)?.config(None)
    }

    /// Checks the values that describe the daemons: `https://host:port` needs all of the files,
    /// `unix:/path` none. The endpoints share the files.
    pub fn new(
        endpoints: &[impl AsRef<str>],
        ca: Option<&Path>,
        certificate: Option<&Path>,
        private_key: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        Self::with_token(endpoints, ca, certificate, private_key, None)
    }

    /// The same with a file that has a bearer token: then an `https://host:port` may go without
    /// certificate and key.
    pub fn with_token(
        endpoints: &[impl AsRef<str>],
        ca: Option<&Path>,
        certificate: Option<&Path>,
        private_key: Option<&Path>,
        token: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        if endpoints.is_empty() {
            return Err(field("endpoint", "is missing; write `https://host:port` or `unix:/path`"));
        }
        let files = [("ca", ca), ("certificate", certificate), ("private_key", private_key)];
        let is_empty = |path: &Path| path.as_os_str().is_empty();
        if let Some((name, _)) = files.iter().find(|(_, path)| path.is_some_and(is_empty)) {
            return Err(field(name, "is empty; write the path of a PEM file"));
        }
        let all_unix = endpoints.iter().all(|endpoint| endpoint.as_ref().starts_with("unix:"));
        if all_unix && let Some((name, _)) = files.iter().find(|(_, value)| value.is_some()) {
            return Err(field(name, "a Unix socket takes no certificates; leave it out"));
        }
        let mut parsed = Vec::with_capacity(endpoints.len());
        for text in endpoints.iter().map(AsRef::as_ref) {
            let endpoint = match text.strip_prefix("unix:") {
                Some("") => return Err(field("endpoint", "`unix:` lacks the path of the socket")),
                Some(path) => Endpoint::Unix(path.into()),
                None => {
                    let (host, port) = parse_https(text)?;
                    let needed = |name, value: Option<&Path>| {
                        let missing = || field(name, "is missing; an https endpoint needs it");
                        value.map(Path::to_owned).ok_or_else(missing)
                    };
                    let ca = needed("ca", ca)?;
                    let shows_nothing = certificate.is_none() && private_key.is_none();
                    let identity = if token.is_some() && shows_nothing {
                        None
                    } else {
                        let certificate = needed("certificate", certificate)?;
                        let private_key = needed("private_key", private_key)?;
                        Some(IdentityFiles { certificate, private_key })
                    };
                    let files = TlsFiles { ca, identity };
                    Endpoint::Tls { host, port, files }
                }
            };
            if parsed.contains(&endpoint) {
                return Err(field("endpoint", &format!("`{endpoint}` is there twice")));
            }
            parsed.push(endpoint);
        }
        Ok(Self {
            endpoints: parsed,
            timeout: DEFAULT_TIMEOUT,
            patience: DEFAULT_PATIENCE,
            wait: false,
            hedge: Some(DEFAULT_HEDGE),
            max_idle: DEFAULT_MAX_IDLE,
            token: token.map(Path::to_owned),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls { host, port, .. } if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Tls { host, port, .. } => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn parse_https(endpoint: &str) -> Result<(String, u16), ConfigError> {
    let wrong = || {
        let reason = format!("`{endpoint}` is neither `https://host:port` nor `unix:/path`");
        field("endpoint", &reason)
    };
    let authority = endpoint.strip_prefix("https://").ok_or_else(wrong)?;
    let (host, port) =
        authority.strip_suffix('/').unwrap_or(authority).rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').ok_or_else(wrong)?,
        None if host.contains(':') => return Err(wrong()),
        None => host,
    };
    ServerName::try_from(host).map_err(|_| wrong())?;
    Ok((host.to_owned(), port))
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an endpoint or a list of endpoints")
        }

        fn visit_str<E>(self, one: &str) -> Result<Self::Value, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Self::Value, A::Error> {
            let mut endpoints = Vec::new();
            while let Some(endpoint) = many.next_element()? {
                endpoints.push(endpoint);
            }
            Ok(endpoints)
        }
    }
    deserializer.deserialize_any(OneOrMany)
}

/// A path that a file names: a relative one starts at the file's folder, and an empty one is none.
pub fn beside(folder: &Path, path: PathBuf) -> PathBuf {
    if path.as_os_str().is_empty() { path } else { folder.join(path) }
}

fn field(field: &'static str, reason: &str) -> ConfigError {
    ConfigError::Field { field, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> (tempfile::TempDir, Result<Config, ConfigError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.toml");
        fs::write(&path, text).unwrap();
        let config = Config::from_file(path);
        (folder, config)
    }

    #[test]
    fn relative_paths_start_at_the_files_folder() {
        let (folder, config) = load(
            "endpoint = \"https://[::1]:8443\"\nca = \"ca.pem\"\n\
             certificate = \"/tls/client.crt\"\nprivate_key = \"client.key\"\n",
        );
        let endpoints = config.unwrap().endpoints;
        assert_eq!(endpoints[0].to_string(), "https://[::1]:8443");
        let [Endpoint::Tls { host, port, files }] = &endpoints[..] else { panic!("not TLS") };
        assert_eq!((host.as_str(), *port), ("::1", 8443));
        assert_eq!(files.ca, folder.path().join("ca.pem"));
        assert_eq!(files.identity.as_ref().unwrap().certificate, Path::new("/tls/client.crt"));
    }

    #[test]
    fn a_unix_socket_takes_no_certificates() {
        let (folder, config) = load("endpoint = \"unix:daemon.sock\"");
        assert_eq!(config.unwrap().endpoints, [Endpoint::Unix(folder.path().join("daemon.sock"))]);
        let (_folder, config) = load("endpoint = \"unix:/run/daemon.sock\"\nca = \"ca.pem\"");
        assert!(config.unwrap_err().to_string().contains("ca: a Unix socket takes no"));
    }

    #[test]
    fn an_unknown_or_missing_field_is_named_with_its_file() {
        let (_folder, config) = load("endpoint = \"unix:/run/d.sock\"\nendpiont = 1");
        let error = config.unwrap_err().to_string();
        assert!(error.contains("client.toml: ") && error.contains("`endpiont`"), "{error}");
        let (_folder, config) = load("endpoint = \"https://localhost:8443\"\nca = \"ca.pem\"");
        let error = config.unwrap_err().to_string();
        assert!(error.contains("client.toml: certificate: is missing"), "{error}");
    }

    #[test]
    fn several_endpoints_keep_their_order_and_share_the_files() {
        let (folder, config) = load(
            "endpoint = [\"https://b.example:8443\", \"unix:d.sock\", \"https://a.example:1\"]\n\
             ca = \"ca.pem\"\ncertificate = \"c.crt\"\nprivate_key = \"c.key\"\n",
        );
        let names = config.unwrap().endpoints;
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let socket = format!("unix:{}", folder.path().join("d.sock").display());
        assert_eq!(names, ["https://b.example:8443", &socket, "https://a.example:1"]);
        for (text, expected) in [
            ("endpoint = []", "endpoint: is missing"),
            ("endpoint = [\"unix:/a\", \"unix:/a\"]", "`unix:/a` is there twice"),
            ("endpoint = 8443", "an endpoint or a list of endpoints"),
            (
                "endpoint = \"https://a.example:1\"\nca = \"\"",
                "client.toml: ca: is empty; write the path of a PEM file",
            ),
        ] {
            let error = load(text).1.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_endpoint_is_a_whole_address_with_a_port() {
        for bad in [
            "localhost:8443",
            "http://localhost:8443",
            "https://localhost",
            "https://localhost:0",
            "https://localhost:8443/path",
            "https://::1:8443",
            "https://[::1:8443",
            "https://:8443",
            "unix:",
            "",
        ] {
            let error = Config::new(&[bad], None, None, None).unwrap_err();
            assert!(
                matches!(error, ConfigError::Field { field: "endpoint", .. }),
                "{bad}: {error}"
            );
        }
    }
}
