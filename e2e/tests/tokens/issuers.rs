//! Good tokens in the shapes of real issuers.

use aws_lc_rs::rand::SystemRandom;
use e2e::issuer::{change, ec_key, ed_key, part, rs256, rsa_jwk, seconds, token};
use e2e::setup::KEY;
use e2e::{RsaKey, Setup};
use serde_json::{Value, json};

/// An issuer: its options beside `keys`, what a caller's match says, and a token's claims beside its times.
struct Shape {
    name: &'static str,
    options: &'static str,
    found: &'static str,
    header: Value,
    claims: Value,
}

fn shape(
    name: &'static str,
    options: &'static str,
    found: &'static str,
    header: Value,
    claims: Value,
) -> Shape {
    Shape { name, options, found, header, claims }
}

/// Signed with RS256 by the key `k1`; their key set is in a file.
#[expect(clippy::too_many_lines, reason = "one table")]
fn of_rsa() -> Vec<Shape> {
    let usual = || json!({ "alg": "RS256", "typ": "JWT", "kid": "k1" });
    let at = || json!({ "alg": "RS256", "typ": "at+jwt", "kid": "k1" });
    vec![
        shape(
            "keycloak",
            r#"issuer = "https://sso.example.org/realms/corp", audiences = ["claviger"]"#,
            r#"claims = { "/realm_access/roles" = "hsm" }"#,
            usual(),
            json!({
                "iss": "https://sso.example.org/realms/corp", "aud": ["claviger", "account"],
                "sub": "f3a0f3a0-1111-2222-3333-444455556666", "typ": "Bearer", "azp": "cli",
                "jti": "onrtac:1", "sid": "x", "acr": "1", "realm_access": { "roles": ["a", "hsm"] },
                "scope": "openid profile", "email_verified": true, "preferred_username": "alice",
            }),
        ),
        shape(
            "authentik",
            r#"issuer = "https://id.example.org/application/o/claviger/", audiences = ["claviger"]"#,
            r#"claims = { groups = ["x", "hsm"] }"#,
            usual(),
            json!({
                "iss": "https://id.example.org/application/o/claviger/", "aud": "claviger",
                "sub": "8d9f", "auth_time": 1, "acr": "goauthentik.io/providers/oauth2/default",
                "amr": ["pwd"], "groups": ["hsm"], "uid": "u",
            }),
        ),
        shape(
            "authelia",
            r#"issuer = "https://auth.example.org", audiences = ["claviger"]"#,
            r#"subject = "b5c1""#,
            at(),
            json!({
                "iss": "https://auth.example.org", "aud": ["claviger"], "sub": "b5c1",
                "client_id": "claviger", "scp": ["openid", "offline_access"],
            }),
        ),
        shape(
            "entra",
            r#"issuer = "https://login.microsoftonline.com/11111111-2222-3333-4444-555566667777/v2.0", audiences = ["api://claviger"]"#,
            r#"claims = { oid = "00000000-0000-0000-0000-000000000001" }"#,
            json!({ "alg": "RS256", "typ": "JWT", "kid": "k1", "x5t": "k1" }),
            json!({
                "iss": "https://login.microsoftonline.com/11111111-2222-3333-4444-555566667777/v2.0",
                "aud": "api://claviger", "sub": "AAAA-bbbb", "ver": "2.0", "aio": "x",
                "oid": "00000000-0000-0000-0000-000000000001", "rh": "0.A", "uti": "u",
            }),
        ),
        shape(
            "google",
            r#"issuer = "https://accounts.google.com", audiences = ["123.apps.googleusercontent.com"]"#,
            r#"claims = { email = "alice@example.org", email_verified = true }"#,
            usual(),
            json!({
                "iss": "https://accounts.google.com", "aud": "123.apps.googleusercontent.com",
                "azp": "123.apps.googleusercontent.com", "sub": "110169484474386276334",
                "email": "alice@example.org", "email_verified": true, "hd": "example.org",
            }),
        ),
        shape(
            "zitadel",
            r#"issuer = "https://zitadel.example.org", audiences = ["^\\d{18}$"]"#,
            r#"claims = { "urn:zitadel:iam:org:project:roles" = "hsm" }"#,
            usual(),
            json!({
                "iss": "https://zitadel.example.org", "sub": "234567890123456789",
                "aud": ["other@project", "123456789012345678", "x"], "jti": "1",
                "urn:zitadel:iam:org:project:roles": ["hsm"],
            }),
        ),
        shape(
            "auth0",
            r#"issuer = "https://corp.eu.auth0.com/", audiences = ["https://claviger"]"#,
            r#"subject = "auth0|5f7c""#,
            usual(),
            json!({
                "iss": "https://corp.eu.auth0.com/", "sub": "auth0|5f7c",
                "aud": ["https://claviger", "https://corp.eu.auth0.com/userinfo"],
                "updated_at": "2026-07-01T10:00:00.000Z", "azp": "x", "gty": "password",
            }),
        ),
        shape(
            "slack",
            r#"issuer = "https://slack.com", audiences = ["25259531569.1115258246291"]"#,
            r#"claims = { "https://slack.com/team_id" = "T0R7GR" }"#,
            usual(),
            json!({
                "iss": "https://slack.com", "sub": "U0R7JM", "aud": "25259531569.1115258246291",
                "auth_time": 1, "nonce": "n", "https://slack.com/team_id": "T0R7GR",
                "https://slack.com/team_image_default": true,
            }),
        ),
        shape(
            "gitlab",
            r#"issuer = "https://gitlab.example.org", audiences = ["claviger"]"#,
            r#"claims = { project_path = "infra/keys", ref_protected = "true" }"#,
            usual(),
            json!({
                "iss": "https://gitlab.example.org", "aud": "claviger", "project_path": "infra/keys",
                "sub": "project_path:infra/keys:ref_type:branch:ref:main", "ref_protected": "true",
            }),
        ),
        shape(
            "casdoor",
            r#"issuer = "https://casdoor.example.org", audiences = ["claviger"]"#,
            r#"claims = { owner = "built-in" }"#,
            usual(),
            json!({
                "iss": "https://casdoor.example.org", "aud": ["claviger"], "sub": "1b2c",
                "owner": "built-in", "tokenType": "access-token", "address": [], "createdTime": "",
            }),
        ),
        shape(
            "bitwarden",
            r#"issuer = "https://vault.example.org/identity", audiences = "any""#,
            r#"claims = { scope = "api", amr = ["Application", "external"] }"#,
            at(),
            json!({
                "iss": "https://vault.example.org/identity", "sub": "2bb58a19-2001-4a8b-8223-79b2ba7d5229",
                "scope": ["api", "offline_access"], "amr": ["external"], "premium": false,
            }),
        ),
        shape(
            "kubernetes",
            r#"issuer = "https://kubernetes.default.svc.cluster.local", audiences = ["claviger"]"#,
            r#"subject = "system:serviceaccount:bitwarden:key-connector", claims = { "/kubernetes.io/namespace" = "bitwarden" }"#,
            json!({ "alg": "RS256", "kid": "k1" }),
            json!({
                "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["claviger"], "jti": "j",
                "sub": "system:serviceaccount:bitwarden:key-connector",
                "kubernetes.io": {
                    "namespace": "bitwarden", "pod": { "name": "kc-0", "uid": "u" },
                    "serviceaccount": { "name": "key-connector", "uid": "v" }, "warnafter": 1,
                },
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn good_tokens_in_the_shapes_of_sixteen_issuers_are_let_in() {
    let mut setup = Setup::software();
    let key = RsaKey::shared(2048);
    let rsa = setup.files.file(
        "rsa.jwks",
        &json!({ "keys": [rsa_jwk(&key, Some("k1")), encryption_key(&key)] }).to_string(),
        0o644,
    );
    let mut tokens: Vec<(&str, String)> = Vec::new();
    for shape in of_rsa() {
        let mut claims = shape.claims;
        change(&mut claims, &times());
        tokens.push((shape.name, rs256(&key, &shape.header, &claims)));
        add(&mut setup, shape.name, shape.options, &rsa, shape.found);
    }

    // Vaultwarden: no kid, no aud, no iat; its key as it writes it, in PEM.
    let pem = setup.files.path("vaultwarden.pem");
    let private = setup.files.path("vaultwarden.key");
    key.write_pem(&private);
    let openssl = std::process::Command::new("openssl")
        .args(["pkey", "-pubout", "-in"])
        .arg(&private)
        .arg("-out")
        .arg(&pem)
        .status();
    assert!(openssl.unwrap().success());
    let options = r#"issuer = "https://vault.example.org|login", audiences = "any""#;
    let found = r#"subject = "2bb58a19-2001-4a8b-8223-79b2ba7d5229""#;
    add(&mut setup, "vaultwarden", options, pem.to_str().unwrap(), found);
    let claims = json!({
        "iss": "https://vault.example.org|login", "sub": "2bb58a19-2001-4a8b-8223-79b2ba7d5229",
        "nbf": seconds(), "exp": seconds() + 7200, "scope": ["api", "offline_access"],
    });
    tokens.push(("vaultwarden", rs256(&key, &json!({ "alg": "RS256", "typ": "JWT" }), &claims)));

    // Kanidm signs with ES256, Rauthy with EdDSA.
    let (pair, jwk) = ec_key("e1");
    let file = setup.files.file("ec.jwks", &json!({ "keys": [jwk] }).to_string(), 0o644);
    let options =
        r#"issuer = "https://idm.example.org/oauth2/openid/claviger", audiences = ["claviger"]"#;
    add(&mut setup, "kanidm", options, &file, r#"claims = { groups = "hsm@idm.example.org" }"#);
    let mut claims = json!({
        "iss": "https://idm.example.org/oauth2/openid/claviger", "aud": "claviger", "sub": "5e9b",
        "groups": ["hsm@idm.example.org"],
    });
    change(&mut claims, &times());
    let es256 = |signed: &[u8]| pair.sign(&SystemRandom::new(), signed).unwrap().as_ref().to_vec();
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "e1" }).to_string();
    tokens.push(("kanidm", token(&header, &claims.to_string(), es256)));

    let (pair, jwk) = ed_key("d1");
    let file = setup.files.file("ed.jwks", &json!({ "keys": [jwk] }).to_string(), 0o644);
    let options = r#"issuer = "https://rauthy.example.org/auth/v1", audiences = ["claviger"]"#;
    add(&mut setup, "rauthy", options, &file, r#"claims = { roles = "hsm" }"#);
    let mut claims = json!({
        "iss": "https://rauthy.example.org/auth/v1", "aud": "claviger", "sub": "r", "typ": "Bearer",
        "roles": ["hsm"], "nbf": seconds(),
    });
    change(&mut claims, &times());
    let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "d1" }).to_string();
    tokens
        .push(("rauthy", token(&header, &claims.to_string(), |s| pair.sign(s).as_ref().to_vec())));

    // SPIFFE: no iss, no iat; the trust bundle has X.509 authorities beside.
    let (pair, mut jwk) = ec_key("s1");
    jwk["use"] = "jwt-svid".into();
    let mut x509 = rsa_jwk(&key, None);
    change(&mut x509, &json!({ "use": "x509-svid", "x5c": [part("certificate")] }));
    let bundle = json!({ "keys": [x509, jwk], "spiffe_refresh_hint": 300, "spiffe_sequence": 1 });
    let file = setup.files.file("bundle.jwks", &bundle.to_string(), 0o644);
    let options = r#"trust_domain = "example.org", audiences = ["claviger"]"#;
    add(&mut setup, "spiffe", options, &file, r#"subject = "spiffe://example.org/kc""#);
    let claims = json!({
        "sub": "spiffe://example.org/kc", "aud": ["claviger"], "exp": seconds() + 300,
    });
    let es256 = |signed: &[u8]| pair.sign(&SystemRandom::new(), signed).unwrap().as_ref().to_vec();
    let header = json!({ "alg": "ES256", "typ": "JOSE", "kid": "s1" }).to_string();
    tokens.push(("spiffe", token(&header, &claims.to_string(), es256)));
    assert_eq!(tokens.len(), 16);

    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    for (name, token) in &tokens {
        let body = e2e::connection::frame(&prost::Message::encode_to_vec(&setup.request()));
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let answer = connection.call("/claviger.v1.KeyService/Unwrap", body, &headers).await;
        let answer = answer.unwrap();
        assert_eq!(answer.code(), tonic::Code::Ok, "{name}: {answer}\n{}", daemon.log());
    }
    let records = setup.files.audit_records();
    for (name, _) in &tokens {
        let is_one = |record: &&Value| record["issuer"] == *name && record["caller"] == *name;
        assert_eq!(records.iter().filter(is_one).count(), 1, "{name}");
    }
}

fn add(setup: &mut Setup, name: &str, options: &str, keys: &str, found: &str) {
    let table: toml::Table = format!("it = {{ {options} }}").parse().unwrap();
    setup.files.set(&format!("issuers.{name}"), table["it"].clone());
    setup.files.set(&format!("issuers.{name}.keys"), keys);
    let found = format!(r#"issuer = "{name}", {found}"#);
    setup.files.token_caller(name, &found, &[KEY], &["unwrap"]);
}

fn times() -> Value {
    json!({ "iat": seconds() - 5, "exp": seconds() + 300 })
}

/// As Keycloak has one beside the others.
fn encryption_key(key: &RsaKey) -> Value {
    let mut jwk = rsa_jwk(key, Some("enc"));
    change(&mut jwk, &json!({ "use": "enc", "alg": "RSA-OAEP" }));
    jwk
}
