//! What a process has used: CPU time and memory, as the kernel counts them.

use std::fs;
use std::time::Duration;

/// CPU time of a process and of its threads, those that ended too, in user and kernel mode. None
/// where there is no such process, or no `/proc`.
pub fn time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; `utime` and `stime` are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let [user, system]: [u64; 2] = [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?];
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_nanos((user + system) * (1_000_000_000 / ticks_per_second)))
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// How many processes wanted a core lately: the first number of the load average.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_time_and_memory() {
        let own = std::process::id();
        let before = time(own).unwrap();
        let mut sum = 0u64;
        while time(own).unwrap() < before + Duration::from_millis(20) {
            sum = std::hint::black_box((0..100_000).fold(sum, u64::wrapping_add));
        }
        assert!(resident(own).unwrap() > 100 * 1024);
        assert!(time(u32::MAX).is_none());
    }
}
