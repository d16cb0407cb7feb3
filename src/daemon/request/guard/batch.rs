//! The items of one `UnwrapBatch` on their way: those that wait for the same key at the same moment go
//! to it in one request, where its backend has such a request.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use claviger_provider_api::{
    Algorithm, BatchItem, Call, Error, ErrorKind, Parameters, Unwrapped, WrappingKey,
};
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::oneshot;
use tonic::Code;

use super::abandoned::{Abandoned, Progress};
use crate::daemon::config;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

/// What the items of one `UnwrapBatch` share.
pub struct Batch {
    /// None once the items are no longer driven together.
    waiting: Mutex<Option<Vec<Waiting>>>,
    /// How items have failed.
    failed: Mutex<HashSet<FailedAlike>>,
    abandoned: Arc<Abandoned>,
}

/// Items that fail alike: the key's name, the replica that was asked, the code.
type FailedAlike = (Box<str>, Option<config::Replica>, Code);

/// What `work` gives. An item of a batch is given up at its deadline, whatever it waits for, so that it
/// fails alone; any other call ends with its answer.
pub(super) async fn in_time<T>(
    context: &CallContext,
    batch_item: Option<u32>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    if batch_item.is_none() {
        return work.await;
    }
    let outcome = tokio::time::timeout_at(context.deadline.into(), work).await;
    outcome.unwrap_or(Err(Failure::DeadlineExceeded))
}

/// An item at a key.
struct Waiting {
    key: Arc<dyn WrappingKey>,
    algorithm: Algorithm,
    wrapped: Bytes,
    label: Bytes,
    call: Call,
    reply: oneshot::Sender<Result<Unwrapped, Error>>,
}

impl Batch {
    /// A batch without items; its requests run to their ends as other operations do.
    pub(super) fn new(abandoned: Arc<Abandoned>) -> Self {
        Self { waiting: Mutex::new(Some(Vec::new())), failed: Mutex::default(), abandoned }
    }

    /// Whether no other item has failed alike.
    pub(super) fn is_first_to_fail(
        &self,
        key: &str,
        replica: Option<&config::Replica>,
        code: Code,
    ) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert((key.into(), replica.cloned(), code))
    }

    /// Brings all items to their ends, at the same time; gives what became of them in their order.
    /// Once none of them can go on without a key, those that wait for the same one go to it together.
    pub async fn drive<T, F>(&self, items: impl IntoIterator<Item = F>, call: Call) -> Vec<T>
    where
        F: Future<Output = T>,
    {
        let _driven = Driven(self);
        let mut items: FuturesOrdered<F> = items.into_iter().collect();
        let mut requests = FuturesUnordered::new();
        let mut outcomes = Vec::with_capacity(items.len());
        loop {
            tokio::select! {
                biased;
                item = items.next() => match item {
                    Some(outcome) => outcomes.push(outcome),
                    None => return outcomes,
                },
                Some(()) = requests.next() => {}
                // Last: by now every item has come as far as it can.
                waiting = self.waiting() => {
                    requests.extend(by_key(waiting).into_iter().map(|group| {
                        let progress = Arc::<Progress>::default();
                        progress.reaches_a_key();
                        self.abandoned.run_on(progress, call.deadline, send(group))
                    }));
                }
            }
        }
    }

    /// Unwraps an item's value with others of the same batch, or alone where they are no longer driven
    /// together.
    pub(super) async fn unwrap_key(
        &self,
        key: &Arc<dyn WrappingKey>,
        algorithm: Algorithm,
        wrapped: &Bytes,
        label: &Bytes,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting {
            key: Arc::clone(key),
            algorithm,
            wrapped: wrapped.clone(),
            label: label.clone(),
            call,
            reply,
        };
        if let Some(others) = &mut *self.lock() {
            others.push(waiting);
        }
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) if self.lock().is_none() => {
                let parameters = Parameters { algorithm, label };
                key.unwrap_key(wrapped, &parameters, call).await
            }
            Err(_) => Err(Error::new(ErrorKind::Internal, "the key gave no result")),
        }
    }

    /// Those that wait for a key. Never ready without one; nothing wakes it, since items only come to
    /// wait in the task that asks.
    fn waiting(&self) -> impl Future<Output = Vec<Waiting>> + '_ {
        std::future::poll_fn(|_| match &mut *self.lock() {
            Some(waiting) if !waiting.is_empty() => Poll::Ready(std::mem::take(waiting)),
            _ => Poll::Pending,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it lives, the items are driven together.
struct Driven<'a>(&'a Batch);

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Batch")
    }
}

/// One group for each request.
fn by_key(waiting: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let mut groups: Vec<Vec<Waiting>> = Vec::new();
    for item in waiting {
        let has_room = |group: &&mut Vec<Waiting>| {
            Arc::ptr_eq(&group[0].key, &item.key) && group.len() < item.key.batch_limit()
        };
        match groups.iter_mut().find(has_room) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    groups
}

async fn send(group: Vec<Waiting>) {
    let items: Vec<BatchItem<'_>> = group
        .iter()
        .map(|item| BatchItem {
            wrapped: &item.wrapped,
            parameters: Parameters { algorithm: item.algorithm, label: &item.label },
        })
        .collect();
    let results = group[0].key.unwrap_batch(&items, group[0].call).await;
    for (item, result) in group.into_iter().zip(results) {
        // An item whose call was given up drops its result, which zeroes itself.
        let _ = item.reply.send(result);
    }
}
