//! The file that holds credentials, as Google's tools write it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aws_lc_rs::signature::RsaKeyPair;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pem_rfc7468::decode_vec;
use reqwest::Url;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{Credentials, Format, Identity, Subject};
use crate::config::{check_transport, is_near};

/// Google's, for a file that names none.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// The only universe there is for us.
const UNIVERSE: &str = "googleapis.com";

/// A credentials file (AIP-4110 and the formats it names). Further fields are of no use here.
#[derive(Deserialize)]
pub(super) struct File {
    r#type: String,
    universe_domain: Option<String>,
    quota_project_id: Option<String>,
    client_email: Option<String>,
    private_key_id: Option<String>,
    #[serde(default, deserialize_with = "zeroizing")]
    private_key: Option<Zeroizing<String>>,
    token_uri: Option<String>,
    client_id: Option<String>,
    #[serde(default, deserialize_with = "zeroizing")]
    client_secret: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "zeroizing")]
    refresh_token: Option<Zeroizing<String>>,
    audience: Option<String>,
    subject_token_type: Option<String>,
    token_url: Option<String>,
    credential_source: Option<SourceField>,
    service_account_impersonation_url: Option<String>,
    source_credentials: Option<Box<File>>,
}

#[derive(Deserialize)]
struct SourceField {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    format: Option<FormatField>,
    executable: Option<serde::de::IgnoredAny>,
    environment_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct FormatField {
    r#type: Option<String>,
    subject_token_field_name: Option<String>,
}

fn zeroizing<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

fn needed<T>(value: Option<T>, field: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("`{field}` is missing"))
}

fn url(text: &str, field: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("`{field}` is no URL ({error})"))?;
    check_transport(&url).map_err(|why| format!("`{field}` {why}"))?;
    Ok(url)
}

impl File {
    pub(super) fn into_credentials(self) -> Result<Credentials, String> {
        if self.universe_domain.as_deref().is_some_and(|domain| domain != UNIVERSE) {
            return Err("`universe_domain` is not googleapis.com, and no other is supported".into());
        }
        let quota_project = match &self.quota_project_id {
            None => None,
            Some(id) => Some(
                HeaderValue::from_str(id)
                    .map_err(|_| "`quota_project_id` is no project".to_owned())?,
            ),
        };
        let impersonate = self.service_account_impersonation_url.as_deref();
        let impersonate =
            impersonate.map(|text| url(text, "service_account_impersonation_url")).transpose()?;
        let identity = match self.r#type.as_str() {
            "service_account" => self.into_service_account()?,
            "authorized_user" => self.into_authorized_user()?,
            "external_account" => self.into_federated()?,
            "impersonated_service_account" => {
                let source = needed(self.source_credentials, "source_credentials")?;
                let source = source.into_credentials()?;
                if source.impersonate.is_some() {
                    return Err(
                        "`source_credentials` impersonate another account themselves".into()
                    );
                }
                needed(impersonate.as_ref(), "service_account_impersonation_url")?;
                source.identity
            }
            _ => {
                return Err("`type` is none of service_account, external_account, \
                            impersonated_service_account and authorized_user"
                    .into());
            }
        };
        Ok(Credentials { identity, impersonate, quota_project })
    }

    fn into_service_account(self) -> Result<Identity, String> {
        let pem = needed(self.private_key, "private_key")?;
        let unusable = || "`private_key` is no RSA key in PKCS#8 form, PEM".to_owned();
        let (label, der) = decode_vec(pem.as_bytes()).map_err(|_| unusable())?;
        let der = Zeroizing::new(der);
        if label != "PRIVATE KEY" {
            return Err(unusable());
        }
        let key = RsaKeyPair::from_pkcs8(&der).map_err(|_| unusable())?;
        Ok(Identity::ServiceAccount {
            email: needed(self.client_email, "client_email")?,
            key_id: self.private_key_id,
            key: Box::new(key),
            token_uri: url(self.token_uri.as_deref().unwrap_or(TOKEN_URI), "token_uri")?,
        })
    }

    fn into_authorized_user(self) -> Result<Identity, String> {
        Ok(Identity::AuthorizedUser {
            client_id: needed(self.client_id, "client_id")?,
            client_secret: needed(self.client_secret, "client_secret")?,
            refresh_token: needed(self.refresh_token, "refresh_token")?,
            token_uri: url(self.token_uri.as_deref().unwrap_or(TOKEN_URI), "token_uri")?,
        })
    }

    fn into_federated(self) -> Result<Identity, String> {
        let source = needed(self.credential_source, "credential_source")?;
        Ok(Identity::Federated {
            audience: needed(self.audience, "audience")?,
            subject_token_type: needed(self.subject_token_type, "subject_token_type")?,
            token_url: url(&needed(self.token_url, "token_url")?, "token_url")?,
            subject: source.into_subject()?,
        })
    }
}

impl SourceField {
    fn into_subject(self) -> Result<Subject, String> {
        let format = match self.format {
            None => Format::Text,
            Some(format) => match format.r#type.as_deref() {
                None | Some("text") => Format::Text,
                Some("json") => Format::Json(needed(
                    format.subject_token_field_name,
                    "credential_source.format.subject_token_field_name",
                )?),
                Some(_) => return Err("`credential_source.format.type` is not text or json".into()),
            },
        };
        if self.executable.is_some() {
            return Err(
                "`credential_source` is a command, and a command is no place for secrets; \
                        use one with `file` or `url`"
                    .into(),
            );
        }
        if self.environment_id.is_some() {
            return Err("`credential_source` is an AWS one, which is not supported; use one with \
                        `file` or `url`"
                .into());
        }
        match (self.file, self.url) {
            (Some(path), None) if path.is_absolute() => Ok(Subject::File(path, format)),
            (Some(_), None) => {
                Err("`credential_source.file` is a relative path; write it from / on".into())
            }
            (None, Some(text)) => {
                let url = Url::parse(&text)
                    .map_err(|error| format!("`credential_source.url` is no URL ({error})"))?;
                if !is_near(&url) {
                    check_transport(&url)
                        .map_err(|why| format!("`credential_source.url` {why}"))?;
                }
                Ok(Subject::Url(url, headers(self.headers)?, format))
            }
            _ => Err("`credential_source` has not exactly one of `file` and `url`".into()),
        }
    }
}

fn headers(fields: BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let wrong = || "`credential_source.headers` holds what is no header".to_owned();
        let name: HeaderName = name.parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}
