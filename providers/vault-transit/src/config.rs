//! The options of a Vault or OpenBao provider, and what can be checked of them without a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::options::{self, PlainHttp};
use claviger_provider_api::{Error, Options, Provider, ProviderType, SecretSource, Timeout};
use serde::Deserialize;

use crate::locator::{Locator, check_secret, is_path};

/// `[providers.NAME]` with `type = "vault-transit"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `https://host:port`; http only to this host itself.
    pub address: String,
    /// The CAs that may have issued the server's certificate, PEM; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// The namespace of every request.
    pub namespace: Option<String>,
    /// How to log in.
    pub auth: Auth,
    /// How long a connection may take to be made.
    #[serde(default)]
    pub connect_timeout: Timeout<3>,
    /// How long one request may take, if its caller's deadline does not end it sooner.
    #[serde(default)]
    pub timeout: Timeout<10>,
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Auth {
    /// A token, renewed if it can be. The file is read again when the token is no longer good.
    Token(SecretSource),
    /// `auth/approle`.
    Approle(AppRole),
    /// `auth/kubernetes`, with the pod's service account token.
    Kubernetes(Jwt),
    /// `auth/jwt`.
    Jwt(Jwt),
    /// `auth/cert`: a TLS client certificate.
    Certificate(Certificate),
}

/// `auth = { approle = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRole {
    /// Where the method is mounted; `approle` unless it is said.
    #[serde(default = "approle")]
    pub mount: String,
    /// The role's id.
    pub role_id: String,
    /// Where its secret is read from, at each login.
    pub secret_id: SecretSource,
}

/// `auth = { kubernetes = { … } }` and `auth = { jwt = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// Where the method is mounted; `kubernetes` or `jwt` unless it is said.
    pub mount: Option<String>,
    /// The role to log in to.
    pub role: String,
    /// Where the JWT is read from, at each login.
    pub token: SecretSource,
}

/// `auth = { certificate = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Where the method is mounted; `cert` unless it is said.
    #[serde(default = "cert")]
    pub mount: String,
    /// The role to log in to; the server looks for a fitting one where none is said.
    pub role: Option<String>,
    /// The client certificate's chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: SecretSource,
}

/// What the daemon knows of this type of provider.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "vault-transit",
    paths: &["ca", "auth.certificate.certificate"],
    secrets: &[
        "auth.token",
        "auth.approle.secret_id",
        "auth.kubernetes.token",
        "auth.jwt.token",
        "auth.certificate.private_key",
    ],
    is_billed: false,
    keeps_files: false,
    quota: "none but the rate limit quotas that its operator set (`sys/quotas`)",
    check_secret: Some(check_secret),
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        match &mut self.auth {
            Auth::Token(source) => vec![source],
            Auth::Approle(approle) => vec![&mut approle.secret_id],
            Auth::Kubernetes(jwt) | Auth::Jwt(jwt) => vec![&mut jwt.token],
            Auth::Certificate(certificate) => vec![&mut certificate.private_key],
        }
    }

    fn validate(&self) -> Result<(), String> {
        self.origin()?;
        if let Some(namespace) = &self.namespace
            && !is_path(namespace.trim_end_matches('/'))
        {
            return Err(format!("`namespace` {namespace:?} is none; write names, such as team/a"));
        }
        let mount = self.auth.mount();
        if !is_path(mount) {
            return Err(format!(
                "`mount` {mount:?} is none; write where the method is mounted, without auth/"
            ));
        }
        match &self.auth {
            Auth::Approle(AppRole { role_id: name, .. })
            | Auth::Kubernetes(Jwt { role: name, .. })
            | Auth::Jwt(Jwt { role: name, .. })
            | Auth::Certificate(Certificate { role: Some(name), .. })
                if name.is_empty() =>
            {
                Err("the role in `auth` is empty; write the name or id that the server knows"
                    .into())
            }
            Auth::Certificate(_) if self.address.starts_with("http://") => {
                Err("a certificate logs in over https only; write it in `address`".into())
            }
            _ => Ok(()),
        }
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
        locator.parse::<Locator>().map(drop)
    }

    fn is_hardware(&self) -> bool {
        // Transit keeps its keys in the memory of its servers.
        false
    }

    fn provider(&self, name: &str, _: Option<&Path>) -> Result<Arc<dyn Provider>, Error> {
        Ok(Arc::new(crate::Provider::new(name, self)?))
    }
}

impl Config {
    /// The address as scheme, host and port, without a slash at its end.
    pub(crate) fn origin(&self) -> Result<String, String> {
        options::origin("address", &self.address, PlainHttp::OnLoopback)
    }
}

impl Auth {
    /// Where the method is mounted.
    pub(crate) fn mount(&self) -> &str {
        match self {
            Self::Token(_) => "token",
            Self::Approle(approle) => &approle.mount,
            Self::Kubernetes(jwt) => jwt.mount.as_deref().unwrap_or("kubernetes"),
            Self::Jwt(jwt) => jwt.mount.as_deref().unwrap_or("jwt"),
            Self::Certificate(certificate) => &certificate.mount,
        }
    }
}

fn approle() -> String {
    "approle".to_owned()
}

fn cert() -> String {
    "cert".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    fn with_address(address: &str) -> Config {
        parse(&format!("address = {address:?}\nauth = {{ token = {{ file = \"/t\" }} }}")).unwrap()
    }

    #[test]
    fn every_way_to_log_in_reads_back() {
        let file = SecretSource::File("/run/s".into());
        let table = [
            ("{ token = { file = \"/run/s\" } }", "token"),
            ("{ approle = { role_id = \"r\", secret_id = { file = \"/run/s\" } } }", "approle"),
            ("{ kubernetes = { role = \"r\", token = { file = \"/run/s\" } } }", "kubernetes"),
            ("{ jwt = { mount = \"oidc\", role = \"r\", token = { file = \"/run/s\" } } }", "oidc"),
            (
                "{ certificate = { certificate = \"/c\", private_key = { file = \"/run/s\" } } }",
                "cert",
            ),
        ];
        for (auth, mount) in table {
            let config = parse(&format!("address = \"https://v:8200\"\nauth = {auth}")).unwrap();
            config.validate().unwrap();
            assert_eq!(config.auth.mount(), mount);
            let source = match config.auth {
                Auth::Token(source) => source,
                Auth::Approle(approle) => approle.secret_id,
                Auth::Kubernetes(jwt) | Auth::Jwt(jwt) => jwt.token,
                Auth::Certificate(certificate) => certificate.private_key,
            };
            assert_eq!(source, file);
        }
    }

    #[test]
    fn unknown_options_are_errors() {
        for text in [
            "adress = \"https://v\"\nauth = { token = { file = \"/t\" } }",
            "address = \"https://v\"\nauth = { token = { file = \"/t\" } }\nverify = false",
            "address = \"https://v\"\nauth = { userpass = { file = \"/t\" } }",
            "address = \"https://v\"\nauth = { approle = { role = \"r\" } }",
            "address = \"https://v\"\nauth = { token = { file = \"/t\" } }\ntimeout = \"9 s\"",
            "address = \"https://v\"\nauth = { token = { file = \"/t\" } }\ntimeout = \"0s\"",
            "address = \"https://v\"\nauth = { token = { file = \"/t\" } }\ntimeout = \"6m\"",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_travels_over_tls_or_not_off_this_host() {
        for good in [
            "https://vault.example.org",
            "https://10.0.0.1:8200/",
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
            "http://localhost:8200",
        ] {
            with_address(good).validate().unwrap();
        }
        for bad in [
            "http://vault.example.org",
            "http://10.0.0.1",
            "http://127.0.0.1.example.org",
            "vault:8200",
            "unix:///run/vault",
            "https://user@vault",
            "https://vault/v1",
            "https://vault?x=1",
            "https://vault#x",
            "",
            "ftp://vault",
        ] {
            let error = with_address(bad).validate().unwrap_err();
            assert!(error.contains("write \"https://"), "{bad}: {error}");
        }
        assert_eq!(with_address("https://vault:443/").origin().unwrap(), "https://vault");
    }

    #[test]
    fn names_that_could_reach_another_path_are_refused() {
        let mut config = with_address("https://vault");
        config.namespace = Some("team/../root".into());
        assert!(config.validate().unwrap_err().contains("`namespace`"));
        config.namespace = Some("team/a/".into());
        config.validate().unwrap();
        config.auth = Auth::Jwt(Jwt {
            mount: Some("jwt/../token".into()),
            role: "r".into(),
            token: SecretSource::File("/t".into()),
        });
        assert!(config.validate().unwrap_err().contains("`mount`"));
    }
}
