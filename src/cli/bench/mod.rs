//! `claviger bench`: the raw backend and the daemon side by side, in one run, as ratios.
//!
//! - `raw`: the backend alone, in a process of its own
//! - [`load`]: calls to the daemon in a closed loop; [`cpu`]: what a process used
//! - `report`: medians, as a table and as JSON

pub mod cpu;
pub mod load;
mod raw;
mod report;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_client::{Client, Config, WrapOptions};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::failure::{self, Exit, Failure};
use super::input_output;
use super::local_daemon::{Backend, Daemon, KEY, LocalDaemon, free_ports};
use load::{Sample, Work};
use raw::Raw;
use report::{Report, Setting};

/// The arguments of `claviger bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger bench
  claviger bench --softhsm --audit --in-flight 64
  claviger bench --client client.toml --key user-keys --pid $(pidof claviger)")]
pub struct Args {
    /// Measure a fresh SoftHSM token instead of a key in a file
    #[cfg(feature = "pkcs11")]
    #[arg(long, conflicts_with = "client")]
    softhsm: bool,
    /// Write and sync the record of each call, as a daemon in service does
    #[arg(long, conflicts_with = "client")]
    audit: bool,
    /// The size of the RSA key: 2048, 3072 or 4096
    #[arg(long, value_name = "BITS", default_value_t = 2048, conflicts_with = "client",
          value_parser = PossibleValuesParser::new(["2048", "3072", "4096"])
              .map(|bits| bits.parse::<u16>().expect("a number from the list")))]
    bits: u16,
    /// How often each measurement is repeated, in turn with the others
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Unary calls at a time; of batches a quarter of it, but two at least. The daemon of a bench
    /// takes 128 of one caller
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=128))]
    in_flight: u16,
    /// Values in a batch
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(2..=64))]
    batch: u16,
    /// Connections that share the calls
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Where the temporary folder is made; its disk takes the audit log [default: the system's
    /// folder for temporary files]
    #[arg(long, value_name = "DIR", conflicts_with = "client")]
    dir: Option<PathBuf>,
    /// Measure the daemon that this client file names, without a raw comparison
    #[arg(long, value_name = "FILE", requires = "key")]
    client: Option<PathBuf>,
    /// The key to use there; this client needs wrap and unwrap
    #[arg(long, value_name = "NAME", requires = "client")]
    key: Option<String>,
    /// That daemon's process, if it is on this machine: its CPU time is measured too
    #[arg(long, value_name = "PID", requires = "client")]
    pid: Option<u32>,
    /// Be the raw process of the local daemon in DIR
    #[arg(long, value_name = "DIR", hide = true)]
    raw_in: Option<PathBuf>,
}

impl Args {
    fn backend(&self) -> Backend {
        #[cfg(feature = "pkcs11")]
        if self.softhsm {
            return Backend::SoftHsm;
        }
        Backend::Software
    }

    fn setting(&self) -> Setting {
        Setting {
            backend: match (&self.client, self.backend()) {
                (Some(_), _) => "the daemon",
                (None, Backend::Software) => "software",
                #[cfg(feature = "pkcs11")]
                (None, Backend::SoftHsm) => "SoftHSM",
            },
            bits: self.client.is_none().then_some(self.bits),
            audit: self.client.is_none().then_some(self.audit),
            in_flight: self.in_flight.into(),
            batch: self.batch.into(),
            batches_in_flight: self.batches_in_flight(),
            connections: self.connections.into(),
            rounds: self.rounds,
            seconds: self.seconds,
            cores: cpu::cores(),
            load_average: cpu::load_average(),
            debug_build: cfg!(debug_assertions),
        }
    }

    fn batches_in_flight(&self) -> usize {
        usize::from(self.in_flight / 4).max(2)
    }
}

/// Measures and reports.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if let Some(dir) = &args.raw_in {
        return raw::serve(dir, args.backend(), args.bits);
    }
    if cfg!(debug_assertions) {
        failure::tell("note: this is a debug build; measure one made with `cargo build --release`");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("the runtime", &error))?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = measure(args) => report,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failure, "interrupted")),
        }
    })?;
    if json {
        input_output::print(&report.to_json().to_string())
    } else {
        input_output::write(report.to_text().as_bytes())
    }
}

async fn measure(args: &Args) -> Result<Report, Failure> {
    let mut report = Report::new(args.setting());
    if let (Some(client), Some(key)) = (&args.client, &args.key) {
        rounds(args, &mut report, client, key, args.pid, None).await?;
        return Ok(report);
    }
    let folder = Folder::make(args.dir.as_deref())?;
    let local = LocalDaemon::open(&folder.0, free_ports()?)?;
    local.prepare_certificates()?;
    progress("making the key and starting the daemon");
    let mut raw = Raw::start(&local, args.backend(), args.bits)?;
    local.configure(&local.prepare_key(args.backend(), args.bits)?, args.audit)?;
    let daemon = Daemon::start(&local).await?;
    let pid = daemon.pid();
    rounds(args, &mut report, &local.client, KEY, pid, Some(&mut raw)).await?;
    daemon.stop().await?;
    Ok(report)
}

/// Raw, unary, batch; raw, unary, batch; …; raw: each round of the daemon has a raw one before and
/// after it.
async fn rounds(
    args: &Args,
    report: &mut Report,
    client: &Path,
    key: &str,
    pid: Option<u32>,
    mut raw: Option<&mut Raw>,
) -> Result<(), Failure> {
    let time = Duration::from_secs(args.seconds.into());
    let config = Config::from_file(client)?;
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(Client::connect(&config).await?);
    }
    let wrapped = clients[0].wrap(key, &[7; raw::MATERIAL], &WrapOptions::default()).await?.wrapped;
    let unary = Work {
        keys: [key.to_owned()].into(),
        wrapped,
        batch: 1,
        in_flight: args.in_flight.into(),
        time,
    };
    let in_flight = args.batches_in_flight();
    let batch = Work { batch: args.batch.into(), in_flight, ..unary.clone() };
    for round in 1..=args.rounds {
        let say = |what: &str, sample: Sample| {
            let rate = sample.per_second;
            progress(&format!("round {round} of {}: {what:<6} {rate:>8.0} a second", args.rounds));
            sample
        };
        if let Some(raw) = &mut raw {
            report.raw.push(say("raw", raw.run(time)?));
        }
        report.unary.push(say("unary", load::run(&clients, &unary, pid).await?));
        report.batch.push(say("batch", load::run(&clients, &batch, pid).await?));
    }
    if let Some(raw) = raw {
        report.raw.push(raw.run(time)?);
    }
    Ok(())
}

fn progress(text: &str) {
    failure::tell(text);
}

/// A folder that is gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn make(parent: Option<&Path>) -> Result<Self, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let name = format!("claviger-bench-{}", uuid::Uuid::now_v7().simple());
        let dir = std::path::absolute(parent.join(name)).map_err(|e| failed("the folder", &e))?;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| failed(&dir.display().to_string(), &error))?;
        Ok(Self(dir))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            failure::tell(&format!("note: {} could not be removed: {error}", self.0.display()));
        }
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
