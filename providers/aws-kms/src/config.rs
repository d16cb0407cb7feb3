//! The options of `type = "aws-kms"`, and what can be checked about them without a backend.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use claviger_provider_api::SecretSource;
use http::Uri;
use serde::{Deserialize, Deserializer, de};

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
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Timeout,
    /// How long a request may take, once there are credentials and a connection.
    #[serde(default = "attempt_timeout")]
    pub attempt_timeout: Timeout,
    /// How long a call may take in all, if its caller's deadline is not earlier.
    #[serde(default = "operation_timeout")]
    pub operation_timeout: Timeout,
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

/// A time limit: a number and a unit, such as `"500ms"`, `"5s"` or `"1m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Duration);

/// The longest time limit: a call that takes longer helps nobody.
const MAX_TIMEOUT: Duration = Duration::from_mins(5);

fn connect_timeout() -> Timeout {
    Timeout(Duration::from_secs(2))
}

fn attempt_timeout() -> Timeout {
    Timeout(Duration::from_secs(5))
}

fn operation_timeout() -> Timeout {
    Timeout(Duration::from_secs(8))
}

impl Config {
    /// Where its secrets are read from.
    pub fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        let Some(credentials) = &mut self.credentials else { return Vec::new() };
        let StaticCredentials { access_key_id, secret_access_key, session_token } = credentials;
        [access_key_id, secret_access_key].into_iter().chain(session_token).collect()
    }

    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        if !locator::is_lower_kebab(&self.region) {
            return Err(format!(
                "`region` is {:?}, which is no region; write one such as \"eu-central-1\"",
                self.region
            ));
        }
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint)?;
        }
        if self.ca.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err("`ca` is empty; write the path of a PEM file, or leave it out".into());
        }
        if self.profile.is_some() && self.credentials.is_some() {
            return Err("`profile` and `credentials` exclude each other; leave one out".into());
        }
        if self.profile.as_ref().is_some_and(String::is_empty) {
            return Err("`profile` is empty; write a profile's name, or leave it out".into());
        }
        if self.attempt_timeout.0 > self.operation_timeout.0
            || self.connect_timeout.0 > self.operation_timeout.0
        {
            return Err("`operation_timeout` is shorter than `attempt_timeout` or \
                        `connect_timeout`, which are part of it; make it the longest"
                .into());
        }
        Ok(())
    }

    /// Checks the syntax of a locator.
    pub fn check_locator(&self, locator: &str) -> Result<(), String> {
        Locator::parse(locator, &self.region).map(|_| ())
    }
}

/// `https://host[:port]`; without TLS only where nobody can listen in.
fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let refuse = |reason: &str| {
        Err(format!("`endpoint` {reason}; write \"https://HOST\" or \"https://HOST:PORT\""))
    };
    let Ok(uri) = endpoint.parse::<Uri>() else { return refuse("is no URL") };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return refuse("is no whole URL");
    };
    if authority.as_str().contains('@') {
        return refuse("has a user name, and KMS has none");
    }
    if uri.path() != "/" || uri.query().is_some() {
        return refuse("has a path or a query, and KMS has none");
    }
    match scheme {
        "https" => Ok(()),
        "http" if is_loopback(authority.host()) => Ok(()),
        "http" => refuse("is http, which is for loopback addresses only"),
        _ => refuse("is neither https nor http"),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Timeout;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time limit such as \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timeout, E> {
                parse_timeout(text).ok_or_else(|| {
                    E::custom(format!(
                        "{text:?} is no time limit; write a number and a unit, \"1ms\" to \"5m\": \
                         \"500ms\", \"5s\", \"1m\""
                    ))
                })
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

fn parse_timeout(text: &str) -> Option<Timeout> {
    let (count, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    let limit = Duration::from_millis(count.parse::<u64>().ok()?.checked_mul(milliseconds)?);
    (limit > Duration::ZERO && limit <= MAX_TIMEOUT).then_some(Timeout(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("endpoint = \"https://kms.example.org/path\"", "a path"),
            ("endpoint = \"kms.example.org\"", "https://HOST"),
            ("ca = \"\"", "`ca`"),
            ("profile = \"\"", "`profile`"),
            ("connect_timeout = \"0s\"", "no time limit"),
            ("connect_timeout = \"6m\"", "no time limit"),
            ("connect_timeout = 5", "a time limit"),
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
