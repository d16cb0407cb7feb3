//! The daemon: one wrapping key of it, for the symmetric key and for users' own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_client::{
    Approval, Client, Code, Config, ConfigError, Error, Health, Recipient, RewrapItem,
    RewrapSource, RewrapTarget, UnwrapOptions, WrapOptions,
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::KeyError;
use crate::config;
use crate::user::UserId;

/// A user's key has 64 bytes at most: 32 to encrypt and 32 to authenticate.
const LONGEST_USER_KEY: u32 = 64;

/// A client of the daemon for one key.
#[derive(Clone, Debug)]
pub struct Daemon {
    client: Client,
    key: String,
}

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It may succeed later, or elsewhere: it cannot be reached, is busy, or an operator must act.
    #[error("the daemon: {0}")]
    NotNow(String),
    /// It is about the value, or about what this caller may do.
    #[error("the daemon: {0}")]
    Refused(String),
}

impl Daemon {
    /// Reads the client file. Calls wait for a daemon or an HSM that is away, until their deadline.
    pub fn new(keys: &config::Keys) -> Result<Self, ConfigError> {
        let config = Config::from_file(&keys.client)?;
        let config = Config { timeout: keys.timeout, wait: true, ..config };
        Ok(Self { client: Client::new(&config)?, key: keys.key.clone() })
    }

    /// Wraps bytes; the wrapped value in Base64.
    pub async fn wrap(&self, bytes: &[u8]) -> Result<String, DaemonError> {
        let wrapped = self.client.wrap(&self.key, bytes, &WrapOptions::default()).await?;
        Ok(STANDARD.encode(wrapped.wrapped))
    }

    /// Unwraps a value in Base64.
    pub async fn unwrap(&self, wrapped: &str) -> Result<Zeroizing<Vec<u8>>, DaemonError> {
        Self::unwrap_with(&self.client, &self.key, wrapped).await
    }

    /// Wraps a user's key together with the user's id, so that it opens for no other user.
    pub async fn wrap_for(&self, user: UserId, key: &[u8]) -> Result<String, KeyError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(user.bytes().len() + key.len()));
        bytes.extend_from_slice(user.bytes());
        bytes.extend_from_slice(key);
        let client = self.named(user);
        match client.wrap(&self.key, &bytes, &WrapOptions::default()).await {
            Ok(wrapped) => Ok(STANDARD.encode(wrapped.wrapped)),
            Err(error) if error.field.as_deref() == Some("key_material") => Err(KeyError::TooLong),
            Err(error) => Err(DaemonError::from(error).into()),
        }
    }

    /// Unwraps a user's key. The audit record has the user's id, in its `caller_request_id`.
    pub async fn unwrap_for(
        &self,
        user: UserId,
        wrapped: &str,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let bytes = Self::unwrap_with(&self.named(user), &self.key, wrapped).await?;
        match bytes.split_first_chunk::<16>() {
            Some((id, key)) if id == user.bytes() => Ok(Zeroizing::new(key.to_vec())),
            _ => Err(KeyError::Wrong(format!("user {user}: the stored value is another user's"))),
        }
    }

    /// The same daemon, for another of its keys.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { client: self.client.clone(), key: key.to_owned() }
    }

    /// The public key of the newest version (SubjectPublicKeyInfo, DER) and its default algorithm.
    pub async fn public_key(&self) -> Result<(Vec<u8>, String), DaemonError> {
        let key = self.client.key(&self.key).await?;
        let newest = key.versions.into_iter().find(|version| !version.public_key.is_empty());
        let newest = newest.ok_or_else(|| DaemonError::NotNow("the key is not open yet".into()))?;
        Ok((newest.public_key.to_vec(), newest.algorithms.into_iter().next().unwrap_or_default()))
    }

    /// Rewraps a user's value for a public key (SubjectPublicKeyInfo, DER), as a person approved. The
    /// audit record has the user's id, in its `caller_request_id`, and who approved.
    pub async fn rewrap_for(
        &self,
        user: UserId,
        wrapped: &[u8],
        public_key: Vec<u8>,
        algorithm: &str,
        approval: Approval,
    ) -> Result<Vec<u8>, DaemonError> {
        let item = RewrapItem {
            source: RewrapSource { key: self.key.clone(), ..RewrapSource::default() },
            wrapped: wrapped.to_vec(),
            target: RewrapTarget {
                recipient: Recipient::PublicKey(public_key),
                algorithm: algorithm.to_owned(),
                label: Vec::new(),
            },
            max_key_material_len: Some(LONGEST_USER_KEY),
            approval: Some(approval),
        };
        Ok(self.named(user).rewrap(&item).await?.wrapped)
    }

    /// Whether the key is well, as the daemon proves it.
    pub async fn health(&self) -> Result<Health, DaemonError> {
        let quick = self.client.with_timeout(std::time::Duration::from_secs(3));
        Ok(quick.health(Some(&self.key)).await?)
    }

    async fn unwrap_with(
        client: &Client,
        key: &str,
        wrapped: &str,
    ) -> Result<Zeroizing<Vec<u8>>, DaemonError> {
        let wrapped = STANDARD.decode(wrapped);
        let wrapped = wrapped
            .map_err(|_| DaemonError::Refused("the stored value is no Base64".to_owned()))?;
        Ok(client.unwrap_key(key, &wrapped, &UnwrapOptions::default()).await?.key_material)
    }

    /// The client whose calls have a user's id in their request id, and something that no other has.
    fn named(&self, user: UserId) -> Client {
        let unique = Uuid::now_v7().simple().to_string();
        let id = format!("user:{user}:{}", &unique[unique.len() - 16..]);
        self.client.with_request_id(&id).unwrap_or_else(|_| self.client.clone())
    }
}

impl From<Error> for DaemonError {
    fn from(error: Error) -> Self {
        let id = error.request_id.as_ref().map(|id| format!(" (request id {id})"));
        let text = format!("{}{}", error.message, id.unwrap_or_default());
        match error.code {
            Code::InvalidArgument | Code::PermissionDenied | Code::NotFound => Self::Refused(text),
            _ => Self::NotNow(text),
        }
    }
}

impl From<DaemonError> for KeyError {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::NotNow(_) => Self::NotNow(error.to_string()),
            DaemonError::Refused(_) => Self::Wrong(error.to_string()),
        }
    }
}
