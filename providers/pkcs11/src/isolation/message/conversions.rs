//! Messages from what the two processes know, and back.

use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{self as api, Cause, Error, ErrorKind, PrivateKey};

use super::{Event, Failure, FromChild, Kind, Login, Make, Request, ToChild};
use crate::fault::Fault;
use crate::making::NewPair;

impl From<&NewPair> for Make {
    fn from(pair: &NewPair) -> Self {
        let NewPair { locator, bits, decrypt, sign, imported } = pair;
        let pkcs8 = imported.as_ref().map(|key| key.pkcs8().to_vec());
        let (locator, bits) = (locator.to_string(), *bits);
        Self { id: 0, locator, bits, decrypt: *decrypt, sign: *sign, pkcs8 }
    }
}

impl TryFrom<&Make> for NewPair {
    type Error = Error;

    fn try_from(make: &Make) -> Result<Self, Error> {
        let Make { locator, bits, decrypt, sign, pkcs8, .. } = make;
        let locator =
            locator.parse().map_err(|error| Error::new(ErrorKind::OperatorNeeded, error))?;
        let key = pkcs8.as_ref().map(|pkcs8| PrivateKey::from_pkcs8(pkcs8.clone().into()));
        let imported = key.transpose()?.map(Arc::new);
        Ok(Self { locator, bits: *bits, decrypt: *decrypt, sign: *sign, imported })
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut retry_after = None;
        let kind = match error.kind() {
            ErrorKind::UnwrapFailed => Kind::UnwrapFailed,
            ErrorKind::Unavailable => Kind::Unavailable,
            ErrorKind::Throttled { retry_after: after } => {
                retry_after = after.map(|after| after.as_millis() as u64);
                Kind::Throttled
            }
            ErrorKind::DeadlineExceeded => Kind::DeadlineExceeded,
            ErrorKind::OperatorNeeded => Kind::OperatorNeeded,
            ErrorKind::Internal => Kind::Internal,
        };
        Self {
            kind: kind.into(),
            retry_after,
            text: error.to_string(),
            backend_request_id: error.backend_request_id().map(str::to_owned),
            cause: error.cause().and_then(|cause| serde_json::to_string(&cause).ok()),
            next_look: error.next_look().map(|next_look| next_look.as_millis() as u64),
            is_of_process: false,
        }
    }
}

impl From<&Fault> for Failure {
    fn from(fault: &Fault) -> Self {
        Self { is_of_process: fault.is_of_process, ..Self::from(&fault.error) }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self { is_of_process: failure.is_of_process, error: failure.into() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind() {
            Kind::UnwrapFailed => ErrorKind::UnwrapFailed,
            Kind::Unavailable => ErrorKind::Unavailable,
            Kind::Throttled => {
                ErrorKind::Throttled { retry_after: failure.retry_after.map(Duration::from_millis) }
            }
            Kind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Kind::OperatorNeeded => ErrorKind::OperatorNeeded,
            Kind::Internal => ErrorKind::Internal,
        };
        let cause = failure.cause.and_then(|cause| serde_json::from_str::<Cause>(&cause).ok());
        let error = Self::new(kind, failure.text).with_cause(cause);
        error
            .with_backend_request_id(failure.backend_request_id)
            .with_next_look(failure.next_look.map(Duration::from_millis))
    }
}

impl From<&api::Login> for Login {
    fn from(login: &api::Login) -> Self {
        let api::Login { token, serial, error } = login.clone();
        Self { token, serial, error }
    }
}

impl From<Login> for api::Login {
    fn from(login: Login) -> Self {
        let Login { token, serial, error } = login;
        Self { token, serial, error }
    }
}

impl From<Request> for ToChild {
    fn from(request: Request) -> Self {
        Self { request: Some(request) }
    }
}

impl From<Event> for FromChild {
    fn from(event: Event) -> Self {
        Self { event: Some(event) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_with_its_kind_its_cause_its_text_and_its_request_id() {
        for kind in [
            ErrorKind::UnwrapFailed,
            ErrorKind::Unavailable,
            ErrorKind::Throttled { retry_after: None },
            ErrorKind::Throttled { retry_after: Some(Duration::from_millis(1500)) },
            ErrorKind::DeadlineExceeded,
            ErrorKind::OperatorNeeded,
            ErrorKind::Internal,
        ] {
            let error = Error::new(kind, "what happened");
            let error = error.with_backend_request_id(Some("r-1".to_owned()));
            let error = error.with_cause(Cause::PinLatched);
            let crossed = Error::from(Failure::from(&error));
            assert_eq!(crossed.kind(), kind);
            assert_eq!(crossed.to_string(), "what happened");
            assert_eq!(crossed.backend_request_id(), Some("r-1"));
            assert_eq!(crossed.cause(), Some(Cause::PinLatched));
            for fault in [Fault::of_key(error.repeated()), Fault::of_process(error)] {
                let crossed = Fault::from(Failure::from(&fault));
                assert_eq!(crossed.is_of_process, fault.is_of_process);
            }
        }
    }
}
