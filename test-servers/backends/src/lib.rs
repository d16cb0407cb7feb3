//! The servers that the tests start, each on a free loopback port, waited for, and ended by its own
//! process id: nothing of it is linked into the daemon or shipped.
//!
//! - [`ministack`]: AWS KMS
//! - [`vault`]: the real OpenBao and the real HashiCorp Vault, in dev mode
//! - [`collector`]: the OpenTelemetry Collector
//! - [`import`]: how a key that exists already gets into any of them
//!
//! What cannot do its work panics with a sentence: it is the test that failed.

pub mod collector;
pub mod import;
pub mod ministack;
mod process;
pub mod vault;

pub use collector::OtelCollector;
pub use ministack::Ministack;
pub use process::{cpu_time, free_port};
