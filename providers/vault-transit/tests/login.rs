//! Logins: each method, renewal, revocation, and credentials that are refused.

mod backend;
mod kubernetes;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use claviger_provider_api::{ErrorKind, Provider as _, WrappingKey};
use claviger_vault_transit::{AppRole, Auth, Certificate, Jwt};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};

use backend::{Backend, ROOT, Server, open, round_trip};

/// Ends every token that the AppRole gave.
async fn revoke_all(server: &Server) {
    server.set("sys/leases/revoke-prefix/auth/approle/login", json!({"sync": true})).await;
}

async fn a_revoked_token_is_replaced_without_a_failed_check(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("1h", "24h").await;
    let key = open(&config, "transit/user-keys:1").await.unwrap();
    assert_eq!(key.repairs(), 0);
    revoke_all(&server).await;
    key.check().await.unwrap();
    assert_eq!(key.repairs(), 1);

    // A caller's unwrap is told that something was repaired, and then works.
    revoke_all(&server).await;
    let error = round_trip(&*key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.kind().may_retry_after_repair());
    assert_eq!(key.repairs(), 2);
    round_trip(&*key).await.unwrap();
}

async fn many_calls_on_a_revoked_token_make_one_login(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("1h", "24h").await;
    let key = open(&config, "transit/user-keys:1").await.unwrap();
    revoke_all(&server).await;
    let check = |key: std::sync::Arc<dyn WrappingKey>| async move { key.check().await };
    let checks: Vec<_> = (0..32).map(|_| tokio::spawn(check(key.clone()))).collect();
    for check in checks {
        check.await.unwrap().unwrap();
    }
    assert_eq!(key.repairs(), 1);
}

async fn a_token_that_is_refused_when_it_is_new_is_not_replaced_at_each_call(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("1h", "24h").await;
    let key = open(&config, "transit/user-keys:1").await.unwrap();
    // It logs in as before, and everything else is refused, even to look the token up.
    let elsewhere = json!({"token_policies": ["claviger"], "token_bound_cidrs": ["192.0.2.0/24"]});
    server.set("auth/approle/role/claviger", elsewhere).await;
    revoke_all(&server).await;
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        let error = key.check().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OperatorNeeded),
            "{error}"
        );
    }
    // Two, and two more for each ten seconds that a slow machine may take.
    let most = 2 * (1 + begun.elapsed().as_secs() / 10 + 1);
    assert!(key.repairs() <= most, "{} logins, {most} at most", key.repairs());
}

async fn a_token_is_renewed_and_then_replaced_at_its_longest_life(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let config = server.config_with_approle("6s", "15s").await;
    let key = open(&config, "transit/user-keys:1").await.unwrap();
    let begun = std::time::Instant::now();
    let mut renewed = false;
    while key.repairs() == 0 && begun.elapsed() < Duration::from_mins(1) {
        // As the daemon does it: once more after a repair, which is seldom needed at the very end.
        if let Err(error) = round_trip(&*key).await {
            assert!(error.kind().may_retry_after_repair() && key.repairs() > 0, "{error}");
            round_trip(&*key).await.unwrap();
        }
        // Past its first lease, and still the first login.
        renewed |= key.repairs() == 0 && begun.elapsed() > Duration::from_secs(7);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    round_trip(&*key).await.unwrap();
    assert!(renewed, "it was replaced instead of renewed");
    assert_eq!(key.repairs(), 1, "it outlived its longest life");
}

async fn a_refused_secret_id_needs_an_operator_and_is_not_sent_again(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    let good = server.config_with_approle("1h", "24h").await;
    let Auth::Approle(approle) = &good.auth else { panic!("an AppRole was asked for") };
    let secret_id = server.secret("bad-secret-id", "00000000-marker");
    let bad = server.config(Auth::Approle(AppRole { secret_id, ..approle.clone() }));
    let provider = claviger_vault_transit::Provider::new("vault-a", &bad).unwrap();
    let open_key = claviger_provider_api::OpenKey {
        locator: "transit/user-keys:1",
        algorithms: &[claviger_provider_api::Algorithm::RsaOaep256],
        sign_algorithms: &[],
        public_key_sha256: None,
    };
    let first = provider.open(&open_key).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::OperatorNeeded, "{first}");
    assert!(first.to_string().contains("secret_id") && !first.to_string().contains("marker"));
    // Frozen, the server could not say it again.
    server.freeze();
    let again = provider.open(&open_key).await.unwrap_err().to_string();
    server.thaw();
    assert_eq!(again, first.to_string());
    // Another secret id is tried at once.
    let secret = server.set("auth/approle/role/claviger/secret-id", json!({})).await;
    server.secret("bad-secret-id", secret["data"]["secret_id"].as_str().unwrap());
    provider.open(&open_key).await.unwrap();
}

async fn a_new_token_in_the_file_replaces_a_revoked_one(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    server.least_policy().await;
    let create = || server.set("auth/token/create", json!({"policies": ["claviger"], "ttl": "1h"}));
    let token = create().await["auth"]["client_token"].as_str().unwrap().to_owned();
    let config = server.config_with_token(&format!("{token}\n"));
    let key = open(&config, "transit/user-keys:1").await.unwrap();

    server.set("auth/token/revoke", json!({"token": token})).await;
    let error = key.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
    server.secret("token", create().await["auth"]["client_token"].as_str().unwrap());
    key.check().await.unwrap();
    round_trip(&*key).await.unwrap();
}

async fn a_client_certificate_logs_in(backend: Backend) {
    let server = Server::start_tls(backend).await;
    server.make_key("user-keys", 2048).await;
    server.least_policy().await;
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "clients");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let client_key = KeyPair::generate().unwrap();
    let mut client = CertificateParams::new(vec!["claviger.example.org".to_owned()]).unwrap();
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    client.distinguished_name.push(DnType::CommonName, "claviger");
    let certificate = client.signed_by(&client_key, &Issuer::from_params(&ca, &ca_key)).unwrap();

    server.set("sys/auth/cert", json!({"type": "cert"})).await;
    let role = json!({"certificate": ca_pem, "token_policies": ["claviger"]});
    server.set("auth/cert/certs/claviger", role).await;
    let path = server.folder().join("client.crt");
    std::fs::write(&path, certificate.pem()).unwrap();
    let config = server.config(Auth::Certificate(Certificate {
        mount: "cert".into(),
        role: Some("claviger".into()),
        certificate: path,
        private_key: server.secret("client.key", &client_key.serialize_pem()),
    }));
    round_trip(&*open(&config, "transit/user-keys:1").await.unwrap()).await.unwrap();
}

/// The JWT's issuer is a key in the server itself.
async fn a_jwt_logs_in(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    server.make_key("issuer", 2048).await;
    server.least_policy().await;
    let issuer = server.get("transit/keys/issuer").await;
    let key = issuer["data"]["keys"]["1"]["public_key"].clone();
    server.set("sys/auth/jwt", json!({"type": "jwt"})).await;
    server.set("auth/jwt/config", json!({"jwt_validation_pubkeys": [key]})).await;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "bound_subject": "claviger", "token_policies": ["claviger"],
    });
    server.set("auth/jwt/role/claviger", role).await;

    let jwt = jwt_of_issuer(&server, json!({"sub": "claviger", "aud": "vault"})).await;
    let method = |role: &str| {
        Auth::Jwt(Jwt { mount: None, role: role.into(), token: server.secret("jwt", &jwt) })
    };
    let config = server.config(method("claviger"));
    round_trip(&*open(&config, "transit/user-keys:1").await.unwrap()).await.unwrap();
    let error = open(&server.config(method("nobody")), "transit/user-keys:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
}

/// A JWT with these claims, good for ten minutes, signed by `transit/issuer`.
async fn jwt_of_issuer(server: &Server, mut claims: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    claims["iat"] = now.into();
    claims["exp"] = (now + 600).into();
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(json!({"alg": "RS256"})), part(claims));
    let sign = json!({"input": STANDARD.encode(&signed), "signature_algorithm": "pkcs1v15"});
    let signature = server.set("transit/sign/issuer/sha2-256", sign).await;
    let signature = signature["data"]["signature"].as_str().unwrap();
    let signature = STANDARD.decode(signature.strip_prefix("vault:v1:").unwrap()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The server is real, and asks a fake API server of Kubernetes whose token it was given.
async fn a_kubernetes_service_account_logs_in(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("user-keys", 2048).await;
    server.make_key("issuer", 2048).await;
    server.least_policy().await;
    let account = json!({
        "sub": "system:serviceaccount:keys:claviger",
        "iss": "https://kubernetes.default.svc.cluster.local",
        "kubernetes.io": {
            "namespace": "keys",
            "serviceaccount": {"name": "claviger", "uid": kubernetes::UID},
        },
    });
    let jwt = jwt_of_issuer(&server, account).await;
    let cluster = kubernetes::FakeApiServer::that_knows(&jwt).await;
    server.set("sys/auth/kubernetes", json!({"type": "kubernetes"})).await;
    let config = json!({
        "kubernetes_host": cluster.address, "kubernetes_ca_cert": cluster.ca_pem,
        "token_reviewer_jwt": kubernetes::REVIEWER, "disable_local_ca_jwt": true,
    });
    server.set("auth/kubernetes/config", config).await;
    let role = json!({
        "bound_service_account_names": ["claviger"],
        "bound_service_account_namespaces": ["keys"], "token_policies": ["claviger"],
    });
    server.set("auth/kubernetes/role/claviger", role).await;

    let method = |role: &str, name: &str, jwt: &str| {
        let (role, token) = (role.to_owned(), server.secret(name, jwt));
        server.config(Auth::Kubernetes(Jwt { mount: None, role, token }))
    };
    let good = method("claviger", "good", &format!("{jwt}\n"));
    round_trip(&*open(&good, "transit/user-keys:1").await.unwrap()).await.unwrap();
    assert_eq!(cluster.reviews(), 1, "the API server was asked once");

    // Another pod's token, which the cluster does not know, and a role that is not there.
    let mut other = jwt.clone();
    other.pop();
    other.push(if jwt.ends_with('A') { 'B' } else { 'A' });
    for bad in [method("claviger", "bad", &other), method("nobody", "good", &jwt)] {
        let error = open(&bad, "transit/user-keys:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("issuer, audience and expiry"), "{error}");
        assert!(!error.to_string().contains(&jwt[..20]), "{error}");
    }
}

async fn a_root_token_without_an_end_serves(backend: Backend) {
    let server = Server::start(backend).await;
    server.make_key("k", 2048).await;
    let key = open(&server.config_with_token(ROOT), "transit/k:1").await.unwrap();
    key.check().await.unwrap();
    assert_eq!(key.repairs(), 0);
}

on_both!(
    a_revoked_token_is_replaced_without_a_failed_check,
    many_calls_on_a_revoked_token_make_one_login,
    a_token_that_is_refused_when_it_is_new_is_not_replaced_at_each_call,
    a_token_is_renewed_and_then_replaced_at_its_longest_life,
    a_refused_secret_id_needs_an_operator_and_is_not_sent_again,
    a_new_token_in_the_file_replaces_a_revoked_one,
    a_client_certificate_logs_in,
    a_jwt_logs_in,
    a_kubernetes_service_account_logs_in,
    a_root_token_without_an_end_serves,
);
