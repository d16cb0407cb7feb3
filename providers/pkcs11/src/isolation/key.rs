//! An open key whose private half is used in another process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use claviger_provider_api::checks::check_deadline;
use claviger_provider_api::{
    Algorithm, Algorithms, Call, Cause, Digest, Error, ErrorKind, KeyMaterial, OpenKey, Parameters,
    PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};

use super::link::{Link, Reply};
use super::message::{Asked, Open, Opened, Request, Sign, Unwrap};
use super::parent::Parent;
use crate::OPEN_LIMIT;
use crate::facts::Facts;

/// How long a check may take, a new process and the key's opening in it included.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// An open key. It stays open when its process is started anew.
pub(crate) struct Key {
    parent: Arc<Parent>,
    /// What opens it in a new process.
    request: Open,
    facts: Facts,
    /// In which process it is open.
    opened_in: AtomicU64,
    /// Held while it is opened again.
    opening: tokio::sync::Mutex<()>,
    repairs: AtomicU64,
}

impl Key {
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

    /// A key that process `opened_in` has opened.
    pub(super) fn new(
        parent: Arc<Parent>,
        request: Open,
        opened: &Opened,
        opened_in: u64,
    ) -> Result<Self, Error> {
        let facts = Facts {
            public_key: public_key(opened)?,
            algorithms: parsed(&request.algorithms)?.into_iter().collect(),
            sign_algorithms: parsed(&request.sign_algorithms)?.into_iter().collect(),
            labels: parsed(&opened.labels)?.into_iter().collect(),
            extractable: opened.extractable,
            unneeded_rights: opened.unneeded_rights.clone(),
            oaep: parent.shared().config.oaep,
        };
        Ok(Self {
            parent,
            request,
            facts,
            opened_in: AtomicU64::new(opened_in),
            opening: tokio::sync::Mutex::default(),
            repairs: AtomicU64::new(0),
        })
    }

    /// Opens it in the process behind `link`, unless that was done. Another key in its place is
    /// closed again and never used.
    pub(super) async fn open_in(&self, link: &Link) -> Result<(), Error> {
        let _turn = self.opening.lock().await;
        if self.opened_in.load(Ordering::Acquire) == link.number {
            return Ok(());
        }
        let opened = link.open(self.request.clone(), Instant::now() + OPEN_LIMIT).await?;
        let found = public_key(&opened)?;
        if found.sha256() != self.facts.public_key.sha256() {
            link.send(Request::Close(self.request.key))?;
            return Err(Error::needs_operator(
                Cause::AnotherKey,
                format!(
                    "{} is another key now: its public key has the SHA-256 {}, not {}; nothing is \
                     unwrapped with it",
                    self.request.locator,
                    hex::encode(found.sha256()),
                    hex::encode(self.facts.public_key.sha256()),
                ),
            ));
        }
        self.opened_in.store(link.number, Ordering::Release);
        self.repairs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The locator.
    pub(super) fn locator(&self) -> &str {
        &self.request.locator
    }

    /// A check in the process behind `link`.
    pub(super) async fn check_in(&self, link: &Link, deadline: Instant) -> Result<(), Error> {
        let before = link.repairs();
        let outcome = link.check(self.request.key, deadline).await;
        if link.repairs() != before {
            self.repairs.fetch_add(1, Ordering::AcqRel);
        }
        outcome.map(drop)
    }

    /// The bytes that an operation gives: at most as many as the modulus has.
    async fn ask(&self, asked: Asked, call: Call) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
        check_deadline(call)?;
        let link = self.parent.shared().link_now()?;
        if self.opened_in.load(Ordering::Acquire) != link.number {
            let text = "the key is not open again yet in the module's new process";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        let before = link.repairs();
        let reply = link.call(self.request.key, call, asked).await;
        if reply.is_err() && link.repairs() != before {
            self.repairs.fetch_add(1, Ordering::AcqRel);
        }
        match reply? {
            Reply::Bytes(bytes) if bytes.len() <= self.facts.public_key.modulus_len() => Ok(bytes),
            _ => Err(Error::new(ErrorKind::Internal, "the module's process gave no such answer")),
        }
    }

    async fn check_until(&self, deadline: Instant) -> Result<(), Error> {
        let shared = self.parent.shared();
        let mut link = shared.link().await?;
        loop {
            let outcome = match self.open_in(&link).await {
                Ok(()) => self.check_in(&link, deadline).await,
                Err(error) => Err(error),
            };
            if outcome.is_ok() {
                return outcome;
            }
            // A process that ended meanwhile says nothing about the key: the next one does.
            match shared.link_after(&link).await {
                Some(next) => link = next,
                None => return outcome,
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.facts.public_key)
    }
}

#[async_trait]
impl WrappingKey for Key {
    fn public_key(&self) -> &PublicKey {
        &self.facts.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.facts.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        self.facts.labels
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.facts.sign_algorithms
    }

    fn queues(&self) -> bool {
        true
    }

    fn failure_needs_check(&self) -> bool {
        self.facts.failure_needs_check()
    }

    fn unneeded_rights(&self) -> &[String] {
        &self.facts.unneeded_rights
    }

    fn extractable(&self) -> Option<bool> {
        self.facts.extractable
    }

    fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.facts.check_unwrap(wrapped, parameters)?;
        let asked = Asked::Unwrap(Unwrap {
            algorithm: place(&Algorithm::ALL, parameters.algorithm),
            wrapped: wrapped.to_vec(),
            label: parameters.label.to_vec(),
        });
        let material = KeyMaterial::new(self.ask(asked, call).await?);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        self.facts.check_sign(digest, algorithm)?;
        let asked = Asked::Sign(Sign {
            algorithm: place(&SignAlgorithm::ALL, algorithm),
            digest: digest.as_bytes().to_vec(),
        });
        let signature = self.ask(asked, call).await?;
        self.facts.accept_signature(digest, algorithm, &signature)
    }

    async fn check(&self) -> Result<(), Error> {
        let deadline = Instant::now() + CHECK_LIMIT;
        match tokio::time::timeout_at(deadline.into(), self.check_until(deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the module did not answer a canary for 30 s",
            )),
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let shared = self.parent.shared();
        shared.closed(self.request.key);
        if let Ok(link) = shared.link_now() {
            // A process that is gone has closed everything.
            let _ = link.send(Request::Close(self.request.key));
        }
    }
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
