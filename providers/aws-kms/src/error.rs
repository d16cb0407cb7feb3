//! From the SDK's errors to the one error of every provider: what a call that failed means here.

use std::error::Error as StdError;
use std::fmt::Write as _;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use claviger_provider_api::foreign::chain_line;
use claviger_provider_api::{Cause, Error, ErrorKind, tls};

use crate::answer::{Answer, Verdict};
use crate::refusal;

/// A call that failed, and whether other credentials may help.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    renewable: bool,
}

impl Failure {
    /// `operation` is KMS's name of what was asked for.
    pub(crate) fn of_call<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let (verdict, text) = match error {
            SdkError::ServiceError(answer) => {
                let answer = Answer::of(answer.err(), answer.raw());
                (answer.verdict(), answer.text())
            }
            // An answer that was cut off or is no KMS answer.
            SdkError::ResponseError(answer) => {
                (Verdict::of_status(answer.raw().status().as_u16()), chain_line(error))
            }
            SdkError::TimeoutError(_) => {
                (Verdict::of(ErrorKind::Unavailable).because(Cause::NoAnswer), chain_line(error))
            }
            SdkError::DispatchFailure(_) => of_dispatch(error),
            SdkError::ConstructionFailure(_) | _ => {
                (Verdict::of(ErrorKind::Internal), chain_line(error))
            }
        };
        let id = error.request_id().map(str::to_owned);
        let text = format!("kms:{operation} failed: {text}");
        Self {
            error: Error::new(verdict.kind, text)
                .with_cause(verdict.cause)
                .with_backend_request_id(id),
            renewable: verdict.renewable,
        }
    }

    /// A failure that no other credentials mend.
    pub(crate) fn of(error: Error) -> Self {
        Self { error, renewable: false }
    }

    /// Whether AWS refused the credentials, so that newer ones may be accepted.
    pub(crate) fn is_renewable(&self) -> bool {
        self.renewable
    }

    /// The error of a call whose credentials may still be renewed: a check does that.
    pub(crate) fn into_error(self) -> Error {
        self.error
    }

    /// The error of a call with credentials that were just renewed.
    pub(crate) fn after_renewal(self) -> Error {
        if !self.renewable {
            return self.error;
        }
        let text = format!(
            "{}; the credentials were read again and AWS refuses these too: renew them at their \
             source, and check this host's clock",
            self.error
        );
        self.error.retold(ErrorKind::OperatorNeeded, text)
    }
}

/// No answer: no connection, a cut one, a certificate that is not trusted, or no credentials to sign
/// with.
fn of_dispatch(error: &(dyn StdError + 'static)) -> (Verdict, String) {
    let (verdict, advice) = if tls::holds_certificate_error(error) {
        let advice = "look at `ca`, at `endpoint` and at the certificate that is shown there";
        (Verdict::operator(Some(Cause::WrongCa)), advice.to_owned())
    } else {
        let unreachable = Verdict::of(ErrorKind::Unavailable).because(Cause::Unreachable);
        refusal::judge(error).unwrap_or((unreachable, String::new()))
    };
    let mut text = chain_line(error);
    if !advice.is_empty() {
        let _ = write!(text, "; {advice}");
    }
    (verdict, text)
}
