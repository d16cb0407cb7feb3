//! The backend without the daemon: threads that do nothing but unwrap, in a process of their own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey};

use super::cpu;
use super::load::{Begun, Counter, SETTLE, Sample};
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::cli::local_daemon::{Backend, LocalDaemon};

/// How long a Key Connector's key is.
pub(super) const MATERIAL: usize = 32;

/// The process that unwraps without a daemon.
#[derive(Debug)]
pub(super) struct Raw {
    child: Child,
    orders: ChildStdin,
    samples: BufReader<ChildStdout>,
}

impl Raw {
    /// Starts it on a local daemon's folder; with SoftHSM it makes the token.
    pub(super) fn start(local: &LocalDaemon, backend: Backend, bits: u16) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| failed("this program", &error))?;
        let mut command = Command::new(program);
        command.args(["bench", "--raw-in"]).arg(&local.dir).args(["--bits", &bits.to_string()]);
        #[cfg(feature = "pkcs11")]
        if backend == Backend::SoftHsm {
            use crate::cli::local_daemon::softhsm::CONFIGURATION;
            command.arg("--softhsm").env(CONFIGURATION, local.dir.join("softhsm2.conf"));
        }
        let _ = backend;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed("starting the raw process", &error))?;
        let orders = child.stdin.take().expect("it was piped");
        let samples = BufReader::new(child.stdout.take().expect("it was piped"));
        let mut raw = Self { child, orders, samples };
        raw.answer()?;
        Ok(raw)
    }

    /// Unwraps for so long, on every core.
    pub(super) fn run(&mut self, time: Duration) -> Result<Sample, Failure> {
        writeln!(self.orders, "{}", time.as_millis())
            .map_err(|error| failed("the raw process", &error))?;
        let answer = self.answer()?;
        serde_json::from_str(&answer).map_err(|error| failed("the raw process", &error))
    }

    fn answer(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.samples.read_line(&mut line) {
            Ok(0) => Err(Failure::new(Exit::Failure, "the raw process ended; its error is above")),
            Ok(_) => Ok(line),
            Err(error) => Err(failed("the raw process", &error)),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does: says that it is ready, and then measures whenever it is told for how many
/// milliseconds.
pub(super) fn serve(dir: &Path, backend: Backend, bits: u16) -> Result<(), Failure> {
    let local = LocalDaemon::open(dir, 0)?;
    let key = local.prepare_key(backend, bits)?;
    let wrapped = wrapped_value(&key.public_key)?;
    let mut unwraps = match backend {
        Backend::Software => software::unwraps(&local, &wrapped, cpu::cores())?,
        #[cfg(feature = "pkcs11")]
        Backend::SoftHsm => token::unwraps(&local, &wrapped, cpu::cores())?,
    };
    input_output::print("ready")?;
    for order in std::io::stdin().lock().lines() {
        let milliseconds = order.ok().and_then(|order| order.trim().parse().ok());
        let Some(milliseconds) = milliseconds else { break };
        let sample = measure(&mut unwraps, Duration::from_millis(milliseconds))?;
        input_output::print(&serde_json::to_string(&sample).expect("numbers can be written"))?;
    }
    Ok(())
}

/// A 32-byte value, as a Key Connector's, wrapped.
fn wrapped_value(public_key: &PublicKey) -> Result<Vec<u8>, Failure> {
    let material = KeyMaterial::copied_from(&[7; MATERIAL]);
    public_key
        .wrap(&material, &Parameters::of(Algorithm::RsaOaep))
        .map_err(|error| failed("wrapping a value", &error))
}

type Unwrap = Box<dyn FnMut() -> Result<(), Failure> + Send>;

fn measure(unwraps: &mut [Unwrap], time: Duration) -> Result<Sample, Failure> {
    let (counter, over) = (Arc::new(Counter::default()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let threads: Vec<_> = unwraps
            .iter_mut()
            .map(|unwrap| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        unwrap()?;
                        counter.add(begun.elapsed());
                    }
                    Ok::<(), Failure>(())
                })
            })
            .collect();
        std::thread::sleep(SETTLE);
        let begun = Begun::now(&counter, Some(std::process::id()));
        std::thread::sleep(time);
        let sample = Sample { client_cpu_us: None, ..begun.end(&counter, 1) };
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a thread that unwraps does not panic")?;
        }
        Ok(sample)
    })
}

mod software {
    //! aws-lc-rs and nothing else.

    use std::sync::Arc;

    use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use claviger_files::{Protection, pem};

    use super::{Failure, LocalDaemon, Unwrap, failed};
    use crate::cli::local_daemon::KEY_FILE;

    pub(super) fn unwraps(
        local: &LocalDaemon,
        wrapped: &[u8],
        threads: usize,
    ) -> Result<Vec<Unwrap>, Failure> {
        let path = local.dir.join("keys").join(KEY_FILE);
        let file = claviger_files::read(&path, Protection::Secret, 1 << 20)
            .map_err(|error| failed("the key", &error))?;
        let key = pem::private_key_block(&file).map_err(|error| failed("the key", &error))?;
        let private = PrivateDecryptingKey::from_pkcs8(&key.der)
            .map_err(|error| failed("the key", &error))?;
        let private =
            OaepPrivateDecryptingKey::new(private).map_err(|error| failed("the key", &error))?;
        let private = Arc::new(private);
        let unwrap = |_| -> Unwrap {
            let (private, wrapped) = (Arc::clone(&private), wrapped.to_vec());
            let mut buffer = vec![0; wrapped.len()];
            Box::new(move || {
                private
                    .decrypt(&OAEP_SHA1_MGF1SHA1, &wrapped, &mut buffer, None)
                    .map(drop)
                    .map_err(|error| failed("a raw unwrap", &error))
            })
        };
        Ok((0..threads).map(unwrap).collect())
    }
}

#[cfg(feature = "pkcs11")]
mod token {
    //! `C_Decrypt`, on a session per thread and a handle that are kept.

    use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
    use cryptoki::error::Error as CryptokiError;
    use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
    use cryptoki::mechanism::{Mechanism, MechanismType};
    use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
    use cryptoki::session::{Session, UserType};
    use cryptoki::types::AuthPin;

    use super::{Exit, Failure, LocalDaemon, Unwrap, failed};
    use crate::cli::local_daemon::softhsm;

    /// Unwraps with the token of the local daemon's folder. This program chose its PIN, so the PIN
    /// cannot be wrong, and no attempt is recorded.
    pub(super) fn unwraps(
        local: &LocalDaemon,
        wrapped: &[u8],
        threads: usize,
    ) -> Result<Vec<Unwrap>, Failure> {
        let pin = std::fs::read_to_string(local.dir.join("pin"))
            .map_err(|error| failed("the PIN", &error))?;
        let module = Pkcs11::new(softhsm::module()?).map_err(refused)?;
        module
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .map_err(refused)?;
        let slots = module.get_slots_with_initialized_token().map_err(refused)?;
        let [slot] = slots[..] else { return Err(surprise("not one token")) };
        let first = module.open_ro_session(slot).map_err(refused)?;
        first.login(UserType::User, Some(&AuthPin::new(pin.into()))).map_err(refused)?;
        let template =
            [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(b"user-keys".to_vec())];
        let found = first.find_objects(&template).map_err(refused)?;
        let [key] = found[..] else { return Err(surprise("not one private key")) };
        let mut sessions = vec![first];
        for _ in 1..threads {
            sessions.push(module.open_ro_session(slot).map_err(refused)?);
        }
        Ok(sessions.into_iter().map(|session| unwrap(session, key, wrapped.to_vec())).collect())
    }

    fn unwrap(session: Session, key: ObjectHandle, wrapped: Vec<u8>) -> Unwrap {
        Box::new(move || {
            let (hash, mask) = (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1);
            let oaep = PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty());
            let unwrapped = session.decrypt(&Mechanism::RsaPkcsOaep(oaep), key, &wrapped);
            unwrapped.map(drop).map_err(refused)
        })
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
    fn refused(error: CryptokiError) -> Failure {
        failed("the token", &error)
    }

    fn surprise(what: &str) -> Failure {
        Failure::new(Exit::Failure, format!("the local's SoftHSM has {what}"))
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {error}"))
}
