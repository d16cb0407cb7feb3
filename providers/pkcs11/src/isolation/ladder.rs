//! The ladder's upper half: what no new session, search or login inside the process repaired, a new
//! process may, and what that does not repair opens the provider's breaker.

use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::ErrorKind;
use futures::future::BoxFuture;

use super::link::Link;
use super::now;
use super::shared::Shared;
use crate::fault::Fault;

/// How many other keys are asked whether they still serve in a process, and for how long.
const WITNESSES: usize = 2;
const WITNESS_LIMIT: Duration = Duration::from_secs(2);

impl Shared {
    /// Makes an attempt in the process, with what that can repair by itself. Where the process may be at
    /// fault and no other key serves in it, it is replaced, and the attempt made once more: by one at a
    /// time, and while the breaker is open by one in each pause. An error whose fault is the process's
    /// stands in the breaker.
    pub(super) async fn climb<'a, T>(
        &self,
        key: u32,
        attempt: impl Fn(Arc<Link>) -> BoxFuture<'a, Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let mut failed = None;
        if !self.breaker.is_open() {
            let _with_others = self.rungs.read().await;
            let link = self.link().await?;
            let is_first = link.note_attempt();
            match attempt(Arc::clone(&link)).await {
                // Its end says nothing about the key.
                Err(_) if link.is_gone() => failed = Some(link),
                Err(fault) if fault.is_of_process => {
                    if self.another_key_serves(&link, key).await {
                        return Err(Fault::of_key(fault.error));
                    }
                    // What the next process would say is known.
                    if is_first {
                        self.breaker.open(now(), &fault.error);
                        return Err(fault);
                    }
                    let (provider, error) = (&self.name, &fault.error);
                    tracing::warn!(provider, %error, "the module's process is replaced");
                    failed = Some(link);
                }
                outcome => return outcome,
            }
        }
        let _alone = self.rungs.write().await;
        self.breaker.admit_check(now()).map_err(Fault::of_process)?;
        let link = self.next_process(failed).await?;
        link.note_attempt();
        let outcome = attempt(Arc::clone(&link)).await;
        match &outcome {
            Err(fault) if fault.is_of_process || link.is_gone() => {
                self.breaker.open(now(), &fault.error);
            }
            _ => drop(self.breaker.close()),
        }
        outcome
    }

    /// A process in which nothing failed yet: the one that runs, unless it is the one in which an attempt
    /// failed or the breaker is open.
    async fn next_process(&self, failed: Option<Arc<Link>>) -> Result<Arc<Link>, Fault> {
        let running = match self.link_now() {
            Ok(link) if !link.is_gone() => link,
            _ => return self.link().await,
        };
        let is_the_same = failed.is_some_and(|failed| failed.number == running.number);
        if !is_the_same && !self.breaker.is_open() {
            return Ok(running);
        }
        running.give_up();
        self.link_after(&running).await
    }

    async fn another_key_serves(&self, link: &Link, key: u32) -> bool {
        let mut others = self.open_keys();
        others.retain(|other| other.number() != key && other.serves_in(link));
        for other in others.iter().take(WITNESSES) {
            match other.check_in(link, now() + WITNESS_LIMIT).await {
                Ok(()) => return true,
                // A token that only has no room serves.
                Err(fault) if matches!(fault.error.kind(), ErrorKind::Throttled { .. }) => {
                    return true;
                }
                Err(_) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
