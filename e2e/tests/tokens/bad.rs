//! Bad tokens: each is refused with the same bytes, before a key is looked up.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{RSA_PKCS1_SHA384, RSA_PSS_SHA256};
use e2e::RsaKey;
use e2e::issuer::{
    change, hmac_signature, part, rs256, rs256_signature, rsa_jwk, rsa_signature, seconds, token,
};
use e2e::setup::KEY;
use serde_json::{Value, json};
use tonic::Code;

use crate::Stage;

/// Reason in metrics and audit, what is wrong, and the token.
type Bad = (&'static str, &'static str, String);

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_token_gets_the_same_answer_before_a_key_is_looked_up() {
    let mut stage = Stage::new();
    let algorithms: Vec<toml::Value> =
        ["RS256", "RS512", "PS256", "ES256"].map(toml::Value::from).to_vec();
    stage.setup.files.set("issuers.corp.algorithms", algorithms);
    stage.setup.files.set("issuers.corp.max_age", "1h");
    let both = r#"issuer = "corp", claims = { role = "robot" }"#;
    stage.setup.files.token_caller("by-role", both, &[KEY], &["unwrap"]);
    let daemon = stage.setup.start();
    let connection = stage.connect(&daemon).await;
    crate::check_material(&stage.call(&connection, &stage.robot()).await);

    let all = bad_tokens(&stage);
    assert!(all.len() >= 60, "{}", all.len());
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    let mut first: Option<String> = None;
    for (reason, what, token) in &all {
        let answer = stage.call(&connection, token).await;
        assert_eq!(answer.code(), Code::Unauthenticated, "{what}: {answer}");
        let comparable = answer.comparable();
        assert_eq!(first.get_or_insert(comparable.clone()), &comparable, "{what}");
        *expected.entry(reason).or_default() += 1;
    }
    let good = format!("Bearer {}", stage.robot());
    for headers in [
        [("authorization", "Basic cm9ib3Q6cm9ib3Q="), ("x-request-id", "a")],
        [("authorization", "Bearer"), ("x-request-id", "b")],
        [("authorization", good.as_str()), ("authorization", good.as_str())],
    ] {
        let answer = stage.call_with(&connection, &headers).await;
        assert_eq!(first.as_ref(), Some(&answer.comparable()), "{headers:?}");
        *expected.entry("token_malformed").or_default() += 1;
    }
    let (_, metrics) = daemon.operations_get("/metrics").unwrap();
    for (reason, count) in expected {
        let line = format!("claviger_refusals_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // The one good call at the beginning is all that a key has seen.
    let unwraps = metrics.lines().filter(|line| {
        line.starts_with("claviger_calls_total{") && line.contains("operation=\"unwrap\"")
    });
    let unwraps: Vec<&str> = unwraps.collect();
    assert!(unwraps.len() == 1 && unwraps[0].ends_with(" 1"), "{unwraps:?}");
    assert!(daemon.log().contains("remove the encryption key"), "{}", daemon.log());
}

fn bad_tokens(stage: &Stage) -> Vec<Bad> {
    let mut all = malformed(stage);
    all.extend(headers(stage));
    all.extend(signatures(stage));
    all.extend(times(stage));
    all.extend(names(stage));
    all
}

/// What is no token at all.
fn malformed(stage: &Stage) -> Vec<Bad> {
    let good = stage.robot();
    let parts: Vec<&str> = good.split('.').collect();
    let (header, claims, signature) = (parts[0], parts[1], parts[2]);
    let bad = |what, token: String| ("token_malformed", what, token);
    let sign = |header: &str, claims: &str| {
        token(header, claims, |signed| rs256_signature(stage.issuer.key(), signed))
    };
    let plain = stage.issuer.claims("robot-1", &json!({})).to_string();
    let of_header = r#"{"alg":"RS256","kid":"k1"}"#;
    vec![
        bad("one word", "secret".to_owned()),
        bad("two parts", format!("{header}.{claims}")),
        bad("three empty parts", "..".to_owned()),
        bad("four parts", format!("{good}.x")),
        bad("six parts", format!("{good}.a.b.c")),
        bad("padding", format!("{header}=.{claims}.{signature}")),
        bad("other base64", format!("{header}.{claims}.{signature}+/")),
        bad("blank inside", format!("{header}. {claims}.{signature}")),
        bad("header is no JSON", sign("RS256", &plain)),
        bad("header is a list", sign("[\"RS256\"]", &plain)),
        bad("header without alg", sign(r#"{"kid":"k1"}"#, &plain)),
        bad("alg is null", sign(r#"{"alg":null,"kid":"k1"}"#, &plain)),
        bad("alg is a number", sign(r#"{"alg":256,"kid":"k1"}"#, &plain)),
        bad("alg twice", sign(r#"{"alg":"RS256","alg":"RS256","kid":"k1"}"#, &plain)),
        bad("kid is a number", sign(r#"{"alg":"RS256","kid":1}"#, &plain)),
        ("token_encrypted", "five parts", format!("{header}.{claims}.{signature}.a.b")),
        ("token_too_long", "17 KiB", format!("{header}.{}.{signature}", part([b'x'; 13_000]))),
        ("token_claims", "claims are a list", sign(of_header, "[1]")),
        ("token_claims", "claims are no JSON", sign(of_header, "{")),
        ("token_claims", "claims with more behind", sign(of_header, &format!("{plain}{{}}"))),
        (
            "token_claims",
            "a claim twice",
            sign(of_header, &plain.replacen('{', r#"{"exp":99999999999,"#, 1)),
        ),
        (
            "token_claims",
            "a claim twice below",
            sign(of_header, &plain.replacen('{', r#"{"a":{"b":1,"b":2},"#, 1)),
        ),
    ]
}

/// What the header must not say.
fn headers(stage: &Stage) -> Vec<Bad> {
    let other = RsaKey::generate(2048);
    let claims = stage.issuer.claims("robot-1", &json!({}));
    let with = |changes: &Value| {
        let mut header = json!({ "alg": "RS256", "typ": "JWT", "kid": "k1" });
        change(&mut header, changes);
        header
    };
    let own = |changes: &Value| rs256(stage.issuer.key(), &with(changes), &claims);
    let of_other = |changes: &Value| rs256(&other, &with(changes), &claims);
    vec![
        ("token_algorithm", "RS1", own(&json!({ "alg": "RS1" }))),
        ("token_algorithm", "rs256", own(&json!({ "alg": "rs256" }))),
        ("token_algorithm", "EdDSA is not listed", own(&json!({ "alg": "EdDSA" }))),
        ("token_critical", "crit", own(&json!({ "crit": ["exp"] }))),
        ("token_critical", "crit is empty", own(&json!({ "crit": [] }))),
        ("token_critical", "not encoded", own(&json!({ "crit": ["b64"], "b64": false }))),
        ("token_type", "logout token", own(&json!({ "typ": "logout+jwt" }))),
        ("token_type", "DPoP proof", own(&json!({ "typ": "dpop+jwt" }))),
        ("token_type", "unknown type", own(&json!({ "typ": "x" }))),
        ("token_key", "unknown kid", own(&json!({ "kid": "k2" }))),
        ("token_key", "kid with a path", own(&json!({ "kid": "../k1" }))),
        ("token_key", "another key's kid", of_other(&json!({ "kid": "other" }))),
        ("token_signature", "embedded jwk", of_other(&json!({ "jwk": rsa_jwk(&other, None) }))),
        (
            "token_signature",
            "jku",
            of_other(&json!({ "jku": "http://127.0.0.1:1/jwks", "kid": null })),
        ),
        ("token_signature", "x5c", of_other(&json!({ "x5c": ["MIIB"], "x5u": "http://a" }))),
    ]
}

/// Whose signature is not the issuer's.
fn signatures(stage: &Stage) -> Vec<Bad> {
    let key = stage.issuer.key();
    let claims = stage.issuer.claims("robot-1", &json!({})).to_string();
    let with = |alg: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        token(&json!({ "alg": alg, "kid": "k1" }).to_string(), &claims, sign)
    };
    let pem = public_key_pem(key);
    let good = stage.robot();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let admin = part(stage.issuer.claims("robot-1", &json!({ "role": "x" })).to_string());
    vec![
        ("token_algorithm", "none", with("none", &|_| Vec::new())),
        ("token_algorithm", "nOnE", with("nOnE", &|_| Vec::new())),
        ("token_algorithm", "HS256, PEM", with("HS256", &|s| hmac_signature(pem.as_bytes(), s))),
        (
            "token_algorithm",
            "HS256, SPKI",
            with("HS256", &|s| hmac_signature(key.public_key().spki(), s)),
        ),
        ("token_algorithm", "HS384", with("HS384", &|s| hmac_signature(pem.as_bytes(), s))),
        ("token_algorithm", "HS512", with("HS512", &|s| hmac_signature(pem.as_bytes(), s))),
        (
            "token_algorithm",
            "RS384 is not listed",
            with("RS384", &|s| rsa_signature(key, &RSA_PKCS1_SHA384, s)),
        ),
        ("token_signature", "RS512 says RS256", with("RS512", &|s| rs256_signature(key, s))),
        ("token_signature", "PS256 says RS256", with("PS256", &|s| rs256_signature(key, s))),
        (
            "token_signature",
            "RS256 says PSS",
            with("RS256", &|s| rsa_signature(key, &RSA_PSS_SHA256, s)),
        ),
        ("token_key", "ES256 with an RSA key", with("ES256", &|_| vec![1; 64])),
        ("token_signature", "empty", with("RS256", &|_| Vec::new())),
        ("token_signature", "zeros", with("RS256", &|_| vec![0; 256])),
        ("token_signature", "cut", with("RS256", &|s| rs256_signature(key, s)[..255].to_vec())),
        (
            "token_signature",
            "another key",
            with("RS256", &|s| rs256_signature(&RsaKey::generate(2048), s)),
        ),
        ("token_signature", "other claims", format!("{header}.{admin}.{signature}")),
    ]
}

/// Times that are not now.
fn times(stage: &Stage) -> Vec<Bad> {
    let now = seconds();
    let with = |changes: Value| stage.issuer.token("robot-1", &changes);
    vec![
        ("token_expired", "expired", with(json!({ "exp": now - 31 }))),
        ("token_expired", "1970", with(json!({ "exp": 0 }))),
        ("token_claims", "no exp", with(json!({ "exp": null }))),
        ("token_claims", "exp is text", with(json!({ "exp": (now + 300).to_string() }))),
        ("token_claims", "exp is a float", with(json!({ "exp": 4_000_000_000.5 }))),
        ("token_claims", "exp is negative", with(json!({ "exp": -1 }))),
        ("token_claims", "exp is endless", with(json!({ "exp": 1e300 }))),
        ("token_claims", "exp is a list", with(json!({ "exp": [now + 300] }))),
        ("token_not_yet_valid", "nbf is to come", with(json!({ "nbf": now + 120 }))),
        ("token_not_yet_valid", "iat is to come", with(json!({ "iat": now + 120 }))),
        ("token_claims", "nbf is text", with(json!({ "nbf": "now" }))),
        ("token_too_old", "issued yesterday", with(json!({ "iat": now - 86_400 }))),
        (
            "token_too_old",
            "good for a day, without saying since when",
            with(json!({ "iat": null, "exp": now + 86_400 })),
        ),
    ]
}

/// Issuers, audiences and subjects that are others.
fn names(stage: &Stage) -> Vec<Bad> {
    let name = stage.issuer.name();
    let with = |changes: Value| stage.issuer.token("robot-1", &changes);
    vec![
        ("token_issuer", "another issuer", with(json!({ "iss": "https://elsewhere" }))),
        ("token_issuer", "trailing slash", with(json!({ "iss": format!("{name}/") }))),
        ("token_issuer", "no issuer", with(json!({ "iss": null }))),
        ("token_issuer", "two issuers", with(json!({ "iss": [name] }))),
        ("token_issuer", "in capitals", with(json!({ "iss": name.to_uppercase() }))),
        ("token_audience", "no aud", with(json!({ "aud": null }))),
        ("token_audience", "another aud", with(json!({ "aud": "vault" }))),
        ("token_audience", "longer aud", with(json!({ "aud": "claviger2" }))),
        ("token_audience", "many others", with(json!({ "aud": ["a", "b", "Claviger"] }))),
        ("token_audience", "no text among them", with(json!({ "aud": ["claviger", 1] }))),
        ("token_audience", "aud is a number", with(json!({ "aud": 7 }))),
        ("token_audience", "aud is empty", with(json!({ "aud": [] }))),
        ("token_claims", "no sub", with(json!({ "sub": null }))),
        ("token_claims", "sub is empty", with(json!({ "sub": "" }))),
        ("token_claims", "sub is a number", with(json!({ "sub": 1 }))),
        ("token_claims", "several subjects", with(json!({ "sub": ["robot-1"] }))),
        ("token_claims", "endless sub", with(json!({ "sub": "a".repeat(513) }))),
        ("token_type", "refresh token", with(json!({ "typ": "Refresh" }))),
        (
            "token_bound",
            "another certificate",
            with(json!({ "cnf": { "x5t#S256": part([7; 32]) } })),
        ),
        ("token_bound", "DPoP", with(json!({ "cnf": { "jkt": part([7; 32]) } }))),
        ("token_bound", "cnf is text", with(json!({ "cnf": "x" }))),
        ("no_caller_matches", "unknown", stage.issuer.token("robot-2", &json!({}))),
        (
            "several_callers_match",
            "two callers in one",
            stage.issuer.token("robot-1", &json!({ "role": "robot" })),
        ),
    ]
}

fn public_key_pem(key: &RsaKey) -> String {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD.encode(key.public_key().spki());
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}
