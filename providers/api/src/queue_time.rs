//! How long an operation waited in its key's own queue, beside what it gives.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

tokio::task_local! {
    static WAITED: Cell<Duration>;
}

/// Runs an operation; gives what it gave, and how long it waited in a queue of its key's own: nothing
/// where the key has none ([`crate::WrappingKey::queues`]).
pub async fn with_queue_time<F: Future>(operation: F) -> (F::Output, Duration) {
    let timed = async {
        let output = operation.await;
        (output, WAITED.with(Cell::get))
    };
    WAITED.scope(Cell::default(), timed).await
}

/// For a key that has a queue: the operation that is polled now has waited so long in it.
pub fn waited_in_queue(time: Duration) {
    // Of one that is not timed, such as a canary, it is not asked.
    let _ = WAITED.try_with(|waited| waited.set(waited.get() + time));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_operation_has_its_own_time() {
        let waits = |milliseconds| {
            with_queue_time(async move {
                tokio::task::yield_now().await;
                waited_in_queue(Duration::from_millis(milliseconds));
                milliseconds
            })
        };
        let (first, second) = tokio::join!(waits(1), waits(2));
        assert_eq!(first, (1, Duration::from_millis(1)));
        assert_eq!(second, (2, Duration::from_millis(2)));
        waited_in_queue(Duration::from_secs(1));
        assert_eq!(with_queue_time(async {}).await.1, Duration::ZERO);
    }
}
