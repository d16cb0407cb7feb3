//! Who may approve: an ID token of the approvals' issuer, judged here and, for the approval itself, again
//! by the daemon.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claviger_tokens::{
    ALGORITHMS, Audience, Audiences, Claims, Fault, Issuer, NotVerified, Person, Rules, Token,
    is_person,
};

use crate::config;
use crate::token::Refusal;

/// How long an approver may look at the page without signing in again.
const SESSION: Duration = Duration::from_hours(12);

/// Those who may approve what administrators may.
#[derive(Debug)]
pub struct Approvers {
    /// Whose ID tokens count.
    pub issuer: Arc<Issuer>,
    rules: Rules,
    person: Person,
}

/// A person who may approve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    /// `sub`.
    pub subject: String,
    /// For people: the e-mail or the user name that the token has, and the subject.
    pub name: String,
}

impl Approvers {
    /// Reads what is in files; the network is asked later.
    pub fn new(config: &config::Approvals) -> Result<Self, String> {
        let rules = Rules {
            audiences: Audiences::Of(vec![Audience::Exact(config.client_id.clone())]),
            algorithms: ALGORITHMS.map(str::to_owned).to_vec(),
            max_age: SESSION,
        };
        let issuer = Issuer::new(&config.issuer)?;
        Ok(Self { issuer, rules, person: config.approvers.clone() })
    }

    /// The approver whose ID token it is.
    pub async fn approver(&self, token: &str) -> Result<Approver, Refusal> {
        let token = Token::parse(token)?;
        let claims = Claims::parse(token.claims())?;
        let known = self.issuer.verify(&token).await.map_err(|reason| match reason {
            NotVerified::Bad(fault) => Refusal::Bad(fault),
            NotVerified::NoKeys => Refusal::NotNow,
        })?;
        if claims.text("iss") != Some(&known.name) {
            return Err(Refusal::Bad(Fault::Issuer));
        }
        let subject = self.rules.judge(&token, &claims, None, SystemTime::now())?.subject;
        if !is_person(&self.person, &subject, &claims) {
            return Err(Refusal::Forbidden("its subject or claims are not those of an approver"));
        }
        let name = ["email", "preferred_username"].iter().find_map(|name| claims.text(name));
        let name = match name.filter(|name| name.len() <= 254) {
            Some(name) => format!("{name} ({subject})"),
            None => subject.clone(),
        };
        Ok(Approver { subject, name })
    }

    /// Whether a token says that it is of this issuer; nothing is verified.
    pub fn claims_to_be(&self, token: &str) -> bool {
        let claims = Token::parse(token).and_then(|token| Claims::parse(token.claims()));
        let Ok(claims) = claims else { return false };
        let known = self.issuer.known();
        let name = known.as_ref().map(|known| &*known.name);
        let configured = self.issuer.settings().name.as_deref();
        claims.text("iss").is_some_and(|iss| [name, configured].contains(&Some(iss)))
            && claims.has("aud", &self.audience())
    }

    fn audience(&self) -> [claviger_tokens::ClaimValue; 1] {
        let Audiences::Of(audiences) = &self.rules.audiences else { unreachable!("made above") };
        let Some(Audience::Exact(client_id)) = audiences.first() else {
            unreachable!("made above")
        };
        [claviger_tokens::ClaimValue::Text(client_id.clone())]
    }
}
