//! The key of the configuration that signs the audit log's checkpoints, in its backend.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_provider_api::{Call, CallerSlot, Digest, Error, ErrorKind, SignAlgorithm, Signature};
use tokio::runtime::Handle;

use crate::daemon::config::{Audit, SignedBy};
use crate::daemon::keys::choice::{Need, Turns};
use crate::daemon::keys::failover::{self, Ended, Work};
use crate::daemon::keys::replica::Replica;
use crate::daemon::records::audit::{SignCheckpoint, Signed, digest_of};
use crate::daemon::request::active::Snapshot;
use crate::daemon::serve::daemon::Daemon;

/// How long a signature may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Gives the audit log the key that signs its checkpoints, if `audit.checkpoints.signed_by` names one.
    pub(super) fn let_key_sign_checkpoints(&self) {
        let config = self.config.load();
        let Audit::File(file) = &config.audit else { return };
        let Some(SignedBy::Key(name)) = file.checkpoints.as_ref().map(|it| &it.signed_by) else {
            return;
        };
        let (snapshot, name) = (Arc::clone(&self.snapshot), name.clone());
        let runtime = Handle::current();
        self.audit.sign_checkpoints_with(CheckpointKey { snapshot, name, runtime });
    }
}

/// A key of the configuration in force, by its name.
struct CheckpointKey {
    snapshot: Arc<ArcSwap<Snapshot>>,
    name: String,
    runtime: Handle,
}

impl SignCheckpoint for CheckpointKey {
    fn sign(&self, text: &[u8]) -> Result<Signed, String> {
        let (sender, receiver) = mpsc::channel();
        let (snapshot, name, text) = (self.snapshot.load_full(), self.name.clone(), text.to_vec());
        let sign = async move { sender.send(sign(&snapshot, &name, &text).await) };
        drop(self.runtime.spawn(sign));
        // Where the runtime has ended already, nothing comes.
        let answer = receiver.recv_timeout(PATIENCE + Duration::from_secs(1));
        answer.unwrap_or_else(|_| Err(format!("key {:?} gave no answer", self.name)))
    }
}

async fn sign(snapshot: &Snapshot, name: &str, text: &[u8]) -> Result<Signed, String> {
    let in_words = |reason: &str| format!("key {name:?}: {reason}");
    let gone = || in_words("no version of it signs any more");
    let key = snapshot.keyring.keys.get(name).ok_or_else(gone)?;
    let version = key.for_checkpoints().ok_or_else(gone)?;
    let algorithm = *version.sign_algorithms.first().ok_or_else(gone)?;
    let digest = digest_of(text, algorithm);
    let deadline = Instant::now() + PATIENCE;
    let mut turns = Turns::new(version, Need::default());
    let mut signing = Signing { digest, algorithm, deadline, error: None };
    match failover::ask(&mut turns, deadline, &mut signing).await {
        Ok((signature, spki)) => Ok(Signed { algorithm, spki, signature: signature.bytes }),
        Err(Ended::Late) => Err(in_words("it does not answer in time")),
        Err(Ended::Missed(_) | Ended::Lost(_)) => {
            let error = signing.error.map(|error| error.to_string());
            Err(in_words(&error.unwrap_or_else(|| version.fault().text.to_string())))
        }
    }
}

/// One digest at the replicas of one version.
struct Signing {
    digest: Digest,
    algorithm: SignAlgorithm,
    deadline: Instant,
    /// What the last replica said.
    error: Option<Error>,
}

impl Work for Signing {
    type Output = (Signature, Vec<u8>);

    async fn on(
        &mut self,
        replica: &Arc<Replica>,
        patience: Option<Duration>,
    ) -> Result<Self::Output, ErrorKind> {
        let Some(key) = replica.key() else { return Err(ErrorKind::Unavailable) };
        let call = Call { caller: CallerSlot::DAEMON, deadline: self.deadline };
        let backend_call = replica.backend_calls.start();
        if replica.is_drained() {
            return Err(ErrorKind::Unavailable);
        }
        let outcome = key.sign(&self.digest, self.algorithm, call);
        let outcome = failover::unless_silent(replica, patience, outcome).await;
        drop(backend_call);
        match outcome {
            Ok(signature) => {
                replica.proven();
                Ok((signature, key.public_key().spki().to_vec()))
            }
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind)
            }
        }
    }

    /// Any digest can be signed.
    fn may_be_at_fault(&self) -> bool {
        false
    }
}
