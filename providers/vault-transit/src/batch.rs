//! Several values in one request: `batch_input` of Transit's decrypt (api-docs: Transit, "Decrypt data").
//!
//! One bad value makes the whole answer HTTP 400 or 500; its body still has a result for each.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use claviger_provider_api::foreign::printable;
use claviger_provider_api::{Error, KeyMaterial, Unwrapped};
use serde::{Deserialize, Serialize};

use crate::auth::Session;
use crate::client::{Answer, Request};
use crate::error::{Failure, Operation, meaning_of_item};
use crate::value::{UnwrapRequest, decoded};

/// How many values go into one request, as many as the daemon takes in one. The servers' own limit is
/// the size of a request, 32 MiB.
pub(crate) const LIMIT: usize = 64;

#[derive(Serialize)]
struct BatchRequest {
    batch_input: Vec<UnwrapRequest>,
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    request_id: Option<String>,
    #[serde(borrow)]
    data: BatchData<'a>,
}

#[derive(Deserialize)]
struct BatchData<'a> {
    #[serde(borrow)]
    batch_results: Vec<ItemAnswer<'a>>,
}

#[derive(Deserialize)]
struct ItemAnswer<'a> {
    #[serde(borrow, default)]
    plaintext: Cow<'a, str>,
    error: Option<String>,
}

/// Unwraps values in one request; gives a result for each, in their order.
pub(crate) async fn send(
    session: &Arc<Session>,
    path: String,
    batch_input: Vec<UnwrapRequest>,
    deadline: Instant,
) -> Vec<Result<Unwrapped, Error>> {
    let count = batch_input.len();
    let request = Request::post(Operation::UnwrapBatch, path, &BatchRequest { batch_input });
    match session.send(&request, deadline).await {
        Ok(answer) => results(&answer, count),
        Err(error) => for_each(count, &error),
    }
}

fn results(answer: &Answer, count: usize) -> Vec<Result<Unwrapped, Error>> {
    let read = || {
        let BatchAnswer { request_id, data } = answer.json()?;
        if data.batch_results.len() != count {
            let found = data.batch_results.len();
            return Err(Failure::Malformed(format!("{found} results for {count} values")));
        }
        let result = |item: ItemAnswer<'_>| {
            result(item)
                .map_err(|error| error.with_backend_request_id(request_id.clone()))
                .map(|material| Unwrapped { material, backend_request_id: request_id.clone() })
        };
        Ok(data.batch_results.into_iter().map(result).collect())
    };
    read().unwrap_or_else(|failure: Failure| for_each(count, &failure.into()))
}

/// The error of a request that gave no results, for each of its `count` values.
fn for_each(count: usize, error: &Error) -> Vec<Result<Unwrapped, Error>> {
    std::iter::repeat_with(|| Err(error.repeated())).take(count).collect()
}

fn result(item: ItemAnswer<'_>) -> Result<KeyMaterial, Error> {
    match item.error.filter(|error| !error.is_empty()) {
        None => decoded(&item.plaintext).map_err(Error::from),
        Some(error) => {
            let (kind, cause) = meaning_of_item(&error);
            let text = format!("item of a batch: {}", printable(&error));
            Err(Error::new(kind, text).with_cause(cause))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::ErrorKind;

    /// As OpenBao 2.4.0 answers a batch with a bad value, with HTTP 500.
    const MIXED: &str = r#"{"request_id":"7f1b","lease_id":"","renewable":false,"lease_duration":0,"data":{"batch_results":[{"plaintext":"AQI=","reference":""},{"plaintext":"","error":"failed to RSA decrypt the ciphertext: crypto/rsa: decryption error","reference":""},{"plaintext":"","reference":""}]},"wrap_info":null,"warnings":null,"auth":null}"#;

    #[test]
    fn good_values_are_kept_beside_a_bad_one() {
        let answer = Answer::of(MIXED);
        let mut results = results(&answer, 3).into_iter();
        let mut next = || results.next().unwrap();
        let first = next().unwrap();
        assert_eq!(first.material.expose(), [1, 2]);
        assert_eq!(first.backend_request_id.as_deref(), Some("7f1b"));
        let error = next().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnwrapFailed);
        assert_eq!(error.backend_request_id(), Some("7f1b"));
        assert!(next().unwrap().material.expose().is_empty(), "an empty value is a value");
    }

    #[test]
    fn another_number_of_results_is_no_answer() {
        for count in [2, 4] {
            let results = results(&Answer::of(MIXED), count);
            assert_eq!(results.len(), count);
            for result in results {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
            }
        }
    }
}
