//! The checks around each operation of a key, with the one error that each has in every provider.

use std::fmt;
use std::time::{Duration, Instant};

use crate::algorithm::{Algorithm, SignAlgorithm};
use crate::cause::Cause;
use crate::error::{Error, ErrorKind};
use crate::key::{Call, CallerSlot};
use crate::material::{Digest, Signature};
use crate::public_key::PublicKey;

/// How long one proof of a key may take: 10 s.
pub const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// A key that was not opened for `algorithm` is a bug of the daemon: [`ErrorKind::Internal`].
pub fn check_algorithm(is_listed: bool, algorithm: impl fmt::Display) -> Result<(), Error> {
    if is_listed {
        return Ok(());
    }
    let text = format!("{algorithm} was not listed when the key was opened");
    Err(Error::new(ErrorKind::Internal, text))
}

/// A label under an algorithm with which the key takes none: [`ErrorKind::OperatorNeeded`].
pub fn label_not_taken(algorithm: Algorithm) -> Error {
    let text = format!(
        "this key takes no OAEP label with {algorithm}; wrap without one, or use another backend"
    );
    Error::needs_operator(Cause::AlgorithmNotOffered, text)
}

/// A deadline that passed before the backend was asked: [`ErrorKind::DeadlineExceeded`].
pub fn check_deadline(call: Call) -> Result<(), Error> {
    if Instant::now() < call.deadline {
        return Ok(());
    }
    let text = "the deadline passed before the backend was asked";
    Err(Error::new(ErrorKind::DeadlineExceeded, text))
}

/// A value that is not as long as the modulus, or not below it: [`ErrorKind::UnwrapFailed`].
pub fn check_range(public_key: &PublicKey, wrapped: &[u8]) -> Result<(), Error> {
    if public_key.value_in_range(wrapped) {
        return Ok(());
    }
    let text = "the value is not as long as the modulus, or not below it";
    Err(Error::new(ErrorKind::UnwrapFailed, text))
}

/// A digest of another hash than the algorithm's is a bug of the daemon: [`ErrorKind::Internal`].
pub fn check_digest(digest: &Digest, algorithm: SignAlgorithm) -> Result<(), Error> {
    if digest.hash() == algorithm.hash() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, format!("a {:?} digest for {algorithm}", digest.hash())))
}

/// A signature that does not verify never leaves, for one with a fault in it can give the private
/// key away: [`ErrorKind::Internal`] with [`Cause::WrongAnswer`].
pub fn check_signature(
    public_key: &PublicKey,
    digest: &Digest,
    algorithm: SignAlgorithm,
    signature: Signature,
) -> Result<Signature, Error> {
    if public_key.verify(digest, algorithm, &signature.bytes) {
        return Ok(signature);
    }
    let text = format!("the backend's {algorithm} signature does not verify; it is not given out");
    Err(Error::new(ErrorKind::Internal, text)
        .with_cause(Cause::WrongAnswer)
        .with_backend_request_id(signature.backend_request_id))
}

/// An error of the daemon's own operation: a deadline that passed was the daemon's, not a caller's,
/// so [`ErrorKind::Unavailable`] with [`Cause::NoAnswer`]; every other error as it is.
pub fn in_own_time(error: Error) -> Error {
    if error.kind() != ErrorKind::DeadlineExceeded {
        return error;
    }
    let text = error.to_string();
    error.retold(ErrorKind::Unavailable, text).with_cause(Cause::NoAnswer)
}

/// The daemon's own operation on a key: [`CHECK_LIMIT`] from now.
pub fn daemon_call() -> Call {
    Call { caller: CallerSlot::DAEMON, deadline: Instant::now() + CHECK_LIMIT }
}
