//! The suite finds each way of breaking the contract, and finds nothing in a key that keeps it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{RSA_PSS_SHA256, RsaKeyPair};
use claviger_conformance::{Report, Subject, run};
use claviger_provider_api::public_key::{aws_lc_digest, oaep};
use claviger_provider_api::{
    Algorithm, Algorithms, BatchItem, Call, Digest, Error, ErrorKind, Hash, KeyMaterial,
    Parameters, PublicKey, SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};

/// How a key breaks the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    GarbageSucceeds,
    GarbageIsUnavailable,
    GarbageBreaksIt,
    AnyHash,
    AnyLabel,
    AnyAlgorithm,
    UnlistedNeedsOperator,
    OtherHashNeedsOperator,
    LabelFailsAsAValue,
    LengthIsInternal,
    AnyDeadline,
    EmptyPoisonsTheNext,
    LongPanics,
    LeadingZerosLost,
    AnswersMixed,
    OtherDigestSigned,
    LabelsRefused,
    BatchFailsAsOne,
    BatchMixed,
    BatchCut,
    DebugShowsAPath,
}

/// A key of RSA-OAEP-256 and PS256 with a fault.
struct Faulty {
    public_key: PublicKey,
    private: OaepPrivateDecryptingKey,
    signing: RsaKeyPair,
    fault: Fault,
    broken: AtomicBool,
    at_work: AtomicU32,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let pkcs8: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let spki = private.public_key().as_der().unwrap();
        Self {
            public_key: PublicKey::from_spki(spki.as_ref()).unwrap(),
            signing: RsaKeyPair::from_pkcs8(pkcs8.as_ref()).unwrap(),
            private: OaepPrivateDecryptingKey::new(private).unwrap(),
            fault,
            broken: AtomicBool::new(false),
            at_work: AtomicU32::new(0),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn decrypt(&self, wrapped: &[u8], algorithm: Algorithm, label: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = [0; 256];
        let material = self.private.decrypt(oaep(algorithm)?, wrapped, &mut buffer, Some(label));
        material.ok().map(|material| material.to_vec())
    }

    fn decrypt_leniently(&self, wrapped: &[u8], parameters: &Parameters<'_>) -> Option<Vec<u8>> {
        let Parameters { algorithm, label } = *parameters;
        let strict = self.decrypt(wrapped, algorithm, label);
        match self.fault {
            Fault::AnyHash => strict
                .or_else(|| Algorithm::ALL.iter().find_map(|a| self.decrypt(wrapped, *a, label))),
            Fault::AnyLabel => strict.or_else(|| self.decrypt(wrapped, algorithm, b"tenant-a")),
            _ => strict,
        }
    }

    fn garbage(&self) -> Result<Vec<u8>, Error> {
        match self.fault {
            Fault::GarbageSucceeds => return Ok(Vec::new()),
            Fault::GarbageIsUnavailable => {
                return Err(Error::new(ErrorKind::Unavailable, "the token went away"));
            }
            Fault::GarbageBreaksIt => self.broken.store(true, Ordering::SeqCst),
            _ => {}
        }
        Err(Error::new(ErrorKind::UnwrapFailed, "garbage"))
    }

    fn refuse(&self, declared: bool, call: Call) -> Result<(), Error> {
        if !declared && self.has(Fault::UnlistedNeedsOperator) {
            return Err(Error::new(ErrorKind::OperatorNeeded, "not declared"));
        }
        if !declared && !self.has(Fault::AnyAlgorithm) {
            return Err(Error::new(ErrorKind::Internal, "not declared"));
        }
        if Instant::now() >= call.deadline && !self.has(Fault::AnyDeadline) {
            return Err(Error::new(ErrorKind::DeadlineExceeded, "too late"));
        }
        Ok(())
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.has(Fault::DebugShowsAPath) { "/keys/a.pem" } else { "Faulty" })
    }
}

#[async_trait]
impl WrappingKey for Faulty {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn algorithms(&self) -> Algorithms {
        [Algorithm::RsaOaep256].into_iter().collect()
    }

    fn label_algorithms(&self) -> Algorithms {
        match self.fault {
            Fault::LabelsRefused | Fault::LabelFailsAsAValue => Algorithms::EMPTY,
            _ => self.algorithms(),
        }
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        [SignAlgorithm::Ps256].into_iter().collect()
    }

    fn failure_needs_check(&self) -> bool {
        self.has(Fault::GarbageBreaksIt)
    }

    fn repairs(&self) -> u64 {
        0
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.refuse(self.algorithms().contains(parameters.algorithm), call)?;
        assert!(wrapped.len() <= 256 || !self.has(Fault::LongPanics), "on purpose");
        if self.has(Fault::LabelsRefused) && !parameters.label.is_empty() {
            return Err(Error::new(ErrorKind::OperatorNeeded, "this token takes no label"));
        }
        if self.has(Fault::LabelFailsAsAValue) && !parameters.label.is_empty() {
            return Err(Error::new(ErrorKind::UnwrapFailed, "this token takes no label"));
        }
        if self.has(Fault::LengthIsInternal) && wrapped.len() != 256 {
            return Err(Error::new(ErrorKind::Internal, "not as long as the modulus"));
        }
        if self.has(Fault::EmptyPoisonsTheNext)
            && self.broken.swap(wrapped.is_empty(), Ordering::SeqCst)
        {
            return self.garbage().map(|_| unreachable!("garbage fails"));
        }
        let others = self.at_work.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let mut outcome =
            self.decrypt_leniently(wrapped, parameters).map_or_else(|| self.garbage(), Ok);
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        if let Ok(material) = &mut outcome {
            if self.has(Fault::AnswersMixed) && others > 0 {
                material.reverse();
            }
            while self.has(Fault::LeadingZerosLost) && material.first() == Some(&0) {
                material.remove(0);
            }
        }
        let material = KeyMaterial::copied_from(&outcome?);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    fn batch_limit(&self) -> usize {
        20
    }

    async fn unwrap_batch(
        &self,
        items: &[BatchItem<'_>],
        call: Call,
    ) -> Vec<Result<Unwrapped, Error>> {
        let mut results = Vec::new();
        for BatchItem { wrapped, parameters } in items {
            results.push(self.unwrap_key(wrapped, parameters, call).await);
        }
        if self.has(Fault::BatchFailsAsOne) && results.iter().any(Result::is_err) {
            results.fill_with(|| Err(Error::new(ErrorKind::UnwrapFailed, "one of them is bad")));
        }
        if self.has(Fault::BatchMixed) {
            results.reverse();
        }
        if self.has(Fault::BatchCut) {
            results.pop();
        }
        results
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        if self.has(Fault::OtherHashNeedsOperator) && digest.hash() != algorithm.hash() {
            return Err(Error::new(ErrorKind::OperatorNeeded, "a digest of another hash"));
        }
        self.refuse(
            self.sign_algorithms().contains(algorithm) && digest.hash() == Hash::Sha256,
            call,
        )?;
        let mut bytes = digest.as_bytes()[..32].to_vec();
        bytes[0] ^= u8::from(self.has(Fault::OtherDigestSigned));
        let digest = digest::Digest::import_less_safe(&bytes, aws_lc_digest(Hash::Sha256)).unwrap();
        let mut signature = vec![0; 256];
        self.signing.sign_digest(&RSA_PSS_SHA256, &digest, &mut signature).unwrap();
        Ok(Signature::without_request_id(signature))
    }

    async fn check(&self) -> Result<(), Error> {
        if self.has(Fault::GarbageBreaksIt) && self.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "broken by garbage"));
        }
        Ok(())
    }
}

async fn report(fault: Fault) -> Report {
    run(Subject::new(format!("{fault:?}"), Arc::new(Faulty::new(fault)))).await
}

#[tokio::test]
async fn a_key_that_keeps_the_contract_passes() {
    let report = report(Fault::None).await;
    report.expect_all_passed();
    assert!(report.passed > 25, "{report}");
}

#[tokio::test]
async fn a_key_that_says_it_takes_no_labels_passes_and_one_that_hides_it_does_not() {
    let honest = Subject::new("no labels", Arc::new(Faulty::new(Fault::LabelsRefused)));
    run(honest.without_labels()).await.expect_all_passed();
    let boasting = Subject::new("hidden labels", Arc::new(Faulty::new(Fault::None)));
    let report = run(boasting.without_labels()).await;
    assert!(report.to_string().contains("a label was taken"), "{report}");
}

#[tokio::test]
async fn a_label_that_fails_as_a_bad_value_does_is_found() {
    let key = Arc::new(Faulty::new(Fault::LabelFailsAsAValue));
    let report = run(Subject::new("labels fail", key).without_labels()).await;
    let expected = "UnwrapFailed for a label that the key cannot take";
    assert!(report.to_string().contains(expected), "{report}");
}

#[tokio::test]
async fn each_fault_is_found_and_named() {
    let table = [
        (Fault::GarbageSucceeds, "a flipped bit fails"),
        (Fault::GarbageIsUnavailable, "random values fail"),
        (Fault::GarbageBreaksIt, "check failed after a bad value"),
        (Fault::AnyHash, "a value wrapped with RSA-OAEP-384 fails"),
        (Fault::AnyLabel, "another label fails"),
        (Fault::AnyAlgorithm, "RSA-OAEP: refused, as it is not declared"),
        (Fault::UnlistedNeedsOperator, "RSA-OAEP: refused, as it is not declared"),
        (Fault::UnlistedNeedsOperator, "RS256: refused, as it is not declared"),
        (Fault::OtherHashNeedsOperator, "a digest of another hash is refused"),
        (Fault::LengthIsInternal, "Internal instead of UnwrapFailed"),
        (Fault::AnyDeadline, "a deadline that passed is said so"),
        (Fault::EmptyPoisonsTheNext, "after length 0"),
        (Fault::LongPanics, "no length but the modulus's unwraps: panicked"),
        (Fault::LeadingZerosLost, "material of any value unwraps"),
        (Fault::AnswersMixed, "64 tasks of 8 callers get their own answers"),
        (Fault::OtherDigestSigned, "PS256: a signature verifies, OpenSSL agrees"),
        (Fault::LabelsRefused, "wrong labels are declared"),
        (Fault::BatchFailsAsOne, "a batch gives each value its own result: value 0"),
        (Fault::BatchMixed, "a batch gives each value its own result"),
        (Fault::BatchCut, "19 results for 20 values"),
        (Fault::DebugShowsAPath, "Debug shows /keys/a.pem"),
    ];
    for (fault, expected) in table {
        let report = report(fault).await;
        assert!(!report.failed.is_empty(), "{fault:?} was not found");
        assert!(report.to_string().contains(expected), "{fault:?}: {report}");
    }
}
