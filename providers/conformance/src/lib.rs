//! The contract of a wrapping key as tests that every provider runs, on every kind of key it opens.
//!
//! ```no_run
//! # async fn example(key: std::sync::Arc<dyn claviger_provider_api::WrappingKey>) {
//! use claviger_conformance::{Subject, run};
//! run(Subject::new("software/rsa-2048", key)).await.expect_all_passed();
//! # }
//! ```
//!
//! It needs a tokio runtime with time enabled and the `openssl` command line (3.0 or later), the
//! other implementation; it does not need libtest, so a plain program can run it too.
//!
//! - [`subject`]: the key under test, and the daemon's checks in front of it
//! - [`report`]: what passed, what failed and why
//! - `accepts`, `rejects`, `batch`, `sign`, `load`: the cases
//! - `openssl`: the other implementation

mod accepts;
mod batch;
mod load;
mod openssl;
mod rejects;
pub mod report;
mod sign;
pub mod subject;

use std::sync::Arc;

pub use report::Report;
pub use subject::Subject;

use report::Cases;

/// Runs every case against one key. A case that fails, panics or hangs is in the report; the others
/// run all the same.
pub async fn run(subject: Subject) -> Report {
    let mut cases = Cases::new(Arc::new(subject));
    accepts::run(&mut cases).await;
    rejects::run(&mut cases).await;
    batch::run(&mut cases).await;
    sign::run(&mut cases).await;
    load::run(&mut cases).await;
    cases.into_report()
}
