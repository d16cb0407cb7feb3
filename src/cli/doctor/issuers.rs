//! The issuers of tokens, looked at as the daemon does.

use std::fmt::Write;
use std::time::Duration;

use claviger_tokens::{Examined, Trouble, examine};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::report::clean;
use crate::cli::failure::Exit;
use crate::daemon::config::Config;

/// What was found about each issuer, in the order of their names.
#[derive(Default)]
pub(super) struct Issuers(Vec<(String, Examined)>);

impl Issuers {
    /// Asks them all, side by side.
    pub(super) async fn examine(config: &Config, limit: Duration) -> Self {
        let each = config.issuers.iter().map(async |(name, issuer)| {
            let examined = timeout(limit, examine(&issuer.settings, &issuer.rules)).await;
            let silent = |_| Examined {
                trouble: Some(Trouble {
                    text: format!("it did not answer within {limit:?}"),
                    is_passing: true,
                }),
                ..Examined::default()
            };
            (name.clone(), examined.unwrap_or_else(silent))
        });
        Self(futures::future::join_all(each).await)
    }

    /// One for each that tokens are not accepted of.
    pub(super) fn exits(&self) -> impl Iterator<Item = Exit> {
        let troubles = self.0.iter().filter_map(|(_, examined)| examined.trouble.as_ref());
        troubles.map(
            |trouble| {
                if trouble.is_passing { Exit::Unavailable } else { Exit::Configuration }
            },
        )
    }

    pub(super) fn write(&self, text: &mut String) -> std::fmt::Result {
        for (name, Examined { keys, trouble, notes }) in &self.0 {
            match trouble {
                None => writeln!(text, "issuer {name}: ok, {keys} public keys")?,
                Some(trouble) => writeln!(text, "issuer {name}: FAIL: {}", clean(&trouble.text))?,
            }
            for note in notes {
                writeln!(text, "        note: {}", clean(note))?;
            }
        }
        Ok(())
    }

    pub(super) fn to_json(&self) -> Vec<Value> {
        let issuer = |(name, examined): &(String, Examined)| {
            let Examined { keys, trouble, notes } = examined;
            json!({
                "issuer": name,
                "ok": trouble.is_none(),
                "keys": keys,
                "said": trouble.as_ref().map(|trouble| &trouble.text),
                "notes": notes,
            })
        };
        self.0.iter().map(issuer).collect()
    }
}
