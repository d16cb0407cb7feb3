//! The options of `type = "gcp-kms"`, and what can be checked about them without a backend.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use claviger_provider_api::SecretSource;
use reqwest::Url;
use serde::Deserialize;

use crate::locator::Locator;

/// Google's own.
const ENDPOINT: &str = "https://cloudkms.googleapis.com";

/// Where every virtual machine and every pod finds it. The name `metadata.google.internal` is for the
/// same address, and would have to be looked up.
const METADATA_ENDPOINT: &str = "http://169.254.169.254";

/// `[providers.NAME]` with `type = "gcp-kms"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A credentials file as Google's tools write it: a service account's key, or a workload identity
    /// federation. Without it the application default credentials.
    pub credentials: Option<SecretSource>,
    /// Another place to send requests to, such as a regional endpoint: `https`, or `http` on loopback.
    pub endpoint: Option<String>,
    /// Another place of the metadata server: `http` on loopback or a link-local address.
    pub metadata_endpoint: Option<String>,
    /// The only CAs to trust, PEM, for KMS and for tokens; without it the system's.
    pub ca: Option<PathBuf>,
    /// How long a connection may take to be made.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Timeout,
    /// How long one request may take, if its caller's deadline does not end it sooner.
    #[serde(default = "default_timeout")]
    pub timeout: Timeout,
}

/// A duration such as `"500ms"`, `"3s"` or `"1m"`, above zero and at most five minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Timeout(pub Duration);

impl TryFrom<String> for Timeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
        let parsed = units.into_iter().find_map(|(unit, milliseconds)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(milliseconds)
        });
        match parsed {
            Some(milliseconds @ 1..=300_000) => Ok(Self(Duration::from_millis(milliseconds))),
            _ => Err(format!("{text:?} is no timeout; write 500ms, 3s or 1m, at most 5m")),
        }
    }
}

fn default_connect_timeout() -> Timeout {
    Timeout(Duration::from_secs(2))
}

fn default_timeout() -> Timeout {
    Timeout(Duration::from_secs(5))
}

impl Config {
    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        self.origin()?;
        self.metadata_origin()?;
        if self.ca.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err("`ca` is empty; write the path of a PEM file, or leave it out".into());
        }
        if self.connect_timeout.0 > self.timeout.0 {
            return Err("`timeout` is shorter than `connect_timeout`, which is part of it".into());
        }
        Ok(())
    }

    /// Checks the syntax of a locator.
    pub fn check_locator(&self, locator: &str) -> Result<(), String> {
        locator.parse::<Locator>().map(drop)
    }

    /// Where KMS is: scheme, host and port, without a slash at its end.
    pub(crate) fn origin(&self) -> Result<String, String> {
        let text = self.endpoint.as_deref().unwrap_or(ENDPOINT);
        let expected = "write \"https://HOST\" or \"https://HOST:PORT\"";
        let url = origin(text).map_err(|why| format!("`endpoint` {why}; {expected}"))?;
        check_transport(&url).map_err(|why| format!("`endpoint` {why}; {expected}"))?;
        Ok(url.origin().ascii_serialization())
    }

    /// Where the metadata server is, as [`Config::origin`].
    pub(crate) fn metadata_origin(&self) -> Result<String, String> {
        let text = self.metadata_endpoint.as_deref().unwrap_or(METADATA_ENDPOINT);
        let expected = "write \"http://127.0.0.1:PORT\", or leave it out";
        let url = origin(text).map_err(|why| format!("`metadata_endpoint` {why}; {expected}"))?;
        if url.scheme() != "http" || !is_near(&url) {
            return Err(format!(
                "`metadata_endpoint` is not http to loopback or to a link-local address; {expected}"
            ));
        }
        Ok(url.origin().ascii_serialization())
    }
}

/// A URL that has no more than a scheme, a host and a port.
fn origin(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user name, which is of no use there".into());
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err("has more than a host".into());
    }
    Ok(url)
}

/// A token or a secret goes there: in the clear to this host itself only.
pub(crate) fn check_transport(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "https" if url.has_host() => Ok(()),
        "http" if host(url).is_some_and(|host| is_loopback(&host)) => Ok(()),
        "http" => Err("is http, which is for loopback addresses only".into()),
        _ => Err("is neither https nor http".into()),
    }
}

/// Whether a URL leads to this host itself, or to the link-local address of its metadata server.
pub(crate) fn is_near(url: &Url) -> bool {
    host(url).is_some_and(|host| is_loopback(&host) || is_link_local(&host))
}

fn host(url: &Url) -> Option<String> {
    url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_link_local(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map(|()| config)
    }

    #[test]
    fn every_option_reads_back_and_all_have_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.origin().unwrap(), "https://cloudkms.googleapis.com");
        assert_eq!(config.metadata_origin().unwrap(), "http://169.254.169.254");
        assert_eq!(config.timeout.0, Duration::from_secs(5));
        assert_eq!((&config.credentials, &config.ca), (&None, &None));
        let config = parse(
            "credentials = { credential = \"gcp\" }\nca = \"/ca.pem\"\n\
             endpoint = \"https://cloudkms.europe-west3.rep.googleapis.com\"\n\
             metadata_endpoint = \"http://127.0.0.1:8080\"\n\
             connect_timeout = \"500ms\"\ntimeout = \"1m\"",
        )
        .unwrap();
        assert_eq!(config.credentials, Some(SecretSource::Credential("gcp".into())));
        assert_eq!(config.origin().unwrap(), "https://cloudkms.europe-west3.rep.googleapis.com");
        assert_eq!(config.timeout, Timeout(Duration::from_mins(1)));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_write() {
        let table = [
            ("region = \"europe-west3\"", "region"),
            ("endpoint = \"http://kms.example.org\"", "loopback"),
            ("endpoint = \"http://127.0.0.1.example.org\"", "loopback"),
            ("endpoint = \"http://169.254.169.254\"", "loopback"),
            ("endpoint = \"ftp://127.0.0.1\"", "neither https nor http"),
            ("endpoint = \"https://user:secret@kms.example.org\"", "user name"),
            ("endpoint = \"https://kms.example.org/v1\"", "more than a host"),
            ("endpoint = \"kms.example.org\"", "https://HOST"),
            ("metadata_endpoint = \"http://metadata.google.internal\"", "link-local"),
            ("metadata_endpoint = \"https://127.0.0.1\"", "link-local"),
            ("ca = \"\"", "`ca`"),
            ("timeout = \"0s\"", "no timeout"),
            ("timeout = \"6m\"", "no timeout"),
            ("timeout = 5", "string"),
            ("timeout = \"1s\"", "`connect_timeout`"),
            ("credentials = \"key.json\"", "credentials"),
        ];
        for (text, expected) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
    }

    #[test]
    fn http_is_for_loopback() {
        for good in ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:1"] {
            assert_eq!(parse(&format!("endpoint = \"{good}\"")).unwrap().origin().unwrap(), good);
        }
    }
}
