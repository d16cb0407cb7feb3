//! The contract: a key that was opened once and serves until it is dropped.

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::algorithm::{Algorithm, Algorithms, Parameters, SignAlgorithm, SignAlgorithms};
use crate::error::Error;
use crate::material::{Digest, KeyMaterial, Signature};
use crate::public_key::PublicKey;

/// An RSA key pair whose private half stays in its backend.
///
/// What every key answers, whatever its backend; the conformance suite asks for it and
/// [`crate::OpenedKey`] does it:
///
/// | asked for | answer |
/// |---|---|
/// | an algorithm that was not listed at open | `Internal`: the daemon checks that first |
/// | a label that the key does not take | `OperatorNeeded`: another backend is needed |
/// | a value that is not as long as the modulus or not below it | `UnwrapFailed`, without the backend |
/// | a digest of another hash than the algorithm's | `Internal`: the daemon checks that first |
/// | anything after the deadline | `DeadlineExceeded`, without the backend |
/// | a canary at open that fails on its value | `OperatorNeeded`, [`crate::Cause::AlgorithmNotOffered`], "take it off the list" |
/// | a canary at open that fails for another reason | that reason's kind and cause; `OperatorNeeded` where it was `Internal` |
/// | a canary at open or in a check that is late | `Unavailable`, [`crate::Cause::NoAnswer`]: it was the daemon's deadline |
/// | a canary in a check that fails on its value | `Unavailable`, or `OperatorNeeded` where another key lies there |
/// | a signature that does not verify | `Internal`; it is not given out |
///
/// An error keeps the backend's request id through all of this, and what a server said stays one
/// line without control characters ([`crate::foreign::printable`]). `Debug` shows the public key and
/// nothing of where the private half lives: neither a path nor a name in the backend.
#[async_trait]
pub trait WrappingKey: fmt::Debug + Send + Sync {
    /// The public half. Wrapping and verifying happen on it, in software, for every backend.
    fn public_key(&self) -> &PublicKey;

    /// What it can unwrap: probed at open, not believed from a list of the backend's.
    fn algorithms(&self) -> Algorithms;

    /// The algorithms under which it can unwrap a value with a label: probed at open.
    fn label_algorithms(&self) -> Algorithms;

    /// What it can sign with: probed at open.
    fn sign_algorithms(&self) -> SignAlgorithms;

    /// Whether a failed unwrap may be the backend's fault as well as the value's, so that only
    /// [`WrappingKey::check`] can tell. Fixed when the key is opened, never chosen by a response:
    /// else the time an answer takes would tell which error it was.
    fn failure_needs_check(&self) -> bool;

    /// Whether a holder of the backend's credentials, or of its file, could take the private half out;
    /// none where the backend does not tell.
    fn extractable(&self) -> Option<bool> {
        None
    }

    /// Whether operations wait in a queue of this key's own before its backend is asked. Such a key is
    /// given the caller's deadline, starts nothing after it, and waits for what it has started until
    /// [`Call::answer_by`]. Any other key is asked at once, and its deadline is [`Call::answer_by`].
    fn queues(&self) -> bool {
        false
    }

    /// Uses that the backend allows with this key and that the configuration does not ask for, as the
    /// backend names them, such as `CKA_SIGN`; empty where it does not tell. A key should be able to do
    /// no more than it is for.
    fn unneeded_rights(&self) -> &[String] {
        &[]
    }

    /// How often something under this key was repaired since it was opened (a session, a login,
    /// a module). An operation that failed while this number changed may be tried once more.
    fn repairs(&self) -> u64;

    /// Why it cannot be asked at the moment, where its provider knows that without asking: the process of
    /// its module has ended, and the next one does not have the key yet. For operators; a call is
    /// told by its own error.
    fn away(&self) -> Option<Error> {
        None
    }

    /// How many values it unwraps in one request to its backend. With 1 it has no such request, and
    /// [`WrappingKey::unwrap_batch`] is of no use.
    fn batch_limit(&self) -> usize {
        1
    }

    /// Unwraps. `wrapped` is exactly as long as the modulus.
    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error>;

    /// Unwraps at most [`WrappingKey::batch_limit`] values. Gives exactly one result for each, in their
    /// order; a value that fails does not keep the others from being unwrapped.
    async fn unwrap_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        let mut results = Vec::with_capacity(items.len());
        for BatchItem { wrapped, parameters } in items {
            results.push(self.unwrap_key(wrapped, parameters, call).await);
        }
        results
    }

    /// Signs a digest whose hash is the algorithm's.
    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error>;

    /// A real private-key operation on a canary, not a ping. A provider that can repair what is
    /// broken under it does so here (one run at a time) and answers once a canary came back right.
    async fn check(&self) -> Result<(), Error>;
}

/// One of several values to unwrap.
#[derive(Clone, Copy, Debug)]
pub struct BatchItem<'a> {
    /// Exactly as long as the modulus.
    pub wrapped: &'a [u8],
    /// How it was wrapped.
    pub parameters: Parameters<'a>,
}

/// On whose behalf an operation runs, and until when it is worth running.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Which queue it waits in.
    pub caller: CallerSlot,
    /// After this it must not be started.
    pub deadline: Instant,
}

impl Call {
    /// How long after the deadline an operation that was started may take: beyond it the backend
    /// counts as silent.
    pub const RUN_ON: Duration = Duration::from_secs(30);

    /// Until when the answer of a backend that was asked is waited for. A caller is told at its
    /// deadline that it passed; what was started runs on, because its outcome counts all the same.
    pub fn answer_by(&self) -> Instant {
        self.deadline + Self::RUN_ON
    }

    /// Whether the backend, if it was asked, has had all its time.
    pub fn is_unanswered(&self) -> bool {
        Instant::now() >= self.answer_by()
    }
}

/// The queue of one caller: a small number that the daemon gives each configured caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerSlot(pub u32);

impl CallerSlot {
    /// The daemon itself: canaries.
    pub const DAEMON: Self = Self(0);
}

/// What an unwrap gave.
#[derive(Debug)]
pub struct Unwrapped {
    /// The bytes that were wrapped.
    pub material: KeyMaterial,
    /// The id under which the backend logged the request, if it gives one.
    pub backend_request_id: Option<String>,
}

/// What the daemon asks a provider to open. Opening proves each listed algorithm with a canary and
/// fails with [`crate::ErrorKind::OperatorNeeded`], in words, where one does not work.
#[derive(Clone, Copy, Debug)]
pub struct OpenKey<'a> {
    /// Where the key lives, in the backend's own standard form.
    pub locator: &'a str,
    /// The wrapping algorithms that the configuration lists.
    pub algorithms: &'a [Algorithm],
    /// The signing algorithms that the configuration lists.
    pub sign_algorithms: &'a [SignAlgorithm],
    /// SHA-256 of the public key that the configuration pins, where it pins one. The daemon compares
    /// it itself with what was opened; a provider needs it only where a locator may stand for several
    /// keys, to find the one that is meant, or to say, with [`crate::AnotherKey`], where it leads now.
    pub public_key_sha256: Option<[u8; 32]>,
}
