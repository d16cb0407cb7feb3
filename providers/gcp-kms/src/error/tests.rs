//! Answers of the real services, word for word but for names, and what each means here.

use super::*;
use ErrorKind::{OperatorNeeded, Unavailable, UnwrapFailed};
use Operation::{Metadata, ReadKey, Sign, SubjectToken, Token, Unwrap};

type Meaning = (ErrorKind, Option<Cause>);
const FAILED: Meaning = (UnwrapFailed, None);
const FAILING: Meaning = (Unavailable, Some(Cause::BackendFailing));
const THROTTLED: Meaning = (ErrorKind::Throttled { retry_after: None }, None);
const ABSENT: Meaning = (OperatorNeeded, Some(Cause::KeyAbsent));
const DISABLED: Meaning = (OperatorNeeded, Some(Cause::KeyDisabled));
const UNFIT: Meaning = (OperatorNeeded, Some(Cause::KeyUnfit));
const FORBIDDEN: Meaning = (OperatorNeeded, Some(Cause::NotPermitted));
const LOGIN: Meaning = (OperatorNeeded, Some(Cause::CredentialsRefused));
const OTHER: Meaning = (OperatorNeeded, None);

fn throttled(milliseconds: u64) -> Meaning {
    (ErrorKind::Throttled { retry_after: Some(Duration::from_millis(milliseconds)) }, None)
}

fn refusal(operation: Operation, status: u16, body: &str) -> Refusal {
    let said = Said::parse(body.as_bytes());
    Refusal { operation, status, said, retry_after: None, request_id: "id".into() }
}

/// A body of KMS's with a code and a message.
fn status(code: &str, message: &str) -> String {
    serde_json::json!({ "error": { "code": 0, "message": message, "status": code } }).to_string()
}

const DISABLED_VERSION: &str = r#"{
  "error": {
    "code": 400,
    "message": "projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.",
    "status": "FAILED_PRECONDITION",
    "details": [
      {
        "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
        "violations": [{ "type": "KEY_DISABLED", "subject": "projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1" }]
      }
    ]
  }
}"#;

const QUOTA: &str = r#"{
  "error": {
    "code": 429,
    "message": "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic requests per minute' of service 'cloudkms.googleapis.com' for consumer 'project_number:1'.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
      { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED", "domain": "googleapis.com" },
      { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.250s" }
    ]
  }
}"#;

const DENIED: &str = r#"{
  "error": {
    "code": 403,
    "message": "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1' (or it may not exist).",
    "status": "PERMISSION_DENIED"
  }
}"#;

const API_OFF: &str = "Google Cloud KMS API has not been used in this project before, or it is \
                       disabled. Enable it by visiting https://console.developers.google.com/apis/";

const EXPIRED: &str = "Request had invalid authentication credentials. Expected OAuth 2 access token, \
                       login cookie or other valid authentication credential.";

const JWT: &str = r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
const GONE: &str =
    r#"{"error":"invalid_grant","error_description":"Invalid grant: account not found"}"#;
const CLIENT: &str =
    r#"{"error":"invalid_client","error_description":"The OAuth client was not found."}"#;

#[test]
fn every_answer_has_its_kind_and_its_cause() {
    let of = status;
    let table: Vec<(Operation, u16, String, Meaning)> = vec![
        (Unwrap, 400, of("INVALID_ARGUMENT", "Decryption failed."), FAILED),
        (
            Unwrap,
            400,
            of(
                "INVALID_ARGUMENT",
                "The checksum in field ciphertext_crc32c did not match the data in field ciphertext.",
            ),
            FAILED,
        ),
        (Unwrap, 400, DISABLED_VERSION.into(), DISABLED),
        (Unwrap, 400, of("FAILED_PRECONDITION", API_OFF), DISABLED),
        (Unwrap, 400, String::new(), OTHER),
        (Unwrap, 401, of("UNAUTHENTICATED", EXPIRED), LOGIN),
        (Unwrap, 403, DENIED.into(), FORBIDDEN),
        (Unwrap, 404, of("NOT_FOUND", "CryptoKeyVersion x not found."), ABSENT),
        (Unwrap, 404, "<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>".into(), ABSENT),
        (Unwrap, 409, of("ABORTED", "try again"), FAILING),
        (Unwrap, 429, QUOTA.into(), throttled(7250)),
        (Unwrap, 429, of("RESOURCE_EXHAUSTED", ""), THROTTLED),
        (Unwrap, 429, String::new(), THROTTLED),
        (Unwrap, 499, of("CANCELLED", "The operation was cancelled."), FAILING),
        (Unwrap, 500, of("INTERNAL", "Internal error encountered."), FAILING),
        (Unwrap, 500, of("UNKNOWN", ""), FAILING),
        (Unwrap, 501, of("UNIMPLEMENTED", "Operation is not implemented."), OTHER),
        (Unwrap, 502, "<html><title>502 Bad Gateway</title>".into(), FAILING),
        (Unwrap, 503, of("UNAVAILABLE", "The service is currently unavailable."), FAILING),
        (Unwrap, 504, of("DEADLINE_EXCEEDED", "Deadline exceeded."), FAILING),
        (Unwrap, 408, String::new(), FAILING),
        (Unwrap, 302, String::new(), OTHER),
        (Sign, 400, of("INVALID_ARGUMENT", "digest.sha256 is the wrong length"), OTHER),
        (Sign, 429, QUOTA.into(), throttled(7250)),
        (Sign, 503, of("UNAVAILABLE", ""), FAILING),
        (ReadKey, 400, of("INVALID_ARGUMENT", "bad name"), OTHER),
        (ReadKey, 404, of("NOT_FOUND", "CryptoKeyVersion x not found."), ABSENT),
        (ReadKey, 500, of("INTERNAL", ""), FAILING),
        (Token, 400, JWT.into(), LOGIN),
        (Token, 400, GONE.into(), LOGIN),
        (Token, 401, CLIENT.into(), LOGIN),
        (Token, 403, DENIED.into(), LOGIN),
        (Token, 429, String::new(), THROTTLED),
        (Token, 500, r#"{"error":"internal_failure"}"#.into(), FAILING),
        (Token, 503, String::new(), FAILING),
        (SubjectToken, 404, String::new(), LOGIN),
        (SubjectToken, 500, String::new(), FAILING),
        (Metadata, 404, "<html>Not Found".into(), LOGIN),
        (Metadata, 503, String::new(), FAILING),
        (
            ReadKey,
            400,
            of(
                "FAILED_PRECONDITION",
                "The key's purpose is ENCRYPT_DECRYPT, which has no public key.",
            ),
            UNFIT,
        ),
    ];
    for (operation, status, body, expected) in table {
        let error = Error::from(Failure::Refused(refusal(operation, status, &body)));
        assert_eq!((error.kind(), error.cause()), expected, "{error}");
        assert_eq!(error.backend_request_id(), Some("id"));
    }
}

#[test]
fn the_services_own_delay_is_passed_on_within_reason() {
    let with = |header: Option<u64>, body: &str| {
        let retry_after = header.map(Duration::from_secs);
        meaning(&Refusal { retry_after, ..refusal(Unwrap, 429, body) })
    };
    assert_eq!(with(Some(3), ""), throttled(3000));
    assert_eq!(with(Some(3), QUOTA), throttled(7250));
    assert_eq!(with(Some(u64::MAX), ""), throttled(3_600_000));
    for bad in ["7", "-1s", "NaNs", "s", "1e400s"] {
        assert_eq!(with(None, &QUOTA.replace("7.250s", bad)), THROTTLED, "{bad}");
    }
}

#[test]
fn an_error_says_what_to_do() {
    let table = [
        (Unwrap, 400, DISABLED_VERSION, "current state is: DISABLED.; look at the version's state"),
        (Unwrap, 403, DENIED, "(or it may not exist).; grant roles/cloudkms"),
        (Unwrap, 307, "", "an answer without a code (HTTP 307); a redirect, which is never"),
        (Token, 400, JWT, "asking for an access token failed: invalid_grant (HTTP 400)"),
        (Token, 400, JWT, "check this host's clock"),
        (Metadata, 404, "", "set `credentials`"),
        (Metadata, 403, "", "outside of Google Cloud set `credentials`"),
    ];
    for (operation, status, body, expected) in table {
        let text = refusal(operation, status, body).to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn what_a_server_says_is_cut_to_one_short_line() {
    let message = format!("a\r\nb\u{1b}[1m{}", "x".repeat(1000));
    let text = refusal(Sign, 500, &status("INTERNAL", &message)).to_string();
    assert!(text.starts_with("asymmetricSign failed: INTERNAL (HTTP 500): a b [1mxxx"), "{text}");
    assert!(text.len() < 500 && !text.contains(char::is_control), "{text}");
}

#[test]
fn the_deadline_is_the_callers_and_the_timeout_the_backends() {
    let of = |why| Error::from(Failure::NoAnswer { why, request_id: Some("id".into()) });
    assert_eq!(of(NoAnswer::Deadline).kind(), ErrorKind::DeadlineExceeded);
    let error = of(NoAnswer::TimedOut(Duration::from_secs(3)));
    assert_eq!((error.kind(), error.cause()), (Unavailable, Some(Cause::NoAnswer)));
    assert!(error.to_string().contains("3000 ms"), "{error}");
    assert_eq!(error.backend_request_id(), Some("id"));
}
