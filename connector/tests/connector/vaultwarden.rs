//! Vaultwarden's tokens: an issuer whose name is no URL, its key in a file, and no `kid`.

use serde_json::{Value, json};

use crate::services::{Services, Stored, new_key, new_user};

const NAME: &str = "https://vault.example.org|login";

/// What a token of Vaultwarden's differs in from one of Bitwarden's, after SSO.
fn token_of_vaultwarden() -> Value {
    json!({
        "header": { "typ": "JWT", "kid": null },
        "claims": {
            "iss": NAME, "iat": null, "scope": ["api", "offline_access"],
            "amr": ["Application", "external"], "sstamp": "6f0d", "device": "d", "client_id": "cli",
        },
    })
}

/// What is changed in such a token, and the status of a read.
fn cases() -> Vec<(&'static str, Value, u16)> {
    let claims = |claims: Value| json!({ "claims": claims });
    vec![
        ("as it is", json!({}), 200),
        ("of a release without Key Connector", claims(json!({ "amr": ["Application"] })), 200),
        ("with the kid of its key set", json!({ "header": { "kid": "k1" } }), 200),
        ("its origin as a URL", claims(json!({ "iss": "https://vault.example.org" })), 401),
        (
            "its token to delete an account",
            claims(json!({ "iss": "https://vault.example.org|delete" })),
            401,
        ),
        ("another origin", claims(json!({ "iss": "https://other.example.org|login" })), 401),
        ("another case", claims(json!({ "iss": "https://vault.example.org|Login" })), 401),
        ("of another key", json!({ "key": "other" }), 401),
        (
            "its public key as HMAC",
            json!({ "header": { "alg": "HS256" }, "key": "public key as secret" }),
            401,
        ),
        ("expired", claims(json!({ "exp": "-3600" })), 401),
        ("scope of an organisation", claims(json!({ "scope": ["api.organization"] })), 403),
    ]
}

#[test]
fn tokens_of_vaultwarden_are_taken_with_its_key_in_a_file_as_pem_or_as_key_set() {
    let services = Services::software();
    for (file, content) in [("key.pem", services.issuer.pem()), ("jwks", services.issuer.jwks())] {
        tokens_are_taken_with(&services, &services.setup.files.file(file, &content, 0o644));
    }
}

fn tokens_are_taken_with(services: &Services, keys: &str) {
    let stored = Stored::shared(services.sqlite("vaultwarden.db"));
    let (configuration, ..) = services.configuration(&stored);
    let text = std::fs::read_to_string(configuration).unwrap();
    let discovery = format!("url = '{}'", services.issuer.name());
    let text = text.replace(&discovery, &format!("keys = '{keys}'\nname = '{NAME}'"));
    let connector = services.spawn_file(&stored, &text);
    connector.wait_until_healthy();

    let (user, key) = (new_user(), new_key());
    let token = |change: &Value| {
        let mut case = token_of_vaultwarden();
        for part in ["header", "claims"] {
            for (name, value) in change[part].as_object().into_iter().flatten() {
                case[part][name] = value.clone();
            }
        }
        case["key"] = change["key"].clone();
        services.issuer.token_with(&user, &case, &|text| text.to_owned())
    };
    let body = json!({ "key": key }).to_string();
    assert_eq!(connector.user_keys("POST", &token(&json!({})), Some(&body)).status, 200);
    for (what, change, status) in cases() {
        let reply = connector.user_keys("GET", &token(&change), None);
        assert_eq!(reply.status, status, "{keys}: {what}: {reply:?}\n{}", connector.log());
        if status == 200 {
            assert_eq!(reply.key(), key, "{what}");
        }
    }
}
