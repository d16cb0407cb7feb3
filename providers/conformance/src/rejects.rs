//! What must not unwrap: wrong lengths, values, bits, hashes, labels, algorithms; and the key's health
//! after each.

use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, ErrorKind, Hash, Parameters, SignAlgorithm,
};

use crate::openssl::OpenSsl;
use crate::report::Cases;
use crate::subject::{Outcome, Subject, call, digest, random};

pub(crate) async fn run(cases: &mut Cases) {
    let subject = cases.subject();
    let declared = subject.algorithms();
    for (n, algorithm) in declared.iter().copied().enumerate() {
        cases
            .case(
                format!("{algorithm}: no length but the modulus's unwraps"),
                move |s| async move { lengths(&s, algorithm, n == 0).await },
            )
            .await;
        cases
            .case(format!("{algorithm}: values 0, 1, n-1, n and above fail"), move |s| async move {
                edge_values(&s, algorithm).await
            })
            .await;
        cases
            .case(format!("{algorithm}: random values fail"), move |s| async move {
                random_values(&s, algorithm).await
            })
            .await;
        cases
            .case(format!("{algorithm}: a flipped bit fails"), move |s| async move {
                flipped_bits(&s, algorithm).await
            })
            .await;
        for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let name = format!("{algorithm}: a value wrapped with {other} fails");
            cases
                .case(name, move |s| async move { other_algorithm(&s, algorithm, other).await })
                .await;
        }
        if algorithm.hash().is_some() {
            cases
                .case(format!("{algorithm}: another MGF1 hash fails"), move |s| async move {
                    other_mgf1(&s, algorithm).await
                })
                .await;
            cases
                .case(format!("{algorithm}: another label fails"), move |s| async move {
                    other_label(&s, algorithm).await
                })
                .await;
        }
        cases
            .case(format!("{algorithm}: a deadline that passed is said so"), move |s| async move {
                passed_deadline(&s, algorithm).await
            })
            .await;
    }
    for algorithm in Algorithm::ALL.into_iter().filter(|a| !declared.contains(a)) {
        cases
            .case(format!("{algorithm}: refused, as it is not declared"), move |s| async move {
                undeclared(&s, algorithm).await
            })
            .await;
    }
    let declared = subject.sign_algorithms();
    for algorithm in SignAlgorithm::ALL.into_iter().filter(|a| !declared.contains(a)) {
        cases
            .case(format!("{algorithm}: refused, as it is not declared"), move |s| async move {
                undeclared_signature(&s, algorithm).await
            })
            .await;
    }
    cases
        .case("the key serves and its check succeeds after all that", |s| async move {
            s.expect_service().await?;
            s.expect_well("after garbage").await
        })
        .await;
}

/// Every length from 0 to 2k+1, through the daemon's checks and past them.
async fn lengths(subject: &Subject, algorithm: Algorithm, serve_after_each: bool) -> Outcome {
    let k = subject.k();
    let parameters = Parameters::of(algorithm);
    for len in (0..=2 * k + 1).filter(|len| *len != k) {
        let wrapped = random(len);
        subject
            .expect_failure(&wrapped, &parameters, None)
            .await
            .map_err(|error| format!("length {len}: {error}"))?;
        refused_directly(subject, &wrapped, &parameters)
            .await
            .map_err(|error| format!("length {len}: {error}"))?;
        if serve_after_each || [0, 1, k - 1, k + 1, 2 * k, 2 * k + 1].contains(&len) {
            subject
                .expect_service()
                .await
                .map_err(|error| format!("after length {len}: {error}"))?;
        }
    }
    Ok(())
}

async fn edge_values(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let k = subject.k();
    let parameters = Parameters::of(algorithm);
    let modulus = subject.public_key().modulus().to_vec();
    let zero = vec![0; k];
    let one = with_last_byte(&zero, 1);
    // The modulus is odd: one less is its last byte less one.
    let below = with_last_byte(&modulus, modulus[k - 1] - 1);
    for (name, value) in [("0", &zero), ("1", &one), ("n-1", &below)] {
        subject
            .expect_failure(value, &parameters, None)
            .await
            .map_err(|error| format!("value {name}: {error}"))?;
    }
    for (name, value) in [("n", &modulus), ("2^8k-1", &vec![0xff; k])] {
        subject
            .expect_failure(value, &parameters, None)
            .await
            .map_err(|error| format!("value {name}: {error}"))?;
        refused_directly(subject, value, &parameters)
            .await
            .map_err(|error| format!("value {name} past the checks: {error}"))?;
        subject.expect_service().await?;
    }
    subject.expect_service().await
}

async fn random_values(subject: &Subject, algorithm: Algorithm) -> Outcome {
    for _ in 0..16 {
        let mut wrapped = random(subject.k());
        wrapped[0] = 0;
        subject.expect_failure(&wrapped, &Parameters::of(algorithm), None).await?;
    }
    subject.expect_service().await
}

async fn flipped_bits(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let plaintext = random(32);
    let parameters = Parameters::of(algorithm);
    let wrapped = subject.wrap(&plaintext, &parameters)?;
    let bits = wrapped.len() * 8;
    for bit in (0..bits).step_by(bits / 24).chain([bits - 1]) {
        let mut flipped = wrapped.clone();
        flipped[bit / 8] ^= 0x80 >> (bit % 8);
        subject
            .expect_failure(&flipped, &parameters, Some(&plaintext))
            .await
            .map_err(|error| format!("bit {bit}: {error}"))?;
    }
    subject.expect(&wrapped, &parameters, &plaintext).await
}

async fn other_algorithm(subject: &Subject, algorithm: Algorithm, other: Algorithm) -> Outcome {
    let plaintext = random(32);
    let wrapped = subject.wrap(&plaintext, &Parameters::of(other))?;
    subject.expect_failure(&wrapped, &Parameters::of(algorithm), Some(&plaintext)).await?;
    subject.expect_service().await
}

async fn other_mgf1(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let openssl = OpenSsl::new(subject.public_key())?;
    for mgf1 in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
        if algorithm.hash() == Some(mgf1) {
            continue;
        }
        let plaintext = random(32);
        let wrapped = openssl.wrap_with_mgf1(&plaintext, algorithm, Some(mgf1), &[])?;
        subject.expect_failure(&wrapped, &Parameters::of(algorithm), Some(&plaintext)).await?;
    }
    subject.expect_service().await
}

async fn other_label(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let plaintext = random(32);
    let with = |label| Parameters { algorithm, label };
    let labelled = subject.wrap(&plaintext, &with(b"tenant-a"))?;
    subject.expect_failure(&labelled, &with(b""), Some(&plaintext)).await?;
    if subject.labels() {
        for label in [&b"tenant-b"[..], b"tenant-a\0", b"tenant-", b"TENANT-A"] {
            subject.expect_failure(&labelled, &with(label), Some(&plaintext)).await?;
        }
        let plain = subject.wrap(&plaintext, &with(b""))?;
        subject.expect_failure(&plain, &with(b"tenant-a"), Some(&plaintext)).await?;
        subject.expect(&labelled, &with(b"tenant-a"), &plaintext).await?;
    }
    subject.expect_service().await
}

async fn passed_deadline(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let parameters = Parameters::of(algorithm);
    let wrapped = subject.wrap(&random(32), &parameters)?;
    let now = Instant::now();
    for deadline in [now, now.checked_sub(Duration::from_secs(1)).unwrap_or(now)] {
        let call = Call { caller: CallerSlot(1), deadline };
        let outcome = subject.key().unwrap_key(&wrapped, &parameters, call).await;
        match outcome.map_err(|error| error.kind()) {
            Err(ErrorKind::DeadlineExceeded) => {}
            Err(kind) => return Err(format!("{kind:?} instead of DeadlineExceeded")),
            Ok(_) => return Err("was unwrapped after its deadline".to_owned()),
        }
    }
    subject.expect_service().await
}

async fn undeclared(subject: &Subject, algorithm: Algorithm) -> Outcome {
    let parameters = Parameters::of(algorithm);
    let wrapped = subject.wrap(&random(32), &parameters)?;
    match subject.unwrap(&wrapped, &parameters).await.map_err(|error| error.kind()) {
        Err(ErrorKind::Internal) => subject.expect_service().await,
        Err(kind) => Err(format!("{kind:?} instead of Internal")),
        Ok(_) => Err("was unwrapped".to_owned()),
    }
}

async fn undeclared_signature(subject: &Subject, algorithm: SignAlgorithm) -> Outcome {
    let outcome = subject.key().sign(&digest(algorithm), algorithm, call(CallerSlot(1))).await;
    match outcome.map_err(|error| error.kind()) {
        Err(ErrorKind::Internal) => subject.expect_service().await,
        Err(kind) => Err(format!("{kind:?} instead of Internal")),
        Ok(_) => Err("was signed".to_owned()),
    }
}

/// Past the daemon's checks a key fails as with any bad value, and neither succeeds nor breaks.
async fn refused_directly(
    subject: &Subject,
    wrapped: &[u8],
    parameters: &Parameters<'_>,
) -> Outcome {
    match subject.unwrap(wrapped, parameters).await.map_err(|error| error.kind()) {
        Err(ErrorKind::UnwrapFailed) => Ok(()),
        Err(kind) => Err(format!("{kind:?} instead of UnwrapFailed")),
        Ok(_) => Err("was unwrapped".to_owned()),
    }
}

fn with_last_byte(bytes: &[u8], last: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().expect("a modulus has bytes") = last;
    bytes
}
