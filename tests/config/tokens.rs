//! `[issuers]`, callers by token, listeners without certificates: what they become, and what is said of
//! wrong ones.

use std::time::Duration;

use claviger::daemon::config::{Identity, Listen, TokenMatch};
use claviger_tokens::{Audience, Audiences, ClaimValue, KeySource};

use crate::{parse, refusal};

const GOOD: &str = r#"[server]
listen = ["127.0.0.1:8443", { address = "127.0.0.1:8444", client_certificate = "optional" }]
[server.tls]
certificate = "server.crt"
private_key = "server.key"
client_ca = { clients = "clients.pem" }
[audit]
off = true
[issuers.corp]
issuer = "https://login.example.org/realms/corp"
audiences = ["claviger", "^\\d{18}$"]
[issuers.mesh]
trust_domain = "example.org"
keys = "bundle.jwks"
audiences = "any"
max_age = "1h"
[[callers]]
name = "one"
match = { issuer = "corp", subject = "alice", claims = { groups = "hsm", level = [1, 2], ok = true }, spiffe = "spiffe://example.org/gateway" }
[[callers]]
name = "two"
match = { issuer = "mesh", subject = "spiffe://example.org/kc" }
"#;

#[test]
fn issuers_and_callers_by_token_become_what_they_say() {
    let config = parse(GOOD).unwrap();
    assert!(matches!(config.server.listen[..], [Listen::Tcp(_), Listen::Tcp(_)]));
    assert_eq!(config.server.without_certificate, ["127.0.0.1:8444".parse().unwrap()]);
    let corp = &config.issuers["corp"];
    let url = "https://login.example.org/realms/corp".to_owned();
    assert_eq!(corp.settings.name.as_ref(), Some(&url));
    assert_eq!(corp.settings.source, KeySource::Discovery { url, ca: None });
    assert_eq!(corp.settings.cache_time, Duration::from_mins(10));
    assert_eq!(corp.settings.max_age, Duration::from_hours(24));
    assert_eq!((corp.rules.max_age, corp.rules.algorithms.len()), (Duration::from_hours(24), 9));
    let Audiences::Of(audiences) = &corp.rules.audiences else { panic!("not any") };
    assert!(matches!(audiences[..], [Audience::Exact(_), Audience::Pattern(_)]));
    let mesh = &config.issuers["mesh"];
    assert_eq!(
        (mesh.settings.name.as_ref(), mesh.trust_domain.as_deref()),
        (None, Some("example.org"))
    );
    assert_eq!(
        (&mesh.rules.audiences, mesh.rules.max_age),
        (&Audiences::Any, Duration::from_hours(1))
    );
    let claims = [
        ("groups".to_owned(), vec![ClaimValue::Text("hsm".to_owned())]),
        ("level".to_owned(), vec![ClaimValue::Number(1), ClaimValue::Number(2)]),
        ("ok".to_owned(), vec![ClaimValue::Flag(true)]),
    ];
    let expected = TokenMatch {
        issuer: "corp".to_owned(),
        subject: Some("alice".to_owned()),
        claims: claims.into(),
        peer: Some(Box::new(Identity::Spiffe("spiffe://example.org/gateway".to_owned()))),
    };
    assert_eq!(config.callers[0].matches[0].identity, Identity::Token(expected));
}

#[test]
fn wrong_issuers_and_matches_are_told_with_what_to_write() {
    const ISSUER: &str = "issuer = \"https://login.example.org/realms/corp\"\n";
    const AUDIENCES: &str = "audiences = [\"claviger\", \"^\\\\d{18}$\"]";
    const SECOND: &str = "match = { issuer = \"mesh\", subject = \"spiffe://example.org/kc\" }";
    for (find, write, expected) in [
        (ISSUER, "", "issuers.corp.issuer: is missing; write what `iss` is"),
        (AUDIENCES, "", "issuers.corp.audiences: is missing"),
        (AUDIENCES, "audiences = \"claviger\"", "is a string; write a list, or \"any\""),
        (AUDIENCES, "audiences = []", "is empty; write what `aud` is"),
        (AUDIENCES, "audiences = [\"^a\"]", "has no `$` at its end"),
        (
            AUDIENCES,
            "audiences = [\"a\"]\nalgorithms = [\"HS256\"]",
            "its key would be a secret, not a public key",
        ),
        (AUDIENCES, "audiences = [\"a\"]\nalgorithms = []", "leave it out for all of them"),
        (
            AUDIENCES,
            "audiences = [\"a\"]\nca = \"ca.pem\"\nkeys = \"a.jwks\"",
            "is there beside `keys`, which is a file",
        ),
        (AUDIENCES, "audiences = [\"a\"]\ndiscovery = \"http://a.example\"", "is no https URL"),
        (
            "https://login.example.org/realms/corp",
            "vault|login",
            "so discovery cannot be there; write `discovery`",
        ),
        (
            "trust_domain = \"example.org\"\n",
            "issuer = \"https://login.example.org/realms/corp\"\n",
            "as issuers.corp has; a token is of one issuer",
        ),
        (
            "trust_domain = \"example.org\"",
            "trust_domain = \"spiffe://example.org\"",
            "is no SPIFFE trust domain",
        ),
        ("keys = \"bundle.jwks\"\n", "", "issuers.mesh.keys: is missing"),
        (
            "{ issuer = \"mesh\"",
            "{ issuer = \"mash\"",
            "\"mash\" is no issuer; did you mean \"mesh\"?",
        ),
        (SECOND, "match = { issuer = \"mesh\" }", "each of its tokens would be this caller"),
        (SECOND, "match = { subject = \"a\" }", "callers[1].match.issuer: is missing"),
        (SECOND, "match = { issuer = \"mesh\", claims = { sub = \"a\" } }", "is judged by itself"),
        (
            SECOND,
            "match = { issuer = \"mesh\", claims = { a = 1.5 } }",
            "is neither text, true or false",
        ),
        (
            SECOND,
            "match = { issuer = \"mesh\", claims = { a = [] } }",
            "is neither text, true or false",
        ),
        (
            SECOND,
            "match = { issuer = \"mesh\", subject = \"a\", ca = \"others\" }",
            "\"others\" is not in server.tls.client_ca",
        ),
        (
            SECOND,
            "match = { issuer = \"mesh\", subject = \"a\", uid = 7 }",
            "has a uid, which only a Unix socket shows",
        ),
        (
            SECOND,
            "match = { issuer = \"corp\", subject = \"alice\" }",
            "matches only tokens that are the caller \"two\" too",
        ),
        (
            SECOND,
            "match = { issuer = \"corp\", claims = { groups = [\"hsm\", \"b\"] } }",
            "\"one\" would never be let in",
        ),
        (
            "client_certificate = \"optional\"",
            "client_certificate = \"never\"",
            "write \"required\" or \"optional\"",
        ),
        (
            "{ address = \"127.0.0.1:8444\", client_certificate = \"optional\" }",
            "{ address = \"unix:/run/c.sock\", client_certificate = \"optional\" }",
            "is for TLS; a Unix socket shows the peer's uid",
        ),
    ] {
        assert!(GOOD.contains(find), "{find}");
        let said = refusal(&GOOD.replacen(find, write, 1));
        assert!(said.contains(expected), "{write}: {said}");
    }
    let without = GOOD.split("[issuers.corp]").next().unwrap();
    assert!(refusal(without).contains("there are no [issuers] whose tokens"), "{without}");
}
