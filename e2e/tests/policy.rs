//! Who may do what with which keys: denied by default, and never with another key's rights; and what
//! a caller sees when it lists its keys.

use std::collections::BTreeSet;

use bytes::Bytes;
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::{
    GetKeyRequest, KeyVersionState, ListKeysRequest, ListKeysResponse, RewrapRequest, RewrapSource,
    RewrapTarget, SignRequest, UnwrapRequest, VerifyRequest, WrapRequest,
};
use claviger_provider_api::{Algorithm, Digest, Hash, KeyMaterial, Parameters, SignAlgorithm};
use e2e::connection::frame;
use e2e::encoding::random;
use e2e::{Answer, Backend, Connection, Daemon, DaemonFiles, Identity, RsaKey, Version};
use prost::Message;
use toml::{Table, Value};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const OPERATIONS: [&str; 5] = ["wrap", "unwrap", "sign", "verify", "read"];
/// What the model deals out: a rewrap goes to the keys of [`is_target`].
const DEALT: [&str; 6] = ["wrap", "unwrap", "rewrap", "sign", "verify", "read"];
const CALLERS: usize = 6;
const KEYS: usize = 8;

/// A small generator, so that a failure can be repeated: xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What is known about a key: the oracle's half of the configuration.
struct Known {
    name: String,
    /// Of its newest version in use; none if all are disabled.
    key: Option<RsaKey>,
    wraps: bool,
    signs: bool,
}

/// `grants[caller][key]` holds the granted operations.
type Grants = Vec<Vec<BTreeSet<&'static str>>>;

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_can_do_with_any_key_what_it_was_not_granted() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let known = keys(&mut files, &backend);
    let callers: Vec<Identity> = (0..CALLERS)
        .map(|caller| {
            let name = format!("caller-{caller}");
            let identity = files.caller(&name, &["key-0"], &["read"]);
            files.limit(&name, "failed_unwraps", "off");
            identity
        })
        .collect();
    let mut dice = Random(0x9e37_79b9_7f4a_7c15);
    let mut grants = deal(&mut dice);
    write_grants(&mut files, &grants);
    let daemon = Daemon::start(&mut files);
    let mut connections = Vec::new();
    for caller in &callers {
        let ca = files.pki.ca_der();
        connections.push(Connection::open(daemon.address(), ca, Some(caller)).await.unwrap());
    }

    let (mut allowed, mut refused) = (0, 0);
    for round in 0..3 {
        for call in 0..300 {
            let caller = dice.below(CALLERS);
            let number = dice.below(KEYS + 1);
            let operations =
                ["wrap", "unwrap", "foreign", "rewrap", "sign", "verify", "read", "health"];
            let operation = operations[dice.below(operations.len())];
            let target = dice.below(KEYS + 1);
            let what = format!(
                "round {round}, call {call}: caller-{caller}, key-{number}, {operation} (to key-{target})"
            );
            let expected = match known.get(number) {
                Some(key) if operation == "rewrap" => {
                    expect(&grants[caller][number], key, operation)
                        .and_then(|()| expect_target(number, target, known.get(target)))
                }
                Some(key) => expect(&grants[caller][number], key, operation),
                None if operation == "health" => Err(Code::NotFound),
                None => Err(Code::PermissionDenied),
            };
            let connection = &connections[caller];
            let outcome = match operation {
                "rewrap" => rewrap(connection, &known, number, target, &what).await,
                _ => act(connection, &known, number, operation, &mut dice, &what).await,
            };
            match (&outcome, expected) {
                (Ok(()), Ok(())) => allowed += 1,
                (Err(answer), Err(code)) if answer.code() == code => refused += 1,
                (Ok(()), Err(code)) => panic!("{what}: allowed instead of {code:?}"),
                (Err(answer), expected) => panic!("{what}: {answer} instead of {expected:?}"),
            }
        }
        // Other grants for the same connections: they hold for the very next call.
        grants = deal(&mut dice);
        write_grants(&mut files, &grants);
        files.write();
        daemon.reload();
        while daemon.log().matches("configuration reloaded").count() <= round {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    println!("model: {allowed} allowed, {refused} refused, 0 wrong");
    assert!(allowed > 200 && refused > 200, "{allowed} allowed, {refused} refused");
}

/// Of every kind: that wraps, that signs, of which only an old version is left, of which none is.
fn keys(files: &mut DaemonFiles, backend: &Backend) -> Vec<Known> {
    let mut id = 0;
    let mut version = |files: &DaemonFiles, number, key: &RsaKey| -> Version {
        id += 1;
        backend.version(files, number, key, id)
    };
    (0..KEYS)
        .map(|number| {
            let name = format!("key-{number}");
            let key = RsaKey::generate(2048);
            let mut versions = vec![version(files, 1, &key)];
            let mut known = Known { name: name.clone(), key: Some(key), wraps: true, signs: false };
            match number {
                3 | 4 => {
                    known.signs = true;
                    let signs = Value::from(vec!["PS256"]);
                    versions = versions
                        .into_iter()
                        .map(|v| v.with("sign_algorithms", signs.clone()))
                        .collect();
                }
                5 => {
                    known.key = None;
                    versions = versions.into_iter().map(|v| v.with("state", "disabled")).collect();
                }
                6 => {
                    known.wraps = false;
                    versions =
                        versions.into_iter().map(|v| v.with("state", "unwrap-only")).collect();
                }
                7 => {
                    let newer =
                        version(files, 2, &RsaKey::generate(2048)).with("state", "disabled");
                    versions.push(newer);
                }
                _ => {}
            }
            files.key(&name, &["RSA-OAEP"], versions);
            known
        })
        .collect()
}

/// The first caller has everything and the last one nothing.
fn deal(dice: &mut Random) -> Grants {
    let mut deal_one = |caller: usize| -> BTreeSet<&'static str> {
        let granted = |dice: &mut Random| match caller {
            0 => true,
            caller if caller == CALLERS - 1 => false,
            _ => dice.below(2) == 0,
        };
        DEALT.into_iter().filter(|_| granted(dice)).collect()
    };
    (0..CALLERS).map(|caller| (0..KEYS).map(|_| deal_one(caller)).collect()).collect()
}

fn write_grants(files: &mut DaemonFiles, grants: &Grants) {
    let callers = files.configuration["callers"].as_array_mut().unwrap();
    for (caller, of_keys) in callers.iter_mut().zip(grants) {
        let tables: Vec<Value> = of_keys
            .iter()
            .enumerate()
            .filter(|(_, operations)| !operations.is_empty())
            .map(|(key, operations)| {
                let operations: Vec<&str> = operations.iter().copied().collect();
                let mut grant = Table::new();
                grant.insert("keys".into(), vec![format!("key-{key}")].into());
                if operations.contains(&"rewrap") {
                    let to = (0..KEYS).filter(|target| is_target(key, *target));
                    let to: Vec<Value> = to.map(|n| format!("key-{n}").into()).collect();
                    grant.insert("to".into(), to.into());
                }
                grant.insert("operations".into(), operations.into());
                grant.into()
            })
            .collect();
        caller.as_table_mut().unwrap().insert("grants".into(), tables.into());
    }
}

/// Whether grants of rewrap with one key name the other as a target.
fn is_target(key: usize, target: usize) -> bool {
    !(key + target).is_multiple_of(3)
}

/// The oracle's word on the target of a granted rewrap.
fn expect_target(number: usize, target: usize, known: Option<&Known>) -> Result<(), Code> {
    match known.filter(|known| is_target(number, target) && known.key.is_some()) {
        None => Err(Code::PermissionDenied),
        Some(known) if !known.wraps => Err(Code::InvalidArgument),
        Some(_) => Ok(()),
    }
}

/// Rewraps, and proves that what came out is for the target and no other.
async fn rewrap(
    connection: &Connection,
    known: &[Known],
    number: usize,
    target: usize,
    what: &str,
) -> Result<(), Answer> {
    let name = |number: usize| match known.get(number) {
        Some(key) => key.name.clone(),
        None => "no-such-key".to_owned(),
    };
    let own = known.get(number).and_then(|key| key.key.as_ref());
    let own = own.unwrap_or_else(|| known[0].key.as_ref().unwrap());
    let material = random(32);
    let wrapped = own
        .public_key()
        .wrap(&KeyMaterial::copied_from(&material), &Parameters::of(Algorithm::RsaOaep));
    let request = RewrapRequest {
        source: Some(RewrapSource { key: name(number), ..RewrapSource::default() }),
        wrapped: wrapped.unwrap().into(),
        target: Some(RewrapTarget {
            recipient: Some(Recipient::Key(name(target))),
            ..RewrapTarget::default()
        }),
        max_key_material_len: None,
        approval: None,
    };
    let rewrapped = connection.rewrap(&request).await?.wrapped;
    assert_eq!(decrypt(known[target].key.as_ref().unwrap(), &rewrapped), material, "{what}");
    Ok(())
}

/// The oracle.
fn expect(granted: &BTreeSet<&str>, key: &Known, operation: &str) -> Result<(), Code> {
    if operation == "health" {
        let known = !granted.is_empty() && key.key.is_some();
        return if known { Ok(()) } else { Err(Code::NotFound) };
    }
    let needed = if operation == "foreign" { "unwrap" } else { operation };
    if !granted.contains(needed) || key.key.is_none() {
        return Err(Code::PermissionDenied);
    }
    match operation {
        "wrap" if !key.wraps => Err(Code::InvalidArgument),
        "sign" | "verify" if !key.signs => Err(Code::InvalidArgument),
        // Another key's value, with all rights on this one.
        "foreign" => Err(Code::InvalidArgument),
        _ => Ok(()),
    }
}

/// Does it, and proves that a success was with this key and no other.
async fn act(
    connection: &Connection,
    known: &[Known],
    number: usize,
    operation: &str,
    dice: &mut Random,
    what: &str,
) -> Result<(), Answer> {
    let unknown = Known { name: "no-such-key".into(), key: None, wraps: true, signs: true };
    let key = known.get(number).unwrap_or(&unknown);
    let name = key.name.clone();
    // Always another one, and one that wraps.
    let other = || known[(number + 1) % 5].key.as_ref().unwrap();
    let own = key.key.as_ref().unwrap_or_else(|| other());
    let material = random(32);
    let wrap = |key: &RsaKey| -> Bytes {
        let material = KeyMaterial::copied_from(&material);
        key.public_key().wrap(&material, &Parameters::of(Algorithm::RsaOaep)).unwrap().into()
    };
    let digest = random(32);
    match operation {
        "wrap" => {
            let key_material = material.clone().into();
            let request = WrapRequest { key: name.clone(), key_material, ..Default::default() };
            let wrapped = connection.wrap(&request).await?.wrapped;
            assert_eq!(decrypt(own, &wrapped), material, "{what}");
        }
        "unwrap" | "foreign" => {
            let wrapped = wrap(if operation == "unwrap" { own } else { other() });
            let request = UnwrapRequest { key: name, wrapped, ..Default::default() };
            let unwrapped = connection.unwrap(&request).await?;
            assert_eq!(
                (&*unwrapped.key_material, unwrapped.key_version),
                (&material[..], 1),
                "{what}"
            );
        }
        "sign" | "verify" => {
            let of_digest = Digest::new(Hash::Sha256, &digest).unwrap();
            let (algorithm, version) = ("PS256".to_owned(), None);
            if operation == "sign" {
                let digest = digest.into();
                let request = SignRequest { key: name, digest, algorithm, key_version: version };
                let signature = connection.sign(&request).await?.signature;
                let good = own.public_key().verify(&of_digest, SignAlgorithm::Ps256, &signature);
                assert!(good, "{what}");
            } else {
                let signature = sign(own, &digest);
                let good = own.public_key().verify(&of_digest, SignAlgorithm::Ps256, &signature);
                assert!(good, "the test signs well");
                // Good under its own key; under another's, a calm no.
                let foreign = dice.below(2) == 0;
                let signature = if foreign { sign(other(), &digest) } else { signature };
                let request = VerifyRequest {
                    key: name,
                    digest: digest.into(),
                    algorithm,
                    key_version: version,
                    signature: signature.into(),
                };
                assert_eq!(connection.verify(&request).await?.valid, !foreign, "{what}");
            }
        }
        "read" => {
            let seen = connection.get_key(&GetKeyRequest { key: name.clone() }).await?.key.unwrap();
            assert_eq!(seen.name, name, "{what}");
            let version = seen.versions.last().unwrap();
            assert_eq!(version.public_key, own.public_key().spki(), "{what}");
        }
        "health" => {
            let service = format!("claviger.v1.KeyService/{name}");
            let message = HealthCheckRequest { service }.encode_to_vec();
            let path = "/grpc.health.v1.Health/Check";
            let answer = connection.call(path, frame(&message), &[]).await.unwrap();
            if answer.code() != Code::Ok {
                return Err(answer);
            }
            assert_eq!(answer.message::<HealthCheckResponse>().status, 1, "{what}");
        }
        other => panic!("{other}"),
    }
    Ok(())
}

fn decrypt(key: &RsaKey, wrapped: &[u8]) -> Vec<u8> {
    use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    let private = PrivateDecryptingKey::from_pkcs8(key.pkcs8()).unwrap();
    let private = OaepPrivateDecryptingKey::new(private).unwrap();
    let mut buffer = [0; 512];
    private.decrypt(&OAEP_SHA1_MGF1SHA1, wrapped, &mut buffer, None).unwrap().to_vec()
}

fn sign(key: &RsaKey, digest: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{Digest, SHA256};
    use aws_lc_rs::rsa::KeyPair;
    use aws_lc_rs::signature::RSA_PSS_SHA256;
    let private = KeyPair::from_pkcs8(key.pkcs8()).unwrap();
    let digest = Digest::import_less_safe(digest, &SHA256).unwrap();
    let mut signature = vec![0; key.public_key().modulus_len()];
    private.sign_digest(&RSA_PSS_SHA256, &digest, &mut signature).unwrap();
    signature
}

/// Names that must not be seen: where keys live is for operators only.
const LOCATOR: &str = "vault-room-7";

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_keys_are_listed_page_by_page_to_who_may_read_them() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let provider = files.configuration["providers"]["backend"].clone();
    files.set(&format!("providers.{LOCATOR}"), provider);
    let mut names = Vec::new();
    for number in 0..200u16 {
        let name =
            format!("{}-{number:03}", ["orders", "users", "backup"][usize::from(number % 3)]);
        // Three can be opened; the others' backends are down, which hides nothing.
        let versions = if number < 3 {
            vec![backend.version(
                &files,
                1,
                &RsaKey::generate(2048 + 1024 * usize::from(number % 2)),
                number,
            )]
        } else {
            (1..=1 + i64::from(number % 3))
                .map(|version| unopened(&files, LOCATOR, number, version))
                .collect()
        };
        files.key(&name, &["RSA-OAEP", "RSA-OAEP-256"], versions);
        names.push(name);
    }
    let some = |wanted: fn(usize) -> bool| -> Vec<&str> {
        names
            .iter()
            .enumerate()
            .filter(|(n, _)| wanted(*n))
            .map(|(_, name)| name.as_str())
            .collect()
    };
    let readable = some(|n| n % 4 != 3);
    let reader = files.caller("reader", &readable, &["read", "unwrap"]);
    let worker = files.caller("worker", &some(|_| true), &["unwrap", "wrap"]);
    let signer =
        files.caller("signer", &names.iter().map(String::as_str).collect::<Vec<_>>(), &OPERATIONS);
    let daemon = Daemon::start(&mut files);

    let connection = Connection::open(daemon.address(), files.pki.ca_der(), Some(&reader)).await;
    let connection = connection.unwrap();
    let mut sorted: Vec<&str> = readable.clone();
    sorted.sort_unstable();
    for page_size in [0, 1, 7, 32] {
        let (mut token, mut seen, mut largest) = (String::new(), Vec::new(), 0);
        loop {
            let request = ListKeysRequest { page_size, page_token: token };
            let answer = list(&connection, &request).await;
            largest = largest.max(answer.body.len());
            for hidden in [LOCATOR, "backend", "object-", ".pem", "keys/"] {
                let hidden = hidden.as_bytes();
                assert!(!answer.body.windows(hidden.len()).any(|at| at == hidden), "{request:?}");
            }
            let page: ListKeysResponse = answer.message();
            let most = if page_size == 0 { 32 } else { page_size as usize };
            assert!(!page.keys.is_empty() && page.keys.len() <= most, "{}", page.keys.len());
            seen.extend(page.keys);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert!(largest <= 64 * 1024, "{largest} bytes in a page of {page_size}");
        let seen_names: Vec<&str> = seen.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(seen_names, sorted, "page size {page_size}");
        for key in &seen {
            assert_described(key);
            let got = connection.get_key(&GetKeyRequest { key: key.name.clone() }).await.unwrap();
            assert_eq!(got.key.as_ref(), Some(key));
        }
    }

    // Any token is only a place in the order of the names.
    let after = |token: &str| ListKeysRequest { page_size: 1, page_token: token.into() };
    let first = |response: &ListKeysResponse| response.keys.first().map(|key| key.name.clone());
    for (token, expected) in [
        ("p", sorted.iter().find(|name| **name > "p").copied()),
        ("zzz", None),
        ("no such \u{1f511} key", sorted.iter().find(|name| **name > "no such").copied()),
    ] {
        let page = connection.list_keys(&after(token)).await.unwrap();
        assert_eq!(first(&page).as_deref(), expected, "{token}");
    }
    // Without "read" there is nothing to see; what a key cannot do is not among the operations.
    let ca = || files.pki.ca_der();
    let worker = Connection::open(daemon.address(), ca(), Some(&worker)).await.unwrap();
    assert_eq!(
        worker.list_keys(&ListKeysRequest::default()).await.unwrap(),
        ListKeysResponse::default()
    );
    let signer = Connection::open(daemon.address(), ca(), Some(&signer)).await.unwrap();
    let page = signer.list_keys(&ListKeysRequest::default()).await.unwrap();
    assert!(page.keys.iter().all(|key| key.operations == ["wrap", "unwrap", "read"]), "{page:?}");
}

fn assert_described(key: &claviger_proto::v1::Key) {
    let number: u16 = key.name.rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(key.operations, ["unwrap", "read"], "{}", key.name);
    let versions: Vec<u32> = key.versions.iter().map(|version| version.version).collect();
    let newest = if number < 3 { 1 } else { 1 + u32::from(number % 3) };
    assert_eq!(versions, (1..=newest).rev().collect::<Vec<_>>(), "{}", key.name);
    let version = &key.versions[0];
    assert_eq!(version.algorithms, ["RSA-OAEP", "RSA-OAEP-256"]);
    assert_eq!(version.state(), KeyVersionState::Active);
    assert_eq!(version.public_key_sha256.len(), 32);
    if number < 3 {
        assert_eq!(version.modulus_bits, 2048 + 1024 * u32::from(number % 2));
        let hash = claviger_provider_api::public_key::sha256(&version.public_key);
        assert_eq!(version.public_key_sha256, &hash[..]);
    } else {
        assert_eq!((version.modulus_bits, version.public_key.len()), (0, 0));
    }
    let certificate = key.versions.iter().any(|version| !version.certificate.is_empty());
    assert_eq!(certificate, number % 20 == 5, "{}", key.name);
}

/// A version that cannot be opened, now and then with a long certificate.
fn unopened(files: &DaemonFiles, provider: &str, number: u16, version: i64) -> Version {
    let locator = format!("{LOCATOR}-{number}-{version}.pem");
    if number % 20 != 5 || version != 1 {
        return Version::active(version, &RsaKey::shared(2048), provider, &locator)
            .with("public_key_sha256", hex::encode(random(32)));
    }
    let key = RsaKey::generate(2048);
    let certificate = files.path(&format!("certificate-{number}.crt"));
    std::fs::write(&certificate, self_signed(&key)).unwrap();
    Version::active(version, &key, provider, &locator)
        .with("certificate", certificate.to_str().unwrap())
}

/// A certificate of about 5 KB for an RSA key, PEM.
fn self_signed(key: &RsaKey) -> String {
    let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(key.pkcs8());
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256);
    let names: Vec<String> = (0..200).map(|n| format!("key-{n}.example.org")).collect();
    let parameters = rcgen::CertificateParams::new(names).unwrap();
    parameters.self_signed(&pair.unwrap()).unwrap().pem()
}

async fn list(connection: &Connection, request: &ListKeysRequest) -> Answer {
    let path = "/claviger.v1.KeyService/ListKeys";
    let answer = connection.call(path, frame(&request.encode_to_vec()), &[]).await.unwrap();
    assert_eq!(answer.code(), Code::Ok, "{answer}");
    answer
}

#[test]
fn a_key_whose_description_fits_no_message_is_refused_at_start() {
    let mut files = DaemonFiles::new();
    let backend = Backend::software();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let mut versions = vec![backend.version(&files, 100, &key, 100)];
    versions.extend((1..100).map(|version| unopened(&files, "backend", 0, version)));
    files.key("user-keys", &["RSA-OAEP"], versions);
    files.caller("reader", &["user-keys"], &["read"]);
    let exit = Daemon::spawn(&files).wait();
    assert!(exit.code.is_some_and(|code| code != 0), "{exit:?}");
    assert!(exit.log.contains("keys.user-keys") && exit.log.contains("message"), "{}", exit.log);
}
