//! The three methods of the plugin API over one key of the daemon.

use bytes::Bytes;
use claviger_client::{Client, Error, Health, UnwrapOptions, WrapOptions};
use claviger_proto::kms_v2::key_management_service_server::KeyManagementService;
use claviger_proto::kms_v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::versions::Versions;
use crate::cli::failure::tell;

/// The version of the plugin API.
const API: &str = "v2";
/// Healthy, as the API server wants to read it.
const OK: &str = "ok";

/// A plugin over one key.
#[derive(Debug)]
pub(super) struct Plugin {
    client: Client,
    key: String,
    versions: Versions,
}

impl Plugin {
    pub(super) fn new(client: Client, key: String) -> Self {
        Self { client, key, versions: Versions::default() }
    }

    /// A client whose calls carry the API server's id of this one, so that their records name it.
    fn client_for(&self, uid: &str) -> Client {
        self.client.with_request_id(uid).unwrap_or_else(|_| self.client.clone())
    }

    /// "ok", or why the key does not serve.
    async fn health(&self) -> Result<String, Error> {
        Ok(match self.client.health(Some(&self.key)).await? {
            Health::Serving => OK.to_owned(),
            Health::NotServing => format!("the key {} does not serve now", self.key),
        })
    }
}

#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let active = self.versions.refresh(&self.client, &self.key).await.map_err(refused)?;
        let key_id = active.ok_or_else(|| no_version(&self.key))?;
        let healthz = self.health().await.map_err(refused)?;
        if healthz != OK {
            tell(&healthz);
        }
        Ok(Response::new(StatusResponse { version: API.to_owned(), healthz, key_id }))
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        let EncryptRequest { plaintext, uid } = request.into_inner();
        let client = self.client_for(&uid);
        let wrapped =
            client.wrap(&self.key, &plaintext, &WrapOptions::default()).await.map_err(refused)?;
        let id =
            self.versions.id(&client, &self.key, wrapped.key_version).await.map_err(refused)?;
        Ok(Response::new(EncryptResponse {
            ciphertext: wrapped.wrapped.into(),
            key_id: id.ok_or_else(|| no_version(&self.key))?,
            annotations: std::collections::HashMap::new(),
        }))
    }

    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let DecryptRequest { ciphertext, uid, key_id, .. } = request.into_inner();
        let client = self.client_for(&uid);
        let version = self.versions.version(&client, &self.key, &key_id).await.map_err(refused)?;
        let version = version.ok_or_else(|| {
            Status::failed_precondition(format!(
                "the key {} has no version with the public key {key_id} any more: bring it back as \
                 unwrap-only until everything that it encrypted is written anew",
                self.key
            ))
        })?;
        let options = UnwrapOptions { key_version: Some(version), ..UnwrapOptions::default() };
        let unwrapped =
            client.unwrap_key(&self.key, &ciphertext, &options).await.map_err(refused)?;
        Ok(Response::new(DecryptResponse { plaintext: Bytes::from_owner(unwrapped.key_material) }))
    }
}

fn no_version(key: &str) -> Status {
    Status::failed_precondition(format!(
        "the key {key} has no active version whose public key the daemon knows: claviger doctor says why"
    ))
}

/// A failure of the daemon, for the API server; and on stderr, because an API server tells little.
fn refused(error: Error) -> Status {
    let id = error.request_id.map_or(String::new(), |id| format!(" (request id {id})"));
    let message = format!("{}{id}", error.message);
    tell(&message);
    Status::new(error.code, message)
}
