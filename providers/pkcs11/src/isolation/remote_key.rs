//! An open key whose private half is used in the module's own process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, Cause, Digest, Error, ErrorKind, OpenKey, Parameters, PublicKey, SignAlgorithm,
};
use zeroize::Zeroizing;

use super::link::{Link, Reply};
use super::message::{Asked, Open, Opened, Request, Sign, Unwrap};
use super::parent::Parent;
use crate::breaker::Breaker;
use crate::facts::Facts;
use crate::fault::Fault;
use crate::here::OPEN_LIMIT;

/// How long a check may take, a new process and the key's opening in it included.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// An open key. It stays open when its process is started anew.
#[derive(Debug)]
pub(crate) struct RemoteKey {
    parent: Arc<Parent>,
    /// What opens it in a new process.
    request: Open,
    public_key_sha256: [u8; 32],
    /// For what is wrong with this key alone; what is wrong with all is in the provider's.
    breaker: Breaker,
    /// In which process it is open.
    opened_in: AtomicU64,
    /// Held while it is opened again.
    opening: tokio::sync::Mutex<()>,
    repairs: AtomicU64,
}

impl RemoteKey {
    /// A key that process `opened_in` has opened, and what that told.
    pub(super) fn new(
        parent: Arc<Parent>,
        request: Open,
        opened: Opened,
        opened_in: u64,
    ) -> Result<(Self, Facts), Error> {
        let facts = Facts {
            public_key: public_key(&opened)?,
            algorithms: parsed(&request.algorithms)?.into_iter().collect(),
            sign_algorithms: parsed(&request.sign_algorithms)?.into_iter().collect(),
            labels: parsed(&opened.labels)?.into_iter().collect(),
            extractable: opened.extractable,
            unneeded_rights: opened.unneeded_rights,
            oaep: parent.shared().config.oaep,
        };
        let key = Self {
            parent,
            request,
            public_key_sha256: facts.public_key.sha256(),
            breaker: Breaker::default(),
            opened_in: AtomicU64::new(opened_in),
            opening: tokio::sync::Mutex::default(),
            repairs: AtomicU64::new(0),
        };
        Ok((key, facts))
    }

    /// The locator.
    pub(super) fn locator(&self) -> &str {
        &self.request.locator
    }

    /// The number that the process knows it by.
    pub(super) fn number(&self) -> u32 {
        self.request.key
    }

    /// Whether it should be well in the process behind `link`.
    pub(super) fn serves_in(&self, link: &Link) -> bool {
        self.opened_in.load(Ordering::Acquire) == link.number && self.breaker.admit().is_ok()
    }

    /// How often something under it was repaired.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Opens it in the process behind `link`; false if it is open there. Another key in its place is closed
    /// again and never used.
    pub(super) async fn open_in(&self, link: &Link) -> Result<bool, Fault> {
        let _turn = self.opening.lock().await;
        if self.opened_in.load(Ordering::Acquire) == link.number {
            return Ok(false);
        }
        let opened = link.open(self.request.clone(), Instant::now() + OPEN_LIMIT).await;
        let opened = opened.map_err(proven_before)?;
        let found = public_key(&opened).map_err(Fault::of_process)?;
        if found.sha256() != self.public_key_sha256 {
            link.send(Request::Close(self.request.key)).map_err(Fault::of_process)?;
            let text = format!(
                "{} is another key now: its public key has the SHA-256 {}, not {}; nothing is \
                 unwrapped with it",
                self.request.locator,
                hex::encode(found.sha256()),
                hex::encode(self.public_key_sha256),
            );
            return Err(Fault::of_key(Error::needs_operator(Cause::AnotherKey, text)));
        }
        self.opened_in.store(link.number, Ordering::Release);
        self.repairs.fetch_add(1, Ordering::AcqRel);
        self.breaker.close();
        Ok(true)
    }

    /// A check in the process behind `link`, with what that process can repair by itself. It opens the
    /// key there if that was not done, which proves more than a check.
    pub(super) async fn check_in(&self, link: &Link, deadline: Instant) -> Result<(), Fault> {
        if self.open_in(link).await? {
            return Ok(());
        }
        let before = link.repairs();
        let outcome = link.check(self.request.key, deadline).await;
        self.note_repairs(link, before);
        outcome
    }

    /// A check in a process that answers nothing: whether it hangs.
    pub(super) async fn probe(&self, link: &Link, deadline: Instant) {
        let _with_others = self.parent.shared().rungs.read().await;
        // Whatever it gives, the process has answered.
        let _ = self.check_in(link, deadline).await;
    }

    /// A canary, and repairs if it fails: whatever the process cannot repair, a new one may.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.breaker.admit_check(Instant::now())?;
        let deadline = Instant::now() + CHECK_LIMIT;
        let climb = self.parent.shared().climb(self.request.key, |link: Arc<Link>| {
            Box::pin(async move { self.check_in(&link, deadline).await })
        });
        let outcome = tokio::time::timeout_at(deadline.into(), climb).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let text = "the module did not answer a canary for 30 s";
            Err(Fault::of_process(Error::new(ErrorKind::Unavailable, text)))
        });
        match outcome {
            Ok(()) => {
                if self.breaker.close() {
                    self.repairs.fetch_add(1, Ordering::AcqRel);
                }
                Ok(())
            }
            Err(Fault { error, is_of_process }) => {
                if !is_of_process {
                    self.breaker.open(Instant::now(), &error);
                }
                Err(error)
            }
        }
    }

    /// Key material.
    pub(crate) async fn unwrap(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let asked = Asked::Unwrap(Unwrap {
            algorithm: place(&Algorithm::ALL, parameters.algorithm),
            wrapped: wrapped.to_vec(),
            label: parameters.label.to_vec(),
        });
        self.ask(asked, call).await
    }

    /// A signature.
    pub(crate) async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let asked = Asked::Sign(Sign {
            algorithm: place(&SignAlgorithm::ALL, algorithm),
            digest: digest.as_bytes().to_vec(),
        });
        self.ask(asked, call).await
    }

    async fn ask(&self, asked: Asked, call: Call) -> Result<Zeroizing<Vec<u8>>, Error> {
        let shared = self.parent.shared();
        self.breaker.admit().and_then(|()| shared.breaker.admit())?;
        let link = shared.link_now()?;
        if self.opened_in.load(Ordering::Acquire) != link.number {
            let text = "the key is not open again yet in the module's new process";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        let before = link.repairs();
        let reply = link.call(self.request.key, call, asked).await;
        if reply.is_err() {
            self.note_repairs(&link, before);
        }
        match reply? {
            Reply::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::new(ErrorKind::Internal, "the module's process gave no such answer")),
        }
    }

    fn note_repairs(&self, link: &Link, before: u64) {
        if link.repairs() != before {
            self.repairs.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        let shared = self.parent.shared();
        shared.closed(self.request.key);
        if let Ok(link) = shared.link_now() {
            // A process that is gone has closed everything.
            let _ = link.send(Request::Close(self.request.key));
        }
    }
}

/// The request that opens a key as `number`.
pub(super) fn request(number: u32, open: &OpenKey<'_>) -> Open {
    Open {
        id: 0,
        key: number,
        locator: open.locator.to_owned(),
        algorithms: open.algorithms.iter().map(ToString::to_string).collect(),
        sign_algorithms: open.sign_algorithms.iter().map(ToString::to_string).collect(),
    }
}

/// What was proven when the key was first opened is no mistake of the configuration now.
fn proven_before(fault: Fault) -> Fault {
    let kind = match fault.error.cause() {
        Some(Cause::AlgorithmNotOffered) => ErrorKind::Unavailable,
        Some(Cause::WrongAnswer) => ErrorKind::Internal,
        _ => return fault,
    };
    let text = format!("a canary failed that came back right before: {}", fault.error);
    Fault::of_process(fault.error.retold(kind, text).with_cause(Cause::BackendFailing))
}

fn public_key(opened: &Opened) -> Result<PublicKey, Error> {
    PublicKey::from_spki(&opened.spki).map_err(|error| {
        let text = format!("the module's process gave no public key: {error}");
        Error::new(ErrorKind::Internal, text)
    })
}

fn parsed<T: std::str::FromStr>(names: &[String]) -> Result<Vec<T>, Error> {
    let parsed = names.iter().map(|name| name.parse().ok()).collect::<Option<_>>();
    parsed.ok_or_else(|| Error::new(ErrorKind::Internal, "an algorithm's name is not known"))
}

fn place<T: PartialEq + Copy>(all: &[T], one: T) -> u32 {
    all.iter().position(|each| *each == one).expect("ALL has each") as u32
}
