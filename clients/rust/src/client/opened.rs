//! The description of a key, from whichever endpoint has opened it.

use claviger_proto::v1;

use super::{Client, malformed, service};
use crate::error::Error;

impl Client {
    /// The description of one key, from an endpoint that has opened it: one whose backend was down
    /// ever since it started describes the key without its public keys, and then each other one is
    /// asked once. Where none has opened all of its versions but the disabled ones, the description
    /// with the most of them.
    pub async fn opened_key(&self, name: &str) -> Result<v1::Key, Error> {
        let request = v1::GetKeyRequest { key: name.to_owned() };
        let sent_id = self.options.sent_id();
        let mut attempts = self.attempts(true);
        let mut best: Option<v1::Key> = None;
        loop {
            let send = |c, r| async move { service(c).get_key(r).await };
            let answer = self.answer(&mut attempts, &request, &sent_id, send).await;
            let key = answer.and_then(|(answer, request_id)| {
                answer.key.ok_or_else(|| malformed("the key is missing", request_id.as_ref()))
            });
            let key = match key {
                Ok(key) => key,
                // What one endpoint cannot say is no failure after another one has spoken.
                Err(error) => return best.ok_or(error),
            };
            let closed = closed_versions(&key);
            let is_better = best.as_ref().is_none_or(|best| closed < closed_versions(best));
            if is_better && best.replace(key).is_some() {
                attempts.was_better();
            }
            if closed == 0 || !attempts.only_others() {
                return Ok(best.expect("a description was just kept"));
            }
        }
    }
}

/// How many of a key's versions that may be used are described without their public key.
fn closed_versions(key: &v1::Key) -> usize {
    let is_closed = |version: &&v1::KeyVersion| {
        version.public_key.is_empty() && version.state() != v1::KeyVersionState::Disabled
    };
    key.versions.iter().filter(is_closed).count()
}
