//! Signing and verifying: over several versions, of a wrong length, and when a key is out of order.

use claviger_proto::v1::{SignRequest, VerifyRequest};
use e2e::{Answer, Connection, Daemon, DaemonFiles, Faults, Identity, RsaKey, Token, Version};
use tonic::Code;
use tonic_types::StatusExt;

const KEY: &str = "signing";
const DIGEST: [u8; 32] = [7; 32];

/// A version that signs, and does nothing else.
fn version(number: i64, key: &RsaKey, provider: &str, locator: &str) -> Version {
    Version::active(number, key, provider, locator)
        .with("algorithms", Vec::<String>::new())
        .with("sign_algorithms", vec!["PS256"])
}

fn files(versions: Vec<Version>) -> (DaemonFiles, Identity) {
    let mut files = DaemonFiles::new();
    files.key_folder("files", "keys");
    files.key(KEY, &[], versions);
    files.configuration["keys"][KEY].as_table_mut().unwrap().remove("algorithms");
    let caller = files.caller("signer", &[KEY], &["sign", "verify"]);
    (files, caller)
}

async fn start(files: &mut DaemonFiles, caller: &Identity) -> (Daemon, Connection) {
    let daemon = Daemon::start(files);
    let opened = Connection::open(daemon.address(), files.pki.ca_der(), Some(caller)).await;
    (daemon, opened.unwrap())
}

fn to_sign(key_version: Option<u32>) -> SignRequest {
    let (key, algorithm) = (KEY.into(), "PS256".into());
    SignRequest { key, digest: DIGEST.to_vec().into(), algorithm, key_version }
}

fn to_verify(key_version: Option<u32>, signature: Vec<u8>) -> VerifyRequest {
    let (key, algorithm) = (KEY.into(), "PS256".into());
    let digest = DIGEST.to_vec().into();
    VerifyRequest { key, digest, algorithm, key_version, signature: signature.into() }
}

/// A signature over [`DIGEST`] with PS256.
fn signature(key: &RsaKey) -> Vec<u8> {
    use aws_lc_rs::digest::{Digest, SHA256};
    let private = aws_lc_rs::rsa::KeyPair::from_pkcs8(key.pkcs8()).unwrap();
    let digest = Digest::import_less_safe(&DIGEST, &SHA256).unwrap();
    let mut signature = vec![0; key.public_key().modulus_len()];
    let algorithm = &aws_lc_rs::signature::RSA_PSS_SHA256;
    private.sign_digest(algorithm, &digest, &mut signature).unwrap();
    signature
}

/// The log has a line with the request id of the answer and this text.
fn assert_logged(daemon: &Daemon, answer: &Answer, text: &str) {
    let (log, request_id) = (daemon.log(), answer.request_id().unwrap());
    let told = log.lines().any(|line| line.contains(request_id) && line.contains(text));
    assert!(told, "no line with {request_id} and {text:?} in:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_of_an_older_version_is_good_though_the_newest_was_never_opened() {
    let [newest, old, oldest] = [2048, 2048, 2048].map(RsaKey::generate);
    let (mut files, caller) = files(vec![
        version(3, &newest, "files", "nothing.pem"),
        version(2, &old, "files", "old.pem").with("state", "unwrap-only"),
        version(1, &oldest, "files", "oldest.pem").with("state", "unwrap-only"),
    ]);
    old.write_pem(&files.path("keys/old.pem"));
    oldest.write_pem(&files.path("keys/oldest.pem"));
    let (daemon, connection) = start(&mut files, &caller).await;
    for (key, number) in [(&old, 2), (&oldest, 1)] {
        for asked in [None, Some(number)] {
            let answer = connection.verify(&to_verify(asked, signature(key))).await.unwrap();
            assert_eq!((answer.valid, answer.key_version), (true, number));
        }
    }
    // Nothing that can be asked finds it good, and one cannot be asked: the same failure as sign's.
    let signed = connection.sign(&to_sign(None)).await.unwrap_err();
    assert_eq!(signed.code(), Code::FailedPrecondition, "{signed}");
    assert_logged(&daemon, &signed, "nothing.pem");
    for asked in [None, Some(3)] {
        let verified = connection.verify(&to_verify(asked, signature(&newest))).await.unwrap_err();
        assert_eq!(verified.code(), Code::FailedPrecondition, "{verified}");
        assert_logged(&daemon, &verified, "nothing.pem");
    }
    // Where all were asked, a bad signature is an answer.
    let bad = connection.verify(&to_verify(Some(2), signature(&oldest))).await.unwrap();
    assert_eq!((bad.valid, bad.key_version), (false, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_of_no_versions_length_is_a_wrong_field() {
    let (short, long) = (RsaKey::generate(2048), RsaKey::generate(3072));
    let (mut files, caller) = files(vec![
        version(2, &long, "files", "long.pem"),
        version(1, &short, "files", "short.pem"),
    ]);
    short.write_pem(&files.path("keys/short.pem"));
    long.write_pem(&files.path("keys/long.pem"));
    let (_daemon, connection) = start(&mut files, &caller).await;
    for (key, number) in [(&short, 1), (&long, 2)] {
        let answer = connection.verify(&to_verify(None, signature(key))).await.unwrap();
        assert_eq!((answer.valid, answer.key_version), (true, number));
    }
    for (asked, len, allowed) in [
        (None, 0, "exactly 256 or 384 bytes, not 0"),
        (None, 255, "exactly 256 or 384 bytes, not 255"),
        (Some(1), 384, "exactly 256 bytes, not 384"),
        (Some(2), 256, "exactly 384 bytes, not 256"),
    ] {
        let answer = connection.verify(&to_verify(asked, vec![1; len])).await.unwrap_err();
        assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
        let details = answer.status().get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "signature");
        assert!(violation.description.contains(allowed), "{violation:?}");
    }
}

/// One key in SoftHSM.
async fn on_a_token() -> (Token, Faults, DaemonFiles, Daemon, Connection) {
    let (token, faults) = Token::softhsm().through_fault_module();
    let key = RsaKey::shared(2048);
    token.import(&key, KEY, "01");
    let (mut files, caller) = files(vec![version(1, &key, "hsm-a", "pkcs11:object=signing")]);
    files.token("hsm-a", &token);
    let (daemon, connection) = start(&mut files, &caller).await;
    connection.sign(&to_sign(None)).await.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()));
    (token, faults, files, daemon, connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_that_was_lost_is_made_once_more_and_counted() {
    let (_token, faults, _files, daemon, connection) = on_a_token().await;
    let retries = || daemon.count("claviger_retries_total", &["key=\"signing\""]);
    // CKR_SESSION_HANDLE_INVALID.
    faults.on_call(1, "C_Sign", "rv=0xb3");
    connection.sign(&to_sign(None)).await.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()));
    assert_eq!(retries(), 1);
    // CKR_HOST_MEMORY: no room, which nothing repairs.
    faults.on_call(1, "C_Sign", "rv=0x2");
    let answer = connection.sign(&to_sign(None)).await.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
    assert_eq!(retries(), 1);
    faults.clear();
    connection.sign(&to_sign(None)).await.unwrap();
    assert_eq!(retries(), 1);
}
