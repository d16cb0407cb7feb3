//! The calls: one method for each of `claviger.v1.KeyService`, and health.

mod opened;
mod rewrap;
mod types;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use zeroize::{Zeroize, Zeroizing};

use claviger_proto::v1::key_service_client::KeyServiceClient;
use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::{MAX_MESSAGE_BYTES, REQUEST_ID, v1};

use crate::bearer::Bearer;
use crate::channel::Channel;
use crate::config::{Config, ConfigError};
use crate::connect::Driver;
use crate::endpoints::Endpoints;
use crate::error::{Error, daemon_id};
use crate::retry::Attempts;
use crate::schedule::Effort;

pub use rewrap::{Approval, Recipient, RewrapItem, RewrapSource, RewrapTarget, Rewrapped};
pub use types::{
    Health, KeyPage, SignOptions, Signed, UnwrapItem, UnwrapOptions, Unwrapped, Verified,
    WrapOptions, Wrapped,
};

/// A client of one daemon, or of several equal ones. Cheap to clone; clones share the connections,
/// of which there is one to each endpoint in use.
///
/// It connects at the first call, and again whenever a connection was lost or a file of its
/// certificate has changed. INVALID_ARGUMENT, PERMISSION_DENIED and a limit of this caller's that is
/// used up are final. Every other failure says something of that daemon: the next endpoint is asked,
/// and if all fail, the error names each with its reason, the most telling one first. A request
/// whose connection broke may have run: one that is not idempotent (wrap, rewrap, sign) is sent once
/// more at most. [`Config::wait`] and [`Config::patience`] say how long a call goes on, and
/// [`Config::hedge`] when a second endpoint is asked beside one that is slow.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) options: CallOptions,
}

/// The metadata key of a bearer token (RFC 6750 section 2.1).
const AUTHORIZATION: &str = "authorization";

/// What holds for each call of a client.
#[derive(Clone, Debug)]
pub(crate) struct CallOptions {
    pub(crate) timeout: Duration,
    pub(crate) patience: Duration,
    pub(crate) wait: bool,
    pub(crate) hedge: Option<Duration>,
    pub(crate) request_id: Option<String>,
    pub(crate) bearer: Option<Arc<Bearer>>,
}

impl Client {
    /// Connects, and asks the daemon for its health: an answer proves that the daemon is reached
    /// and that it accepts this program's certificate.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let client = Self::new(config)?;
        client.health(None).await?;
        Ok(client)
    }

    /// Reads the files of `config`; connects at the first call, which needs a tokio runtime that
    /// goes on running between the calls.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let endpoints = Arc::new(Endpoints::new(config, Driver::Always)?);
        Ok(Self { endpoints, options: CallOptions::new(config)? })
    }

    #[cfg(test)]
    pub(crate) fn of(endpoints: Endpoints, config: &Config) -> Self {
        let options = CallOptions::new(config).expect("there is no token to be read");
        Self { endpoints: Arc::new(endpoints), options }
    }

    /// A client over these connections with another deadline for each call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let mut client = self.clone();
        client.options.timeout = timeout;
        client
    }

    /// A client over these connections that sends `request_id` with each call, and no new random one:
    /// 1 to 64 printable ASCII characters, recorded by the daemon beside its own id.
    pub fn with_request_id(&self, request_id: &str) -> Result<Self, Error> {
        let mut client = self.clone();
        client.options.set_request_id(request_id)?;
        Ok(client)
    }

    /// Encrypts `material` under the newest active version of `key`.
    pub async fn wrap(
        &self,
        key: &str,
        material: &[u8],
        options: &WrapOptions,
    ) -> Result<Wrapped, Error> {
        let request = v1::WrapRequest {
            key: key.to_owned(),
            key_material: Bytes::from_owner(Zeroizing::new(material.to_vec())),
            algorithm: options.algorithm.clone(),
            label: Bytes::copy_from_slice(&options.label),
        };
        let send = |c, r| async move { service(c).wrap(r).await };
        let (answer, request_id) = self.call(request, send).await?;
        let v1::WrapResponse { wrapped, key_version, algorithm } = answer;
        Ok(Wrapped { wrapped: wrapped.into(), key_version, algorithm, request_id })
    }

    /// Recovers key material. Every failure that depends on the value of `wrapped` is the same
    /// [`Code::InvalidArgument`] without a field.
    pub async fn unwrap_key(
        &self,
        key: &str,
        wrapped: &[u8],
        options: &UnwrapOptions,
    ) -> Result<Unwrapped, Error> {
        let request = unwrap_request(key, wrapped, options);
        let send = |c, r| async move { service(c).unwrap(r).await };
        let (answer, request_id) = self.call_idempotent(request, send).await?;
        Ok(unwrapped(answer, request_id))
    }

    /// Recovers up to 64 values in one call; each succeeds or fails alone. The results are in the
    /// order of the items.
    pub async fn unwrap_batch(
        &self,
        items: &[UnwrapItem],
    ) -> Result<Vec<Result<Unwrapped, Error>>, Error> {
        let items: Vec<_> = items
            .iter()
            .map(|item| unwrap_request(&item.key, &item.wrapped, &item.options))
            .collect();
        let expected = items.len();
        let send = |c, r| async move { service(c).unwrap_batch(r).await };
        let (answer, request_id) =
            self.call_idempotent(v1::UnwrapBatchRequest { items }, send).await?;
        let results: Vec<_> = answer
            .results
            .into_iter()
            .map(|result| match result.result {
                Some(ItemResult::Unwrapped(answer)) => Ok(unwrapped(answer, request_id.clone())),
                Some(ItemResult::Error(error)) => Err(Error::of_item(error, request_id.as_ref())),
                None => Err(malformed("a result of the batch is empty", request_id.as_ref())),
            })
            .collect();
        if results.len() != expected {
            return Err(malformed("the batch has not one result per item", request_id.as_ref()));
        }
        Ok(results)
    }

    /// Signs a digest of exactly the length of `algorithm`'s hash (JWA: RS256 to PS512).
    pub async fn sign(
        &self,
        key: &str,
        digest: &[u8],
        algorithm: &str,
        options: SignOptions,
    ) -> Result<Signed, Error> {
        let request = v1::SignRequest {
            key: key.to_owned(),
            digest: Bytes::copy_from_slice(digest),
            algorithm: algorithm.to_owned(),
            key_version: options.key_version,
        };
        let send = |c, r| async move { service(c).sign(r).await };
        let (answer, request_id) = self.call(request, send).await?;
        let v1::SignResponse { signature, key_version, algorithm } = answer;
        Ok(Signed { signature: signature.into(), key_version, algorithm, request_id })
    }

    /// Verifies a signature over a digest. A signature that is not good is an answer, no error.
    pub async fn verify(
        &self,
        key: &str,
        digest: &[u8],
        algorithm: &str,
        signature: &[u8],
        options: SignOptions,
    ) -> Result<Verified, Error> {
        let request = v1::VerifyRequest {
            key: key.to_owned(),
            digest: Bytes::copy_from_slice(digest),
            algorithm: algorithm.to_owned(),
            key_version: options.key_version,
            signature: Bytes::copy_from_slice(signature),
        };
        let send = |c, r| async move { service(c).verify(r).await };
        let (answer, request_id) = self.call_idempotent(request, send).await?;
        Ok(Verified { key_version: answer.valid.then_some(answer.key_version), request_id })
    }

    /// One page of the keys that this program may use: at most `page_size` (1 to 32; 0 means 32),
    /// after the page whose [`KeyPage::next`] is given.
    pub async fn list_keys(&self, page_size: u32, after: Option<&str>) -> Result<KeyPage, Error> {
        let request =
            v1::ListKeysRequest { page_size, page_token: after.unwrap_or_default().to_owned() };
        let send = |c, r| async move { service(c).list_keys(r).await };
        let (answer, _) = self.call_idempotent(request, send).await?;
        let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
        Ok(KeyPage { keys: answer.keys, next })
    }

    /// Every key that this program may use, page after page.
    pub async fn keys(&self) -> Result<Vec<v1::Key>, Error> {
        let mut page = self.list_keys(0, None).await?;
        let mut keys = page.keys;
        while let Some(next) = page.next {
            page = self.list_keys(0, Some(&next)).await?;
            if page.next.as_ref() == Some(&next) {
                return Err(malformed("a page of keys names itself as the next one", None));
            }
            keys.append(&mut page.keys);
        }
        Ok(keys)
    }

    /// The description of one key that this program may use.
    pub async fn key(&self, name: &str) -> Result<v1::Key, Error> {
        let request = v1::GetKeyRequest { key: name.to_owned() };
        let send = |c, r| async move { service(c).get_key(r).await };
        let (answer, request_id) = self.call_idempotent(request, send).await?;
        answer.key.ok_or_else(|| malformed("the key is missing", request_id.as_ref()))
    }

    /// The health of a key, or of the daemon as a whole (grpc.health.v1). A key that this program
    /// may not use is [`Code::NotFound`].
    pub async fn health(&self, key: Option<&str>) -> Result<Health, Error> {
        let service = key.map_or_else(String::new, |key| format!("claviger.v1.KeyService/{key}"));
        let send = |c, r| async move { HealthClient::new(c).check(r).await };
        let (answer, _) = self.call_idempotent(HealthCheckRequest { service }, send).await?;
        Ok(match answer.status() {
            ServingStatus::Serving => Health::Serving,
            _ => Health::NotServing,
        })
    }

    /// Sends a request that is to run once, with its deadline and id; gives the answer and the
    /// daemon's id of it.
    async fn call<M, A, F>(
        &self,
        message: M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(A, Option<String>), Error>
    where
        M: prost::Message + Clone,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        self.answer(&mut self.attempts(false), &message, &self.options.sent_id(), send).await
    }

    /// As [`Self::call`], for a request that may run twice.
    async fn call_idempotent<M, A, F>(
        &self,
        message: M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(A, Option<String>), Error>
    where
        M: prost::Message + Clone,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        self.answer(&mut self.attempts(true), &message, &self.options.sent_id(), send).await
    }

    fn attempts(&self, is_idempotent: bool) -> Attempts<'_> {
        let CallOptions { timeout, patience, wait, hedge, .. } = self.options;
        let effort = Effort { timeout, patience, wait, hedge, is_idempotent };
        Attempts::new(&self.endpoints, effort)
    }

    /// The first answer of the attempts that are left.
    async fn answer<M, A, F>(
        &self,
        attempts: &mut Attempts<'_>,
        message: &M,
        sent_id: &str,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(A, Option<String>), Error>
    where
        M: prost::Message + Clone,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let size = message.encoded_len();
        if size > MAX_MESSAGE_BYTES {
            let message = format!("the request has {size} bytes; {MAX_MESSAGE_BYTES} are allowed");
            return Err(Error::local(Code::InvalidArgument, message));
        }
        let answer = attempts.answer(|channel, left| {
            let mut request = Request::new(message.clone());
            request.set_timeout(left);
            let id = sent_id.parse().expect("a request id is printable ASCII");
            request.metadata_mut().insert(REQUEST_ID, id);
            if let Some(bearer) = &self.options.bearer {
                request.metadata_mut().insert(AUTHORIZATION, bearer.header());
            }
            send(channel, request)
        });
        let response = answer
            .await
            .map_err(|failure| Error::of_call(failure, sent_id, self.options.timeout))?;
        let request_id = daemon_id(response.metadata());
        Ok((response.into_inner(), request_id))
    }
}

impl CallOptions {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let Config { timeout, patience, wait, hedge, .. } = *config;
        let bearer = config.token.as_deref().map(Bearer::read).transpose()?.map(Arc::new);
        Ok(Self { timeout, patience, wait, hedge, request_id: None, bearer })
    }

    /// The id that a call is sent with.
    fn sent_id(&self) -> String {
        self.request_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string())
    }

    pub(crate) fn set_request_id(&mut self, request_id: &str) -> Result<(), Error> {
        if !(1..=64).contains(&request_id.len())
            || !request_id.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            let message = "a request id has 1 to 64 printable ASCII characters".to_owned();
            return Err(Error::refused("request_id", message));
        }
        self.request_id = Some(request_id.to_owned());
        Ok(())
    }
}

fn service(channel: Channel) -> KeyServiceClient<Channel> {
    KeyServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn unwrap_request(key: &str, wrapped: &[u8], options: &UnwrapOptions) -> v1::UnwrapRequest {
    v1::UnwrapRequest {
        key: key.to_owned(),
        wrapped: Bytes::copy_from_slice(wrapped),
        key_version: options.key_version,
        algorithm: options.algorithm.clone(),
        label: Bytes::copy_from_slice(&options.label),
    }
}

fn unwrapped(answer: v1::UnwrapResponse, request_id: Option<String>) -> Unwrapped {
    let key_material = Zeroizing::new(answer.key_material.to_vec());
    // Where the receive buffer is not shared with other messages it can be zeroed too.
    if let Ok(mut received) = answer.key_material.try_into_mut() {
        received.zeroize();
    }
    Unwrapped { key_material, key_version: answer.key_version, request_id }
}

fn malformed(what: &str, request_id: Option<&String>) -> Error {
    Error {
        request_id: request_id.cloned(),
        ..Error::local(Code::Internal, format!("the daemon's answer makes no sense: {what}"))
    }
}
