//! An open key whose private half is used in the module's own process.

use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{
    Algorithm, Call, Digest, Error, ErrorKind, OpenKey, Parameters, SignAlgorithm,
};
use futures::future::BoxFuture;
use zeroize::Zeroizing;

use super::link::{Link, Reply};
use super::message::{Asked, Open, Sign, Unwrap};
use super::now;
use super::parent::Parent;
use super::process_key::{ProcessKey, not_open_again, public_key};
use crate::facts::Facts;
use crate::fault::Fault;
use crate::here::OPEN_LIMIT;

/// How long a check may take, a new process and the key's opening in it included.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// An open key.
#[derive(Debug)]
pub(crate) struct RemoteKey {
    // Dropped before the provider, whose end may be its process's.
    key: Arc<ProcessKey>,
    parent: Arc<Parent>,
}

impl RemoteKey {
    /// Opens a key in the provider's process; gives what that told of it, too.
    pub(crate) async fn open(
        parent: &Arc<Parent>,
        open: &OpenKey<'_>,
    ) -> Result<(Self, Facts), Error> {
        parent.start();
        let shared = parent.shared();
        let number = parent.next_key();
        let request = request(number, open);
        let attempt = |link: Arc<Link>| -> BoxFuture<'_, _> {
            let request = request.clone();
            Box::pin(async move {
                let opened = link.open(request, now() + OPEN_LIMIT).await?;
                Ok((opened, link.number))
            })
        };
        let opened = shared.climb(number, attempt).await;
        let (opened, opened_in) = opened.map_err(|fault| fault.error)?;
        let facts = Facts {
            public_key: public_key(&opened)?,
            algorithms: parsed(&request.algorithms)?.into_iter().collect(),
            sign_algorithms: parsed(&request.sign_algorithms)?.into_iter().collect(),
            labels: parsed(&opened.labels)?.into_iter().collect(),
            extractable: opened.extractable,
            unneeded_rights: opened.unneeded_rights,
            oaep: shared.config.oaep,
        };
        let (sha256, running) = (facts.public_key.sha256(), shared.running.subscribe());
        let key = Arc::new(ProcessKey::new(request, sha256, opened_in, running));
        shared.opened(&key);
        Ok((Self { key, parent: Arc::clone(parent) }, facts))
    }

    /// How often something under it was repaired.
    pub(crate) fn repairs(&self) -> u64 {
        self.key.repairs()
    }

    /// Why no process can be asked for it at the moment.
    pub(crate) fn away(&self) -> Option<Error> {
        let away = self.key.away()?;
        let why = self.parent.shared().breaker.why(now()).or_else(|| self.key.breaker.why(now()));
        Some(why.unwrap_or(away))
    }

    /// A canary, and repairs if it fails: whatever the process cannot repair, a new one may.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.key.breaker.admit_check(now())?;
        let deadline = now() + CHECK_LIMIT;
        let climb = self.parent.shared().climb(self.key.number(), |link: Arc<Link>| {
            Box::pin(async move { self.key.check_in(&link, deadline).await })
        });
        let outcome = tokio::time::timeout_at(deadline.into(), climb).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let text = "the module did not answer a canary for 30 s";
            Err(Fault::of_process(Error::new(ErrorKind::Unavailable, text)))
        });
        self.key.checked(outcome)
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
        let begun = now();
        self.key.breaker.admit(begun).and_then(|()| shared.breaker.admit(begun))?;
        let link = shared.link_now()?;
        if !self.key.is_open_in(&link) {
            return Err(not_open_again());
        }
        let before = link.repairs();
        let reply = link.call(self.key.number(), call, asked).await;
        if reply.is_err() {
            self.key.note_repairs(&link, before);
        }
        match reply? {
            Reply::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::new(ErrorKind::Internal, "the module's process gave no such answer")),
        }
    }
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        self.parent.shared().closed(self.key.number());
    }
}

/// The request that opens a key as `number`.
fn request(number: u32, open: &OpenKey<'_>) -> Open {
    Open {
        id: 0,
        key: number,
        locator: open.locator.to_owned(),
        algorithms: open.algorithms.iter().map(ToString::to_string).collect(),
        sign_algorithms: open.sign_algorithms.iter().map(ToString::to_string).collect(),
        // The one who asks compares what is found, and says more of it.
        meant_sha256: None,
    }
}

fn parsed<T: std::str::FromStr>(names: &[String]) -> Result<Vec<T>, Error> {
    let parsed = names.iter().map(|name| name.parse().ok()).collect::<Option<_>>();
    parsed.ok_or_else(|| Error::new(ErrorKind::Internal, "an algorithm's name is not known"))
}

fn place<T: PartialEq + Copy>(all: &[T], one: T) -> u32 {
    all.iter().position(|each| *each == one).expect("ALL has each") as u32
}
