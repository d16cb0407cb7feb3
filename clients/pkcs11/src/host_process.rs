//! The process that has loaded the module: its signals, its privileges.

use std::mem::MaybeUninit;
use std::ptr;

/// Whether the process got more rights than its user has (setuid, file capabilities), so that its
/// environment is not to be trusted.
pub(crate) fn is_privileged() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: getauxval has no preconditions.
    let privileged = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    #[cfg(not(target_os = "linux"))]
    // SAFETY: issetugid has no preconditions.
    let privileged = unsafe { libc::issetugid() } != 0;
    privileged
}

/// Runs `work` with SIGPIPE held back from this thread: a write to a connection that the daemon has
/// closed would else end a host that never asked for this signal. One that `work` caused is taken
/// away; one that was waiting before stays.
pub(crate) fn without_sigpipe<T>(work: impl FnOnce() -> T) -> T {
    let _held_back = HeldBack::new();
    work()
}

/// SIGPIPE is blocked for this thread until this is dropped.
struct HeldBack {
    before: libc::sigset_t,
    was_pending: bool,
}

impl HeldBack {
    fn new() -> Self {
        let sigpipe = sigpipe();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are valid for the call; pthread_sigmask writes all of `before`, and can
        // fail only for an unknown first argument.
        let before = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const sigpipe, before.as_mut_ptr());
            before.assume_init()
        };
        Self { before, was_pending: is_pending() }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        if !self.was_pending && is_pending() {
            take_away();
        }
        // SAFETY: `before` was written by pthread_sigmask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

fn sigpipe() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

fn is_pending() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending initialises the set.
    unsafe {
        libc::sigpending(set.as_mut_ptr());
        libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1
    }
}

/// A write raises SIGPIPE for its own thread, so it is this thread that takes it.
fn take_away() {
    let (sigpipe, mut taken) = (sigpipe(), 0);
    // SAFETY: the set and the number are valid for the call. SIGPIPE is pending: it does not wait.
    unsafe { libc::sigwait(&raw const sigpipe, &raw mut taken) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_write_to_a_closed_pipe_does_not_end_the_process() {
        // The tests' own runtime ignores SIGPIPE; a C host does not.
        // SAFETY: SIG_DFL is a valid disposition.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let mut ends = [0; 2];
        // SAFETY: there is room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: both descriptors were just opened and have no other owner.
        let [reader, mut writer] = ends.map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
        drop(reader);
        for _ in 0..3 {
            let error = without_sigpipe(|| writer.write_all(b"x").unwrap_err());
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
        assert!(!is_pending(), "what the write caused was taken away");
    }

    #[test]
    fn this_test_is_not_privileged() {
        assert!(!is_privileged());
    }
}
