//! SCHED_BATCH (sched(7)) for this process: a thread that wakes up does not interrupt one that computes.
//!
//! Where every core is busy with private-key operations, each answer would wake the thread of the
//! sockets, and that would interrupt the next operation: two switches, cold caches and a trip to the
//! client's process for each single call, a sixth of what an RSA-2048 operation takes. Under
//! `SCHED_BATCH` (sched(7)) it waits for the next pause, a few milliseconds at most, and finds several
//! answers at once: more calls a second, each of them sooner. On a core that is free it runs at once,
//! as before.

/// Asks for it, for this thread and those that it starts from now on. Where the kernel or the C
/// library refuses, the daemon is slower under load and otherwise the same.
#[cfg(target_os = "linux")]
pub(super) fn wake_without_interrupting() {
    if scheduler::set_self_policy(scheduler::Policy::Batch, 0).is_err() {
        tracing::debug!("the kernel keeps its way of scheduling");
    }
}

/// Only Linux has it.
#[cfg(not(target_os = "linux"))]
pub(super) fn wake_without_interrupting() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// `nice` and `policy`, fields 19 and 41 of proc_pid_stat(5), of this thread.
    fn nice_and_policy() -> [i64; 2] {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        [19, 41].map(|number| fields[number - 3].parse().unwrap())
    }

    #[test]
    fn a_thread_and_those_that_it_starts_are_in_batch_and_as_nice_as_before() {
        std::thread::spawn(|| {
            let [nice, _] = nice_and_policy();
            wake_without_interrupting();
            let batch = [nice, 3];
            assert_eq!(nice_and_policy(), batch);
            assert_eq!(std::thread::spawn(nice_and_policy).join().unwrap(), batch);
        })
        .join()
        .unwrap();
    }
}
