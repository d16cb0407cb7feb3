//! Failover: a call that fails for a replica's sake goes to the next one; a call that fails for the
//! value's sake never does.

use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::choice::Turns;
use super::health::Fault;
use super::replica::Replica;

/// How long a replica may answer nothing at all, to nobody, before the next one is asked: half of the
/// time that the call has left, within these limits.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// What is asked of a replica.
pub trait Work {
    /// What it gives.
    type Output;

    /// Asks one replica. With a `patience` another one waits for its turn: [`unless_silent`] takes it.
    fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Output, ErrorKind>> + Send;

    /// Whether [`ErrorKind::UnwrapFailed`] may be the fault of what was asked, as of an unwrap.
    fn may_be_at_fault(&self) -> bool;
}

/// A replica that was asked and gave nothing.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which.
    pub replica: &'a Arc<Replica>,
    /// What it said.
    pub kind: ErrorKind,
    /// The key's count of repairs before it was asked.
    pub repairs: u64,
}

/// How a round over the replicas ended without a result.
#[derive(Debug)]
pub enum Ended<'a> {
    /// This one did not unwrap the value. Whose fault that is, a check of it tells; nobody else is asked
    /// before.
    Missed(Asked<'a>),
    /// No other replica serves. Those that were asked, in their order; none where none could be.
    Lost(Vec<Asked<'a>>),
    /// The deadline passed before the next one could be asked.
    Late,
}

/// Asks one replica after the other until one gives a result, misses the value, or none is left. One
/// that failed for its own sake is checked in the background.
pub async fn ask<'a, W: Work>(
    turns: &mut Turns<'a>,
    deadline: std::time::Instant,
    work: &mut W,
) -> Result<W::Output, Ended<'a>> {
    let mut lost = Vec::new();
    loop {
        let Some(replica) = turns.take() else { return Err(Ended::Lost(lost)) };
        let repairs = replica.repairs();
        let kind = match work.on(replica, patience(turns, deadline)).await {
            Ok(output) => return Ok(output),
            Err(kind) => kind,
        };
        let asked = Asked { replica, kind, repairs };
        match kind {
            ErrorKind::UnwrapFailed if work.may_be_at_fault() => return Err(Ended::Missed(asked)),
            ErrorKind::DeadlineExceeded => return Err(Ended::Late),
            // To ask a busy backend again would make it busier.
            ErrorKind::Throttled { .. } => {}
            ErrorKind::UnwrapFailed
            | ErrorKind::Unavailable
            | ErrorKind::OperatorNeeded
            | ErrorKind::Internal => {
                // Its health should not wait for the next canary.
                if replica.is_serving() {
                    replica.check_in_background();
                }
            }
        }
        lost.push(asked);
    }
}

/// How long a replica may be silent in a call that has another one to ask; none where it has not.
pub fn patience(turns: &Turns<'_>, deadline: std::time::Instant) -> Option<Duration> {
    turns.has_next().then(|| {
        let left = Instant::from_std(deadline).saturating_duration_since(Instant::now());
        (left / 2).clamp(PATIENCE.0, PATIENCE.1)
    })
}

/// What `work` gives, or [`ErrorKind::Unavailable`] once the replica has answered nothing to anybody
/// for `patience`. A slow backend that answers others is not silent.
pub async fn unless_silent<T>(
    replica: &Replica,
    patience: Option<Duration>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(patience) = patience else { return work.await };
    tokio::select! {
        biased;
        done = work => done,
        () = replica.falls_silent(patience) => {
            let text = format!("it answered nothing for {} ms", patience.as_millis());
            Err(Error::new(ErrorKind::Unavailable, text).with_cause(Cause::NoAnswer))
        }
    }
}

/// A check of a replica that missed a value. Where another one may be asked, it is not waited for
/// longer than a call would be.
pub async fn check(replica: &Arc<Replica>, patience: Option<Duration>) -> Result<(), Fault> {
    let Some(patience) = patience else { return replica.check().await };
    tokio::time::timeout(patience, replica.check()).await.unwrap_or_else(|_| {
        Err(Fault::new(ErrorKind::Unavailable, "its check did not end in time"))
    })
}

/// The first of those that were lost on the way whose check comes back right; else why none did.
pub async fn first_back<'l, 'a>(lost: &'l [Asked<'a>]) -> Result<&'l Asked<'a>, Fault> {
    let may_come_back = lost.iter().filter(|asked| asked.kind.may_retry_after_repair());
    let mut checks: FuturesUnordered<_> = may_come_back
        .map(|asked| async move { asked.replica.check().await.map(|()| asked) })
        .collect();
    let mut first_fault = None;
    while let Some(checked) = checks.next().await {
        match checked {
            Ok(asked) => return Ok(asked),
            Err(fault) => first_fault = first_fault.or(Some(fault)),
        }
    }
    Err(first_fault.unwrap_or_else(|| Fault::new(ErrorKind::Unavailable, "no replica answers")))
}

#[cfg(test)]
mod tests;
