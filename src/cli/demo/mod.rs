//! `claviger demo`: the real daemon on loopback, and a key connector's life in five steps.
//! With `--chaos`, two HSMs that fail under a client that goes on calling: [`chaos`]. With `--connector`, a
//! Key Connector of its own and an approval: [`connector`].

#[cfg(feature = "pkcs11")]
mod chaos;
mod connector;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use claviger_client::{Client, UnwrapOptions, WrapOptions};
use claviger_provider_api::public_key::sha256;
use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use super::input_output;
#[cfg(feature = "pkcs11")]
use super::local_daemon::softhsm;
use super::local_daemon::{Backend, CLIENT, Daemon, KEY, LocalDaemon, backend_of, write};

/// The arguments of `claviger demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger demo
  claviger demo --once
  claviger demo --softhsm --dir ./demo
  claviger demo --chaos
  claviger demo --chaos --plain --seconds 30
  claviger demo --connector")]
pub struct Args {
    /// Where certificates, key and configuration are kept between runs
    /// [default: claviger/demo in the user's data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use a fresh SoftHSM token instead of a key in a file
    #[cfg(feature = "pkcs11")]
    #[arg(long)]
    softhsm: bool,
    /// The port of the daemon; the next one is for health and metrics [default: what DIR has, else
    /// 8443]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: Option<u16>,
    /// End after the five steps, or after each fault, instead of going on until Ctrl-C
    #[arg(long)]
    once: bool,
    #[cfg(feature = "pkcs11")]
    #[command(flatten)]
    chaos: chaos::ChaosArgs,
    #[command(flatten)]
    connector: connector::ConnectorArgs,
}

impl Args {
    /// What was asked for; without a word, what the folder was made with.
    fn backend(&self) -> Backend {
        #[cfg(feature = "pkcs11")]
        if self.softhsm {
            return Backend::SoftHsm;
        }
        self.dir.as_deref().and_then(backend_of).unwrap_or(Backend::Software)
    }

    /// The folder, an absolute path; `name` is that of the default one.
    fn dir_or(&self, name: &str) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| failed("the folder", &error)),
            None => default_dir(name),
        }
    }
}

/// The port of a new folder.
const PORT: u16 = 8443;

/// The last words: how to go on in earnest.
#[cfg(all(feature = "pkcs11", feature = "software"))]
const REAL: &str = "\nFor a set-up of your own, with an HSM: claviger init";
#[cfg(not(all(feature = "pkcs11", feature = "software")))]
const REAL: &str = "";

/// Runs the demo.
pub fn run(args: &Args) -> Result<(), Failure> {
    #[cfg(feature = "pkcs11")]
    if args.chaos.is_wanted() {
        return chaos::run(args);
    }
    if args.connector.is_wanted() {
        return connector::run(args);
    }
    let backend = args.backend();
    let dir = args.dir_or(match backend {
        Backend::Software => "demo",
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => "demo-softhsm",
    })?;
    #[cfg(feature = "pkcs11")]
    if backend == Backend::SoftHsm {
        softhsm::enter_environment(&dir)?;
    }
    let mut local = open(&dir)?;
    let _alone = local.alone()?;
    local.check_backend(backend)?;
    if let Some(port) = args.port {
        local.use_port(port)?;
    }
    prepare(&local, backend)?;
    runtime()?.block_on(async {
        let mut daemon = start(&local).await?;
        let told = serve(&local, args, &mut daemon).await;
        daemon.stop().await?;
        told
    })
}

fn open(dir: &Path) -> Result<LocalDaemon, Failure> {
    say(&format!("Claviger demo. Everything it makes is in {}\n", dir.display()))?;
    LocalDaemon::open(dir, PORT)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(|error| failed("the runtime", &error))
}

/// Steps 1 and 2.
fn prepare(local: &LocalDaemon, backend: Backend) -> Result<(), Failure> {
    local.check_ports_are_free()?;
    local.prepare_certificates()?;
    say(&format!(
        "1. A development CA issues the certificates of both ends, in pki/: the daemon's, and one \
         for\n   {CLIENT}.\n"
    ))?;
    let bits = match backend {
        Backend::Software => 3072,
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => 2048,
    };
    let key = local.prepare_key(backend, bits)?;
    let bits = key.public_key.modulus_bits();
    say(&match backend {
        Backend::Software => format!(
            "2. An RSA-{bits} key: keys/user-keys.pem\n   \
             It lies in a file, not in hardware: good for first steps, not for secrets.\n"
        ),
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => format!(
            "2. An RSA-{bits} key in the SoftHSM token \"{}\", made inside of it: sensitive, not \
             extractable.\n",
            softhsm::LABEL
        ),
    })?;
    local.configure(&key, true)
}

async fn start(local: &LocalDaemon) -> Result<Daemon, Failure> {
    say(&format!("3. The daemon starts: claviger serve --config {}", local.config.display()))?;
    let started = Instant::now();
    let daemon = Daemon::start(local).await?;
    say(&format!(
        "   Ready on https://localhost:{} after {} ms: mutual TLS 1.3, every call in audit.jsonl.\n",
        local.port,
        started.elapsed().as_millis()
    ))?;
    Ok(daemon)
}

/// Steps 4 and 5, and then until Ctrl-C.
async fn serve(local: &LocalDaemon, args: &Args, daemon: &mut Daemon) -> Result<(), Failure> {
    act_as_key_connector(local).await?;
    if args.once {
        return say(&how_to_remove(local));
    }
    say(&how_to_go_on(local))?;
    daemon.wait().await
}

/// What a Key Connector does once in its life, and then at each start.
async fn act_as_key_connector(local: &LocalDaemon) -> Result<(), Failure> {
    let config = claviger_client::Config::from_file(&local.client)?;
    let client = Client::connect(&config).await?.with_timeout(Duration::from_secs(10));
    say("4. A key connector makes a 32-byte key and has it wrapped.")?;
    let mut material = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *material)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    let fingerprint = sha256(&*material);
    let wrapped = client.wrap(KEY, &*material, &WrapOptions::default()).await?;
    drop(material);
    write(&local.dir.join("wrapped.bin"), &wrapped.wrapped)?;
    say(&format!(
        "   {} bytes under {}, version {}, request id {}.\n   \
         It forgets the key and keeps the wrapped value: wrapped.bin\n",
        wrapped.wrapped.len(),
        wrapped.algorithm,
        wrapped.key_version,
        wrapped.request_id.as_deref().unwrap_or("none"),
    ))?;
    say("5. It restarts, and needs its key back.")?;
    let started = Instant::now();
    let unwrapped = client.unwrap_key(KEY, &wrapped.wrapped, &UnwrapOptions::default()).await?;
    let took = started.elapsed();
    if sha256(&unwrapped.key_material) != fingerprint {
        return Err(Failure::new(Exit::Failure, "other bytes came back than were wrapped"));
    }
    say(&format!(
        "   The same {} bytes came back after {:.1} ms, request id {}.\n",
        unwrapped.key_material.len(),
        took.as_secs_f64() * 1000.0,
        unwrapped.request_id.as_deref().unwrap_or("none"),
    ))
}

fn how_to_go_on(local: &LocalDaemon) -> String {
    let claviger = std::env::current_exe()
        .map_or_else(|_| "claviger".to_owned(), |path| path.display().to_string());
    let (client, dir) = (local.client.display(), local.dir.display());
    format!(
        "Go on by hand, in another terminal:\n\
         \n  \
         CLAVIGER={claviger}\n  \
         $CLAVIGER keys list --client {client}\n  \
         head -c 32 /dev/urandom > key.bin\n  \
         $CLAVIGER wrap {KEY} --client {client} < key.bin > wrapped.bin\n  \
         $CLAVIGER unwrap {KEY} --client {client} < wrapped.bin | cmp - key.bin\n  \
         tail -n 2 {dir}/audit.jsonl\n  \
         curl http://127.0.0.1:{}/metrics\n\
         \n{}\n\
         Serving until Ctrl-C.",
        local.operations_port,
        how_to_remove(local),
    )
}

fn how_to_remove(local: &LocalDaemon) -> String {
    format!("To remove the demo: rm -r {}{REAL}", local.dir.display())
}

/// Prints a line. A stdout that is closed or full is a failure, which ends the daemon too.
fn say(line: &str) -> Result<(), Failure> {
    input_output::print(line)
}

/// `claviger/NAME` in the user's data folder.
fn default_dir(name: &str) -> Result<PathBuf, Failure> {
    let data =
        std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = data.or(home).ok_or_else(|| {
        Failure::new(Exit::Usage, "HOME is not set").advise("Name a folder with --dir.")
    })?;
    Ok(data.join("claviger").join(name))
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
