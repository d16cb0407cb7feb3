//! Credentials: a file as Google's tools write it, or the metadata server where there is none. Read anew
//! each time a token is needed, so that a replaced file acts.

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::RsaKeyPair;
use claviger_provider_api::{Cause, Error, ErrorKind, Secret, SecretError, secret};
use http::header::{HeaderMap, HeaderValue};
use reqwest::Url;
use zeroize::Zeroizing;

use crate::config::Config;
use file::File;

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
    /// With a token of an issuer that Google trusts (RFC 8693).
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
    #[error("{0}: it is empty")]
    Empty(String),
    #[error("{0}: {1}")]
    Refused(String, String),
}

impl From<Unusable> for Error {
    /// A store of secrets may be back soon; what is wrong in a file is for an operator.
    fn from(unusable: Unusable) -> Self {
        let (kind, cause) = match &unusable {
            Unusable::Unreadable(error) => (error.kind(), error.cause()),
            Unusable::Empty(_) => (ErrorKind::OperatorNeeded, Some(Cause::SecretFile)),
            Unusable::Refused(..) => (ErrorKind::OperatorNeeded, Some(Cause::CredentialsRefused)),
        };
        Self::new(kind, unusable).with_cause(cause)
    }
}

impl Credentials {
    /// Reads the configured file, or finds the application default credentials: the file that
    /// GOOGLE_APPLICATION_CREDENTIALS names, else the one that gcloud wrote, else the metadata server.
    pub(crate) async fn read(config: &Config) -> Result<Self, Unusable> {
        if let Some(source) = &config.credentials {
            let secret = source.read().await.map_err(Unusable::Unreadable)?;
            return Self::parse(&secret, &source.to_string());
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
        if secret.expose().iter().all(u8::is_ascii_whitespace) {
            return Err(Unusable::Empty(name.to_owned()));
        }
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
