//! `claviger demo`: the real daemon on loopback, and a key connector's life in five steps.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use claviger_client::{Client, UnwrapOptions, WrapOptions};
use claviger_provider_api::public_key::sha256;
use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
#[cfg(feature = "pkcs11")]
use super::sandbox::softhsm;
use super::sandbox::{Backend, CLIENT, Daemon, KEY, Sandbox, write};

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
    #[arg(long, default_value_t = 8443, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: u16,
    /// End after the five steps instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
}

impl Args {
    fn backend(&self) -> Backend {
        #[cfg(feature = "pkcs11")]
        if self.softhsm {
            return Backend::SoftHsm;
        }
        Backend::Software
    }
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<(), Failure> {
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).map_err(|error| failed("the folder", &error))?,
        None => default_dir(args.backend())?,
    };
    #[cfg(feature = "pkcs11")]
    if args.softhsm {
        softhsm::enter_environment(&dir)?;
    }
    println!("Claviger demo. Everything it makes is in {}\n", dir.display());
    let sandbox = Sandbox::open(&dir, args.port)?;
    let _alone = sandbox.alone()?;
    prepare(&sandbox, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("the runtime", &error))?;
    runtime.block_on(async {
        let mut daemon = start(&sandbox).await?;
        let told = act_as_key_connector(&sandbox).await;
        if told.is_ok() && !args.once {
            print_how_to_go_on(&sandbox);
            daemon.wait().await?;
        }
        daemon.stop().await?;
        told
    })
}

/// Steps 1 and 2.
fn prepare(sandbox: &Sandbox, args: &Args) -> Result<(), Failure> {
    sandbox.check_backend(args.backend())?;
    sandbox.check_ports_are_free()?;
    sandbox.prepare_certificates()?;
    println!(
        "1. A development CA issues the certificates of both ends, in pki/: the daemon's, and one \
         for\n   {CLIENT}.\n"
    );
    let backend = args.backend();
    let bits = match backend {
        Backend::Software => 3072,
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => 2048,
    };
    let key = sandbox.prepare_key(backend, bits)?;
    let bits = key.public_key.modulus_bits();
    match backend {
        Backend::Software => println!(
            "2. An RSA-{bits} key: keys/user-keys.pem\n   \
             It lies in a file, not in hardware: good for first steps, not for secrets.\n"
        ),
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => println!(
            "2. An RSA-{bits} key in the SoftHSM token \"{}\", made inside of it: sensitive, not \
             extractable.\n",
            softhsm::LABEL
        ),
    }
    sandbox.configure(&key, true)
}

async fn start(sandbox: &Sandbox) -> Result<Daemon, Failure> {
    println!("3. The daemon starts: claviger serve --config {}", sandbox.config.display());
    let started = Instant::now();
    let daemon = Daemon::start(sandbox).await?;
    println!(
        "   Ready on https://localhost:{} after {} ms: mutual TLS 1.3, every call in audit.jsonl.\n",
        sandbox.port,
        started.elapsed().as_millis()
    );
    Ok(daemon)
}

/// What a Key Connector does once in its life, and then at each start.
async fn act_as_key_connector(sandbox: &Sandbox) -> Result<(), Failure> {
    let config = claviger_client::Config::from_file(&sandbox.client)?;
    let client = Client::connect(&config).await?.with_timeout(Duration::from_secs(10));
    println!("4. A key connector makes a 32-byte key and has it wrapped.");
    let mut material = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *material)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    let fingerprint = sha256(&*material);
    let wrapped = client.wrap(KEY, &*material, &WrapOptions::default()).await?;
    drop(material);
    write(&sandbox.dir.join("wrapped.bin"), &wrapped.wrapped)?;
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

fn print_how_to_go_on(sandbox: &Sandbox) {
    let claviger = std::env::current_exe()
        .map_or_else(|_| "claviger".to_owned(), |path| path.display().to_string());
    let (client, dir) = (sandbox.client.display(), sandbox.dir.display());
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
        sandbox.operations_port,
    );
}

/// `claviger/demo` in the user's data folder.
fn default_dir(backend: Backend) -> Result<PathBuf, Failure> {
    let data =
        std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = data.or(home).ok_or_else(|| {
        Failure::new(Exit::Usage, "HOME is not set").advise("Name a folder with --dir.")
    })?;
    let name = match backend {
        Backend::Software => "demo",
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => "demo-softhsm",
    };
    Ok(data.join("claviger").join(name))
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
