//! What befalls the audit log: disks and sinks that are slow, hang, fail, are full, read-only or gone. In each
//! case no key material leaves without its record in the file and in each required sink, a refusal comes in
//! time, service comes back by itself, and the chain verifies.
//!
//! - `case`: callers at work, something that befalls the log and ends again, and what must hold
//! - `file`: the file, its disk and its name; `sinks`: collectors beside it

mod case;
mod file;
mod sinks;
