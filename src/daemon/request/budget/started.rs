//! An unwrap that a budget has let begin, until its verdict.

use std::sync::Arc;

use super::{Budget, ValueId, Verdict};

/// An unwrap in flight. Dropped without a verdict it costs nothing, unless [`StartedUnwrap::missed`]
/// or [`StartedUnwrap::not_answered`] was called: then the value counts as one that no backend has
/// answered.
#[derive(Debug)]
pub struct StartedUnwrap<'a> {
    budget: &'a Budget,
    value: ValueId,
    missed: bool,
    is_unanswered: bool,
}

impl<'a> StartedUnwrap<'a> {
    /// The budget has admitted it.
    pub(super) fn new(budget: &'a Budget, value: ValueId) -> Self {
        Self { budget, value, missed: false, is_unanswered: false }
    }

    /// A key did not unwrap the value. From here on only a verdict spares the budget.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    /// Whether a key did not unwrap the value.
    pub fn has_missed(&self) -> bool {
        self.missed
    }

    /// A backend was asked and gave no answer in its time. From here on only an answer spares the
    /// budget.
    pub fn not_answered(&mut self) {
        self.is_unanswered = true;
    }

    /// Whether a backend was asked and gave no answer in its time.
    pub fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// The value was not at fault.
    pub fn spared(self) {
        self.end(Verdict::Spared);
    }

    /// The value unwrapped. If it had counted as unanswered, that is taken back.
    pub fn succeeded(self) {
        self.end(Verdict::Succeeded);
    }

    /// The value was at fault: one more failed unwrap, unless this value counts already; on disk
    /// when this returns. Whether it was the last one left.
    pub async fn failed(self) -> bool {
        self.spend(Verdict::Failed).await
    }

    /// A key was asked and has not answered in its time: counts as a failure until it does.
    pub async fn unanswered(self) -> bool {
        self.spend(Verdict::Unanswered).await
    }

    async fn spend(self, verdict: Verdict) -> bool {
        let file = Arc::clone(&self.budget.file);
        let used_up = self.end(verdict);
        file.written().await;
        used_up
    }

    fn end(self, verdict: Verdict) -> bool {
        let used_up = self.budget.end(&self.value, verdict);
        std::mem::forget(self);
        used_up
    }
}

impl Drop for StartedUnwrap<'_> {
    fn drop(&mut self) {
        let counts = self.missed || self.is_unanswered;
        let verdict = if counts { Verdict::Unanswered } else { Verdict::Spared };
        self.budget.end(&self.value, verdict);
    }
}
