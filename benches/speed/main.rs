//! What the daemon costs, each time against something bare in the same run: as a Markdown table.
//!
//! `scripts/bench` runs it. By hand: `cargo bench --bench speed -- [OPTION]... [PART]...`, the parts
//! being `backend`, `backends`, `stack`, `module`, `connector`, `growth`, `idle` and `start`; without
//! any, all of them. `--quick` takes fewer and shorter rounds: it shows that everything works, not how
//! fast it is. `--before=PROGRAM` is this program as another commit makes it: `stack` measures its daemon
//! in turn with this one, with the same client.
//!
//! - `backend`: `claviger bench` on SoftHSM and on the software provider
//! - `backends`: each service that is asked over HTTP, through the daemon and without it
//! - `stack`: the whole daemon over a key that does nothing, against a bare tonic echo
//! - `module`: the PKCS#11 module over a key that does nothing, against the Rust client
//! - `connector`: users' reads through the Key Connector, against the daemon's own unwraps
//! - `growth`: 1 against 10,000 keys and callers
//! - `idle`: 10,000 connections; memory
//! - `start`: from the start of the process to open ports, against `bare_start.c`

mod backend;
mod backends;
mod child;
mod connector;
mod daemon_files;
mod echo;
mod growth;
mod idle;
mod module;
mod noop;
mod stack;
mod start;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use table::Row;
use tokio::runtime::Runtime;

/// Whatever goes wrong ends the run.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// One part.
type Measure = fn(&Runtime, Effort) -> Outcome<Vec<Row>>;

/// The daemon that is measured.
const CLAVIGER: &str = env!("CARGO_BIN_EXE_claviger");

/// How often and how long.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: u32,
    time: Duration,
    /// This program as another commit makes it.
    before: Option<&'static Path>,
}

fn main() -> Outcome<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // This program is its own servers too.
        ["--serve-noop", config] => return noop::serve(PathBuf::from(config)),
        ["--serve-echo", files] => return echo::serve(&PathBuf::from(files)),
        ["--serve-azure", folder] => return backends::serve_azure(&PathBuf::from(folder)),
        ["--serve-google", folder] => return backends::serve_google(&PathBuf::from(folder)),
        all if !all.contains(&"--bench") => {
            return Err("run it by `cargo bench --bench speed`, or by scripts/bench".into());
        }
        _ => {}
    }
    let arguments: Vec<String> = arguments.into_iter().filter(|a| a != "--bench").collect();
    let (options, parts): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    let before = options.iter().find_map(|option| option.strip_prefix("--before="));
    let before = before.map(|program| &*PathBuf::from(program).leak());
    let effort = if options.iter().any(|option| *option == "--quick") {
        Effort { rounds: 2, time: Duration::from_secs(1), before }
    } else {
        Effort { rounds: 7, time: Duration::from_secs(3), before }
    };
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| *p == part);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{}", table::machine());
    println!("{}", table::HEAD);
    let all: [(&str, Measure); 8] = [
        ("backend", backend::measure),
        ("backends", backends::measure),
        ("stack", stack::measure),
        ("module", module::measure),
        ("connector", connector::measure),
        ("growth", growth::measure),
        ("idle", idle::measure),
        ("start", start::measure),
    ];
    for (_, measure) in all.into_iter().filter(|(name, _)| wanted(name)) {
        for row in measure(&runtime, effort)? {
            println!("{row}");
        }
    }
    Ok(())
}
