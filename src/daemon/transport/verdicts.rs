//! The tokens that were found good on one connection: the next call with one costs its hash alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use claviger_tokens::KeySet;

/// Tokens that are remembered for one connection, some 200 bytes each; the one that was used longest ago
/// makes room.
const MOST: usize = 16;

/// Who a token says its bearer is. Never the token itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentity {
    /// The issuer's name in the configuration.
    pub issuer: Arc<str>,
    /// `sub`.
    pub subject: Box<str>,
    /// Of the token's bytes.
    pub sha256: [u8; 32],
    /// From then on the token is no longer good.
    pub until: SystemTime,
}

/// The good tokens of one connection, the last used one first.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<Vec<Verdict>>);

/// That a token is good, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) identity: Arc<TokenIdentity>,
    /// The caller's place under `generation`.
    pub(super) caller: usize,
    /// The issuer's place under `generation`.
    pub(super) issuer: usize,
    /// By these keys: with others it has to be verified again.
    pub(super) keys: Arc<KeySet>,
    pub(super) generation: u64,
}

impl Verdicts {
    /// The verdict on the token with this SHA-256, unless it is of another configuration or over.
    pub(super) fn get(
        &self,
        sha256: &[u8; 32],
        generation: u64,
        now: SystemTime,
    ) -> Option<Verdict> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|verdict| verdict.identity.sha256 == *sha256)?;
        let verdict = &known[place];
        if verdict.generation != generation || now >= verdict.identity.until {
            known.remove(place);
            return None;
        }
        known[..=place].rotate_right(1);
        Some(known[0].clone())
    }

    /// Remembers a verdict.
    pub(super) fn put(&self, verdict: Verdict) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| other.identity.sha256 != verdict.identity.sha256);
        known.truncate(MOST - 1);
        known.insert(0, verdict);
    }
}

impl Clone for Verdicts {
    /// Of another connection: nothing.
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn verdict(sha256: u8, generation: u64, until: SystemTime, keys: &Arc<KeySet>) -> Verdict {
        let (issuer, subject) = ("corp".into(), "alice".into());
        let identity = TokenIdentity { issuer, subject, sha256: [sha256; 32], until };
        let (identity, keys) = (Arc::new(identity), Arc::clone(keys));
        Verdict { identity, caller: 0, issuer: 0, keys, generation }
    }

    #[test]
    fn a_verdict_is_found_until_its_token_or_its_configuration_is_over_and_few_are_kept() {
        let jwks = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let keys = Arc::new(KeySet::parse(jwks).unwrap());
        let (now, verdicts) = (SystemTime::now(), Verdicts::default());
        let soon = now + Duration::from_secs(10);
        for sha256 in 0..20 {
            verdicts.put(verdict(sha256, 7, soon, &keys));
            // The first one stays in use.
            assert!(verdicts.get(&[0; 32], 7, now).is_some(), "{sha256}");
        }
        assert_eq!(verdicts.0.lock().unwrap().len(), MOST);
        assert!(
            verdicts.get(&[1; 32], 7, now).is_none() && verdicts.get(&[19; 32], 7, now).is_some()
        );
        assert!(verdicts.get(&[0; 32], 7, soon).is_none(), "the token is over");
        assert!(verdicts.get(&[19; 32], 8, now).is_none(), "another configuration");
        assert!(verdicts.get(&[19; 32], 7, now).is_none(), "forgotten");
    }
}
