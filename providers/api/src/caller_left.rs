//! Whether an operation still has its caller.

use std::future::Future;

tokio::task_local! {
    static CALLER_LEFT: ();
}

/// Runs an operation whose caller has left: [`caller_has_left`] is true in it.
pub fn without_caller<F: Future>(operation: F) -> impl Future<Output = F::Output> {
    CALLER_LEFT.scope((), operation)
}

/// Whether the caller of the operation that is polled now has left. An operation is polled once more
/// when its caller leaves.
///
/// A key whose backend keeps something from one operation to the next, such as a session, makes it
/// anew after such an operation, whatever came of it: the time of the next call must not tell how it
/// ended.
pub fn caller_has_left() -> bool {
    CALLER_LEFT.try_with(|()| ()).is_ok()
}
