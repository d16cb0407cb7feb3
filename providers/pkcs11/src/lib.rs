//! Stub.
pub mod latch;
pub mod oaep;
pub mod uri;

use claviger_provider_api::{Error, OpenKey, WrappingKey};
use std::path::Path;
use std::sync::Arc;

/// Stub.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Config {
    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        Ok(())
    }
    /// Checks the syntax of a locator.
    pub fn check_locator(&self, _locator: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Stub.
#[derive(Debug)]
pub struct Provider {}

impl Provider {
    /// Makes a provider; touches no backend.
    pub fn new(_name: &str, _config: &Config, _state_dir: Option<&Path>) -> Result<Self, Error> {
        Ok(Self {})
    }
    /// Opens a key.
    pub async fn open(&self, _open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        unreachable!()
    }
}
