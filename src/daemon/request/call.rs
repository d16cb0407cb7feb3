//! What a call carries: who calls, under which request id, and until when.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use claviger_provider_api::Call;
use tonic::{Code, Request, Status};

use crate::daemon::records::audit::Record;
use crate::daemon::records::traces::CallTrace;
use crate::daemon::request::in_flight::StartedCall;
use crate::daemon::request::policy::Caller;
use crate::daemon::status::Failure;
use crate::daemon::transport::caller::Peer;
use crate::daemon::transport::verdicts::TokenIdentity;

/// How long a call without a deadline may take.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// What is left for the answer of a batch when its last item ends, at most.
const ANSWER_OF_BATCH: Duration = Duration::from_millis(500);

/// Who calls, under which request id, and until when it is worth working.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Ours; unique.
    pub request_id: Arc<str>,
    /// The caller's own `x-request-id`, recorded beside ours.
    pub caller_request_id: Option<String>,
    /// W3C trace context, if the caller sent one.
    pub traceparent: Option<String>,
    /// Its trace, where that is kept.
    pub trace: Option<Arc<CallTrace>>,
    /// The other end of the connection.
    pub peer: Arc<Peer>,
    /// Who the call's token says it is; none: it came without one.
    pub token: Option<Arc<TokenIdentity>>,
    /// The configured caller that the peer is, or the token.
    pub caller: Arc<Caller>,
    /// After this nothing is started for this call.
    pub deadline: Instant,
    /// Its place among the calls in flight: given up when nothing works for the call any more, not
    /// when its caller leaves.
    pub in_flight: OnceLock<Arc<StartedCall>>,
    /// How long it waited for that place.
    pub waited_for_room: OnceLock<Duration>,
}

impl CallContext {
    /// On whose behalf a key is used, and until when.
    pub fn call(&self) -> Call {
        Call { caller: self.caller.slot, deadline: self.deadline }
    }

    /// This call with an earlier deadline for the items of a batch: a tenth of the remaining time, at
    /// most `ANSWER_OF_BATCH`, is kept back, so that late items fail singly and the answer is still
    /// in time.
    #[must_use]
    pub fn for_items(&self) -> Self {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let of_items = left.saturating_sub((left / 10).min(ANSWER_OF_BATCH));
        Self { deadline: now + of_items, ..self.clone() }
    }

    /// What any record of this call says.
    pub fn with_record<T>(&self, outcome: Code, write: impl FnOnce(Record<'_>) -> T) -> T {
        let (identity, address) = (self.peer.identity(), self.peer.address.to_string());
        write(Record {
            request_id: &self.request_id,
            caller_request_id: self.caller_request_id.as_deref(),
            traceparent: self.traceparent.as_deref(),
            caller: Some(&self.caller.name),
            identity: identity.as_deref(),
            certificate_sha256: self.peer.certificate.as_ref().map(|c| &c.sha256),
            certificate_not_after: self.peer.certificate.as_ref().map(|c| c.not_after),
            anchor: self.peer.certificate.as_ref().map(|c| &*c.anchor.bundle),
            peer: Some(&address),
            ..Record::new(outcome).with_token(self.token.as_deref())
        })
    }
}

/// The context that admission put into the request, and its message.
pub fn open<T>(request: Request<T>) -> Result<(Arc<CallContext>, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    let context = extensions.remove::<Arc<CallContext>>().ok_or(Failure::Internal)?;
    Ok((context, message))
}
