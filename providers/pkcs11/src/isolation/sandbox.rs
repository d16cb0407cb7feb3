//! What confines the child: taken before the module is loaded, and each measure reported.

use std::io;
use std::path::Path;

use claviger_provider_api::Measure;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::message::Taken;
use crate::config::Config;

#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod filter;

/// Takes every measure that the host allows, for the rest of this process's life. What the
/// configuration asks for and cannot be had is an error.
pub(super) fn enter(config: &Config, state_dir: Option<&Path>) -> io::Result<Vec<Measure>> {
    let mut measures = vec![
        measure("core dumps", "off", no_core_dumps()),
        measure("memory", &format!("at most {}", config.memory_limit), limit_memory(config)),
    ];
    #[cfg(target_os = "linux")]
    let files = files::measure(config, state_dir);
    #[cfg(target_os = "linux")]
    if config.sandbox.write.is_some() && !files.in_force {
        let text = format!("sandbox.write cannot be enforced: {files}");
        return Err(io::Error::other(text));
    }
    #[cfg(target_os = "linux")]
    measures.extend([
        measure("memory of other processes", "not readable by them", not_dumpable()),
        measure("privileges", "no new ones", no_new_privileges()),
        files,
        filter::measure(config),
    ]);
    #[cfg(not(target_os = "linux"))]
    if config.sandbox.write.is_some() {
        let _ = state_dir;
        return Err(io::Error::other("sandbox.write needs Linux"));
    }
    Ok(measures)
}

fn no_core_dumps() -> Result<(), String> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|error| error.to_string())
}

/// Counts private memory that can be written to: neither code nor what threads merely reserve, which
/// `RLIMIT_AS` would count (64 MiB of it for each thread that allocates).
fn limit_memory(config: &Config) -> Result<(), String> {
    let limit = Some(config.memory_limit.bytes());
    let limit = Rlimit { current: limit, maximum: limit };
    setrlimit(Resource::Data, limit).map_err(|error| error.to_string())
}

#[cfg(target_os = "linux")]
fn not_dumpable() -> Result<(), String> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())
}

#[cfg(target_os = "linux")]
fn no_new_privileges() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())
}

fn measure(name: &str, what: &str, taken: Result<(), String>) -> Measure {
    let in_force = taken.is_ok();
    let text = taken.err().unwrap_or_else(|| what.to_owned());
    Measure { name: name.to_owned(), in_force, text }
}

impl From<Measure> for Taken {
    fn from(measure: Measure) -> Self {
        let Measure { name, in_force, text } = measure;
        Self { name, in_force, text }
    }
}

impl From<Taken> for Measure {
    fn from(taken: Taken) -> Self {
        let Taken { name, in_force, text } = taken;
        Self { name, in_force, text }
    }
}
