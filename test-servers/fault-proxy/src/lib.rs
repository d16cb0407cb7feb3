//! A proxy that stands between the daemon and a service over HTTP, and does what networks and
//! services do at their worst: as it is told, as often as it is told, and counted.
//!
//! - [`proxy`]: the proxy
//! - [`script`]: which requests meet which fault, how often
//! - [`words`]: how each service says that it throttles, fails, or refuses credentials
//! - [`certificates`]: the right one and wrong ones
//!
//! It answers HTTP/1.1, so that one request is one exchange on one connection that can be cut. What
//! no script names goes through as it came, `host` included.

pub mod certificates;
pub mod proxy;
pub mod script;
mod upstream;
pub mod words;

pub use certificates::Shown;
pub use proxy::FaultProxy;
pub use script::{Answer, Fault, Pattern, Seen, Times};
pub use words::Service;
