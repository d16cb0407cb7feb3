//! Between a parsed call and a key: grant, limits, attribution of failures, metrics, audit.
//!
//! Whatever reached a key has its own audit record, durable before key material leaves; a caller
//! that goes away in the middle does not take the record with it.

mod abandoned;
mod batch;
mod record;
mod rewrap;
mod sign;
mod unwrap;
mod value_id;
mod verify;
mod wrap;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::Algorithm;

use abandoned::Abandoned;
pub use batch::Batch;
use batch::in_time;
use record::OperationRecord;
pub use rewrap::{Recipient, RewrapCall, Rewrapped};
pub use sign::SignCall;
pub use unwrap::UnwrapCall;
pub use verify::VerifyCall;
pub use wrap::{WrapCall, Wrapped};

use crate::daemon::config::Operation;
use crate::daemon::records::audit::Audit;
use crate::daemon::records::metrics::{KeyMetrics, Metrics};
use crate::daemon::request::call::CallContext;
use crate::daemon::request::policy::{Caller, Granted};
use crate::daemon::request::public_work::PublicWork;
use crate::daemon::status::Failure;

/// The longest OAEP label that is accepted, in bytes.
pub const MAX_LABEL_LEN: usize = 1024;

/// The guard of every operation.
#[derive(Debug)]
pub struct Guard {
    audit: Arc<Audit>,
    /// RSA with public keys.
    public_work: PublicWork,
    abandoned: Arc<Abandoned>,
    /// Counts calls that name no key of the caller's.
    without_key: Arc<KeyMetrics>,
}

impl Guard {
    /// A guard that writes to `audit`. Starts the threads of [`PublicWork`].
    pub fn start(audit: Arc<Audit>, metrics: &Metrics) -> io::Result<Self> {
        let (public_work, without_key) = (PublicWork::start()?, metrics.without_key());
        Ok(Self { audit, public_work, abandoned: Arc::default(), without_key })
    }

    /// Waits at most so long for the operations whose callers have left, and gives the rest up.
    pub async fn end_abandoned(&self, patience: Duration) {
        self.abandoned.end(patience).await;
    }

    /// What the items of a batch share.
    pub fn batch(&self) -> Arc<Batch> {
        Arc::new(Batch::new(Arc::clone(&self.abandoned)))
    }

    /// Records a call that was refused before anything was looked up for it.
    pub fn refuse(
        &self,
        context: &CallContext,
        operation: Operation,
        key: &str,
        batch_item: Option<u32>,
        failure: Failure,
    ) -> Failure {
        OperationRecord::new(self, context, operation, key, batch_item).refuse(&failure);
        failure
    }

    /// The grant to read one key, recorded.
    pub async fn read_key<'a>(
        &'a self,
        context: &'a CallContext,
        key: &'a str,
    ) -> Result<&'a Granted, Failure> {
        let mut record = OperationRecord::new(self, context, Operation::Read, key, None);
        let outcome = record.grant();
        record.finish(outcome).await
    }

    /// Lists keys: one call of the caller's rate, however many there are; recorded.
    pub async fn list<T>(
        &self,
        context: &CallContext,
        list: impl FnOnce(&Caller) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let record = OperationRecord::new(self, context, Operation::Read, "", None);
        let outcome = context.caller.listing.spend_call();
        let outcome = outcome.and_then(|()| record.check_room());
        let outcome = outcome.and_then(|()| list(&context.caller));
        record.finish(outcome).await
    }
}

/// A label must fit, and RSA1_5 has none.
fn check_label(algorithm: Option<Algorithm>, label: &[u8]) -> Result<(), Failure> {
    let allowed = if label.len() > MAX_LABEL_LEN {
        format!("must be at most {MAX_LABEL_LEN} bytes, not {}", label.len())
    } else if algorithm == Some(Algorithm::Rsa15) && !label.is_empty() {
        "must be empty: RSA1_5 has no label".into()
    } else {
        return Ok(());
    };
    Err(Failure::Field { field: "label", allowed })
}
