//! What is written down: the audit log, counters for metrics, traces, the daemon's own log.

pub mod audit;
pub(crate) mod creatable;
pub mod log;
pub mod metrics;
mod otlp;
pub mod traces;
