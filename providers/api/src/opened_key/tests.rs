//! The checks around a backend: what they refuse, and what becomes of the backend's errors.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};

use super::*;
use crate::algorithm::Hash;
use crate::key::CallerSlot;
use crate::material::KeyMaterial;

const OAEP: Algorithm = Algorithm::RsaOaep256;

/// A backend that works, until it is told what to say.
struct Fake {
    private: OaepPrivateDecryptingKey,
    /// What it says to the next operations, the last one first.
    errors: Mutex<Vec<Error>>,
    now: Option<PublicKey>,
    asked: Mutex<u32>,
}

fn pair() -> (PublicKey, PrivateDecryptingKey) {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let spki = private.public_key().as_der().unwrap();
    (PublicKey::from_spki(spki.as_ref()).unwrap(), private)
}

fn fake() -> (PublicKey, Fake) {
    let (public_key, private) = pair();
    let private = OaepPrivateDecryptingKey::new(private).unwrap();
    (public_key, Fake { private, errors: Mutex::default(), now: None, asked: Mutex::default() })
}

impl Fake {
    fn says(self, error: Error) -> Self {
        self.errors.lock().unwrap().push(error);
        self
    }

    fn next(&self) -> Result<(), Error> {
        *self.asked.lock().unwrap() += 1;
        self.errors.lock().unwrap().pop().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl BackendKey for Fake {
    async fn decrypt(
        &self,
        wrapped: &[u8],
        _: &Parameters<'_>,
        _: Call,
    ) -> Result<Unwrapped, Error> {
        self.next()?;
        let mut buffer = [0; 256];
        let material = self.private.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut buffer, None);
        let material = material.map_err(|_| Error::new(ErrorKind::UnwrapFailed, "a bad value"))?;
        let material = KeyMaterial::copied_from(material);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(&self, _: &Digest, _: SignAlgorithm, _: Call) -> Result<Signature, Error> {
        self.next()?;
        let id = Some("an-id".to_owned());
        Ok(Signature { bytes: vec![1; 256], backend_request_id: id })
    }

    fn failure_needs_check(&self) -> bool {
        true
    }

    fn extractable(&self) -> Option<bool> {
        None
    }

    fn repairs(&self) -> u64 {
        0
    }

    async fn public_key_now(&self) -> Result<Option<PublicKey>, Error> {
        let now = self.now.as_ref();
        Ok(now.map(|key| PublicKey::from_spki(key.spki()).unwrap()))
    }
}

fn listing<'a>(algorithms: &'a [Algorithm], sign_algorithms: &'a [SignAlgorithm]) -> OpenKey<'a> {
    OpenKey { locator: "a", algorithms, sign_algorithms, public_key_sha256: None }
}

async fn opened((public_key, fake): (PublicKey, Fake)) -> Result<OpenedKey<Fake>, Error> {
    OpenedKey::prove(fake, "place/a", public_key, &listing(&[OAEP], &[])).await
}

fn in_time() -> Call {
    Call { caller: CallerSlot(1), deadline: Instant::now() + Duration::from_mins(1) }
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "said the backend").with_backend_request_id(Some("an-id".to_owned()))
}

#[tokio::test]
async fn a_failed_proof_means_what_its_reason_means() {
    let told = Some(Cause::KeyDisabled);
    for (inner, kind, cause, take_off) in [
        (
            error(ErrorKind::UnwrapFailed),
            ErrorKind::OperatorNeeded,
            Some(Cause::AlgorithmNotOffered),
            true,
        ),
        (
            error(ErrorKind::Internal).with_cause(Cause::WrongAnswer),
            ErrorKind::OperatorNeeded,
            Some(Cause::WrongAnswer),
            false,
        ),
        (error(ErrorKind::DeadlineExceeded), ErrorKind::Unavailable, Some(Cause::NoAnswer), false),
        (error(ErrorKind::Unavailable), ErrorKind::Unavailable, None, false),
        (
            error(ErrorKind::OperatorNeeded).with_cause(Cause::KeyDisabled),
            ErrorKind::OperatorNeeded,
            told,
            false,
        ),
    ] {
        let (public_key, fake) = fake();
        let error = opened((public_key, fake.says(inner))).await.unwrap_err();
        assert_eq!((error.kind(), error.cause()), (kind, cause), "{error}");
        assert_eq!(error.backend_request_id(), Some("an-id"), "{error}");
        assert_eq!(error.to_string().contains("take it off the list"), take_off, "{error}");
        assert!(error.to_string().contains("said the backend"), "{error}");
    }
}

#[tokio::test]
async fn what_the_daemon_checks_first_never_reaches_the_backend() {
    let key = opened(fake()).await.unwrap();
    let value = key.public_key().wrap(&KeyMaterial::copied_from(b"key"), &Parameters::of(OAEP));
    let value = value.unwrap();
    let asked = *key.backend.asked.lock().unwrap();
    let late = Call { deadline: Instant::now(), ..in_time() };
    for (wrapped, parameters, call, kind) in [
        (&value[..], Parameters::of(Algorithm::RsaOaep), in_time(), ErrorKind::Internal),
        (&value, Parameters { algorithm: OAEP, label: b"x" }, in_time(), ErrorKind::OperatorNeeded),
        (&value, Parameters::of(OAEP), late, ErrorKind::DeadlineExceeded),
        (&[0xff; 256], Parameters::of(OAEP), in_time(), ErrorKind::UnwrapFailed),
        (b"", Parameters::of(OAEP), in_time(), ErrorKind::UnwrapFailed),
    ] {
        let error = key.unwrap_key(wrapped, &parameters, call).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let item = BatchItem { wrapped, parameters };
        let mut results = key.unwrap_batch(&[item, item], call).await;
        assert_eq!(results.remove(1).unwrap_err().kind(), kind);
        assert_eq!(results.remove(0).unwrap_err().kind(), kind);
    }
    let digest = Digest::new(Hash::Sha256, &[0; 32]).unwrap();
    let signed = key.sign(&digest, SignAlgorithm::Ps256, in_time()).await;
    assert_eq!(signed.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(*key.backend.asked.lock().unwrap(), asked);
    // Good values beside a bad one are sent, and keep their places.
    let [good, bad] = [&value[..], b"short"];
    let items =
        [good, bad, good].map(|wrapped| BatchItem { wrapped, parameters: Parameters::of(OAEP) });
    let results = key.unwrap_batch(&items, in_time()).await;
    let worked: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(worked, [true, false, true]);
}

#[tokio::test]
async fn a_signature_that_does_not_verify_never_leaves() {
    let (public_key, fake) = fake();
    let signs = listing(&[], &[SignAlgorithm::Ps256]);
    let error = OpenedKey::prove(fake, "place/a", public_key, &signs).await.unwrap_err();
    assert!(error.to_string().contains("PS256 signature does not verify"), "{error}");
    assert_eq!(error.cause(), Some(Cause::WrongAnswer));
    assert_eq!(error.backend_request_id(), Some("an-id"));
}

#[tokio::test]
async fn a_check_tries_once_more_with_other_credentials_and_only_then() {
    let refused = || error(ErrorKind::Unavailable).with_cause(Cause::CredentialsRefused);
    let key = opened(fake()).await.unwrap();
    key.backend.errors.lock().unwrap().push(refused());
    key.check().await.unwrap();
    key.backend.errors.lock().unwrap().extend([refused(), refused()]);
    assert_eq!(key.check().await.unwrap_err().cause(), Some(Cause::CredentialsRefused));
    key.backend.errors.lock().unwrap().push(error(ErrorKind::Unavailable));
    assert_eq!(key.check().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(key.backend.errors.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_canary_that_no_longer_unwraps_tells_whether_another_key_is_there() {
    let lost = || error(ErrorKind::UnwrapFailed);
    let key = opened(fake()).await.unwrap();
    key.backend.errors.lock().unwrap().push(lost());
    let told = key.check().await.unwrap_err();
    assert_eq!((told.kind(), told.cause()), (ErrorKind::Unavailable, Some(Cause::BackendFailing)));
    assert_eq!(told.backend_request_id(), Some("an-id"));

    let (public_key, mut fake) = fake();
    fake.now = Some(pair().0);
    let key = opened((public_key, fake)).await.unwrap();
    key.backend.errors.lock().unwrap().push(lost());
    let told = key.check().await.unwrap_err();
    assert_eq!((told.kind(), told.cause()), (ErrorKind::OperatorNeeded, Some(Cause::AnotherKey)));
    key.backend.errors.lock().unwrap().push(error(ErrorKind::DeadlineExceeded));
    let told = key.check().await.unwrap_err();
    assert_eq!((told.kind(), told.cause()), (ErrorKind::Unavailable, Some(Cause::NoAnswer)));
}
