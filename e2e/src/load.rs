//! Callers under load: clients that unwrap all the time, check each answer, and remember all that
//! failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use claviger_client::{Client, Config, Error, UnwrapOptions};
use tokio::task::JoinHandle;

use crate::setup::{KEY, MATERIAL};

/// Clients at work, until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    right: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What a load saw.
#[derive(Debug, Default)]
pub struct Tally {
    /// The request ids of all calls that came back right.
    pub right: Vec<String>,
    /// How often other bytes came back than were wrapped.
    pub wrong: usize,
    /// What the others said.
    pub failed: Vec<Error>,
    /// How long each call took.
    pub took: Vec<Duration>,
}

impl Tally {
    /// How long all but one of a hundred calls took at most.
    pub fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get(took.len() * 99 / 100).copied().unwrap_or_default()
    }
}

impl Load {
    /// `kept` clients that keep their connection as long as the daemon does, and `fresh` ones that
    /// make a new one for each call.
    pub fn start(config: &Config, wrapped: &[u8], kept: usize, fresh: usize) -> Self {
        let kept = (0..kept).map(|_| Connect::Once(client(config)));
        let fresh = (0..fresh).map(|_| Connect::Each(config.clone()));
        Self::of(kept.chain(fresh), KEY, wrapped)
    }

    /// So many callers that share one connection.
    pub fn sharing(config: &Config, wrapped: &[u8], callers: usize) -> Self {
        let shared = client(config);
        Self::of((0..callers).map(|_| Connect::Once(shared.clone())), KEY, wrapped)
    }

    /// So many callers of another key, each with its own connection.
    pub fn on_key(config: &Config, key: &'static str, wrapped: &[u8], callers: usize) -> Self {
        Self::of((0..callers).map(|_| Connect::Once(client(config))), key, wrapped)
    }

    fn of(connects: impl Iterator<Item = Connect>, key: &'static str, wrapped: &[u8]) -> Self {
        let (stop, right) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let clients = connects
            .map(|connect| {
                let (stop, right) = (Arc::clone(&stop), Arc::clone(&right));
                tokio::spawn(work(connect, key, wrapped.to_vec(), stop, right))
            })
            .collect();
        Self { stop, right, clients }
    }

    /// Waits for so many more right answers.
    pub async fn more(&self, calls: u64) {
        let goal = self.right.load(Ordering::Relaxed) + calls;
        let begun = Instant::now();
        while self.right.load(Ordering::Relaxed) < goal {
            assert!(begun.elapsed().as_secs() < 30, "the load stands still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Right answers so far.
    pub fn answered(&self) -> u64 {
        self.right.load(Ordering::Relaxed)
    }

    /// Lets each client end its call and leave.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let Tally { right, wrong, failed, took } =
                client.await.expect("a client does not panic");
            all.right.extend(right);
            all.wrong += wrong;
            all.failed.extend(failed);
            all.took.extend(took);
        }
        assert_eq!(all.wrong, 0, "never a wrong answer");
        all
    }
}

/// How a caller connects.
enum Connect {
    /// This connection, and again when it was lost.
    Once(Client),
    /// A new one for each call.
    Each(Config),
}

fn client(config: &Config) -> Client {
    Client::new(config).expect("the files of a client are there")
}

async fn work(
    connect: Connect,
    key: &str,
    wrapped: Vec<u8>,
    stop: Arc<AtomicBool>,
    right: Arc<AtomicU64>,
) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let client = match &connect {
            Connect::Once(client) => client.clone(),
            Connect::Each(config) => client(config),
        };
        let begun = Instant::now();
        let answer = client.unwrap_key(key, &wrapped, &UnwrapOptions::default()).await;
        tally.took.push(begun.elapsed());
        match answer {
            Ok(unwrapped) if *unwrapped.key_material == MATERIAL => {
                tally.right.push(unwrapped.request_id.expect("every answer has an id"));
                right.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => tally.wrong += 1,
            Err(error) => {
                tally.failed.push(error);
                // A daemon that is gone refuses thousands of times a second.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    tally
}
