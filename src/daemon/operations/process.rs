//! The daemon's process as the system sees it, under the names that Prometheus' own clients use.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::process::{Resource, getrlimit};

use crate::daemon::records::metrics::render::{gauge, plain_gauge};

/// `process_*`: start, processor time, memory and descriptors of this process. What the system does not
/// tell is left out; off Linux that is all of it.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        if let Some(stat) = Stat::read() {
            let help = "When the process started, in seconds since 1970";
            gauge(encoder, "process_start_time_seconds", help)?.encode_gauge(&stat.started)?;
            let help = "Processor time that the process has used, user and system";
            let mut cpu = encoder.encode_descriptor(
                "process_cpu_seconds",
                help,
                None,
                MetricType::Counter,
            )?;
            cpu.encode_counter::<NoLabelSet, f64, f64>(&stat.cpu, None)?;
            let help = "Memory of the process that is in RAM";
            plain_gauge(encoder, "process_resident_memory_bytes", help, stat.resident)?;
            let help = "Address space of the process";
            plain_gauge(encoder, "process_virtual_memory_bytes", help, stat.virtual_memory)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // The listing itself is one of them.
            let open = open.count().saturating_sub(1);
            plain_gauge(encoder, "process_open_fds", "Open file descriptors", open)?;
        }
        let help = "How many file descriptors may be open";
        match getrlimit(Resource::Nofile).current {
            Some(most) => plain_gauge(encoder, "process_max_fds", help, most),
            None => Ok(()),
        }
    }
}

/// What `/proc/self/stat` says (proc(5)).
struct Stat {
    /// Seconds since 1970.
    started: f64,
    /// Seconds.
    cpu: f64,
    /// Bytes.
    virtual_memory: u64,
    /// Bytes.
    resident: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may contain blanks; after it comes field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| {
            let second = rustix::param::clock_ticks_per_second();
            Duration::from_millis(ticks.saturating_mul(1000) / second).as_secs_f64()
        };
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
        Some(Self {
            started: now - uptime + seconds(field(22)?),
            cpu: seconds(field(14)? + field(15)?),
            virtual_memory: field(23)?,
            resident: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_started_before_now_and_has_memory_and_used_the_processor() {
        let stat = Stat::read().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((0.0..86_400.0).contains(&(now - stat.started)), "{} {now}", stat.started);
        assert!(stat.resident > 1 << 20 && stat.virtual_memory >= stat.resident);
        assert!(stat.cpu >= 0.0);
    }
}
