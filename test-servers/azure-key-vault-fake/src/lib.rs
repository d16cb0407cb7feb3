//! A fake of Azure Key Vault, of Managed HSM, and of Microsoft Entra's token endpoint: for tests, and
//! nothing else. Real RSA and real TLS under a CA of its own; everything else is what the public REST
//! reference and recorded answers of the service say.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! let fake = azure_key_vault_fake::Fake::start().await?;
//! let kid = fake.create("user-keys", 2048);   // https://127.0.0.1:PORT/keys/user-keys/VERSION
//! std::fs::write("ca.pem", fake.ca_pem())?;
//! # Ok(()) }
//! ```
//!
//! - `exchange`: requests, replies, and [`Fault`]s between them
//! - `tokens`: who gets in
//! - `vault`: keys, versions, routes; `rsa`: what is done with them; `errors`: what is refused

mod errors;
mod exchange;
mod rsa;
mod tokens;
mod vault;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair as TlsKey,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

pub use exchange::Fault;
pub use tokens::{CLIENT_ASSERTION, CLIENT_ID, CLIENT_SECRET, IDENTITY_HEADER, TENANT};

use errors::Refusal;
use exchange::{Answer, Reply, Request};
use rsa::KeyPair;
use tokens::{MANAGED_IDENTITY_PATH, Tokens};
use vault::Vault;

/// A vault and its token endpoint, on one address, until it is dropped or its runtime ends.
#[derive(Debug)]
pub struct Fake {
    origin: String,
    ca_pem: String,
    service: Arc<Service>,
    serving: AbortHandle,
}

struct Service {
    origin: String,
    tokens: Tokens,
    state: Mutex<State>,
}

struct State {
    vault: Vault,
    faults: VecDeque<Fault>,
    login_faults: VecDeque<Fault>,
    asked: Vec<String>,
}

/// Which of the two services it fakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Key Vault: tokens for `https://vault.azure.net`.
    Vault,
    /// Managed HSM: tokens for `https://managedhsm.azure.net`, keys in hardware.
    ManagedHsm,
}

impl Fake {
    /// A vault on a free loopback port.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(Kind::Vault, 0, "127.0.0.1").await
    }

    /// The kind, the loopback port (0 for a free one) and the name in the certificate.
    pub async fn start_with(kind: Kind, port: u16, certified: &str) -> io::Result<Self> {
        let (listener, address) = exchange::listen(port).await?;
        let origin = format!("https://{address}");
        let (acceptor, ca_pem) = tls(certified);
        let resource = match kind {
            Kind::Vault => "https://vault.azure.net",
            Kind::ManagedHsm => "https://managedhsm.azure.net",
        };
        let service = Arc::new(Service {
            origin: origin.clone(),
            tokens: Tokens::new(resource),
            state: Mutex::new(State {
                vault: Vault::new(origin.clone(), kind == Kind::ManagedHsm),
                faults: VecDeque::new(),
                login_faults: VecDeque::new(),
                asked: Vec::new(),
            }),
        });
        let serving = tokio::spawn(exchange::serve(listener, acceptor, Arc::clone(&service)));
        Ok(Self { origin, ca_pem, service, serving: serving.abort_handle() })
    }

    /// `https://127.0.0.1:PORT`: the vault, and the authority that gives tokens.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The CA of its certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Where a managed identity gets its tokens: `IDENTITY_ENDPOINT` of App Service.
    pub fn identity_endpoint(&self) -> String {
        format!("{}{MANAGED_IDENTITY_PATH}", self.origin)
    }

    /// Makes a key of 2048, 3072 or 4096 bits, or a further version of one; gives its identifier.
    pub fn create(&self, name: &str, bits: usize) -> String {
        let pair = KeyPair::generate(bits).expect("Azure has 2048, 3072 and 4096 bits");
        self.state().vault.add(name, pair)
    }

    /// Makes an elliptic key, or a further version of a key of any type; gives its identifier. It can be
    /// looked at and nothing else.
    pub fn create_elliptic(&self, name: &str) -> String {
        self.state().vault.add_elliptic(name)
    }

    /// Imports a key in PKCS#8 (DER), or a further version of one; gives its identifier.
    pub fn import(&self, name: &str, pkcs8: &[u8]) -> String {
        let pair = KeyPair::from_pkcs8(pkcs8).expect("an RSA key in PKCS#8");
        self.state().vault.add(name, pair)
    }

    /// Changes the version that an identifier names, as a PATCH does: `key_ops`, `attributes`, `tags`.
    pub fn change(&self, kid: &str, settings: &Value) {
        let path = kid.strip_prefix(&self.origin).expect("an identifier of this vault");
        let request = Request {
            method: http::Method::PATCH,
            path: path.to_owned(),
            query: vec![("api-version".to_owned(), "7.4".to_owned())],
            headers: http::HeaderMap::new(),
            body: settings.to_string().into(),
        };
        self.state().vault.answer(&request).expect("the version is there");
    }

    /// Switches the version that an identifier names on or off.
    pub fn enable(&self, kid: &str, enabled: bool) {
        self.change(kid, &json!({ "attributes": { "enabled": enabled } }));
    }

    /// Deletes a key with all its versions.
    pub fn remove(&self, name: &str) {
        self.state().vault.remove(name);
    }

    /// Does this to the next request to the vault that is let in and has no fault yet.
    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Does this to the next request for a token.
    pub fn login_fault(&self, fault: Fault) {
        self.state().login_faults.push_back(fault);
    }

    /// What the vault was asked since the last time, in order, such as
    /// `POST /keys/user-keys/VERSION/unwrapkey`; what it did not let in begins with `401 `.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    /// From now on every token that was given out is expired.
    pub fn revoke_tokens(&self) {
        self.service.tokens.revoke();
    }

    /// How long the tokens live that are given out from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.service.tokens.set_lifetime(lifetime);
    }

    /// Replaces the application's secret.
    pub fn set_client_secret(&self, secret: &str) {
        self.service.tokens.set_client_secret(secret);
    }

    /// Whether every login is refused.
    pub fn refuse_logins(&self, refuse: bool) {
        self.service.tokens.refuse(refuse);
    }

    /// How many tokens were given out.
    pub fn tokens_issued(&self) -> usize {
        self.service.tokens.issued()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.service.state()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer for Service {
    fn answer(&self, request: &Request) -> (Option<Fault>, Reply) {
        if Tokens::serves(&request.path) {
            let fault = self.state().login_faults.pop_front();
            // A client that gets another answer, or none, gets no token.
            if matches!(fault, Some(Fault::Answer { .. } | Fault::Cut)) {
                return (fault, Reply::json(503, &Value::Null));
            }
            return (fault, self.tokens.answer(request, &self.origin));
        }
        let asked = format!("{} {}", request.method, request.path);
        let mut state = self.state();
        if let Err(message) = self.tokens.admit(request) {
            state.asked.push(format!("401 {asked}"));
            let authority = format!("{}/{TENANT}", self.origin);
            let refusal = Refusal::unauthorized(message, &authority, self.tokens.resource());
            return (None, refusal.into());
        }
        state.asked.push(asked);
        let fault = state.faults.pop_front();
        match state.vault.answer(request) {
            Ok(body) => (fault, Reply::json(200, &body)),
            Err(refusal) => (fault, refusal.into()),
        }
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({})", self.origin)
    }
}

/// A certificate for one name or address, under a CA that is made for it.
fn tls(name: &str) -> (TlsAcceptor, String) {
    let made = "rcgen and rustls take what rcgen made";
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate for self-signed if its issuer has the same name.
    params.distinguished_name.push(DnType::CommonName, "CA of the fake of Azure Key Vault");
    let ca = CertifiedIssuer::self_signed(params, TlsKey::generate().expect(made)).expect(made);
    let key = TlsKey::generate().expect(made);
    let params = CertificateParams::new([name.to_owned()]).expect("a DNS name or an address");
    let chain = vec![params.signed_by(&key, &ca).expect(made).der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect(made)
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect(made);
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}
