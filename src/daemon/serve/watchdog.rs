//! Tells the service manager that the daemon is alive, as long as its runtime runs tasks.

use std::time::Duration;

/// Says so as often as the service manager asks for (`WatchdogSec=`, sd_watchdog_enabled(3)); does nothing
/// where it asks for nothing.
///
/// What is proven is that the runtime which answers calls runs new tasks. A backend, a disk or a module that
/// hangs is no reason to end the process: calls say so, and a restart would not help.
pub(super) fn start() {
    if let Some(patience) = sd_notify::watchdog_enabled() {
        tokio::spawn(beat(patience / 3, || {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }));
    }
}

/// Calls `alive` from a new task each time, for ever.
async fn beat(pause: Duration, alive: impl Fn() + Clone + Send + 'static) {
    loop {
        let alive = alive.clone();
        // What was spawned last waits behind everything that a worker has to do.
        let _ = tokio::spawn(async move { alive() }).await;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::sleep;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(5);

    #[test]
    fn a_runtime_that_runs_no_tasks_is_not_called_alive() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let beats = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&beats);
        let count = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        runtime.spawn(beat(PAUSE, count));
        while beats.load(Ordering::SeqCst) < 3 {
            sleep(PAUSE);
        }
        // Its only worker stands still.
        let counted = Arc::clone(&beats);
        let stuck = runtime.spawn(async move {
            let before = counted.load(Ordering::SeqCst);
            sleep(40 * PAUSE);
            counted.load(Ordering::SeqCst) - before
        });
        assert_eq!(runtime.block_on(stuck).unwrap(), 0);
        let after = beats.load(Ordering::SeqCst);
        while beats.load(Ordering::SeqCst) < after + 3 {
            sleep(PAUSE);
        }
    }
}
