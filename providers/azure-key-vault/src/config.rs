//! The options of `type = "azure-key-vault"`, and what can be checked about them without a backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_provider_api::options::{self, PlainHttp};
use claviger_provider_api::{Error, Options, Provider, ProviderType, SecretSource, Timeout};
use reqwest::Url;
use serde::Deserialize;

use crate::locator::Locator;

/// The options of `type = "azure-key-vault"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `https://NAME.vault.azure.net` or `https://NAME.managedhsm.azure.net`.
    pub vault: String,
    /// How to sign in.
    pub auth: Auth,
    /// For what tokens are asked; told by the vault's own name where that ends as Azure's do.
    pub resource: Option<String>,
    /// Who gives tokens; told by the vault's own name where that ends as Azure's do.
    pub authority: Option<String>,
    /// The only CAs to trust, PEM; without it the system's.
    pub ca: Option<PathBuf>,
    /// How long a connection may take.
    #[serde(default)]
    pub connect_timeout: Timeout<2>,
    /// How long one request may take, connection included.
    #[serde(default)]
    pub attempt_timeout: Timeout<5>,
    /// How long a call may take in all, with what it takes to sign in, if its caller's deadline is
    /// not earlier.
    #[serde(default)]
    pub operation_timeout: Timeout<8>,
}

/// How to sign in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// The identity of the virtual machine, container or app.
    ManagedIdentity(ManagedIdentity),
    /// A federated token, such as that of a Kubernetes service account.
    WorkloadIdentity(WorkloadIdentity),
    /// An application's secret.
    ClientSecret(ClientSecret),
    /// The user who signed in with `az login`: for first tries.
    AzureCli(AzureCli),
}

/// `auth = { managed_identity = { … } }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagedIdentity {
    /// The client id of a user-assigned identity; without one the system-assigned.
    pub client_id: Option<String>,
}

/// `auth = { workload_identity = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadIdentity {
    /// The tenant's id.
    pub tenant_id: String,
    /// The client id of the application or user-assigned identity.
    pub client_id: String,
    /// Where the federated token is read from, each time a token is asked for.
    pub token: SecretSource,
}

/// `auth = { client_secret = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSecret {
    /// The tenant's id.
    pub tenant_id: String,
    /// The application's client id.
    pub client_id: String,
    /// Where the secret is read from, each time a token is asked for.
    pub secret: SecretSource,
}

/// `auth = { azure_cli = { … } }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureCli {
    /// The tenant's id, where it is not the signed-in user's own.
    pub tenant_id: Option<String>,
}

/// What a vault's domain tells: the vaults', what tokens are for, who gives them, whether every key
/// is in hardware.
const CLOUDS: [(&str, &str, &str, bool); 5] = [
    (".vault.azure.net", "https://vault.azure.net", PUBLIC, false),
    (".managedhsm.azure.net", "https://managedhsm.azure.net", PUBLIC, true),
    (".vault.usgovcloudapi.net", "https://vault.usgovcloudapi.net", GOVERNMENT, false),
    (".managedhsm.usgovcloudapi.net", "https://managedhsm.usgovcloudapi.net", GOVERNMENT, true),
    (".vault.azure.cn", "https://vault.azure.cn", CHINA, false),
];

const PUBLIC: &str = "https://login.microsoftonline.com";
const GOVERNMENT: &str = "https://login.microsoftonline.us";
const CHINA: &str = "https://login.chinacloudapi.cn";

/// What the daemon knows of this type of provider.
pub const PROVIDER_TYPE: ProviderType = ProviderType {
    name: "azure-key-vault",
    paths: &["ca"],
    secrets: &["auth.client_secret.secret", "auth.workload_identity.token"],
    is_billed: true,
    keeps_files: false,
    quota: "in ten seconds, for each vault and region: 2,000 operations with RSA-2048 in hardware, 500 \
            with RSA-3072, 250 with RSA-4096, twice as many in software; five times that for a \
            subscription. A Managed HSM has its own",
    check_secret: None,
};

impl Options for Config {
    fn provider_type(&self) -> &'static ProviderType {
        &PROVIDER_TYPE
    }

    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        match &mut self.auth {
            Auth::WorkloadIdentity(identity) => vec![&mut identity.token],
            Auth::ClientSecret(client) => vec![&mut client.secret],
            Auth::ManagedIdentity(_) | Auth::AzureCli(_) => Vec::new(),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let vault = self.origin()?;
        for (name, given, told) in [
            ("resource", &self.resource, self.resource()),
            ("authority", &self.authority, self.authority()),
        ] {
            match (given, told) {
                (Some(url), _) => drop(options::origin(name, url, PlainHttp::Never)?),
                (None, Some(_)) => {}
                (None, None) => {
                    return Err(format!(
                        "{vault} is no name of Azure's, so `{name}` must be said; write \
                         resource = \"https://vault.azure.net\" and authority = {PUBLIC:?}"
                    ));
                }
            }
        }
        for (name, id) in self.auth.ids() {
            if !is_id(id) {
                return Err(format!(
                    "`{name}` is {id:?}, which is no id; write one such as \
                     \"00001111-aaaa-2222-bbbb-3333cccc4444\""
                ));
            }
        }
        let attempt = ("attempt_timeout", self.attempt_timeout.0);
        let connect = ("connect_timeout", self.connect_timeout.0);
        options::check_timeouts(
            ("operation_timeout", self.operation_timeout.0),
            &[attempt, connect],
        )
    }

    fn check_locator(&self, locator: &str) -> Result<(), String> {
        Locator::parse(locator, &self.origin()?).map(drop)
    }

    fn is_hardware(&self) -> bool {
        self.is_managed_hsm()
    }

    fn provider(&self, name: &str, _: Option<&Path>) -> Result<Arc<dyn Provider>, Error> {
        Ok(Arc::new(crate::Provider::new(name, self)?))
    }
}

impl Config {
    /// Whether every key is in hardware, as in a managed HSM; a vault has both kinds.
    fn is_managed_hsm(&self) -> bool {
        self.resource().is_some_and(|resource| resource.contains("//managedhsm."))
    }

    /// The vault as scheme, host and port.
    pub(crate) fn origin(&self) -> Result<String, String> {
        options::origin("vault", &self.vault, PlainHttp::Never)
    }

    /// For what tokens are asked.
    pub(crate) fn resource(&self) -> Option<&str> {
        let told = || self.cloud().map(|(_, resource, _, _)| *resource);
        self.resource.as_deref().map(|resource| resource.trim_end_matches('/')).or_else(told)
    }

    /// Who gives tokens.
    pub(crate) fn authority(&self) -> Option<&str> {
        let told = || self.cloud().map(|(_, _, authority, _)| *authority);
        self.authority.as_deref().map(|authority| authority.trim_end_matches('/')).or_else(told)
    }

    fn cloud(&self) -> Option<&'static (&'static str, &'static str, &'static str, bool)> {
        let url = Url::parse(&self.vault).ok()?;
        let host = url.host_str()?;
        CLOUDS.iter().find(|(domain, ..)| host.strip_suffix(domain).is_some_and(is_label))
    }
}

impl Auth {
    /// The ids it names, each with its option.
    fn ids(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::ManagedIdentity(ManagedIdentity { client_id }) => {
                client_id.iter().map(|id| ("client_id", id.as_str())).collect()
            }
            Self::WorkloadIdentity(WorkloadIdentity { tenant_id, client_id, .. })
            | Self::ClientSecret(ClientSecret { tenant_id, client_id, .. }) => {
                vec![("tenant_id", tenant_id), ("client_id", client_id)]
            }
            Self::AzureCli(AzureCli { tenant_id }) => {
                tenant_id.iter().map(|id| ("tenant_id", id.as_str())).collect()
            }
        }
    }
}

/// One part of a DNS name.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A GUID, or a domain that names a tenant.
fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
        && text.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLI: &str = "auth = { azure_cli = {} }";

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map(|()| config)
    }

    fn at(vault: &str) -> Result<Config, String> {
        parse(&format!("vault = {vault:?}\n{CLI}"))
    }

    #[test]
    fn a_vaults_name_tells_its_cloud() {
        let table = [
            ("https://contoso.vault.azure.net", "https://vault.azure.net", PUBLIC, false),
            ("https://a.managedhsm.azure.net/", "https://managedhsm.azure.net", PUBLIC, true),
            ("https://a.vault.azure.cn", "https://vault.azure.cn", CHINA, false),
            (
                "https://a.managedhsm.usgovcloudapi.net",
                "https://managedhsm.usgovcloudapi.net",
                GOVERNMENT,
                true,
            ),
        ];
        for (vault, resource, authority, is_hsm) in table {
            let config = at(vault).unwrap();
            assert_eq!(config.resource(), Some(resource));
            assert_eq!(config.authority(), Some(authority));
            assert_eq!(config.is_managed_hsm(), is_hsm, "{vault}");
        }
        for vault in ["https://vault.azure.net", "https://a.b.vault.azure.net", "https://10.0.0.4"]
        {
            let error = at(vault).unwrap_err();
            assert!(error.contains("`resource` must be said"), "{vault}: {error}");
        }
    }

    #[test]
    fn a_slash_after_resource_and_authority_changes_nothing() {
        let config = parse(&format!(
            "vault = \"https://10.0.0.4\"\nresource = \"https://vault.azure.net/\"\n\
             authority = \"https://login.microsoftonline.com/\"\n{CLI}"
        ))
        .unwrap();
        assert_eq!(config.resource(), Some("https://vault.azure.net"));
        assert_eq!(config.authority(), Some(PUBLIC));
    }

    #[test]
    fn every_way_to_sign_in_reads_back() {
        let file = SecretSource::File("/run/s".into());
        let (tenant_id, client_id) = ("contoso.example".to_owned(), "00001111-aaaa".to_owned());
        let ids = "tenant_id = \"contoso.example\", client_id = \"00001111-aaaa\"";
        let table = [
            ("managed_identity = {}".to_owned(), Auth::ManagedIdentity(ManagedIdentity::default())),
            (
                "managed_identity = { client_id = \"00001111-aaaa\" }".to_owned(),
                Auth::ManagedIdentity(ManagedIdentity { client_id: Some(client_id.clone()) }),
            ),
            (
                format!("workload_identity = {{ {ids}, token = {{ file = \"/run/s\" }} }}"),
                Auth::WorkloadIdentity(WorkloadIdentity {
                    tenant_id: tenant_id.clone(),
                    client_id: client_id.clone(),
                    token: file.clone(),
                }),
            ),
            (
                format!("client_secret = {{ {ids}, secret = {{ file = \"/run/s\" }} }}"),
                Auth::ClientSecret(ClientSecret { tenant_id, client_id, secret: file }),
            ),
            ("azure_cli = {}".to_owned(), Auth::AzureCli(AzureCli::default())),
        ];
        for (text, auth) in table {
            let text = format!("vault = \"https://a.vault.azure.net\"\nauth = {{ {text} }}");
            assert_eq!(parse(&text).unwrap().auth, auth, "{text}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_write() {
        let vault = "vault = \"https://a.vault.azure.net\"";
        let table = [
            (format!("vault = \"contoso\"\n{CLI}"), "`vault` is no URL"),
            (format!("vault = \"http://a.vault.azure.net\"\n{CLI}"), "in the clear"),
            (format!("vault = \"https://u:p@a.vault.azure.net\"\n{CLI}"), "a user name"),
            (format!("vault = \"https://a.vault.azure.net/keys\"\n{CLI}"), "more than a host"),
            (format!("{vault}\nresource = \"vault.azure.net\"\n{CLI}"), "`resource`"),
            (format!("{vault}\nauthority = \"http://login\"\n{CLI}"), "`authority`"),
            (format!("{vault}\nvalut = 1\n{CLI}"), "valut"),
            (format!("{vault}\nattempt_timeout = \"10s\"\n{CLI}"), "`operation_timeout`"),
            (format!("{vault}\nconnect_timeout = \"0s\"\n{CLI}"), "no time limit"),
            (vault.to_owned(), "auth"),
            (format!("{vault}\nauth = {{ azure_cli = {{ tenant_id = \"a/b\" }} }}"), "no id"),
            (format!("{vault}\nauth = {{ managed_identity = {{ client_id = \"\" }} }}"), "no id"),
            (format!("{vault}\nauth = {{ client_secret = {{ tenant_id = \"a\" }} }}"), "client_id"),
        ];
        for (text, expected) in table {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
