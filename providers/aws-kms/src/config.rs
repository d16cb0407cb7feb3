//! The options of `type = "aws-kms"`, and what can be checked about them without a backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::options::{self, PlainHttp};
use claviger_provider_api::{Error, Options, Provider, ProviderType, SecretSource, Timeout};
use serde::Deserialize;

use crate::locator::{self, Locator};

/// The options of `type = "aws-kms"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The region, such as `eu-central-1`: where requests go, and for which they are signed.
    pub region: String,
    /// Another place to send requests to, such as a VPC endpoint: `https`, or `http` on loopback.
    pub endpoint: Option<String>,
    /// The only CAs to trust, PEM; without it the system's.
    pub ca: Option<PathBuf>,
    /// An access key of our own, in secret files; without it the standard chain.
    pub credentials: Option<StaticCredentials>,
    /// The profile of AWS's shared files that gives the credentials, instead of the standard chain.
    pub profile: Option<String>,
    /// How long a connection may take.
    #[serde(default)]
    pub connect_timeout: Timeout<2>,
    /// How long a request may take, once there are credentials and a connection.
    #[serde(default)]
    pub attempt_timeout: Timeout<5>,
    /// How long a call may take in all, if its caller's deadline is not earlier.
    #[serde(default)]
    pub operation_timeout: Timeout<8>,
}

/// An access key, each part in a secret file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticCredentials {
    /// The access key id.
    pub access_key_id: SecretSource,
    /// The secret access key.
    pub secret_access_key: SecretSource,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretSource>,
}

/// What the daemon knows of this type of provider.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "aws-kms",
    paths: &["ca"],
    secrets: &[
        "credentials.access_key_id",
        "credentials.secret_access_key",
        "credentials.session_token",
    ],
    is_billed: true,
    keeps_files: false,
    quota: "1,000 requests a second with RSA keys by default, shared by everything in the account and \
            region; more through Service Quotas",
    check_secret: None,
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        let Some(credentials) = &mut self.credentials else { return Vec::new() };
        let StaticCredentials { access_key_id, secret_access_key, session_token } = credentials;
        [access_key_id, secret_access_key].into_iter().chain(session_token).collect()
    }

    fn validate(&self) -> Result<(), String> {
        if !locator::is_lower_kebab(&self.region) {
            return Err(format!(
                "`region` is {:?}, which is no region; write one such as \"eu-central-1\"",
                self.region
            ));
        }
        if let Some(endpoint) = &self.endpoint {
            options::origin("endpoint", endpoint, PlainHttp::OnLoopback)?;
        }
        if self.profile.is_some() && self.credentials.is_some() {
            return Err("`profile` and `credentials` exclude each other; leave one out".into());
        }
        if self.profile.as_ref().is_some_and(String::is_empty) {
            return Err("`profile` is empty; write a profile's name, or leave it out".into());
        }
        let attempt = ("attempt_timeout", self.attempt_timeout.0);
        let connect = ("connect_timeout", self.connect_timeout.0);
        options::check_timeouts(
            ("operation_timeout", self.operation_timeout.0),
            &[attempt, connect],
        )
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
        Locator::parse(locator, &self.region).map(|_| ())
    }

    fn is_hardware(&self) -> bool {
        true
    }

    fn provider(&self, name: &str, _: Option<&Path>) -> Result<Arc<dyn Provider>, Error> {
        Ok(Arc::new(crate::Provider::new(name, self)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn parse(more: &str) -> Result<Config, String> {
        let text = format!("region = \"eu-central-1\"\n{more}");
        let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
        config.validate().map(|()| config)
    }

    #[test]
    fn every_option_reads_back_and_most_have_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.connect_timeout.0, Duration::from_secs(2));
        assert_eq!(config.operation_timeout.0, Duration::from_secs(8));
        assert_eq!((config.endpoint, config.ca, config.credentials), (None, None, None));
        let config = parse(
            "endpoint = \"https://vpce-1.kms.eu-central-1.vpce.amazonaws.com\"\nca = \"/ca.pem\"\n\
             connect_timeout = \"500ms\"\nattempt_timeout = \"3s\"\noperation_timeout = \"1m\"\n\
             [credentials]\naccess_key_id = { file = \"/id\" }\n\
             secret_access_key = { credential = \"aws\" }",
        )
        .unwrap();
        assert_eq!(config.operation_timeout, Timeout(Duration::from_mins(1)));
        let credentials = config.credentials.unwrap();
        assert_eq!(credentials.access_key_id, SecretSource::File("/id".into()));
        assert_eq!(credentials.session_token, None);
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_write() {
        let table = [
            ("endpont = \"https://a\"", "endpont"),
            ("endpoint = \"http://kms.example.org\"", "loopback"),
            ("endpoint = \"http://127.0.0.1.example.org\"", "loopback"),
            ("endpoint = \"ftp://127.0.0.1\"", "neither https nor http"),
            ("endpoint = \"https://user:secret@kms.example.org\"", "user name"),
            ("endpoint = \"https://kms.example.org/path\"", "more than a host"),
            ("endpoint = \"kms.example.org\"", "https://HOST"),
            ("profile = \"\"", "`profile`"),
            ("connect_timeout = \"0s\"", "no time limit"),
            ("connect_timeout = \"6m\"", "no time limit"),
            ("connect_timeout = 5", "string"),
            ("operation_timeout = \"1s\"", "`operation_timeout`"),
            ("credentials = { access_key_id = { file = \"/id\" } }", "secret_access_key"),
            (
                "profile = \"a\"\n[credentials]\naccess_key_id = { file = \"/id\" }\n\
                 secret_access_key = { file = \"/key\" }",
                "exclude each other",
            ),
        ];
        for (text, expected) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for region in ["", "EU", "eu central", "eu-central-1/", "-eu", "eu."] {
            let config = Config { region: region.to_owned(), ..parse("").unwrap() };
            assert!(config.validate().unwrap_err().contains("`region`"), "{region:?}");
        }
    }

    #[test]
    fn http_is_for_loopback() {
        for good in [
            "http://127.0.0.1:4566",
            "http://localhost:1",
            "http://[::1]:1",
            "https://[2001:db8::1]",
        ] {
            parse(&format!("endpoint = \"{good}\"")).unwrap();
        }
    }
}
