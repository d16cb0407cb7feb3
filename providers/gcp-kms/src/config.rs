//! The options of `type = "gcp-kms"`, and what can be checked about them without a backend.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::options::{self, PlainHttp, is_loopback};
use claviger_provider_api::{Error, Options, Provider, ProviderType, SecretSource, Timeout};
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
    #[serde(default)]
    pub connect_timeout: Timeout<2>,
    /// How long one request may take, if its caller's deadline does not end it sooner.
    #[serde(default)]
    pub timeout: Timeout<5>,
}

/// What the daemon knows of this type of provider.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "gcp-kms",
    paths: &["ca"],
    secrets: &["credentials"],
    is_billed: true,
    keeps_files: false,
    quota: "per project and location, in requests a minute, enforced by the second; the Quotas page of \
            the project shows and raises them",
    check_secret: None,
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        self.credentials.iter_mut().collect()
    }

    fn validate(&self) -> Result<(), String> {
        self.origin()?;
        self.metadata_origin()?;
        options::check_timeouts(
            ("timeout", self.timeout.0),
            &[("connect_timeout", self.connect_timeout.0)],
        )
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
        locator.parse::<Locator>().map(drop)
    }

    fn is_hardware(&self) -> bool {
        // Unless a key says HSM.
        false
    }

    fn provider(&self, name: &str, _: Option<&Path>) -> Result<Arc<dyn Provider>, Error> {
        Ok(Arc::new(crate::Provider::new(name, self)?))
    }
}

impl Config {
    /// Where KMS is: scheme, host and port, without a slash at its end.
    pub(crate) fn origin(&self) -> Result<String, String> {
        let text = self.endpoint.as_deref().unwrap_or(ENDPOINT);
        options::origin("endpoint", text, PlainHttp::OnLoopback)
    }

    /// Where the metadata server is, as [`Config::origin`].
    pub(crate) fn metadata_origin(&self) -> Result<String, String> {
        let text = self.metadata_endpoint.as_deref().unwrap_or(METADATA_ENDPOINT);
        let url = Url::parse(text).ok();
        let bare = |url: &Url| format!("{}/", url.origin().ascii_serialization()) == url.as_str();
        match url.filter(|url| url.scheme() == "http" && is_near(url) && bare(url)) {
            Some(url) => Ok(url.origin().ascii_serialization()),
            None => {
                Err("`metadata_endpoint` is not http to loopback or to a link-local address, and \
                         nothing more; write \"http://127.0.0.1:PORT\", or leave it out"
                    .into())
            }
        }
    }
}

/// A token or a secret goes there: in the clear to this host itself only.
pub(crate) fn check_transport(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "https" if url.has_host() => Ok(()),
        "http" if url.host_str().is_some_and(is_loopback) => Ok(()),
        "http" => Err("is http, which is for loopback addresses only".into()),
        _ => Err("is neither https nor http".into()),
    }
}

/// Whether a URL leads to this host itself, or to the link-local address of its metadata server.
pub(crate) fn is_near(url: &Url) -> bool {
    url.host_str().is_some_and(|host| is_loopback(host) || is_link_local(host))
}

fn is_link_local(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
            ("timeout = \"0s\"", "no time limit"),
            ("timeout = \"6m\"", "no time limit"),
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
