//! A client that unwraps all the time, and what became of its calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_client::{Client, UnwrapOptions};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::cli::failure::{Exit, Failure};
use crate::cli::local_daemon::{KEY, LocalDaemon};

/// Calls at a time, and how long each caller rests after one.
const CALLERS: usize = 4;
const REST: Duration = Duration::from_millis(20);
/// The deadline of a call.
const DEADLINE: Duration = Duration::from_secs(10);

/// What became of calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) answered: u64,
    pub(super) failed: u64,
    /// The longest time until an answer.
    pub(super) longest: Duration,
    first_failure: Option<String>,
}

/// A look at the calls.
#[derive(Clone, Debug)]
pub(super) struct Tick {
    /// Since the start.
    pub(super) total: Tally,
    /// Since the last look: `.` all were answered, `!` one failed, `_` none was answered.
    pub(super) mark: char,
}

/// The client.
pub(super) struct Calls {
    tally: Arc<Mutex<Tally>>,
    /// At the last look.
    before: (u64, u64),
    is_over: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Calls {
    /// Begins to call.
    pub(super) async fn begin(local: &LocalDaemon, key: PublicKey) -> Result<Self, Failure> {
        let config = claviger_client::Config::from_file(&local.client)?;
        let client = Client::connect(&config).await?.with_timeout(DEADLINE);
        let (tally, is_over) = (Arc::<Mutex<Tally>>::default(), Arc::<AtomicBool>::default());
        let key = Arc::new(key);
        let callers = (0..CALLERS)
            .map(|_| {
                let (client, key) = (client.clone(), Arc::clone(&key));
                let (tally, is_over) = (Arc::clone(&tally), Arc::clone(&is_over));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let outcome = call(&client, &key).await;
                        note(&tally, begun.elapsed(), outcome);
                        tokio::time::sleep(REST).await;
                    }
                })
            })
            .collect();
        Ok(Self { tally, before: (0, 0), is_over, callers })
    }

    /// A look at them.
    pub(super) fn tick(&mut self) -> Tick {
        let total = lock(&self.tally).clone();
        let (answered, failed) = (total.answered - self.before.0, total.failed - self.before.1);
        self.before = (total.answered, total.failed);
        let mark = match (answered, failed) {
            (_, 1..) => '!',
            (0, 0) => '_',
            _ => '.',
        };
        Tick { total, mark }
    }

    /// Waits for those in flight. What became of all.
    pub(super) async fn end(&mut self) -> Tally {
        self.is_over.store(true, Ordering::Relaxed);
        for caller in self.callers.drain(..) {
            // One that panicked has counted nothing more.
            let _ = caller.await;
        }
        lock(&self.tally).clone()
    }

    /// What the first call that failed said.
    pub(super) fn first_failure(&self) -> Option<String> {
        lock(&self.tally).first_failure.clone()
    }
}

/// One unwrap of material that no other call has.
async fn call(client: &Client, key: &PublicKey) -> Result<(), Failure> {
    let mut material = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *material)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    let wrapped = key
        .wrap(&KeyMaterial::copied_from(&*material), &Parameters::of(Algorithm::RsaOaep))
        .map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let unwrapped = client.unwrap_key(KEY, &wrapped, &UnwrapOptions::default()).await?;
    if *unwrapped.key_material == *material {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failure, "other bytes came back than were wrapped"))
    }
}

fn note(tally: &Mutex<Tally>, took: Duration, outcome: Result<(), Failure>) {
    let mut tally = lock(tally);
    match outcome {
        Ok(()) => tally.answered += 1,
        Err(failure) => {
            tally.failed += 1;
            tally.first_failure.get_or_insert_with(|| failure.to_string());
        }
    }
    tally.longest = tally.longest.max(took);
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
