//! Callers by token: whose tokens are trusted, and what a call's token says.
//!
//! `wrong_signatures`: how many wrong signatures one source may have looked at.

mod wrong_signatures;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use claviger_tokens::{Claims, Fault, Issuer, Judged, Known, NotVerified, Token};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::daemon::config;
use crate::daemon::transport::caller::{CallerIndex, Callers, Peer, Unidentified};
use crate::daemon::transport::log_limit::LogLimit;
use crate::daemon::transport::verdicts::{TokenIdentity, Verdict};
use wrong_signatures::WrongSignatures;

/// Lines of the log a minute about refused tokens, of all peers together.
const LOG_LINES: u32 = 30;

/// The issuers in force.
#[derive(Debug)]
pub struct Tokens {
    trusted: Vec<Trusted>,
    by_issuer: HashMap<String, usize>,
    by_trust_domain: HashMap<String, usize>,
    wrong_signatures: WrongSignatures,
    log_limit: LogLimit,
    /// Differs from that of any other configuration: verdicts are good under theirs alone.
    generation: u64,
}

/// One issuer in force.
#[derive(Debug)]
pub struct Trusted {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What the configuration says.
    pub config: config::Issuer,
    /// What is known of it.
    pub issuer: Arc<Issuer>,
}

/// Why a call's token does not say who calls.
#[derive(Debug)]
pub struct NotIdentified {
    /// The reason.
    pub why: Why,
    /// Of the token's bytes, where there was one.
    pub sha256: Option<[u8; 32]>,
    /// Who it is, where that is certain by now.
    pub identity: Option<Arc<TokenIdentity>>,
    /// Whose keys may have changed: fetched again, they may fit the token.
    pub outdated: Option<Arc<Issuer>>,
}

/// Why a call's token does not say who calls. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The token is not good.
    #[error("{0}")]
    Bad(Fault),
    /// It is good, and makes no caller of this peer.
    #[error("the token is good; {0}")]
    Unidentified(Unidentified),
    /// The keys of its issuer are not known, or have not been had for longer than `keys_max_age`.
    #[error("the keys of the token's issuer cannot be had; the log says why")]
    NoKeys,
    /// Its source has had too many wrong signatures looked at lately.
    #[error("too many tokens with wrong signatures came from there")]
    TooMany,
}

impl Why {
    /// A word for metrics and audit records.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Bad(fault) => fault.reason(),
            Self::Unidentified(unidentified) => unidentified.reason(),
            Self::NoKeys => "issuer_unavailable",
            Self::TooMany => "wrong_signatures",
        }
    }
}

/// Why the tokens of an issuer cannot be judged.
#[derive(Debug, thiserror::Error)]
#[error("issuers.{name}: {error}")]
pub struct IssuerError {
    name: String,
    error: String,
}

impl Tokens {
    /// Of the configured issuers; none where there are none. What is known of an issuer that has not
    /// changed is kept.
    pub fn new(
        issuers: &BTreeMap<String, config::Issuer>,
        before: Option<&Self>,
    ) -> Result<Option<Arc<Self>>, IssuerError> {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        if issuers.is_empty() {
            return Ok(None);
        }
        let mut tokens = Self {
            trusted: Vec::new(),
            by_issuer: HashMap::new(),
            by_trust_domain: HashMap::new(),
            wrong_signatures: WrongSignatures::default(),
            log_limit: LogLimit::per_minute(LOG_LINES),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
        };
        for (index, (name, config)) in issuers.iter().enumerate() {
            let known = before.and_then(|before| before.issuer(config));
            let issuer = match known {
                Some(issuer) => issuer,
                None => Issuer::new(&config.settings)
                    .map_err(|error| IssuerError { name: name.clone(), error })?,
            };
            if let Some(issuer) = &config.settings.name {
                tokens.by_issuer.insert(issuer.clone(), index);
            }
            if let Some(domain) = &config.trust_domain {
                tokens.by_trust_domain.insert(domain.clone(), index);
            }
            let (name, config) = (name.as_str().into(), config.clone());
            tokens.trusted.push(Trusted { name, config, issuer });
        }
        Ok(Some(Arc::new(tokens)))
    }

    /// The issuers, by their names.
    pub fn trusted(&self) -> &[Trusted] {
        &self.trusted
    }

    /// How many lines of the log refused tokens may cause.
    pub fn log_limit(&self) -> &LogLimit {
        &self.log_limit
    }

    /// Begins to fetch the keys that are old. To be called every few seconds, inside a Tokio runtime.
    pub fn refresh_when_due(&self) {
        for trusted in &self.trusted {
            trusted.issuer.refresh_when_due();
        }
    }

    /// Who calls with the token in these headers. Looks at no network.
    pub fn identify(
        &self,
        callers: &Callers,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<(CallerIndex, Arc<TokenIdentity>), NotIdentified> {
        let text = bearer(headers).map_err(|fault| Why::Bad(fault).of(None))?;
        let sha256 = digest(&SHA256, text.as_bytes());
        let sha256: [u8; 32] = sha256.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let now = SystemTime::now();
        let known = peer.verdicts.get(&sha256, self.generation, now);
        if let Some(Verdict { caller, identity, keys, issuer, .. }) = known
            && self.trusted[issuer].issuer.known().is_some_and(|k| Arc::ptr_eq(&k.keys, &keys))
        {
            // The certificate of a connection may end while the connection is open.
            let ended = peer.certificate.as_ref().is_some_and(|c| c.not_after < now);
            if !ended {
                return Ok((CallerIndex(caller), identity));
            }
        }
        self.look(callers, peer, text, sha256, now)
    }

    fn look(
        &self,
        callers: &Callers,
        peer: &Peer,
        text: &str,
        sha256: [u8; 32],
        now: SystemTime,
    ) -> Result<(CallerIndex, Arc<TokenIdentity>), NotIdentified> {
        let bad = |fault| Why::Bad(fault).of(Some(sha256));
        let token = Token::parse(text).map_err(bad)?;
        let claims = Claims::parse(token.claims()).map_err(bad)?;
        let index = self.of(&claims).ok_or_else(|| bad(Fault::Issuer))?;
        let Trusted { name, config, issuer } = &self.trusted[index];
        let certificate = peer.certificate.as_ref().map(|certificate| &certificate.sha256);
        let judged = config.rules.judge(&token, &claims, certificate, now).map_err(bad)?;
        let known = self.verify(peer, issuer, &token, sha256)?;
        let Judged { subject, until } = judged;
        let (issuer, subject) = (Arc::clone(name), subject.into());
        let identity = Arc::new(TokenIdentity { issuer, subject, sha256, until });
        let caller = callers.identify_token(peer, name, &identity.subject, &claims);
        let CallerIndex(place) = caller.map_err(|unidentified| NotIdentified {
            identity: Some(Arc::clone(&identity)),
            ..Why::Unidentified(unidentified).of(Some(sha256))
        })?;
        peer.verdicts.put(Verdict {
            identity: Arc::clone(&identity),
            caller: place,
            issuer: index,
            keys: known.keys,
            generation: self.generation,
        });
        Ok((CallerIndex(place), identity))
    }

    /// The signature: only of tokens that are right in all else, and not of a source that has had too
    /// many wrong ones.
    fn verify(
        &self,
        peer: &Peer,
        issuer: &Arc<Issuer>,
        token: &Token<'_>,
        sha256: [u8; 32],
    ) -> Result<Known, NotIdentified> {
        if !self.wrong_signatures.may_come_from(peer) {
            return Err(Why::TooMany.of(Some(sha256)));
        }
        issuer.verify_now(token).map_err(|reason| {
            if reason == NotVerified::Bad(Fault::Signature) {
                self.wrong_signatures.count(peer);
            }
            let why = match reason {
                NotVerified::Bad(fault) => Why::Bad(fault),
                NotVerified::NoKeys => Why::NoKeys,
            };
            NotIdentified { outdated: Some(Arc::clone(issuer)), ..why.of(Some(sha256)) }
        })
    }

    /// The issuer that the claims name. A JWT-SVID need not name one (SPIFFE JWT-SVID section 3): it is
    /// of its subject's trust domain.
    fn of(&self, claims: &Claims) -> Option<usize> {
        let domain = claims.text("sub").and_then(|sub| sub.strip_prefix("spiffe://"));
        let domain = domain.and_then(|id| id.split_once('/')).map(|(domain, _)| domain);
        let named = match claims.get("iss") {
            Some(iss) => self.by_issuer.get(iss.as_str()?).copied(),
            None => None,
        };
        let of_domain = domain.and_then(|domain| self.by_trust_domain.get(domain)).copied();
        let index = named.or(of_domain)?;
        let config = &self.trusted[index].config;
        let is_named =
            named.is_some() || config.settings.name.is_none() || claims.get("iss").is_none();
        let is_of_domain = config.trust_domain.as_deref().is_none_or(|own| domain == Some(own));
        (is_named && is_of_domain).then_some(index)
    }

    fn issuer(&self, config: &config::Issuer) -> Option<Arc<Issuer>> {
        let same = self.trusted.iter().find(|trusted| trusted.config.settings == config.settings);
        same.map(|trusted| Arc::clone(&trusted.issuer))
    }
}

impl Why {
    fn of(self, sha256: Option<[u8; 32]>) -> NotIdentified {
        NotIdentified { why: self, sha256, identity: None, outdated: None }
    }
}

/// The one bearer token (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Fault> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none()).ok_or(Fault::NotAToken)?;
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Fault::NotAToken)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Fault::NotAToken) }
}
