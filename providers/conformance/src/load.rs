//! Many callers at once, among garbage and callers who leave: every answer is its own caller's.

use std::sync::Arc;
use std::time::Duration;

use claviger_provider_api::{Algorithm, CallerSlot, Parameters, SignAlgorithm};

use crate::report::Cases;
use crate::subject::{Outcome, Subject, call, digest, random};

const TASKS: u32 = 64;
const CALLERS: u32 = 8;
const ROUNDS: usize = 4;

pub(crate) async fn run(cases: &mut Cases) {
    cases.case("64 tasks of 8 callers get their own answers", concurrent).await;
    cases.case("the key serves after callers who left", abandoned).await;
}

async fn concurrent(subject: Arc<Subject>) -> Outcome {
    let tasks: Vec<_> = (0..TASKS).map(|n| tokio::spawn(one_task(subject.clone(), n))).collect();
    let mut mismatches = Vec::new();
    for task in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => mismatches.push(error),
            Err(error) => mismatches.push(format!("a task panicked: {error}")),
        }
    }
    match mismatches.first() {
        None => subject.expect_well("after load").await,
        Some(first) => Err(format!("{} of {TASKS} tasks failed; first: {first}", mismatches.len())),
    }
}

/// One task of one caller: a good unwrap, a signature and a bad value by turns.
async fn one_task(subject: Arc<Subject>, n: u32) -> Outcome {
    let caller = CallerSlot(1 + n % CALLERS);
    let algorithms = subject.algorithms();
    let sign_algorithms = subject.sign_algorithms();
    for round in 0..ROUNDS {
        let turn = n as usize + round;
        if !algorithms.is_empty() {
            unwrap_own(&subject, algorithms[turn % algorithms.len()], caller, n).await?;
        }
        if !sign_algorithms.is_empty() {
            sign_own(&subject, sign_algorithms[turn % sign_algorithms.len()], caller).await?;
        }
    }
    Ok(())
}

async fn unwrap_own(
    subject: &Subject,
    algorithm: Algorithm,
    caller: CallerSlot,
    n: u32,
) -> Outcome {
    let parameters = Parameters::of(algorithm);
    let mut plaintext = random(32);
    plaintext[..4].copy_from_slice(&n.to_be_bytes());
    let wrapped = subject.wrap(&plaintext, &parameters)?;
    let outcome = subject.key().unwrap_key(&wrapped, &parameters, call(caller)).await;
    match outcome {
        Ok(unwrapped) if unwrapped.material.expose() == plaintext => {}
        Ok(_) => return Err(format!("{algorithm}: other bytes than this task wrapped")),
        Err(error) => return Err(format!("{algorithm}: {:?}: {error}", error.kind())),
    }
    if n.is_multiple_of(4) {
        let mut garbage = wrapped;
        garbage.reverse();
        garbage[0] = 0;
        subject.expect_failure(&garbage, &parameters, Some(&plaintext)).await?;
    }
    Ok(())
}

async fn sign_own(subject: &Subject, algorithm: SignAlgorithm, caller: CallerSlot) -> Outcome {
    let digest = digest(algorithm);
    match subject.key().sign(&digest, algorithm, call(caller)).await {
        Ok(signature) if subject.public_key().verify(&digest, algorithm, &signature.bytes) => {
            Ok(())
        }
        Ok(_) => Err(format!("{algorithm}: a signature over something else")),
        Err(error) => Err(format!("{algorithm}: {:?}: {error}", error.kind())),
    }
}

async fn abandoned(subject: Arc<Subject>) -> Outcome {
    let Some(&algorithm) = subject.algorithms().first() else {
        return subject.expect_service().await;
    };
    let parameters = Parameters::of(algorithm);
    let wrapped = subject.wrap(&random(32), &parameters)?;
    for n in 0..16 {
        let unwrap = subject.key().unwrap_key(&wrapped, &parameters, call(CallerSlot(n % 2)));
        // Whether it is still in a queue or already at work when its caller leaves is chance.
        let _ = tokio::time::timeout(Duration::from_micros(u64::from(n) * 50), unwrap).await;
    }
    subject.expect_service().await?;
    subject.expect_well("after callers who left").await
}
