//! A provider's own options, of whatever type it is.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};

use claviger_provider_api::Options;
use serde::de::DeserializeOwned;
use toml::de::Deserializer;

/// A provider's own options. Equal are those of one type that say the same: then a reload keeps the
/// provider.
pub struct ProviderConfig(Box<dyn AnyOptions>);

/// What the options of every type can do besides: be copied and compared.
trait AnyOptions: Options {
    fn copy(&self) -> Box<dyn AnyOptions>;
    fn same_as(&self, other: &dyn Any) -> bool;
}

impl<T: Options + Clone + PartialEq> AnyOptions for T {
    fn copy(&self) -> Box<dyn AnyOptions> {
        Box::new(self.clone())
    }

    fn same_as(&self, other: &dyn Any) -> bool {
        other.downcast_ref() == Some(self)
    }
}

impl ProviderConfig {
    /// Reads the options of one type.
    pub(super) fn read<T: Options + Clone + PartialEq + DeserializeOwned>(
        options: Deserializer<'_>,
    ) -> Result<Self, toml::de::Error> {
        T::deserialize(options).map(|options| Self(Box::new(options)))
    }

    /// Its `type`.
    pub fn type_name(&self) -> &'static str {
        self.provider_type().name
    }

    /// Whether others may read their secrets through it.
    pub fn is_secret_store(&self) -> bool {
        self.provider_type().check_secret.is_some()
    }

    /// The options as those of one type; none if they are of another.
    pub fn downcast_ref<T: Options>(&self) -> Option<&T> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl Deref for ProviderConfig {
    type Target = dyn Options;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl DerefMut for ProviderConfig {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.0
    }
}

impl Clone for ProviderConfig {
    fn clone(&self) -> Self {
        Self(self.0.copy())
    }
}

impl PartialEq for ProviderConfig {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_as(&*other.0 as &dyn Any)
    }
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
