//! The service's own errors, and what each becomes.

use super::*;
use ErrorKind::{OperatorNeeded, Unavailable, UnwrapFailed};
use Operation::{GetKey, ListVersions, Sign, Unwrap};

const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: None };

/// Bodies as recorded from the service (in reports of others), up to 404 `KeyNotFound`; those after
/// it are from Microsoft's documentation.
const TABLE: [(Operation, u16, &str, ErrorKind, &str); 23] = [
    (
        Unwrap,
        400,
        r#"{"error":{"code":"BadParameter","message":"Error occurred while decoding OAEP padding."}}"#,
        UnwrapFailed,
        "unwrapKey: HTTP 400 BadParameter: Error occurred while decoding OAEP padding.",
    ),
    (
        Unwrap,
        400,
        r#"{"error":{"code":"BadParameter","message":"Content of 'value' is not base64url.\r\nProperty 'value' is required.\r\n"}}"#,
        UnwrapFailed,
        "BadParameter: Content of 'value' is not base64url. Property 'value' is required.",
    ),
    (
        Unwrap,
        401,
        r#"{"error":{"code":"Unauthorized","message":"[TokenExpired] Error validating token: 'S2S12086'."}}"#,
        OperatorNeeded,
        "no other token was tried",
    ),
    (
        Unwrap,
        401,
        r#"{"error":{"code":"Unauthorized","message":"AKV10046: Unable to resolve the key used for signature validation."}}"#,
        OperatorNeeded,
        "AKV10046",
    ),
    (
        Unwrap,
        403,
        r#"{"error":{"code":"Forbidden","message":"Operation decrypt is not permitted on this key.","innererror":{"code":"KeyOperationForbidden"}}}"#,
        OperatorNeeded,
        "Forbidden (KeyOperationForbidden): Operation decrypt is not permitted on this key.; add",
    ),
    (
        GetKey,
        403,
        r#"{"error":{"code":"Forbidden","message":"Operation get is not allowed on a disabled secret.","innerError":{"code":"SecretDisabled"}}}"#,
        OperatorNeeded,
        "get key: HTTP 403 Forbidden (SecretDisabled): Operation get",
    ),
    (
        ListVersions,
        403,
        r#"{"error":{"code":"Forbidden","message":"Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nAction: 'Microsoft.KeyVault/vaults/keys/read'\r\n","innererror":{"code":"ForbiddenByRbac"}}}"#,
        OperatorNeeded,
        "keys/unwrap/action",
    ),
    (
        Unwrap,
        429,
        r#"{"error":{"code":"Throttled","message":"Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"}}"#,
        THROTTLED,
        "VaultRequestTypeLimitReached",
    ),
    (
        GetKey,
        404,
        r#"{"error":{"code":"KeyNotFound","message":"A key with (name/id) cosign was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"}}"#,
        OperatorNeeded,
        "look at the locator",
    ),
    (
        Unwrap,
        403,
        r#"{"error":{"code":"Forbidden","message":"Operation unwrapKey is not allowed on a disabled key.","innererror":{"code":"KeyDisabled"}}}"#,
        OperatorNeeded,
        "enable the key",
    ),
    (
        Unwrap,
        403,
        r#"{"error":{"code":"Forbidden","message":"Client address is not authorized and caller is not a trusted service.","innererror":{"code":"ForbiddenByFirewall"}}}"#,
        OperatorNeeded,
        "firewall",
    ),
    (Unwrap, 400, "", UnwrapFailed, "unwrapKey: HTTP 400"),
    (Sign, 400, r#"{"error":{"code":"BadParameter"}}"#, OperatorNeeded, "sign: HTTP 400 BadP"),
    (GetKey, 400, "", OperatorNeeded, "get key: HTTP 400"),
    (Unwrap, 408, "", Unavailable, "HTTP 408"),
    (Unwrap, 409, r#"{"error":{"code":"Conflict"}}"#, OperatorNeeded, "Conflict"),
    (
        Unwrap,
        500,
        r#"{"error":{"code":"InternalServerError","message":"x"}}"#,
        Unavailable,
        "InternalServerError: x",
    ),
    (Unwrap, 502, "<html>Bad Gateway</html>", Unavailable, "HTTP 502"),
    (Unwrap, 503, "", Unavailable, "HTTP 503"),
    (Sign, 504, "", Unavailable, "HTTP 504"),
    (Unwrap, 301, "", OperatorNeeded, "never followed"),
    (Sign, 307, "", OperatorNeeded, "never followed"),
    (Unwrap, 407, "", OperatorNeeded, "HTTP 407"),
];

fn answered(
    status: u16,
    headers: &[(&'static str, &'static str)],
    body: &str,
) -> azure_core::Error {
    let mut all = Headers::new();
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    let response = RawResponse::from_bytes(status.into(), all, body.to_owned());
    let kind = SdkErrorKind::HttpResponse {
        status: status.into(),
        error_code: None,
        raw_response: Some(Box::new(response)),
    };
    azure_core::Error::with_message(kind, "said by the SDK")
}

#[test]
fn every_recorded_answer_has_its_kind_and_says_what_to_do() {
    for (operation, status, body, kind, text) in TABLE {
        let error = answered(status, &[("x-ms-request-id", "an-id")], body);
        let error = of_call(operation, &error);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{text:?}: {error}");
        assert_eq!(error.backend_request_id(), Some("an-id"));
    }
}

#[test]
fn every_refusal_of_an_operator_has_its_cause() {
    let of = |inner: &str| {
        format!(
            r#"{{"error":{{"code":"Forbidden","message":"x","innererror":{{"code":"{inner}"}}}}}}"#
        )
    };
    for (status, inner, cause) in [
        (401, "", Some(Cause::CredentialsRefused)),
        (403, "KeyDisabled", Some(Cause::KeyDisabled)),
        (403, "KeyExpired", Some(Cause::KeyDisabled)),
        (403, "KeyOperationForbidden", Some(Cause::KeyUnfit)),
        (403, "ForbiddenByRbac", Some(Cause::NotPermitted)),
        (403, "ForbiddenByFirewall", Some(Cause::NotPermitted)),
        (404, "", Some(Cause::KeyAbsent)),
        (409, "ObjectIsDeletedButRecoverable", Some(Cause::KeyDisabled)),
        (301, "", None),
        (500, "", Some(Cause::BackendFailing)),
        (503, "", Some(Cause::BackendFailing)),
        (429, "", None),
    ] {
        let error = of_call(GetKey, &answered(status, &[], &of(inner)));
        assert_eq!(error.cause(), cause, "{error}");
    }
    for (kind, cause) in [
        (SdkErrorKind::Connection, Some(Cause::Unreachable)),
        (SdkErrorKind::Io, Some(Cause::Unreachable)),
        (SdkErrorKind::DataConversion, Some(Cause::BackendFailing)),
        (SdkErrorKind::Other, None),
    ] {
        let error = azure_core::Error::with_message(kind, "said by the SDK");
        assert_eq!(of_call(GetKey, &error).cause(), cause);
    }
}

#[test]
fn a_401_says_whether_another_token_was_tried() {
    let challenge = ("www-authenticate", "Bearer resource=\"https://vault.azure.net\"");
    for (headers, said, unsaid) in [
        (&[challenge][..], "a token that was just given is refused", "no other token"),
        (&[], "no other token was tried; the next call brings another", "just given"),
    ] {
        let error = of_call(Unwrap, &answered(401, headers, "")).to_string();
        assert!(error.contains(said) && !error.contains(unsaid), "{error}");
    }
}

#[test]
fn the_delay_that_azure_names_is_passed_on_within_reason() {
    let table = [
        (&[][..], None),
        (&[("retry-after", "7")], Some(7000)),
        (&[("retry-after", "99999999")], Some(3_600_000)),
        (&[("retry-after", "soon")], None),
        (&[("x-ms-retry-after-ms", "250")], Some(250)),
        (&[("retry-after", "1"), ("x-ms-retry-after-ms", "250")], Some(1000)),
    ];
    for (headers, milliseconds) in table {
        let retry_after = milliseconds.map(Duration::from_millis);
        let error = of_call(Unwrap, &answered(429, headers, ""));
        assert_eq!(error.kind(), ErrorKind::Throttled { retry_after }, "{headers:?}");
    }
}

#[test]
fn what_the_authority_says_has_its_kind() {
    for (status, kind) in
        [(400, OperatorNeeded), (401, OperatorNeeded), (429, THROTTLED), (503, Unavailable)]
    {
        let inner = answered(status, &[], "");
        let outer = azure_core::Error::with_error(
            SdkErrorKind::Credential,
            inner,
            "ClientSecretCredential authentication failed.",
        );
        let failure = LoginFailure::of(&outer);
        assert_eq!(failure.kind, kind, "{failure}");
        // And is still known once the SDK carried it through.
        let carried = azure_core::Error::from(failure);
        let error = of_call(Unwrap, &carried);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with("unwrapKey: no token"), "{error}");
    }
    let missing = azure_core::Error::with_message(SdkErrorKind::Credential, "run az login");
    let missing = LoginFailure::of(&missing);
    assert_eq!((missing.kind, missing.cause), (OperatorNeeded, Some(Cause::CredentialsRefused)));
    let unreachable = azure_core::Error::with_message(SdkErrorKind::Connection, "refused");
    assert_eq!(LoginFailure::of(&unreachable).kind, Unavailable);
}

#[test]
fn what_a_server_says_stays_one_short_line() {
    let body = format!(
        r#"{{"error":{{"code":"Forbidden","message":"a\r\nb\u001b[1m{}"}}}}"#,
        "x".repeat(1000)
    );
    let text = of_call(Unwrap, &answered(403, &[], &body)).to_string();
    assert!(text.starts_with("unwrapKey: HTTP 403 Forbidden: a b [1mxxx"), "{text}");
    assert!(text.len() < 500 && !text.contains(char::is_control), "{text}");
}
