//! Several values in one request: each has its own result, in their order, whatever the others are.

use std::sync::Arc;

use claviger_provider_api::{BatchItem, CallerSlot, ErrorKind, Parameters};

use crate::report::Cases;
use crate::subject::{Outcome, Subject, call, random};

/// As many as the wire contract lets through.
const MOST: usize = 64;
/// Every so many of them is a bad one.
const BAD: usize = 7;

pub(crate) async fn run(cases: &mut Cases) {
    if !cases.subject().algorithms().is_empty() {
        cases.case("a batch gives each value its own result", batch).await;
        cases.case("a batch of bad values fails value by value", only_bad).await;
    }
}

/// A value, and what it was before it was wrapped; none for a bad one.
struct Value {
    wrapped: Vec<u8>,
    parameters: Parameters<'static>,
    plaintext: Option<Vec<u8>>,
}

async fn batch(subject: Arc<Subject>) -> Outcome {
    let algorithms = subject.algorithms();
    let mut values = Vec::new();
    for n in 0..subject.key().batch_limit().min(MOST) {
        let parameters = Parameters::of(algorithms[n % algorithms.len()]);
        let plaintext = random(n % 40);
        let mut wrapped = subject.wrap(&plaintext, &parameters)?;
        // RSA1_5 may give other bytes for a bad value, with success.
        let bad = n % BAD == BAD - 1 && parameters.algorithm.hash().is_some();
        if bad && n % 2 == 0 {
            wrapped.truncate(17);
        } else if bad {
            wrapped[1] ^= 0x20;
        }
        values.push(Value { wrapped, parameters, plaintext: (!bad).then_some(plaintext) });
    }
    expect(&subject, &values).await?;
    subject.expect_service().await?;
    subject.expect_well("after a batch").await
}

async fn only_bad(subject: Arc<Subject>) -> Outcome {
    let algorithms = subject.algorithms();
    let Some(algorithm) = algorithms.into_iter().find(|algorithm| algorithm.hash().is_some())
    else {
        return Ok(());
    };
    let bad = |_| {
        let mut wrapped = random(subject.k());
        wrapped[0] = 0;
        Value { wrapped, parameters: Parameters::of(algorithm), plaintext: None }
    };
    let values: Vec<Value> = (0..subject.key().batch_limit().min(3)).map(bad).collect();
    expect(&subject, &values).await?;
    subject.expect_service().await?;
    subject.expect_well("after a batch of bad values").await
}

async fn expect(subject: &Subject, values: &[Value]) -> Outcome {
    let items: Vec<BatchItem<'_>> = values
        .iter()
        .map(|Value { wrapped, parameters, .. }| BatchItem { wrapped, parameters: *parameters })
        .collect();
    let results = subject.key().unwrap_batch(&items, call(CallerSlot(1))).await;
    if results.len() != items.len() {
        return Err(format!("{} results for {} values", results.len(), items.len()));
    }
    for (n, (value, result)) in values.iter().zip(results).enumerate() {
        let algorithm = value.parameters.algorithm;
        match (&value.plaintext, result) {
            (Some(plaintext), Ok(unwrapped)) if unwrapped.material.expose() == plaintext => {}
            (Some(_), Ok(_)) => return Err(format!("value {n}, {algorithm}: other bytes")),
            (Some(_), Err(error)) => {
                let kind = error.kind();
                return Err(format!("value {n}, {algorithm}, is good: {kind:?}: {error}"));
            }
            (None, Err(error)) if error.kind() == ErrorKind::UnwrapFailed => {}
            (None, Err(error)) => {
                let kind = error.kind();
                return Err(format!("value {n}, {algorithm}, is bad: {kind:?}: {error}"));
            }
            (None, Ok(_)) => return Err(format!("value {n}, {algorithm}, is bad and unwrapped")),
        }
    }
    Ok(())
}
