//! What a line says about one operation.

use std::time::{Duration, SystemTime};

use tonic::Code;

use super::line::Line;
use crate::daemon::config::Operation;
use crate::daemon::records::metrics::code_name;
use crate::daemon::transport::verdicts::TokenIdentity;

/// Longest names of keys, callers, providers, algorithms and ids, in characters.
pub(super) const NAME: usize = 64;
/// Longest identity, peer and id that comes from outside.
pub(super) const IDENTITY: usize = 256;
/// Longest text from a backend.
pub(super) const BACKEND_TEXT: usize = 512;

/// One operation, or one refusal. Never holds key material; strings may hold anything, longer
/// ones are cut.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Ours.
    pub request_id: &'a str,
    /// The caller's own `x-request-id`.
    pub caller_request_id: Option<&'a str>,
    /// W3C Trace Context.
    pub traceparent: Option<&'a str>,
    /// The caller's name; `None` for a peer that is no configured caller.
    pub caller: Option<&'a str>,
    /// What the connection shows: the certificate's SAN, or `uid:N`.
    pub identity: Option<&'a str>,
    /// Of the client certificate's DER.
    pub certificate_sha256: Option<&'a [u8; 32]>,
    /// From then on its chain is no longer valid.
    pub certificate_not_after: Option<SystemTime>,
    /// What vouched for the caller: the client CA's name in the configuration; `None` on a Unix
    /// socket, where the kernel does.
    pub anchor: Option<&'a str>,
    /// The name of the token's issuer in the configuration; `None` where no token was found good.
    pub issuer: Option<&'a str>,
    /// The token's `sub`.
    pub subject: Option<&'a str>,
    /// Of the token's bytes, which are never recorded.
    pub token_sha256: Option<&'a [u8; 32]>,
    /// The socket address at the other end.
    pub peer: Option<&'a str>,
    /// What was asked for; `None` where it never got so far.
    pub operation: Option<Operation>,
    /// The wrapping key, by the name that was asked for.
    pub key: Option<&'a str>,
    /// The version that was used.
    pub version: Option<u32>,
    /// The provider of the replica that was used.
    pub provider: Option<&'a str>,
    /// The algorithm's JWA name.
    pub algorithm: Option<&'a str>,
    /// Of the wrapped value.
    pub wrapped_sha256: Option<&'a [u8; 32]>,
    /// Of a rewrap: for whom.
    pub target: RewrapTarget<'a>,
    /// The item's place in its batch, from 0.
    pub batch_item: Option<u32>,
    /// How the call ended.
    pub outcome: Code,
    /// Why it did not succeed; one of a small closed set.
    pub reason: Option<&'static str>,
    /// What became of an operation whose caller did not wait for its end: `ok`, or a reason.
    pub ended: Option<&'static str>,
    /// What was wrong with a value, where the caller learns only that it failed.
    pub cause: Option<&'static str>,
    /// What the backend said, for the operator.
    pub backend_error: Option<&'a str>,
    /// The id under which the backend logged the request.
    pub backend_request_id: Option<&'a str>,
    /// From the arrival of the request until now.
    pub duration: Duration,
}

impl<'a> Record<'a> {
    /// The same, of a call with this token.
    #[must_use]
    pub fn with_token(self, token: Option<&'a TokenIdentity>) -> Self {
        let Some(token) = token else { return self };
        Self {
            issuer: Some(&token.issuer),
            subject: Some(&token.subject),
            token_sha256: Some(&token.sha256),
            ..self
        }
    }
}

impl Record<'_> {
    /// Nothing but an outcome; for `..Record::new(code)`.
    pub fn new(outcome: Code) -> Self {
        Self {
            request_id: "",
            caller_request_id: None,
            traceparent: None,
            caller: None,
            identity: None,
            certificate_sha256: None,
            certificate_not_after: None,
            anchor: None,
            issuer: None,
            subject: None,
            token_sha256: None,
            peer: None,
            operation: None,
            key: None,
            version: None,
            provider: None,
            algorithm: None,
            wrapped_sha256: None,
            target: RewrapTarget::default(),
            batch_item: None,
            outcome,
            reason: None,
            ended: None,
            cause: None,
            backend_error: None,
            backend_request_id: None,
            duration: Duration::ZERO,
        }
    }

    pub(super) fn write(&self, event: &'static str, line: &mut Line<'_>) {
        line.plain("event", event);
        line.text("request_id", self.request_id, NAME);
        line.some_text("caller_request_id", self.caller_request_id, NAME);
        line.some_text("traceparent", self.traceparent, NAME);
        line.some_text("caller", self.caller, NAME);
        line.some_text("identity", self.identity, IDENTITY);
        line.sha256("certificate_sha256", self.certificate_sha256);
        if let Some(not_after) = self.certificate_not_after {
            line.time("certificate_not_after", not_after.into());
        }
        line.some_text("anchor", self.anchor, NAME);
        line.some_text("issuer", self.issuer, NAME);
        line.some_text("subject", self.subject, IDENTITY);
        line.sha256("token_sha256", self.token_sha256);
        line.some_text("peer", self.peer, IDENTITY);
        if let Some(operation) = self.operation {
            line.plain("operation", operation.name());
        }
        line.some_text("key", self.key, NAME);
        if let Some(version) = self.version {
            line.number("version", version.into());
        }
        line.some_text("provider", self.provider, NAME);
        line.some_text("algorithm", self.algorithm, NAME);
        line.sha256("wrapped_sha256", self.wrapped_sha256);
        self.target.write(line);
        if let Some(item) = self.batch_item {
            line.number("batch_item", item.into());
        }
        line.plain("outcome", code_name(self.outcome));
        line.some_text("reason", self.reason, NAME);
        line.some_text("ended", self.ended, NAME);
        line.some_text("cause", self.cause, NAME);
        line.some_text("backend_error", self.backend_error, BACKEND_TEXT);
        line.some_text("backend_request_id", self.backend_request_id, IDENTITY);
        line.number("duration_us", u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX));
    }
}

/// For whom a rewrap wraps: as far as it was known when the call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewrapTarget<'a> {
    /// The name of the key that was asked for; `None` for a public key of the caller's own.
    pub key: Option<&'a str>,
    /// The version that wrapped.
    pub version: Option<u32>,
    /// Of its SubjectPublicKeyInfo.
    pub public_key_sha256: Option<[u8; 32]>,
    /// The algorithm's JWA name.
    pub algorithm: Option<&'a str>,
    /// Of what came out.
    pub wrapped_sha256: Option<[u8; 32]>,
    /// Of a public key that a person approved: the issuer that vouched for that person.
    pub approver_issuer: Option<&'a str>,
    /// The person: `sub` of the ID token.
    pub approver: Option<&'a str>,
    /// Of the ID token's bytes.
    pub approval_sha256: Option<[u8; 32]>,
}

impl RewrapTarget<'_> {
    fn write(&self, line: &mut Line<'_>) {
        line.some_text("target_key", self.key, NAME);
        if let Some(version) = self.version {
            line.number("target_version", version.into());
        }
        line.sha256("target_public_key_sha256", self.public_key_sha256.as_ref());
        line.some_text("target_algorithm", self.algorithm, NAME);
        line.sha256("target_wrapped_sha256", self.wrapped_sha256.as_ref());
        line.some_text("approver_issuer", self.approver_issuer, NAME);
        line.some_text("approver", self.approver, IDENTITY);
        line.sha256("approval_sha256", self.approval_sha256.as_ref());
    }
}
