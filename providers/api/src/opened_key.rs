//! What every key of a provider does the same way: checks, proofs by canary, and their errors.

use std::fmt;

use async_trait::async_trait;

use crate::algorithm::{Algorithm, Algorithms, Parameters, SignAlgorithm, SignAlgorithms};
use crate::canary::Canary;
use crate::cause::Cause;
use crate::checks::{
    check_algorithm, check_deadline, check_digest, check_range, check_signature, daemon_call,
    in_own_time, label_not_taken,
};
use crate::error::{AnotherKey, Error, ErrorKind};
use crate::key::{BatchItem, Call, OpenKey, Unwrapped, WrappingKey};
use crate::material::{Digest, Signature};
use crate::public_key::PublicKey;

/// What only its backend can do with an open key. [`OpenedKey`] makes a [`WrappingKey`] of it, and
/// calls it with what passed every check there: the algorithm is listed, the value is as long as the
/// modulus and below it, a label is one that the key takes, a digest is of the algorithm's hash, and
/// the deadline has not passed.
#[async_trait]
pub trait BackendKey: Send + Sync + 'static {
    /// The private-key operation of an unwrap.
    async fn decrypt(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error>;

    /// Several of them in one request to the backend; gives exactly one result for each item, in
    /// their order. At most [`BackendKey::batch_limit`] items.
    async fn decrypt_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        let mut results = Vec::with_capacity(items.len());
        for BatchItem { wrapped, parameters } in items {
            results.push(self.decrypt(wrapped, parameters, call).await);
        }
        results
    }

    /// How many values [`BackendKey::decrypt_batch`] sends in one request; 1 if there is no such
    /// request.
    fn batch_limit(&self) -> usize {
        1
    }

    /// The private-key operation of a signature. Whether it verifies is checked by the caller.
    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error>;

    /// Whether it can unwrap a value with an OAEP label. False where the backend has no parameter
    /// for one.
    fn takes_labels(&self) -> bool {
        false
    }

    /// As [`WrappingKey::queues`].
    fn queues(&self) -> bool {
        false
    }

    /// As [`WrappingKey::failure_needs_check`].
    fn failure_needs_check(&self) -> bool;

    /// As [`WrappingKey::extractable`].
    fn extractable(&self) -> Option<bool>;

    /// As [`WrappingKey::repairs`].
    fn repairs(&self) -> u64;

    /// The public key that lies in the backend now, asked for when a canary no longer unwraps; none
    /// where it cannot be another one.
    async fn public_key_now(&self) -> Result<Option<PublicKey>, Error> {
        Ok(None)
    }

    /// Why an algorithm may fail that the backend seems to offer, in a few words for the error.
    fn hint(&self, _algorithm: Algorithm) -> Option<&'static str> {
        None
    }
}

/// What is done with a canary to prove an algorithm.
#[derive(Clone, Copy)]
enum Proof<'a> {
    Unwrap(Algorithm, &'a [u8]),
    Sign(SignAlgorithm),
}

/// An open key of any provider: the checks of [`WrappingKey`]'s contract around a [`BackendKey`].
pub struct OpenedKey<B> {
    backend: B,
    name: String,
    public_key: PublicKey,
    canary: Canary,
    algorithms: Algorithms,
    sign_algorithms: SignAlgorithms,
}

impl<B: BackendKey> OpenedKey<B> {
    /// Takes a key into service once every listed algorithm gave its canary back. `name` stands in
    /// errors: the locator, as resolved.
    ///
    /// # Errors
    ///
    /// Where the backend does not do a listed algorithm with this key:
    /// [`ErrorKind::OperatorNeeded`] with [`Cause::AlgorithmNotOffered`]. What failed for another
    /// reason keeps its kind and cause, but for a deadline, which was the daemon's own:
    /// [`ErrorKind::Unavailable`] with [`Cause::NoAnswer`].
    pub async fn prove(
        backend: B,
        name: impl Into<String>,
        public_key: PublicKey,
        open: &OpenKey<'_>,
    ) -> Result<Self, Error> {
        let key = Self {
            canary: Canary::new(&public_key, open)?,
            backend,
            name: name.into(),
            public_key,
            algorithms: open.algorithms.iter().copied().collect(),
            sign_algorithms: open.sign_algorithms.iter().copied().collect(),
        };
        for proof in key.proofs() {
            key.proven(proof).await.map_err(|error| key.cannot_work(proof, error))?;
        }
        Ok(key)
    }

    /// What only its backend can do with it.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// One for each listed algorithm.
    fn proofs(&self) -> impl Iterator<Item = Proof<'_>> {
        let unwraps = self.canary.wrapped();
        let unwraps = unwraps.map(|(algorithm, wrapped)| Proof::Unwrap(algorithm, wrapped));
        unwraps.chain(self.canary.sign_algorithms().map(Proof::Sign))
    }

    /// Proves; once more where only the credentials were refused and others may be accepted.
    async fn proven(&self, proof: Proof<'_>) -> Result<(), Error> {
        match self.prove_once(proof).await {
            Err(error)
                if error.kind() == ErrorKind::Unavailable
                    && error.cause() == Some(Cause::CredentialsRefused) =>
            {
                self.prove_once(proof).await
            }
            outcome => outcome,
        }
    }

    async fn prove_once(&self, proof: Proof<'_>) -> Result<(), Error> {
        match proof {
            Proof::Unwrap(algorithm, wrapped) => {
                let parameters = Parameters::of(algorithm);
                let unwrapped = self.unwrap_key(wrapped, &parameters, daemon_call()).await?;
                let id = unwrapped.backend_request_id;
                let accepted = self.canary.accept(&unwrapped.material);
                accepted.map_err(|error| error.with_backend_request_id(id))
            }
            Proof::Sign(algorithm) => {
                let digest = self.canary.digest(algorithm);
                self.sign(&digest, algorithm, daemon_call()).await.map(drop)
            }
        }
    }

    /// What a failed proof says of an algorithm. Only what failed on the value itself is about the
    /// algorithm; of everything else the reason and its cause count as they are.
    fn cannot_work(&self, proof: Proof<'_>, error: Error) -> Error {
        let name = &self.name;
        let (algorithm, hint) = match proof {
            Proof::Unwrap(algorithm, _) => (algorithm.name(), self.backend.hint(algorithm)),
            Proof::Sign(algorithm) => (algorithm.name(), None),
        };
        match error.kind() {
            ErrorKind::UnwrapFailed => {
                let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                let text = format!(
                    "{name}: {algorithm} does not work with this key{hint}: {error}; take it off the \
                     list"
                );
                error.retold(ErrorKind::OperatorNeeded, text).with_cause(Cause::AlgorithmNotOffered)
            }
            ErrorKind::Internal => {
                let text = format!("{name}: {algorithm} does not work with this key: {error}");
                error.retold(ErrorKind::OperatorNeeded, text)
            }
            ErrorKind::DeadlineExceeded
            | ErrorKind::Unavailable
            | ErrorKind::Throttled { .. }
            | ErrorKind::OperatorNeeded => in_own_time(error),
        }
    }

    /// A canary that unwrapped when the key was opened and does not now: says whether another key
    /// lies there.
    async fn lost_canary(&self, error: Error) -> Error {
        let name = &self.name;
        match self.backend.public_key_now().await {
            Ok(Some(now)) if now.sha256() != self.public_key.sha256() => {
                let reason = format!("{name}: the backend has another key there now, {now:?}");
                let (found, pinned) = (now.sha256(), self.public_key.sha256());
                Error::new(ErrorKind::OperatorNeeded, AnotherKey { found, pinned, reason })
            }
            Ok(_) => {
                let text = format!("{name}: the canary does not unwrap ({error})");
                error.retold(ErrorKind::Unavailable, text).with_cause(Cause::BackendFailing)
            }
            Err(error) => error,
        }
    }

    /// Whether the backend may see this value.
    fn permit(&self, wrapped: &[u8], parameters: &Parameters<'_>, call: Call) -> Result<(), Error> {
        let Parameters { algorithm, label } = *parameters;
        check_algorithm(self.algorithms.contains(algorithm), algorithm)?;
        if !label.is_empty() && !self.label_algorithms().contains(algorithm) {
            return Err(label_not_taken(algorithm));
        }
        check_deadline(call)?;
        check_range(&self.public_key, wrapped)
    }
}

#[async_trait]
impl<B: BackendKey> WrappingKey for OpenedKey<B> {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        let takes = self.backend.takes_labels();
        self.algorithms.iter().filter(|algorithm| takes && algorithm.hash().is_some()).collect()
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.sign_algorithms
    }

    fn queues(&self) -> bool {
        self.backend.queues()
    }

    fn failure_needs_check(&self) -> bool {
        self.backend.failure_needs_check()
    }

    fn extractable(&self) -> Option<bool> {
        self.backend.extractable()
    }

    fn repairs(&self) -> u64 {
        self.backend.repairs()
    }

    fn batch_limit(&self) -> usize {
        self.backend.batch_limit()
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.permit(wrapped, parameters, call)?;
        self.backend.decrypt(wrapped, parameters, call).await
    }

    async fn unwrap_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        let check = |item: &BatchItem<'_>| self.permit(item.wrapped, &item.parameters, call);
        let checked: Vec<_> = items.iter().map(check).collect();
        let good: Vec<BatchItem<'_>> = items
            .iter()
            .zip(&checked)
            .filter_map(|(item, checked)| checked.is_ok().then_some(*item))
            .collect();
        let mut results = match good[..] {
            [] => Vec::new(),
            [one] => vec![self.backend.decrypt(one.wrapped, &one.parameters, call).await],
            _ => self.backend.decrypt_batch(&good, call).await,
        }
        .into_iter();
        let result = |checked: Result<(), Error>| {
            checked.and_then(|()| results.next().expect("one result for each value that was sent"))
        };
        checked.into_iter().map(result).collect()
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        check_algorithm(self.sign_algorithms.contains(algorithm), algorithm)?;
        check_digest(digest, algorithm)?;
        check_deadline(call)?;
        let signature = self.backend.sign(digest, algorithm, call).await?;
        check_signature(&self.public_key, digest, algorithm, signature)
    }

    async fn check(&self) -> Result<(), Error> {
        // The others were proven with it when the key was opened.
        let Some(first) = self.proofs().next() else { return Ok(()) };
        match self.proven(first).await {
            Err(error) if error.kind() == ErrorKind::UnwrapFailed => {
                Err(self.lost_canary(error).await)
            }
            outcome => outcome.map_err(in_own_time),
        }
    }
}

/// Without the name: it may be the path of a file.
impl<B> fmt::Debug for OpenedKey<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenedKey({:?})", self.public_key)
    }
}

#[cfg(test)]
mod tests;
