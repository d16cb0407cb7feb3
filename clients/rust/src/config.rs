//! Where the daemon is, and which certificate this program shows it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::Deserialize;

/// How long a call may take when nobody says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a [`crate::Client`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the daemon listens.
    pub endpoint: Endpoint,
    /// The deadline of each call, connecting included; sent to the daemon.
    pub timeout: Duration,
}

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TLS 1.3 with a client certificate.
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

/// The files that mutual TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA certificates that the daemon's certificate must chain to.
    pub ca: PathBuf,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
}

impl Config {
    /// Reads a client file: TOML with `endpoint` and, unless that is a Unix socket, `ca`,
    /// `certificate` and `private_key`. Relative paths start at the file's folder.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason };
        let file: File =
            toml::from_str(&text).map_err(|error| invalid(error.to_string().trim().to_owned()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |path: Option<PathBuf>| path.map(|path| folder.join(path));
        let (ca, certificate) = (beside(file.ca), beside(file.certificate));
        let mut config = Self::new(&file.endpoint, ca, certificate, beside(file.private_key))
            .map_err(|error| invalid(error.to_string()))?;
        if let Endpoint::Unix(socket) = &mut config.endpoint {
            *socket = folder.join(&socket);
        }
        Ok(config)
    }

    /// Checks the four values that describe a daemon: `https://host:port` needs all of the files,
    /// `unix:/path` none.
    pub fn new(
        endpoint: &str,
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        private_key: Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let endpoint = if let Some(path) = endpoint.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(field("endpoint", "`unix:` lacks the path of the socket"));
            }
            for (name, value) in
                [("ca", &ca), ("certificate", &certificate), ("private_key", &private_key)]
            {
                if value.is_some() {
                    return Err(field(name, "a Unix socket takes no certificates; leave it out"));
                }
            }
            Endpoint::Unix(path.into())
        } else {
            let (host, port) = parse_https(endpoint)?;
            let needed = |name, value: Option<PathBuf>| {
                value.ok_or_else(|| field(name, "is missing; an https endpoint needs it"))
            };
            let files = TlsFiles {
                ca: needed("ca", ca)?,
                certificate: needed("certificate", certificate)?,
                private_key: needed("private_key", private_key)?,
            };
            Endpoint::Tls { host, port, files }
        };
        Ok(Self { endpoint, timeout: DEFAULT_TIMEOUT })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
        let endpoint = config.unwrap().endpoint;
        assert_eq!(endpoint.to_string(), "https://[::1]:8443");
        let Endpoint::Tls { host, port, files } = endpoint else { panic!("not TLS") };
        assert_eq!((host.as_str(), port), ("::1", 8443));
        assert_eq!(files.ca, folder.path().join("ca.pem"));
        assert_eq!(files.certificate, Path::new("/tls/client.crt"));
    }

    #[test]
    fn a_unix_socket_takes_no_certificates() {
        let (folder, config) = load("endpoint = \"unix:daemon.sock\"");
        assert_eq!(config.unwrap().endpoint, Endpoint::Unix(folder.path().join("daemon.sock")));
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
            let error = Config::new(bad, None, None, None).unwrap_err();
            assert!(
                matches!(error, ConfigError::Field { field: "endpoint", .. }),
                "{bad}: {error}"
            );
        }
    }
}
