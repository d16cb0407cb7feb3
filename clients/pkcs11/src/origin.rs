//! Which process something belongs to: a child of fork is another one, whatever its number.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The process that made something. A child of fork has a copy of it, and is not that process: also
/// not where it has the same number, in a PID namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pid: u32,
    mark: u64,
}

/// Null, or a page with a number that is not 0; the system fills it with zeroes in a child of fork
/// (MADV_WIPEONFORK, Linux 4.14). Made once and never freed.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The last number that was written there.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Origin {
    /// The process that calls.
    pub(crate) fn here() -> Self {
        let mark = page().map_or(0, |page| {
            if page.load(Ordering::Acquire) == 0 {
                let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                // Another thread may be quicker: its number is as good.
                let _ = page.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire);
            }
            page.load(Ordering::Acquire)
        });
        Self { pid: std::process::id(), mark }
    }

    /// Whether the process that calls is this one.
    pub(crate) fn is_here(self) -> bool {
        // SAFETY: null, or a page that is never freed.
        let page = unsafe { PAGE.load(Ordering::Acquire).as_ref() };
        self.pid == std::process::id()
            && self.mark == page.map_or(0, |page| page.load(Ordering::Acquire))
    }
}

/// The page; none where the system cannot wipe it, so that the number of the process decides.
fn page() -> Option<&'static AtomicU64> {
    if PAGE.load(Ordering::Acquire).is_null() {
        let made = wiped_on_fork()?;
        let others = PAGE.compare_exchange(null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        if others.is_err() {
            // SAFETY: it was made here, and no other thread has seen it.
            unsafe { libc::munmap(made.cast(), size_of::<AtomicU64>()) };
        }
    }
    // SAFETY: null, or a page that is never freed.
    unsafe { PAGE.load(Ordering::Acquire).as_ref() }
}

#[cfg(target_os = "linux")]
fn wiped_on_fork() -> Option<*mut AtomicU64> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let length = size_of::<AtomicU64>();
    // SAFETY: a new mapping, used by nothing else.
    unsafe {
        let page = libc::mmap(null_mut(), length, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(page, length, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, length);
            return None;
        }
        Some(page.cast())
    }
}

#[cfg(not(target_os = "linux"))]
fn wiped_on_fork() -> Option<*mut AtomicU64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The exit code of a child of fork that runs `in_child`.
    fn forked(in_child: impl FnOnce() -> i32) -> i32 {
        let mut status = 0;
        // SAFETY: the child does nothing but to compare numbers, and ends without unwinding.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(in_child());
            }
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        }
        assert!(libc::WIFEXITED(status));
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn a_child_of_fork_is_another_process_even_with_the_same_number() {
        let parent = Origin::here();
        assert!(parent.is_here() && parent == Origin::here());
        // As the first process of one PID namespace that forks the first one of another.
        let code = forked(|| {
            let same_number = Origin { pid: std::process::id(), ..parent };
            let own = Origin::here();
            i32::from(same_number.is_here()) + 2 * i32::from(!own.is_here())
        });
        assert_eq!(code, 0, "1: taken for its parent; 2: not known to itself");
        assert!(parent.is_here());
    }
}
