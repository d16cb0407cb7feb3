//! From the SDK's errors to the one error of every provider: what KMS's codes mean here.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::time::Duration;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use claviger_provider_api::{Error, ErrorKind, tls};

use crate::refusal;

/// How much of KMS's own message is kept, in characters.
const MAX_MESSAGE: usize = 400;

/// The longest `Retry-After` that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

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
                (of_status(answer.raw().status().as_u16()), chain(error))
            }
            SdkError::TimeoutError(_) => (Verdict::of(ErrorKind::Unavailable), chain(error)),
            SdkError::DispatchFailure(_) => of_dispatch(error),
            SdkError::ConstructionFailure(_) | _ => {
                (Verdict::of(ErrorKind::Internal), chain(error))
            }
        };
        let id = error.request_id().map(str::to_owned);
        let text = format!("kms:{operation} failed: {text}");
        Self {
            error: Error::new(verdict.kind, text).with_backend_request_id(id),
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
        let id = self.error.backend_request_id().map(str::to_owned);
        let text = format!(
            "{}; the credentials were read again and AWS refuses these too: renew them at their \
             source, and check this host's clock",
            self.error
        );
        Error::new(ErrorKind::OperatorNeeded, text).with_backend_request_id(id)
    }
}

/// What an error means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) kind: ErrorKind,
    pub(crate) renewable: bool,
}

impl Verdict {
    fn of(kind: ErrorKind) -> Self {
        Self { kind, renewable: false }
    }
}

/// An error that KMS, or another service of AWS, answered with.
pub(crate) struct Answer<'a> {
    pub(crate) code: Option<&'a str>,
    pub(crate) message: Option<&'a str>,
    pub(crate) status: u16,
    pub(crate) retry_after: Option<&'a str>,
}

impl<'a> Answer<'a> {
    pub(crate) fn of(error: &'a impl ProvideErrorMetadata, response: &'a HttpResponse) -> Self {
        Self {
            code: error.code(),
            message: error.message(),
            status: response.status().as_u16(),
            retry_after: response.headers().get("retry-after"),
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let Some(code) = self.code else { return self.with_delay(of_status(self.status)) };
        let verdict = match code {
            "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "LimitExceededException" => Verdict::of(ErrorKind::Throttled { retry_after: None }),
            "DependencyTimeoutException"
            | "KMSInternalException"
            | "KeyUnavailableException"
            | "InternalFailure"
            | "InternalError"
            | "ServiceUnavailable"
            | "ServiceUnavailableException" => Verdict::of(ErrorKind::Unavailable),
            "InvalidCiphertextException" | "IncorrectKeyException" => {
                Verdict::of(ErrorKind::UnwrapFailed)
            }
            // Expired, or replaced at their source since they were read. At the call it is as if
            // the backend could not be reached; a check renews, and tells what is left of it.
            "ExpiredToken"
            | "ExpiredTokenException"
            | "RequestExpired"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException" => {
                Verdict { kind: ErrorKind::Unavailable, renewable: true }
            }
            _ if self.status >= 500 || self.status == 429 => of_status(self.status),
            // DisabledException, NotFoundException, KMSInvalidStateException,
            // InvalidKeyUsageException, AccessDeniedException, InvalidGrantTokenException,
            // UnsupportedOperationException, ValidationException and what KMS may invent: the same
            // request will fail again.
            _ => Verdict::of(ErrorKind::OperatorNeeded),
        };
        self.with_delay(verdict)
    }

    fn with_delay(&self, verdict: Verdict) -> Verdict {
        let ErrorKind::Throttled { .. } = verdict.kind else { return verdict };
        let seconds = self.retry_after.and_then(|text| text.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs).map(|delay| delay.min(MAX_RETRY_AFTER));
        Verdict::of(ErrorKind::Throttled { retry_after })
    }

    fn text(&self) -> String {
        let mut text = match self.code {
            Some(code) => printable(code),
            None => "an answer without a code".to_owned(),
        };
        let _ = write!(text, " (HTTP {})", self.status);
        if let Some(message) = self.message.filter(|message| !message.is_empty()) {
            let _ = write!(text, ": {}", printable(message));
        }
        let advice = match self.code {
            Some("AccessDeniedException") => {
                "allow kms:GetPublicKey and kms:Decrypt (or kms:Sign) on this key to these \
                 credentials, in IAM and in the key's policy"
            }
            Some("NotFoundException") => {
                "there is no such key or alias in this account and region; look at the locator"
            }
            Some("DisabledException") => "enable the key",
            Some("KMSInvalidStateException") => {
                "the key waits for its deletion or for its import; look at its state"
            }
            Some("InvalidKeyUsageException") => "the key was made for another use",
            None if (300..400).contains(&self.status) => {
                "a redirect, which is never followed; look at `endpoint`"
            }
            _ => return text,
        };
        let _ = write!(text, "; {advice}");
        text
    }
}

fn of_status(status: u16) -> Verdict {
    Verdict::of(match status {
        429 => ErrorKind::Throttled { retry_after: None },
        // 2xx: a body that is cut off or is no JSON.
        200..=299 | 408 | 500.. => ErrorKind::Unavailable,
        _ => ErrorKind::OperatorNeeded,
    })
}

/// No answer: no connection, a cut one, a certificate of another host, or no credentials to sign
/// with.
fn of_dispatch(error: &(dyn StdError + 'static)) -> (Verdict, String) {
    let (kind, advice) = if tls::holds_certificate_error(error) {
        let advice = "look at `ca`, at `endpoint` and at the certificate that is shown there";
        (ErrorKind::OperatorNeeded, advice.to_owned())
    } else {
        refusal::judge(error).unwrap_or((ErrorKind::Unavailable, String::new()))
    };
    let mut text = chain(error);
    if !advice.is_empty() {
        let _ = write!(text, "; {advice}");
    }
    (Verdict::of(kind), text)
}

/// An error and what it was caused by.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// An error and its causes in one line, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    printable(&text)
}

/// What a server sent, cut to a length and to one line.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_MESSAGE).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATOR: Verdict = Verdict { kind: ErrorKind::OperatorNeeded, renewable: false };
    const UNAVAILABLE: Verdict = Verdict { kind: ErrorKind::Unavailable, renewable: false };
    const RENEWABLE: Verdict = Verdict { kind: ErrorKind::Unavailable, renewable: true };
    const FAILED: Verdict = Verdict { kind: ErrorKind::UnwrapFailed, renewable: false };

    fn throttled(seconds: Option<u64>) -> Verdict {
        Verdict::of(ErrorKind::Throttled { retry_after: seconds.map(Duration::from_secs) })
    }

    fn answer(code: Option<&'static str>, status: u16) -> Answer<'static> {
        Answer { code, message: None, status, retry_after: None }
    }

    #[test]
    fn every_code_of_kms_has_its_kind() {
        let table = [
            ("ThrottlingException", 400, throttled(None)),
            ("LimitExceededException", 400, throttled(None)),
            ("DependencyTimeoutException", 500, UNAVAILABLE),
            ("KMSInternalException", 500, UNAVAILABLE),
            ("KeyUnavailableException", 500, UNAVAILABLE),
            ("ServiceUnavailableException", 503, UNAVAILABLE),
            ("InternalFailure", 500, UNAVAILABLE),
            ("SomethingNew", 502, UNAVAILABLE),
            ("SomethingNew", 429, throttled(None)),
            ("SomethingNew", 400, OPERATOR),
            ("InvalidCiphertextException", 400, FAILED),
            ("IncorrectKeyException", 400, FAILED),
            ("DisabledException", 400, OPERATOR),
            ("NotFoundException", 400, OPERATOR),
            ("KMSInvalidStateException", 400, OPERATOR),
            ("InvalidKeyUsageException", 400, OPERATOR),
            ("AccessDeniedException", 400, OPERATOR),
            ("InvalidGrantTokenException", 400, OPERATOR),
            ("UnsupportedOperationException", 400, OPERATOR),
            ("ValidationException", 400, OPERATOR),
            ("IncompleteSignature", 400, OPERATOR),
            ("OptInRequired", 403, OPERATOR),
            ("ExpiredTokenException", 400, RENEWABLE),
            ("ExpiredToken", 403, RENEWABLE),
            ("RequestExpired", 400, RENEWABLE),
            ("UnrecognizedClientException", 400, RENEWABLE),
            ("InvalidSignatureException", 400, RENEWABLE),
        ];
        for (code, status, verdict) in table {
            assert_eq!(answer(Some(code), status).verdict(), verdict, "{code} {status}");
        }
    }

    #[test]
    fn an_answer_without_a_code_is_judged_by_its_status() {
        let table = [
            (301, OPERATOR),
            (307, OPERATOR),
            (403, OPERATOR),
            (404, OPERATOR),
            (407, OPERATOR),
            (408, UNAVAILABLE),
            (429, throttled(None)),
            (500, UNAVAILABLE),
            (503, UNAVAILABLE),
            (200, UNAVAILABLE),
        ];
        for (status, verdict) in table {
            assert_eq!(answer(None, status).verdict(), verdict, "{status}");
        }
        assert!(answer(None, 307).text().contains("never followed"));
    }

    #[test]
    fn the_backends_own_delay_is_passed_on_within_reason() {
        let with = |retry_after| Answer {
            retry_after: Some(retry_after),
            ..answer(Some("ThrottlingException"), 400)
        };
        assert_eq!(with("7").verdict(), throttled(Some(7)));
        assert_eq!(with("999999999").verdict(), throttled(Some(3600)));
        assert_eq!(with("-1").verdict(), throttled(None));
        assert_eq!(with("Fri, 01 Jan 2027 00:00:00 GMT").verdict(), throttled(None));
    }

    #[test]
    fn what_a_server_says_is_cut_to_one_short_line() {
        let message = format!("a\r\nb\u{1b}[1m{}", "x".repeat(1000));
        let long = Answer { message: Some(&message), ..answer(Some("DisabledException"), 400) };
        let text = long.text();
        assert!(text.starts_with("DisabledException (HTTP 400): a  b [1mxxx"), "{text}");
        assert!(text.ends_with("; enable the key"), "{text}");
        assert!(text.len() < 500, "{}", text.len());
    }
}
