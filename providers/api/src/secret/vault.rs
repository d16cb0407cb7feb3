//! Secrets that a provider reads through another one: fields in Vault.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Secret, SecretError};
use crate::error::{Error, ErrorKind};

/// A field of a secret in Vault's KV engine, version 2.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultField {
    /// Through which provider it is read.
    pub provider: String,
    /// `mount/data/name`.
    pub path: String,
    /// Which of the secret's fields.
    pub field: String,
    #[serde(skip)]
    store: Option<Arc<dyn SecretStore>>,
}

/// The future of [`SecretStore::read`].
pub type ReadSecret<'a> = Pin<Box<dyn Future<Output = Result<Secret, Error>> + Send + 'a>>;

/// A provider through which others read their secrets.
pub trait SecretStore: fmt::Debug + Send + Sync {
    /// Reads one field, for a task of the runtime.
    fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a>;

    /// Reads one field, for a thread that may wait.
    fn read_blocking(&self, path: &str, field: &str) -> Result<Secret, Error>;
}

impl VaultField {
    /// A field that is not bound to its provider yet.
    pub fn new(provider: &str, path: &str, field: &str) -> Self {
        let [provider, path, field] = [provider, path, field].map(str::to_owned);
        Self { provider, path, field, store: None }
    }

    /// Says through what it is read from now on.
    pub fn bind(&mut self, store: Arc<dyn SecretStore>) {
        self.store = Some(store);
    }

    pub(super) fn store(&self) -> Result<&dyn SecretStore, SecretError> {
        self.store.as_deref().ok_or_else(|| {
            self.error(&Error::new(ErrorKind::Internal, "it was not bound to its provider"))
        })
    }

    pub(super) fn error(&self, error: &Error) -> SecretError {
        SecretError::Vault {
            provider: self.provider.clone(),
            path: self.path.clone(),
            field: self.field.clone(),
            kind: error.kind(),
            cause: error.cause(),
            reason: error.to_string(),
        }
    }
}

/// Equal are two that read the same field through the same provider as it was made: one that was
/// made anew with other options is another one.
impl PartialEq for VaultField {
    fn eq(&self, other: &Self) -> bool {
        let same_store = match (&self.store, &other.store) {
            (Some(store), Some(other)) => Arc::ptr_eq(store, other),
            (None, None) => true,
            _ => false,
        };
        (&self.provider, &self.path, &self.field) == (&other.provider, &other.path, &other.field)
            && same_store
    }
}

impl Eq for VaultField {}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::secret::SecretSource;

    /// A store of one field.
    #[derive(Debug)]
    struct OneField(Result<&'static [u8], ErrorKind>);

    impl SecretStore for OneField {
        fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a> {
            Box::pin(async { self.read_blocking(path, field) })
        }

        fn read_blocking(&self, path: &str, field: &str) -> Result<Secret, Error> {
            assert_eq!((path, field), ("secret/data/hsm", "pin"));
            let value = self.0.map_err(|kind| Error::new(kind, "it does not answer"))?;
            Ok(Secret::new(Zeroizing::new(value.to_vec())))
        }
    }

    fn bound(store: OneField) -> SecretSource {
        let mut field = VaultField::new("vault-a", "secret/data/hsm", "pin");
        field.bind(Arc::new(store));
        SecretSource::Vault(field)
    }

    #[test]
    fn a_field_in_vault_is_read_through_its_provider_and_named_where_it_is_not() {
        assert_eq!(bound(OneField(Ok(b"1234"))).read_blocking().unwrap().expose(), b"1234");
        for (said, kind) in [
            (ErrorKind::Unavailable, ErrorKind::Unavailable),
            (ErrorKind::DeadlineExceeded, ErrorKind::Unavailable),
            (ErrorKind::Throttled { retry_after: None }, ErrorKind::Unavailable),
            (ErrorKind::OperatorNeeded, ErrorKind::OperatorNeeded),
        ] {
            let error = bound(OneField(Err(said))).read_blocking().unwrap_err();
            assert_eq!(error.kind(), kind);
            assert_eq!(
                error.to_string(),
                "cannot read the field \"pin\" of secret/data/hsm through provider vault-a: it does not answer"
            );
        }
        let unbound = VaultField::new("vault-a", "secret/data/hsm", "pin");
        let error = SecretSource::Vault(unbound).read_blocking().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }

    #[test]
    fn the_same_field_through_another_making_of_its_provider_is_another_source() {
        let source = bound(OneField(Ok(b"1234")));
        assert_eq!(source, source.clone());
        assert_ne!(source, bound(OneField(Ok(b"1234"))));
    }
}
