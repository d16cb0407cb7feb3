//! Runs named cases one after the other and keeps what passed and what failed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::subject::{Outcome, Subject};

/// How long one case may take before it counts as hanging; the longest real one (all lengths, 4096
/// bits, on a slow token) takes about a minute.
const CASE_LIMIT: Duration = Duration::from_mins(10);

/// What a run of the suite found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The subject's name.
    pub name: String,
    /// How many cases passed.
    pub passed: usize,
    /// The cases that did not, each with its name and what was wrong.
    pub failed: Vec<String>,
}

impl Report {
    /// Prints the counts, and panics with every failure if there is one.
    ///
    /// # Panics
    /// If a case failed.
    pub fn expect_all_passed(&self) {
        println!("{self}");
        assert!(self.failed.is_empty(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conformance {}: {} cases passed", self.name, self.passed)?;
        if !self.failed.is_empty() {
            write!(f, ", {} failed", self.failed.len())?;
        }
        self.failed.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// The run so far.
pub(crate) struct Cases {
    subject: Arc<Subject>,
    passed: usize,
    failed: Vec<String>,
}

impl Cases {
    pub(crate) fn new(subject: Arc<Subject>) -> Self {
        Self { subject, passed: 0, failed: Vec::new() }
    }

    pub(crate) fn subject(&self) -> Arc<Subject> {
        self.subject.clone()
    }

    /// Runs one case in a task of its own, so that a panic is this case's failure only.
    pub(crate) async fn case<F>(
        &mut self,
        name: impl Into<String>,
        case: impl FnOnce(Arc<Subject>) -> F,
    ) where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let task = tokio::spawn(case(self.subject.clone()));
        let abort = task.abort_handle();
        let outcome = match tokio::time::timeout(CASE_LIMIT, task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(format!("panicked: {error}")),
            Err(_) => {
                abort.abort();
                Err(format!("no answer within {} s", CASE_LIMIT.as_secs()))
            }
        };
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("{}: {error}", name.into())),
        }
    }

    pub(crate) fn into_report(self) -> Report {
        Report { name: self.subject.name().to_owned(), passed: self.passed, failed: self.failed }
    }
}
