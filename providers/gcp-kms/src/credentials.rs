//! Credentials: a file as Google's tools write it, or the metadata server where there is none. Read anew
//! each time a token is needed, so that a replaced file acts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::RsaKeyPair;
use claviger_provider_api::{Secret, SecretError, SecretSource, secret};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pem_rfc7468::decode_vec;
use reqwest::Url;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::config::{Config, check_transport, is_near};

/// Google's, for a file that names none.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// The only universe there is for us.
const UNIVERSE: &str = "googleapis.com";

/// Where the metadata server keeps the token of the attached service account.
const METADATA_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

/// Who we are.
pub(crate) struct Credentials {
    pub(crate) identity: Identity,
    /// Whose token to take on then (`…:generateAccessToken` of IAM credentials).
    pub(crate) impersonate: Option<Url>,
    /// The project whose quota a person's requests count against.
    pub(crate) quota_project: Option<HeaderValue>,
}

/// How a token is asked for.
pub(crate) enum Identity {
    /// With a JWT that a service account's key signs (RFC 7523).
    ServiceAccount { email: String, key_id: Option<String>, key: Box<RsaKeyPair>, token_uri: Url },
    /// With a refresh token, as `gcloud auth application-default login` leaves one.
    AuthorizedUser {
        client_id: String,
        client_secret: Zeroizing<String>,
        refresh_token: Zeroizing<String>,
        token_uri: Url,
    },
    /// With a token of somebody whom Google trusts (RFC 8693).
    Federated { audience: String, subject_token_type: String, token_url: Url, subject: Subject },
    /// From the machine or pod that we run on.
    Metadata { url: String },
}

/// Where a subject token comes from.
pub(crate) enum Subject {
    File(PathBuf, Format),
    Url(Url, HeaderMap, Format),
}

/// What holds a subject token.
pub(crate) enum Format {
    Text,
    /// A JSON object with the token in this field.
    Json(String),
}

/// Why credentials cannot be used: what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("credentials cannot be read")]
    Unreadable(#[source] SecretError),
    #[error("{0}: {1}")]
    Refused(String, String),
}

impl Credentials {
    /// Reads the configured file, or finds the application default credentials: the file that
    /// GOOGLE_APPLICATION_CREDENTIALS names, else the one that gcloud wrote, else the metadata server.
    pub(crate) fn read(config: &Config) -> Result<Self, Unusable> {
        if let Some(source) = &config.credentials {
            let secret = source.read().map_err(Unusable::Unreadable)?;
            return Self::parse(&secret, &name(source));
        }
        if let Some(path) = std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
        {
            return Self::parse_file(&path);
        }
        let of_gcloud = std::env::var_os("HOME").map(|home| {
            Path::new(&home).join(".config/gcloud/application_default_credentials.json")
        });
        if let Some(path) = of_gcloud.filter(|path| path.exists()) {
            return Self::parse_file(&path);
        }
        let origin = config
            .metadata_origin()
            .map_err(|why| Unusable::Refused("configuration".into(), why))?;
        let identity = Identity::Metadata { url: format!("{origin}{METADATA_PATH}") };
        Ok(Self { identity, impersonate: None, quota_project: None })
    }

    fn parse_file(path: &Path) -> Result<Self, Unusable> {
        let secret = secret::read_secret_file(path).map_err(Unusable::Unreadable)?;
        Self::parse(&secret, &path.display().to_string())
    }

    fn parse(secret: &Secret, name: &str) -> Result<Self, Unusable> {
        let refuse = |why: String| Unusable::Refused(name.to_owned(), why);
        let file: File = serde_json::from_slice(secret.expose()).map_err(|error| {
            // serde_json's own text may repeat what is in the file.
            let (line, column) = (error.line(), error.column());
            refuse(format!(
                "it is not JSON in the form of Google's credentials (line {line}, column {column})"
            ))
        })?;
        file.into_credentials().map_err(refuse)
    }
}

fn name(source: &SecretSource) -> String {
    match source {
        SecretSource::File(path) => path.display().to_string(),
        SecretSource::Credential(name) => format!("credential {name:?}"),
    }
}

/// A credentials file (AIP-4110 and the formats it names). Further fields are of no use here.
#[derive(Deserialize)]
struct File {
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
    fn into_credentials(self) -> Result<Credentials, String> {
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
                    return Err("`source_credentials` impersonate somebody themselves".into());
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

impl Format {
    /// The token in what a file or an answer holds.
    pub(crate) fn token(&self, bytes: &[u8]) -> Result<Zeroizing<String>, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
        let token = match self {
            Self::Text => Zeroizing::new(text.trim().to_owned()),
            Self::Json(field) => {
                let mut json: BTreeMap<String, serde_json::Value> =
                    serde_json::from_str(text).map_err(|_| "it is no JSON object".to_owned())?;
                match json.remove(field) {
                    Some(serde_json::Value::String(token)) => Zeroizing::new(token),
                    _ => return Err(format!("it has no text in {field:?}")),
                }
            }
        };
        if token.is_empty() {
            return Err("it is empty".into());
        }
        Ok(token)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = match &self.identity {
            Identity::ServiceAccount { email, .. } => email,
            Identity::AuthorizedUser { client_id, .. } => client_id,
            Identity::Federated { audience, .. } => audience,
            Identity::Metadata { url } => url,
        };
        write!(f, "Credentials({identity})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(file: &Value) -> Result<Credentials, String> {
        let secret = Secret::new(Zeroizing::new(file.to_string().into_bytes()));
        Credentials::parse(&secret, "key.json").map_err(|error| error.to_string())
    }

    fn federated() -> Value {
        json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": { "file": "/var/run/token" },
        })
    }

    fn user() -> Value {
        json!({
            "type": "authorized_user",
            "client_id": "id",
            "client_secret": "secret-marker",
            "refresh_token": "token-marker",
            "quota_project_id": "p-1",
        })
    }

    #[test]
    fn the_files_of_googles_tools_are_understood() {
        let credentials = parse(&user()).unwrap();
        assert_eq!(credentials.quota_project.unwrap(), "p-1");
        let Identity::AuthorizedUser { token_uri, .. } = credentials.identity else { panic!() };
        assert_eq!(token_uri.as_str(), TOKEN_URI);

        let mut file = federated();
        file["service_account_impersonation_url"] =
            json!("https://iamcredentials.googleapis.com/v1/a:generateAccessToken");
        file["credential_source"] = json!({
            "url": "http://169.254.169.254/metadata/identity/oauth2/token",
            "headers": { "Metadata": "True" },
            "format": { "type": "json", "subject_token_field_name": "access_token" },
        });
        let credentials = parse(&file).unwrap();
        assert!(credentials.impersonate.is_some());
        let Identity::Federated { subject: Subject::Url(_, headers, format), .. } =
            credentials.identity
        else {
            panic!()
        };
        assert_eq!(headers["metadata"], "True");
        assert_eq!(**format.token(br#"{"access_token": "a.b.c"}"#).as_ref().unwrap(), "a.b.c");

        let file = json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/a:generateAccessToken",
            "source_credentials": user(),
        });
        let credentials = parse(&file).unwrap();
        assert!(matches!(credentials.identity, Identity::AuthorizedUser { .. }));
        assert!(credentials.impersonate.is_some());
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_repeating_it() {
        let with = |mut file: Value, field: &str, value: Value| {
            file[field] = value;
            file
        };
        let source = |source: Value| with(federated(), "credential_source", source);
        let account = json!({
            "type": "service_account",
            "client_email": "a@p.iam.gserviceaccount.com",
            "private_key": "-----BEGIN PRIVATE KEY-----\nbWFya2Vy\n-----END PRIVATE KEY-----\n",
        });
        let table = [
            (json!({ "no": "type" }), "not JSON in the form"),
            (json!({ "type": "secret-marker" }), "`type` is none of"),
            (with(user(), "universe_domain", json!("example.org")), "`universe_domain`"),
            (with(user(), "refresh_token", Value::Null), "`refresh_token` is missing"),
            (with(user(), "token_uri", json!("http://example.org/")), "loopback addresses only"),
            (with(user(), "quota_project_id", json!("a\nb")), "`quota_project_id`"),
            (account.clone(), "`private_key` is no RSA key"),
            (with(account, "private_key", json!("marker")), "`private_key` is no RSA key"),
            (with(federated(), "token_url", json!("marker")), "`token_url` is no URL"),
            (source(json!({})), "exactly one of `file` and `url`"),
            (source(json!({ "executable": { "command": "marker" } })), "is a command"),
            (source(json!({ "file": "token" })), "relative path"),
            (source(json!({ "environment_id": "aws1", "url": "marker" })), "AWS"),
            (source(json!({ "url": "http://example.org/" })), "loopback"),
            (source(json!({ "file": "/t", "format": { "type": "xml" } })), "text or json"),
            (source(json!({ "file": "/t", "format": { "type": "json" } })), "field_name"),
            (json!({ "type": "impersonated_service_account" }), "`source_credentials` is missing"),
        ];
        for (file, expected) in table {
            let error = parse(&file).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("key.json: "), "{error}");
            assert!(!error.contains("marker"), "{error}");
        }
        let debug = format!("{:?}", parse(&user()).unwrap());
        assert_eq!(debug, "Credentials(id)");
    }

    #[test]
    fn a_subject_token_is_text_or_a_field_of_json() {
        let token =
            |format: &Format, text: &str| format.token(text.as_bytes()).map(|t| t.to_string());
        assert_eq!(token(&Format::Text, "a.b.c\n"), Ok("a.b.c".into()));
        assert!(token(&Format::Text, "\n").unwrap_err().contains("empty"));
        let json = Format::Json("id_token".into());
        assert_eq!(token(&json, r#"{"id_token":"x"}"#), Ok("x".into()));
        for bad in ["{}", "[]", "x", r#"{"id_token":1}"#, r#"{"id_token":""}"#] {
            assert!(token(&json, bad).is_err(), "{bad}");
        }
    }
}
