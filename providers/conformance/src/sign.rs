//! Signatures: good ones under both implementations, and nothing else verifies.

use std::sync::Arc;
use std::time::Instant;

use claviger_provider_api::{Call, CallerSlot, Digest, ErrorKind, SignAlgorithm};

use crate::openssl::OpenSsl;
use crate::report::Cases;
use crate::subject::{Outcome, Subject, call, digest};

pub(crate) async fn run(cases: &mut Cases) {
    for algorithm in cases.subject().sign_algorithms() {
        cases
            .case(
                format!("{algorithm}: a signature verifies, OpenSSL agrees"),
                move |s| async move { verifies(&s, algorithm).await },
            )
            .await;
        cases
            .case(format!("{algorithm}: nothing else verifies"), move |s| async move {
                nothing_else(&s, algorithm).await
            })
            .await;
        cases
            .case(
                format!("{algorithm}: a digest of another hash is refused"),
                move |s| async move { other_hash(&s, algorithm).await },
            )
            .await;
        cases
            .case(format!("{algorithm}: a deadline that passed is said so"), move |s| async move {
                passed_deadline(&s, algorithm).await
            })
            .await;
    }
}

async fn verifies(subject: &Subject, algorithm: SignAlgorithm) -> Outcome {
    let openssl = OpenSsl::new(subject.public_key())?;
    for _ in 0..4 {
        let digest = digest(algorithm);
        let signature = sign(subject, &digest, algorithm).await?;
        if signature.len() != subject.k() {
            return Err(format!("a signature of {} bytes", signature.len()));
        }
        if !subject.public_key().verify(&digest, algorithm, &signature) {
            return Err("the signature does not verify".to_owned());
        }
        openssl.verify(&digest, algorithm, &signature)?;
    }
    Ok(())
}

async fn nothing_else(subject: &Subject, algorithm: SignAlgorithm) -> Outcome {
    let signed = digest(algorithm);
    let signature = sign(subject, &signed, algorithm).await?;
    let verify = |digest: &Digest, algorithm, signature: &[u8]| {
        subject.public_key().verify(digest, algorithm, signature)
    };
    if verify(&digest(algorithm), algorithm, &signature) {
        return Err("verifies over another digest".to_owned());
    }
    for other in SignAlgorithm::ALL.into_iter().filter(|other| *other != algorithm) {
        if verify(&signed, other, &signature) {
            return Err(format!("verifies as {other}"));
        }
    }
    let mut flipped = signature.clone();
    flipped[subject.k() / 2] ^= 1;
    if verify(&signed, algorithm, &flipped) || verify(&signed, algorithm, &signature[1..]) {
        return Err("a changed signature verifies".to_owned());
    }
    Ok(())
}

async fn other_hash(subject: &Subject, algorithm: SignAlgorithm) -> Outcome {
    let others = SignAlgorithm::ALL.into_iter().filter(|other| other.hash() != algorithm.hash());
    for other in others {
        let outcome = subject.key().sign(&digest(other), algorithm, call(CallerSlot(1))).await;
        match outcome.map_err(|error| error.kind()) {
            Err(ErrorKind::Internal) => {}
            Err(kind) => return Err(format!("{kind:?} instead of Internal")),
            Ok(_) => return Err(format!("signed a digest of {:?}", other.hash())),
        }
    }
    subject.expect_service().await
}

async fn passed_deadline(subject: &Arc<Subject>, algorithm: SignAlgorithm) -> Outcome {
    let call = Call { caller: CallerSlot(1), deadline: Instant::now() };
    let outcome = subject.key().sign(&digest(algorithm), algorithm, call).await;
    match outcome.map_err(|error| error.kind()) {
        Err(ErrorKind::DeadlineExceeded) => subject.expect_service().await,
        Err(kind) => Err(format!("{kind:?} instead of DeadlineExceeded")),
        Ok(_) => Err("was signed after its deadline".to_owned()),
    }
}

async fn sign(
    subject: &Subject,
    digest: &Digest,
    algorithm: SignAlgorithm,
) -> Result<Vec<u8>, String> {
    let outcome = subject.key().sign(digest, algorithm, call(CallerSlot(1))).await;
    outcome
        .map(|signature| signature.bytes)
        .map_err(|error| format!("failed: {:?}: {error}", error.kind()))
}
