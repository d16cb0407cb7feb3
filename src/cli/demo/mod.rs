//! `claviger demo`: the real daemon on loopback, and a key connector's life in five steps.

mod daemon;
mod key;
#[cfg(feature = "pkcs11")]
mod softhsm;
mod state;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use claviger_client::{Client, UnwrapOptions, WrapOptions};
use claviger_provider_api::public_key::sha256;
use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use daemon::Daemon;
use state::State;

/// The name of the demo's key.
pub const KEY: &str = "user-keys";

/// The arguments of `claviger demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger demo
  claviger demo --once
  claviger demo --softhsm --dir ./demo")]
pub struct Args {
    /// Where certificates, key and configuration are kept between runs
    /// [default: claviger/demo in the user's data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use a fresh SoftHSM token instead of a key in a file
    #[cfg(feature = "pkcs11")]
    #[arg(long)]
    softhsm: bool,
    /// The port of the daemon; the next one is for health and metrics. Only counts in a new DIR
    #[arg(long, default_value_t = 8443, value_name = "PORT")]
    port: u16,
    /// End after the five steps instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
}

impl Args {
    fn softhsm(&self) -> bool {
        #[cfg(feature = "pkcs11")]
        return self.softhsm;
        #[cfg(not(feature = "pkcs11"))]
        false
    }
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<(), Failure> {
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).map_err(|error| failed("the folder", &error))?,
        None => state::default_dir(args.softhsm())?,
    };
    #[cfg(feature = "pkcs11")]
    if args.softhsm {
        softhsm::enter_environment(&dir)?;
    }
    println!("Claviger demo. Everything it makes is in {}\n", dir.display());
    let state = State::prepare(&dir, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("the runtime", &error))?;
    runtime.block_on(async {
        let mut daemon = start(&state).await?;
        let told = act_as_key_connector(&state).await;
        if told.is_ok() && !args.once {
            print_how_to_go_on(&state);
            daemon.wait().await?;
        }
        daemon.stop().await?;
        told
    })
}

async fn start(state: &State) -> Result<Daemon, Failure> {
    println!("3. The daemon starts: claviger serve --config {}", state.config.display());
    let started = Instant::now();
    let daemon = Daemon::start(state).await?;
    println!(
        "   Ready on https://localhost:{} after {} ms: mutual TLS 1.3, every call in audit.jsonl.\n",
        state.port,
        started.elapsed().as_millis()
    );
    Ok(daemon)
}

/// What a Key Connector does once in its life, and then at each start.
async fn act_as_key_connector(state: &State) -> Result<(), Failure> {
    let config = claviger_client::Config::from_file(&state.client)?;
    let client = Client::connect(&config).await?.with_timeout(Duration::from_secs(10));
    println!("4. A key connector makes a 32-byte key and has it wrapped.");
    let mut material = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *material)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    let fingerprint = sha256(&*material);
    let wrapped = client.wrap(KEY, &*material, &WrapOptions::default()).await?;
    drop(material);
    state.write_wrapped(&wrapped.wrapped)?;
    println!(
        "   {} bytes under {}, version {}, request id {}.\n   \
         It forgets the key and keeps the wrapped value: wrapped.bin\n",
        wrapped.wrapped.len(),
        wrapped.algorithm,
        wrapped.key_version,
        wrapped.request_id.as_deref().unwrap_or("none"),
    );
    println!("5. It restarts, and needs its key back.");
    let started = Instant::now();
    let unwrapped = client.unwrap_key(KEY, &wrapped.wrapped, &UnwrapOptions::default()).await?;
    let took = started.elapsed();
    if sha256(&unwrapped.key_material) != fingerprint {
        return Err(Failure::new(Exit::Failure, "other bytes came back than were wrapped"));
    }
    println!(
        "   The same {} bytes came back after {:.1} ms, request id {}.\n",
        unwrapped.key_material.len(),
        took.as_secs_f64() * 1000.0,
        unwrapped.request_id.as_deref().unwrap_or("none"),
    );
    Ok(())
}

fn print_how_to_go_on(state: &State) {
    let claviger = std::env::current_exe()
        .map_or_else(|_| "claviger".to_owned(), |path| path.display().to_string());
    let (client, dir) = (state.client.display(), state.dir.display());
    println!(
        "Go on by hand, in another terminal:\n\
         \n  \
         CLAVIGER={claviger}\n  \
         $CLAVIGER keys list --client {client}\n  \
         head -c 32 /dev/urandom > key.bin\n  \
         $CLAVIGER wrap {KEY} --client {client} < key.bin > wrapped.bin\n  \
         $CLAVIGER unwrap {KEY} --client {client} < wrapped.bin | cmp - key.bin\n  \
         tail -n 2 {dir}/audit.jsonl\n  \
         curl http://127.0.0.1:{}/metrics\n\
         \nServing until Ctrl-C.",
        state.port + 1,
    );
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
