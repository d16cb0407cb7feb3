//! Callers under load: clients that unwrap all the time, check each answer, and remember all that
//! failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use claviger_client::{Client, Config, UnwrapOptions};
use tokio::task::JoinHandle;

use crate::scene::{KEY, MATERIAL};

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
    /// What the others said.
    pub failed: Vec<String>,
}

impl Load {
    /// `kept` clients that keep their connection as long as the daemon does, and `fresh` ones that
    /// make a new one for each call.
    pub fn start(config: &Config, wrapped: &[u8], kept: usize, fresh: usize) -> Self {
        let (stop, right) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |is_fresh| {
            let (config, wrapped) = (config.clone(), wrapped.to_vec());
            tokio::spawn(work(config, wrapped, is_fresh, Arc::clone(&stop), Arc::clone(&right)))
        };
        let clients = (0..kept).map(|_| client(false)).chain((0..fresh).map(|_| client(true)));
        let clients = clients.collect();
        Self { stop, right, clients }
    }

    /// Waits for so many more right answers.
    pub async fn more(&self, calls: u64) {
        let goal = self.right.load(Ordering::Relaxed) + calls;
        let begun = std::time::Instant::now();
        while self.right.load(Ordering::Relaxed) < goal {
            assert!(begun.elapsed().as_secs() < 30, "the load stands still");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Lets each client end its call and leave.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let Tally { right, failed } = client.await.expect("a client does not panic");
            all.right.extend(right);
            all.failed.extend(failed);
        }
        all
    }
}

async fn work(
    config: Config,
    wrapped: Vec<u8>,
    is_fresh: bool,
    stop: Arc<AtomicBool>,
    right: Arc<AtomicU64>,
) -> Tally {
    let connect = || Client::new(&config).expect("the files of a client are there");
    let mut client = connect();
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        if is_fresh {
            client = connect();
        }
        match client.unwrap_key(KEY, &wrapped, &UnwrapOptions::default()).await {
            Ok(unwrapped) if *unwrapped.key_material == MATERIAL => {
                tally.right.push(unwrapped.request_id.expect("every answer has an id"));
                right.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => tally.failed.push("wrong key material".into()),
            Err(error) => {
                tally.failed.push(format!("{error:?}"));
                // A daemon that is gone refuses thousands of times a second.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
    tally
}
