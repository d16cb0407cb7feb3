//! Files as Google's tools write them, and what is wrong with others.

use serde_json::{Value, json};

use super::*;

fn parse(file: &Value) -> Result<Credentials, String> {
    let secret = Secret::new(Zeroizing::new(file.to_string().into_bytes()));
    Credentials::parse(&secret, "key.json").map_err(|error| error.to_string())
}

fn federated() -> Value {
    json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": { "file": "/var/run/token" },
    })
}

fn user() -> Value {
    json!({
        "type": "authorized_user",
        "client_id": "id",
        "client_secret": "secret-marker",
        "refresh_token": "token-marker",
        "quota_project_id": "p-1",
    })
}

#[test]
fn the_files_of_googles_tools_are_understood() {
    let credentials = parse(&user()).unwrap();
    assert_eq!(credentials.quota_project.unwrap(), "p-1");
    let Identity::AuthorizedUser { token_uri, .. } = credentials.identity else { panic!() };
    assert_eq!(token_uri.as_str(), "https://oauth2.googleapis.com/token");

    let mut file = federated();
    file["service_account_impersonation_url"] =
        json!("https://iamcredentials.googleapis.com/v1/a:generateAccessToken");
    file["credential_source"] = json!({
        "url": "http://169.254.169.254/metadata/identity/oauth2/token",
        "headers": { "Metadata": "True" },
        "format": { "type": "json", "subject_token_field_name": "access_token" },
    });
    let credentials = parse(&file).unwrap();
    assert!(credentials.impersonate.is_some());
    let Identity::Federated { subject: Subject::Url(_, headers, format), .. } =
        credentials.identity
    else {
        panic!()
    };
    assert_eq!(headers["metadata"], "True");
    assert_eq!(**format.token(br#"{"access_token": "a.b.c"}"#).as_ref().unwrap(), "a.b.c");

    let file = json!({
        "type": "impersonated_service_account",
        "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/a:generateAccessToken",
        "source_credentials": user(),
    });
    let credentials = parse(&file).unwrap();
    assert!(matches!(credentials.identity, Identity::AuthorizedUser { .. }));
    assert!(credentials.impersonate.is_some());
}

#[test]
fn what_cannot_be_used_is_refused_without_repeating_it() {
    let with = |mut file: Value, field: &str, value: Value| {
        file[field] = value;
        file
    };
    let source = |source: Value| with(federated(), "credential_source", source);
    let account = json!({
        "type": "service_account",
        "client_email": "a@p.iam.gserviceaccount.com",
        "private_key": "-----BEGIN PRIVATE KEY-----\nbWFya2Vy\n-----END PRIVATE KEY-----\n",
    });
    let table = [
        (json!({ "no": "type" }), "not JSON in the form"),
        (json!({ "type": "secret-marker" }), "`type` is none of"),
        (with(user(), "universe_domain", json!("example.org")), "`universe_domain`"),
        (with(user(), "refresh_token", Value::Null), "`refresh_token` is missing"),
        (with(user(), "token_uri", json!("http://example.org/")), "loopback addresses only"),
        (with(user(), "quota_project_id", json!("a\nb")), "`quota_project_id`"),
        (account.clone(), "`private_key` is no RSA key"),
        (with(account, "private_key", json!("marker")), "`private_key` is no RSA key"),
        (with(federated(), "token_url", json!("marker")), "`token_url` is no URL"),
        (source(json!({})), "exactly one of `file` and `url`"),
        (source(json!({ "executable": { "command": "marker" } })), "is a command"),
        (source(json!({ "file": "token" })), "relative path"),
        (source(json!({ "environment_id": "aws1", "url": "marker" })), "AWS"),
        (source(json!({ "url": "http://example.org/" })), "loopback"),
        (source(json!({ "file": "/t", "format": { "type": "xml" } })), "text or json"),
        (source(json!({ "file": "/t", "format": { "type": "json" } })), "field_name"),
        (json!({ "type": "impersonated_service_account" }), "`source_credentials` is missing"),
    ];
    for (file, expected) in table {
        let error = parse(&file).unwrap_err();
        assert!(error.contains(expected) && error.starts_with("key.json: "), "{error}");
        assert!(!error.contains("marker"), "{error}");
    }
    let debug = format!("{:?}", parse(&user()).unwrap());
    assert_eq!(debug, "Credentials(id)");
}

#[test]
fn a_subject_token_is_text_or_a_field_of_json() {
    let token = |format: &Format, text: &str| format.token(text.as_bytes()).map(|t| t.to_string());
    assert_eq!(token(&Format::Text, "a.b.c\n"), Ok("a.b.c".into()));
    assert!(token(&Format::Text, "\n").unwrap_err().contains("empty"));
    let json = Format::Json("id_token".into());
    assert_eq!(token(&json, r#"{"id_token":"x"}"#), Ok("x".into()));
    for bad in ["{}", "[]", "x", r#"{"id_token":1}"#, r#"{"id_token":""}"#] {
        assert!(token(&json, bad).is_err(), "{bad}");
    }
}
