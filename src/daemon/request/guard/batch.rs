//! The items of one `UnwrapBatch` on their way: those that wait for the same key at the same moment go
//! to it in one request, where its backend has such a request.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use claviger_provider_api::{
    Algorithm, BatchItem, Call, Error, ErrorKind, Parameters, Unwrapped, WrappingKey,
};
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::oneshot;

use super::UnwrapCall;
use crate::daemon::request::call::CallContext;
use crate::daemon::status::Failure;

/// What the items of one `UnwrapBatch` share.
#[derive(Default)]
pub struct Batch {
    waiting: Mutex<Vec<Waiting>>,
}

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
    reply: oneshot::Sender<Result<Unwrapped, Error>>,
}

impl Batch {
    /// Brings all items to their ends, at the same time; gives what became of them in their order.
    /// Once none of them can go on without a key, those that wait for the same one go to it together.
    pub async fn drive<T, F>(&self, items: impl IntoIterator<Item = F>, call: Call) -> Vec<T>
    where
        F: Future<Output = T>,
    {
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
                    requests.extend(by_key(waiting).into_iter().map(|items| send(items, call)));
                }
            }
        }
    }

    /// Unwraps an item's value with others of the same batch.
    pub(super) async fn unwrap_key(
        &self,
        key: &Arc<dyn WrappingKey>,
        algorithm: Algorithm,
        call: &UnwrapCall,
    ) -> Result<Unwrapped, Error> {
        let (reply, answer) = oneshot::channel();
        let (wrapped, label) = (call.wrapped.clone(), call.label.clone());
        let waiting = Waiting { key: Arc::clone(key), algorithm, wrapped, label, reply };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
        answer
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the key gave no result")))
    }

    /// Those that wait for a key. Never ready without one; nothing wakes it, since items only come to
    /// wait in the task that asks.
    fn waiting(&self) -> impl Future<Output = Vec<Waiting>> + '_ {
        std::future::poll_fn(|_| {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(std::mem::take(&mut *waiting))
            }
        })
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

async fn send(group: Vec<Waiting>, call: Call) {
    let items: Vec<BatchItem<'_>> = group
        .iter()
        .map(|item| BatchItem {
            wrapped: &item.wrapped,
            parameters: Parameters { algorithm: item.algorithm, label: &item.label },
        })
        .collect();
    let results = group[0].key.unwrap_batch(&items, call).await;
    for (item, result) in group.into_iter().zip(results) {
        // An item whose call was given up drops its result, which zeroes itself.
        let _ = item.reply.send(result);
    }
}
