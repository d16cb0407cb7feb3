//! What must unwrap: every declared algorithm, both implementations, every size of material, labels.

use std::sync::Arc;

use claviger_provider_api::{Algorithm, ErrorKind, Parameters};

use crate::openssl::OpenSsl;
use crate::report::Cases;
use crate::subject::{Outcome, Subject, random};

/// The longest label that the wire contract lets through, in bytes.
const MAX_LABEL: usize = 1024;

pub(crate) async fn run(cases: &mut Cases) {
    cases.case("the key declares something and its check succeeds", declared).await;
    cases.case("Debug shows no path", debug).await;
    for algorithm in cases.subject().algorithms() {
        cases
            .case(format!("{algorithm}: material of every size unwraps"), move |s| async move {
                sizes(&s, algorithm).await
            })
            .await;
        cases
            .case(format!("{algorithm}: material of any value unwraps"), move |s| async move {
                values(&s, algorithm).await
            })
            .await;
        cases
            .case(format!("{algorithm}: what OpenSSL wrapped unwraps"), move |s| async move {
                foreign(&s, algorithm).await
            })
            .await;
        if algorithm.hash().is_some() {
            cases
                .case(format!("{algorithm}: labels"), move |s| async move {
                    labels(&s, algorithm).await
                })
                .await;
        }
    }
}

async fn declared(subject: Arc<Subject>) -> Outcome {
    let with_label =
        subject.algorithms().into_iter().filter(|a| subject.labels() && a.hash().is_some());
    if subject.key().label_algorithms() != with_label.collect() {
        return Err(format!("wrong labels are declared: {:?}", subject.key().label_algorithms()));
    }
    subject.expect_service().await?;
    subject.expect_well("on a fresh key").await
}

/// Where the private half lives is in the configuration, and is not for logs: no file's path, no ARN,
/// no resource name.
async fn debug(subject: Arc<Subject>) -> Outcome {
    let shown = format!("{:?}", subject.key());
    if shown.contains('/') { Err(format!("Debug shows {shown}")) } else { Ok(()) }
}

async fn sizes(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let max = algorithm.max_material_len(subject.k());
    let parameters = Parameters::of(algorithm);
    for len in [0, 1, 16, 31, 32, 33, 64, max - 1, max].into_iter().filter(|len| *len <= max) {
        let plaintext = random(len);
        let wrapped = subject.wrap(&plaintext, &parameters)?;
        subject.expect(&wrapped, &parameters, &plaintext).await?;
    }
    match subject.wrap(&random(max + 1), &parameters) {
        Ok(_) => Err(format!("{} bytes were wrapped, one more than fits", max + 1)),
        Err(_) => Ok(()),
    }
}

/// Bytes that a padding or a big number could swallow.
async fn values(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let parameters = Parameters::of(algorithm);
    let mut zero_around = random(32);
    zero_around[0] = 0;
    zero_around[31] = 0;
    for plaintext in [vec![0; 32], vec![0xff; 32], vec![1; 32], zero_around, vec![0; 1]] {
        let wrapped = subject.wrap(&plaintext, &parameters)?;
        subject.expect(&wrapped, &parameters, &plaintext).await?;
    }
    Ok(())
}

async fn foreign(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let openssl = OpenSsl::new(subject.public_key())?;
    let parameters = Parameters::of(algorithm);
    for len in [1, 32, algorithm.max_material_len(subject.k())] {
        let plaintext = random(len);
        let wrapped = openssl.wrap(&plaintext, algorithm, &[])?;
        subject.expect(&wrapped, &parameters, &plaintext).await?;
    }
    if subject.labels() && algorithm.hash().is_some() {
        let label = random(24);
        let plaintext = random(32);
        let wrapped = openssl.wrap(&plaintext, algorithm, &label)?;
        subject.expect(&wrapped, &Parameters { algorithm, label: &label }, &plaintext).await?;
    }
    Ok(())
}

async fn labels(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let plaintext = random(32);
    for label in [vec![0], random(16), random(64), random(MAX_LABEL)] {
        let parameters = Parameters { algorithm, label: &label };
        let wrapped = subject.wrap(&plaintext, &parameters)?;
        if subject.labels() {
            subject.expect(&wrapped, &parameters, &plaintext).await?;
            continue;
        }
        // Nothing that would make a caller try again, and no key that is worse for it.
        match subject.checked_unwrap(&wrapped, &parameters).await.map_err(|error| error.kind()) {
            Err(ErrorKind::OperatorNeeded) => {}
            Err(kind) => return Err(format!("{kind:?} for a label that the key cannot take")),
            Ok(_) => return Err("a label was taken by a key that says it takes none".to_owned()),
        }
        subject.expect_service().await?;
        subject.expect_well("after a label").await?;
    }
    Ok(())
}
