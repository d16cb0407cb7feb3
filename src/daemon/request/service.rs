//! The gRPC service: from a message to typed arguments, and from a result to a message.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use claviger_proto::v1::key_service_server::KeyService;
use claviger_proto::v1::rewrap_batch_result::Result as RewrapItemResult;
use claviger_proto::v1::rewrap_target::Recipient as RewrapRecipient;
use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::v1::{
    GetKeyRequest, GetKeyResponse, ListKeysRequest, ListKeysResponse, RewrapBatchRequest,
    RewrapBatchResponse, RewrapBatchResult, RewrapRequest, RewrapResponse, SignRequest,
    SignResponse, UnwrapBatchRequest, UnwrapBatchResponse, UnwrapBatchResult, UnwrapRequest,
    UnwrapResponse, VerifyRequest, VerifyResponse, WrapRequest, WrapResponse,
};
use claviger_proto::{MAX_BATCH_ITEMS, v1};
use claviger_provider_api::algorithm::UnknownAlgorithm;
use claviger_provider_api::{Algorithm, KeyMaterial};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::daemon::config::{Operation, State};
use crate::daemon::keys::keyring::Version;
use crate::daemon::request::approvers::Approval;
use crate::daemon::request::call::{self, CallContext};
use crate::daemon::request::guard::{
    Batch, Guard, Recipient, RewrapCall, Rewrapped, SignCall, UnwrapCall, VerifyCall, WrapCall,
    Wrapped,
};
use crate::daemon::request::policy::{Caller, Granted};
use crate::daemon::status::Failure;

/// Keys on one page of a list, at most.
const MAX_PAGE: usize = 32;
/// A page ends before the message limit; a single key may be larger than what is left.
const PAGE_BYTES: usize = claviger_proto::MAX_MESSAGE_BYTES / 2;

/// `claviger.v1.KeyService`.
#[derive(Clone, Debug)]
pub struct Service {
    guard: Arc<Guard>,
}

impl Service {
    /// A service in front of `guard`.
    pub fn new(guard: Arc<Guard>) -> Self {
        Self { guard }
    }

    async fn unwrap_one(
        &self,
        context: &Arc<CallContext>,
        request: UnwrapRequest,
        batch: Option<(Arc<Batch>, u32)>,
    ) -> Result<UnwrapResponse, Failure> {
        let batch_item = batch.as_ref().map(|(_, item)| *item);
        let refuse = |failure| {
            self.guard.refuse(context, Operation::Unwrap, &request.key, batch_item, failure)
        };
        let call = UnwrapCall {
            algorithm: parse_algorithm(&request.algorithm, "algorithm").map_err(refuse)?,
            key: request.key,
            wrapped: request.wrapped,
            version: request.key_version,
            label: request.label,
            batch,
        };
        let (material, key_version) = self.guard.unwrap(context, call).await?;
        // The buffer keeps zeroing itself inside the message.
        let key_material = Bytes::from_owner(material.into_zeroizing());
        Ok(UnwrapResponse { key_material, key_version })
    }

    async fn rewrap_one(
        &self,
        context: &Arc<CallContext>,
        request: RewrapRequest,
        batch: Option<(Arc<Batch>, u32)>,
    ) -> Result<RewrapResponse, Failure> {
        let key = request.source.as_ref().map(|source| source.key.clone()).unwrap_or_default();
        let batch_item = batch.as_ref().map(|(_, item)| *item);
        let call = parse_rewrap(request, batch).map_err(|failure| {
            self.guard.refuse(context, Operation::Rewrap, &key, batch_item, failure)
        })?;
        let Rewrapped { wrapped, source_version, target_version, algorithm, public_key_sha256 } =
            self.guard.rewrap(context, call).await?;
        Ok(RewrapResponse {
            wrapped: wrapped.into(),
            source_key_version: source_version,
            target_key_version: target_version.unwrap_or(0),
            target_algorithm: algorithm.to_string(),
            target_public_key_sha256: public_key_sha256.to_vec().into(),
        })
    }

    /// The outcomes of `one` for each of 1 to [`MAX_BATCH_ITEMS`] items, in their order.
    async fn batch<I, T, F>(
        &self,
        context: &CallContext,
        operation: Operation,
        items: Vec<I>,
        one: impl Fn(Arc<CallContext>, I, (Arc<Batch>, u32)) -> F,
    ) -> Result<Vec<Result<T, Failure>>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if !(1..=MAX_BATCH_ITEMS).contains(&items.len()) {
            let allowed = format!("must be 1 to {MAX_BATCH_ITEMS} items, not {}", items.len());
            let failure = Failure::Field { field: "items", allowed };
            return Err(self.guard.refuse(context, operation, "", None, failure));
        }
        let context = Arc::new(context.for_items());
        let batch = self.guard.batch();
        let items = (0u32..)
            .zip(items)
            .map(|(number, item)| one(Arc::clone(&context), item, (Arc::clone(&batch), number)));
        Ok(batch.drive(items, context.call()).await)
    }
}

#[tonic::async_trait]
impl KeyService for Service {
    async fn wrap(&self, request: Request<WrapRequest>) -> Result<Response<WrapResponse>, Status> {
        let (context, request) = call::open(request)?;
        let refuse =
            |failure| self.guard.refuse(&context, Operation::Wrap, &request.key, None, failure);
        let call = WrapCall {
            algorithm: parse_algorithm(&request.algorithm, "algorithm").map_err(refuse)?,
            material: KeyMaterial::copied_from(&request.key_material),
            key: request.key,
            label: request.label,
        };
        let Wrapped { wrapped, version, algorithm } = self.guard.wrap(&context, call).await?;
        let algorithm = algorithm.to_string();
        Ok(Response::new(WrapResponse { wrapped: wrapped.into(), key_version: version, algorithm }))
    }

    async fn unwrap(
        &self,
        request: Request<UnwrapRequest>,
    ) -> Result<Response<UnwrapResponse>, Status> {
        let (context, request) = call::open(request)?;
        Ok(Response::new(self.unwrap_one(&context, request, None).await?))
    }

    async fn unwrap_batch(
        &self,
        request: Request<UnwrapBatchRequest>,
    ) -> Result<Response<UnwrapBatchResponse>, Status> {
        let (context, request) = call::open(request)?;
        let unwrap = |context, request, batch| async move {
            self.unwrap_one(&context, request, Some(batch)).await
        };
        let outcomes = self.batch(&context, Operation::Unwrap, request.items, unwrap).await?;
        let results = outcomes.into_iter().map(|outcome| {
            let result = match outcome {
                Ok(unwrapped) => ItemResult::Unwrapped(unwrapped),
                Err(failure) => ItemResult::Error(failure.into_item_error()),
            };
            UnwrapBatchResult { result: Some(result) }
        });
        let results = results.collect();
        Ok(Response::new(UnwrapBatchResponse { results }))
    }

    async fn rewrap(
        &self,
        request: Request<RewrapRequest>,
    ) -> Result<Response<RewrapResponse>, Status> {
        let (context, request) = call::open(request)?;
        Ok(Response::new(self.rewrap_one(&context, request, None).await?))
    }

    async fn rewrap_batch(
        &self,
        request: Request<RewrapBatchRequest>,
    ) -> Result<Response<RewrapBatchResponse>, Status> {
        let (context, request) = call::open(request)?;
        let rewrap = |context, request, batch| async move {
            self.rewrap_one(&context, request, Some(batch)).await
        };
        let outcomes = self.batch(&context, Operation::Rewrap, request.items, rewrap).await?;
        let results = outcomes.into_iter().map(|outcome| {
            let result = match outcome {
                Ok(rewrapped) => RewrapItemResult::Rewrapped(rewrapped),
                Err(failure) => RewrapItemResult::Error(failure.into_item_error()),
            };
            RewrapBatchResult { result: Some(result) }
        });
        let results = results.collect();
        Ok(Response::new(RewrapBatchResponse { results }))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let (context, SignRequest { key, digest, algorithm, key_version }) = call::open(request)?;
        let refuse = |failure| self.guard.refuse(&context, Operation::Sign, &key, None, failure);
        let algorithm = algorithm.parse().map_err(unknown_algorithm).map_err(refuse)?;
        let call = SignCall { key, digest, algorithm, version: key_version };
        let (signature, key_version) = self.guard.sign(&context, call).await?;
        let algorithm = algorithm.to_string();
        Ok(Response::new(SignResponse {
            signature: signature.bytes.into(),
            key_version,
            algorithm,
        }))
    }

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<VerifyResponse>, Status> {
        let (context, VerifyRequest { key, digest, algorithm, key_version, signature }) =
            call::open(request)?;
        let refuse = |failure| self.guard.refuse(&context, Operation::Verify, &key, None, failure);
        let algorithm = algorithm.parse().map_err(unknown_algorithm).map_err(refuse)?;
        let call = VerifyCall { key, digest, algorithm, version: key_version, signature };
        let signed_by = self.guard.verify(&context, &call).await?;
        let (valid, key_version) = (signed_by.is_some(), signed_by.unwrap_or(0));
        Ok(Response::new(VerifyResponse { valid, key_version }))
    }

    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let (context, request) = call::open(request)?;
        let page = self.guard.list(&context, |caller| list_page(caller, &request)).await?;
        Ok(Response::new(page))
    }

    async fn get_key(
        &self,
        request: Request<GetKeyRequest>,
    ) -> Result<Response<GetKeyResponse>, Status> {
        let (context, GetKeyRequest { key }) = call::open(request)?;
        let key = describe(self.guard.read_key(&context, &key).await?);
        Ok(Response::new(GetKeyResponse { key: Some(key) }))
    }
}

fn list_page(caller: &Caller, request: &ListKeysRequest) -> Result<ListKeysResponse, Failure> {
    let page_size = match request.page_size as usize {
        0 => MAX_PAGE,
        size if size <= MAX_PAGE => size,
        size => {
            let allowed = format!("must be at most {MAX_PAGE}, not {size}");
            return Err(Failure::Field { field: "page_size", allowed });
        }
    };
    let names = &caller.readable;
    let from = names.partition_point(|name| *name <= request.page_token);
    let mut page = ListKeysResponse::default();
    let mut bytes = 0;
    for name in &names[from..] {
        let Ok(granted) = caller.granted(name, Operation::Read) else { continue };
        let key = describe(granted);
        bytes += key.encoded_len();
        if page.keys.len() == page_size || (bytes > PAGE_BYTES && !page.keys.is_empty()) {
            page.next_page_token = page.keys.last().map(|key| key.name.clone()).unwrap_or_default();
            break;
        }
        page.keys.push(key);
    }
    Ok(page)
}

fn parse_algorithm(name: &str, field: &'static str) -> Result<Option<Algorithm>, Failure> {
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = |error: UnknownAlgorithm| Failure::Field { field, allowed: error.to_string() };
    name.parse().map(Some).map_err(unknown)
}

fn parse_rewrap(
    request: RewrapRequest,
    batch: Option<(Arc<Batch>, u32)>,
) -> Result<RewrapCall, Failure> {
    let RewrapRequest { source, wrapped, target, max_key_material_len, approval } = request;
    let required = |field| Failure::Field { field, allowed: "is required".into() };
    let source = source.ok_or_else(|| required("source"))?;
    let target = target.ok_or_else(|| required("target"))?;
    let recipient = match target.recipient {
        Some(RewrapRecipient::Key(name)) => Recipient::Key(name),
        Some(RewrapRecipient::PublicKey(spki)) => Recipient::PublicKey(spki),
        None => {
            let allowed = "must name a key or hold a public_key".into();
            return Err(Failure::Field { field: "target", allowed });
        }
    };
    Ok(RewrapCall {
        source: UnwrapCall {
            algorithm: parse_algorithm(&source.algorithm, "source.algorithm")?,
            key: source.key,
            wrapped,
            version: source.key_version,
            label: source.label,
            batch,
        },
        recipient,
        algorithm: parse_algorithm(&target.algorithm, "target.algorithm")?,
        label: target.label,
        max_key_material_len,
        approval: approval.map(|approval| {
            let v1::Approval { id_token, expires } = approval;
            Approval { id_token, expires }
        }),
        approver: OnceLock::new(),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn unknown_algorithm(error: UnknownAlgorithm) -> Failure {
    Failure::Field { field: "algorithm", allowed: error.to_string() }
}

fn describe(granted: &Granted) -> v1::Key {
    v1::Key {
        name: granted.key.name.clone(),
        operations: granted.operations().map(|operation| operation.name().to_owned()).collect(),
        versions: granted.key.versions.iter().map(describe_version).collect(),
    }
}

fn describe_version(version: &Version) -> v1::KeyVersion {
    let state = match version.state {
        State::Active => v1::KeyVersionState::Active,
        State::UnwrapOnly => v1::KeyVersionState::UnwrapOnly,
        State::Disabled => v1::KeyVersionState::Disabled,
    };
    let public_key = version.public_key();
    v1::KeyVersion {
        version: version.number,
        state: state.into(),
        algorithms: version.algorithms.iter().map(ToString::to_string).collect(),
        sign_algorithms: version.sign_algorithms.iter().map(ToString::to_string).collect(),
        modulus_bits: public_key.map_or(0, |key| key.modulus_bits() as u32),
        public_key: public_key.map(|key| key.spki().to_vec().into()).unwrap_or_default(),
        public_key_sha256: version
            .public_key_sha256
            .map(|pin| pin.to_vec())
            .unwrap_or_default()
            .into(),
        certificate: version.certificate.clone().unwrap_or_default().into(),
    }
}
