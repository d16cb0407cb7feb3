//! What the child does with each message: operations go straight to the session threads, which
//! answer by themselves; what is rare goes to one task.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, CallerSlot, Digest, Error, ErrorKind, OpenKey, Parameters, SignAlgorithm,
};
use tokio::sync::mpsc;
use zeroize::Zeroize;

use super::log::LogLevel;
use super::message::{
    Answer, Asked, Call, Check, Event, FromChild, Make, Open, Opened, Outcome, Request, Sign,
    Unwrap,
};
use super::outbox::Outbox;
use super::pin::PinOfDaemon;
use crate::config::{Config, Oaep};
use crate::facts::Facts;
use crate::fault::Fault;
use crate::here::Here;
use crate::local_key::LocalKey;
use crate::making::NewPair;
use crate::operation::Operation;
use crate::reply::{self, Reply};
use crate::{operator, unavailable};

/// The child, between its socket and its token.
#[derive(Debug)]
pub(super) struct Serving {
    provider: Mutex<Option<Arc<Here>>>,
    oaep: Oaep,
    /// By the daemon's numbers.
    keys: Mutex<HashMap<u32, Arc<LocalKey>>>,
    /// Calls that were not answered yet.
    calls: Mutex<HashMap<u64, Asker>>,
    outbox: Arc<Outbox<UnixStream>>,
    pin: Arc<PinOfDaemon>,
    log_level: Arc<LogLevel>,
}

/// Where the one who asked is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Waits,
    /// The daemon waits for the answer, its caller does not.
    CallerLeft,
    /// Nothing waits for the answer.
    Gone,
}

/// What does not go to a session thread.
#[derive(Debug)]
pub(super) enum Rare {
    Open(Open),
    Make(Make),
    /// The canary of a key, for the call with this number.
    Check(u64, Arc<LocalKey>),
}

/// Who waits, at the other end of the socket.
#[derive(Debug)]
struct Remote {
    serving: Arc<Serving>,
    id: u64,
    key: Arc<LocalKey>,
}

impl Serving {
    /// A child without keys.
    pub(super) fn new(
        mut config: Config,
        state_dir: Option<PathBuf>,
        outbox: Arc<Outbox<UnixStream>>,
        pin: Arc<PinOfDaemon>,
        log_level: Arc<LogLevel>,
    ) -> Self {
        // The daemon counts what a caller has in flight: whatever it sends has room here.
        config.queue = Some(config.most_in_flight());
        let oaep = config.oaep;
        let provider = Here::new(Arc::new(config), state_dir, true);
        let to_daemon = Arc::clone(&outbox);
        provider.logins().tell_to(Box::new(move |login| {
            // A daemon that is gone records nothing.
            let _ = to_daemon.send(&FromChild::from(Event::Login(login.into())));
        }));
        Self {
            provider: Mutex::new(Some(Arc::new(provider))),
            oaep,
            keys: Mutex::default(),
            calls: Mutex::default(),
            outbox,
            pin,
            log_level,
        }
    }

    /// Does what can be done at once; gives back what cannot.
    pub(super) fn take(self: &Arc<Self>, request: Request) -> Option<Rare> {
        match request {
            Request::Call(call) => return self.call(call),
            Request::Open(open) => return Some(Rare::Open(open)),
            Request::Make(make) => return Some(Rare::Make(make)),
            Request::Close(number) => drop(lock(&self.keys).remove(&number)),
            Request::Cancel(id) => self.note(id, Asker::Gone),
            Request::CallerLeft(id) => self.note(id, Asker::CallerLeft),
            Request::Pin(pin) => self.pin.deliver(pin),
            Request::LogLevel(level) => self.log_level.set(level),
            // It came once, before all else.
            Request::Start(_) => {}
        }
        None
    }

    fn note(&self, id: u64, asker: Asker) {
        if let Some(noted) = lock(&self.calls).get_mut(&id) {
            *noted = asker;
        }
    }

    /// Closes all keys.
    pub(super) fn close(&self) {
        lock(&self.keys).clear();
        *lock(&self.provider) = None;
    }

    fn call(self: &Arc<Self>, call: Call) -> Option<Rare> {
        let Call { id, key, caller, remaining, asked } = call;
        let Some(key) = lock(&self.keys).get(&key).cloned() else {
            let error = unavailable("the key is not open in this process");
            self.answer(id, 0, failure(&Fault::of_process(error)));
            return None;
        };
        let operation = match asked {
            Some(Asked::Unwrap(unwrap)) => self::unwrap(self.oaep, &unwrap),
            Some(Asked::Sign(sign)) => self::sign(&sign),
            Some(Asked::Check(_)) => return Some(Rare::Check(id, key)),
            None => None,
        };
        let Some(operation) = operation else {
            let text = "an operation that is not known";
            self.answer(id, 0, refusal(&Error::new(ErrorKind::Internal, text)));
            return None;
        };
        lock(&self.calls).insert(id, Asker::Waits);
        let deadline = Instant::now() + Duration::from_micros(remaining);
        let remote = Remote { serving: Arc::clone(self), id, key: Arc::clone(&key) };
        // A queue that is closed drops what it does not take, which answers it.
        let _ = key.submit(operation, CallerSlot(caller), deadline, Box::new(remote));
        None
    }

    fn answer(&self, id: u64, repairs: u64, outcome: Outcome) {
        self.answer_queued(id, repairs, outcome, Duration::ZERO);
    }

    /// Of a call that was so long in the token's queue.
    fn answer_queued(&self, id: u64, repairs: u64, outcome: Outcome, queued: Duration) {
        let queued = u64::try_from(queued.as_micros()).unwrap_or(u64::MAX);
        let answer = Answer { id, repairs, outcome: Some(outcome), queued };
        let mut message = FromChild::from(Event::Answer(answer));
        // A daemon that is gone waits for nothing.
        let _ = self.outbox.send(&message);
        message.wipe();
    }

    async fn open(&self, open: &Open) -> Result<Opened, Fault> {
        let known = |_| Fault::of_key(operator("an algorithm that is not known"));
        let algorithms =
            open.algorithms.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>();
        let sign_algorithms =
            open.sign_algorithms.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>();
        let wanted = OpenKey {
            locator: &open.locator,
            algorithms: &algorithms.map_err(known)?,
            sign_algorithms: &sign_algorithms.map_err(known)?,
            public_key_sha256: None,
        };
        let meant = open.meant_sha256.as_deref().map(<[u8; 32]>::try_from).transpose();
        let meant = meant.map_err(|_| Fault::of_key(operator("no SHA-256 of a public key")))?;
        let (key, facts) = self.provider()?.open(&wanted, meant).await?;
        let Facts { public_key, labels, extractable, unneeded_rights, .. } = facts;
        let opened = Opened {
            key: open.key,
            spki: public_key.spki().to_vec(),
            labels: labels.iter().map(|label| label.to_string()).collect(),
            extractable,
            unneeded_rights,
        };
        lock(&self.keys).insert(open.key, Arc::new(key));
        Ok(opened)
    }

    /// The public half of a key pair that was made, DER.
    async fn make(&self, pair: Result<NewPair, Fault>) -> Result<Vec<u8>, Fault> {
        Ok(self.provider()?.make(pair?).await?.spki().to_vec())
    }

    fn provider(&self) -> Result<Arc<Here>, Fault> {
        let ending = || Fault::no_process("the process is about to end".to_owned());
        lock(&self.provider).clone().ok_or_else(ending)
    }
}

/// Opens and checks keys, each in a task of its own; ends when no more requests come.
pub(super) async fn serve_rare(serving: Arc<Serving>, mut rare: mpsc::UnboundedReceiver<Rare>) {
    while let Some(request) = rare.recv().await {
        let serving = Arc::clone(&serving);
        // A task that panics leaves its call unanswered, which the daemon takes for a hang.
        tokio::spawn(async move {
            match request {
                Rare::Open(open) => {
                    let outcome = match serving.open(&open).await {
                        Ok(opened) => Outcome::Opened(opened),
                        Err(fault) => failure(&fault),
                    };
                    serving.answer(open.id, 0, outcome);
                }
                Rare::Make(mut make) => {
                    let pair = NewPair::try_from(&make).map_err(Fault::of_key);
                    make.pkcs8.zeroize();
                    let outcome = match serving.make(pair).await {
                        Ok(spki) => Outcome::Bytes(spki),
                        Err(fault) => failure(&fault),
                    };
                    serving.answer(make.id, 0, outcome);
                }
                Rare::Check(id, key) => {
                    let outcome = match key.check().await {
                        Ok(()) => Outcome::Well(Check {}),
                        Err(fault) => failure(&fault),
                    };
                    serving.answer(id, key.repairs(), outcome);
                }
            }
        });
    }
}

impl Reply for Remote {
    fn is_gone(&self) -> bool {
        self.asker() == Asker::Gone
    }

    fn caller_has_left(&self) -> bool {
        self.asker() != Asker::Waits
    }

    fn send(self: Box<Self>, outcome: reply::Outcome, queued: Duration) {
        self.done();
        match outcome {
            Ok(mut bytes) => {
                let bytes = std::mem::take(&mut *bytes);
                self.serving.answer_queued(self.id, 0, Outcome::Bytes(bytes), queued);
            }
            Err(error) => {
                let repairs = self.key.repairs();
                self.serving.answer_queued(self.id, repairs, refusal(&error), queued);
            }
        }
    }
}

impl Remote {
    fn asker(&self) -> Asker {
        lock(&self.serving.calls).get(&self.id).copied().unwrap_or(Asker::Gone)
    }

    /// Whether it was not answered until now.
    fn done(&self) -> bool {
        lock(&self.serving.calls).remove(&self.id).is_some()
    }
}

/// A session thread drops, unanswered, what is late; but the daemon counts each call until it hears
/// of it.
impl Drop for Remote {
    fn drop(&mut self) {
        if self.done() {
            let late = Error::new(ErrorKind::DeadlineExceeded, "the call was not started in time");
            self.serving.answer(self.id, 0, refusal(&late));
        }
    }
}

fn unwrap(oaep: Oaep, unwrap: &Unwrap) -> Option<Operation> {
    let algorithm = *Algorithm::ALL.get(unwrap.algorithm as usize)?;
    let parameters = Parameters { algorithm, label: &unwrap.label };
    Some(Operation::unwrap(&unwrap.wrapped, &parameters, oaep))
}

fn sign(sign: &Sign) -> Option<Operation> {
    let algorithm = *SignAlgorithm::ALL.get(sign.algorithm as usize)?;
    Some(Operation::sign(&Digest::new(algorithm.hash(), &sign.digest)?, algorithm))
}

fn refusal(error: &Error) -> Outcome {
    Outcome::Failure(error.into())
}

fn failure(fault: &Fault) -> Outcome {
    Outcome::Failure(fault.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
