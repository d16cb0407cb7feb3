//! An answer of AWS that is an error: what its code or its status means here, and what to do.

use std::fmt::Write as _;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::ProvideErrorMetadata;
use claviger_provider_api::foreign::{printable, retry_after};
use claviger_provider_api::{Cause, ErrorKind};

/// What an error means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) kind: ErrorKind,
    pub(crate) cause: Option<Cause>,
    pub(crate) renewable: bool,
}

impl Verdict {
    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self { kind, cause: None, renewable: false }
    }

    pub(crate) fn because(self, cause: Cause) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// A request that fails again until an operator acts.
    pub(crate) fn operator(cause: Option<Cause>) -> Self {
        Self { kind: ErrorKind::OperatorNeeded, cause, renewable: false }
    }

    fn failing() -> Self {
        Self::of(ErrorKind::Unavailable).because(Cause::BackendFailing)
    }

    /// What an answer without a code means.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            429 => Self::of(ErrorKind::Throttled { retry_after: None }),
            // 2xx: a body that is cut off, too long, or no JSON.
            200..=299 | 408 | 500.. => Self::failing(),
            401 => Self::operator(Some(Cause::CredentialsRefused)),
            403 => Self::operator(Some(Cause::NotPermitted)),
            _ => Self::operator(None),
        }
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
        let Some(code) = self.code else { return self.with_delay(Verdict::of_status(self.status)) };
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
            | "ServiceUnavailableException" => Verdict::failing(),
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
                let verdict =
                    Verdict::of(ErrorKind::Unavailable).because(Cause::CredentialsRefused);
                Verdict { renewable: true, ..verdict }
            }
            "IncompleteSignature" | "IncompleteSignatureException" | "OptInRequired" => {
                Verdict::operator(Some(Cause::CredentialsRefused))
            }
            "AccessDeniedException" | "AccessDenied" | "InvalidGrantTokenException" => {
                Verdict::operator(Some(Cause::NotPermitted))
            }
            "NotFoundException" => Verdict::operator(Some(Cause::KeyAbsent)),
            "DisabledException" | "KMSInvalidStateException" => {
                Verdict::operator(Some(Cause::KeyDisabled))
            }
            // The second is what KMS says of a symmetric key when asked for a public key.
            "InvalidKeyUsageException" | "UnsupportedOperationException" => {
                Verdict::operator(Some(Cause::KeyUnfit))
            }
            _ if self.status >= 500 || self.status == 429 => Verdict::of_status(self.status),
            // ValidationException and what KMS may invent.
            _ => Verdict::operator(None),
        };
        self.with_delay(verdict)
    }

    fn with_delay(&self, verdict: Verdict) -> Verdict {
        let ErrorKind::Throttled { .. } = verdict.kind else { return verdict };
        let retry_after = self.retry_after.and_then(retry_after);
        Verdict::of(ErrorKind::Throttled { retry_after })
    }

    pub(crate) fn text(&self) -> String {
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
            Some("UnsupportedOperationException") => {
                "a symmetric key has no public half; make an RSA key, and name that"
            }
            None if (300..400).contains(&self.status) => {
                "a redirect, which is never followed; look at `endpoint`"
            }
            _ => return text,
        };
        let _ = write!(text, "; {advice}");
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const fn verdict(kind: ErrorKind, cause: Option<Cause>) -> Verdict {
        Verdict { kind, cause, renewable: false }
    }

    const fn operator(cause: Cause) -> Verdict {
        verdict(ErrorKind::OperatorNeeded, Some(cause))
    }

    const OPERATOR: Verdict = verdict(ErrorKind::OperatorNeeded, None);
    const UNAVAILABLE: Verdict = verdict(ErrorKind::Unavailable, Some(Cause::BackendFailing));
    const RENEWABLE: Verdict = Verdict {
        renewable: true,
        ..verdict(ErrorKind::Unavailable, Some(Cause::CredentialsRefused))
    };
    const FAILED: Verdict = verdict(ErrorKind::UnwrapFailed, None);
    const UNFIT: Verdict = operator(Cause::KeyUnfit);
    const DENIED: Verdict = operator(Cause::NotPermitted);
    const LOGIN: Verdict = operator(Cause::CredentialsRefused);

    fn throttled(seconds: Option<u64>) -> Verdict {
        Verdict::of(ErrorKind::Throttled { retry_after: seconds.map(Duration::from_secs) })
    }

    fn answer(code: Option<&'static str>, status: u16) -> Answer<'static> {
        Answer { code, message: None, status, retry_after: None }
    }

    #[test]
    fn every_code_of_kms_has_its_kind_and_its_cause() {
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
            ("DisabledException", 400, operator(Cause::KeyDisabled)),
            ("NotFoundException", 400, operator(Cause::KeyAbsent)),
            ("KMSInvalidStateException", 400, operator(Cause::KeyDisabled)),
            ("InvalidKeyUsageException", 400, UNFIT),
            ("AccessDeniedException", 400, DENIED),
            ("InvalidGrantTokenException", 400, DENIED),
            ("UnsupportedOperationException", 400, UNFIT),
            ("ValidationException", 400, OPERATOR),
            ("IncompleteSignature", 400, LOGIN),
            ("OptInRequired", 403, LOGIN),
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
            (401, LOGIN),
            (403, DENIED),
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
        assert!(text.starts_with("DisabledException (HTTP 400): a b [1mxxx"), "{text}");
        assert!(text.ends_with("; enable the key"), "{text}");
        assert!(text.len() < 500, "{}", text.len());
    }
}
