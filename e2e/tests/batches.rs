//! The items of a batch fail alone, also by being late.

use claviger_proto::v1::rewrap_batch_result::Result as Rewrapped;
use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::unwrap_batch_result::Result as Unwrapped;
use claviger_proto::v1::{
    RewrapBatchRequest, RewrapBatchResponse, RewrapRequest, RewrapSource, RewrapTarget,
    UnwrapBatchRequest, UnwrapBatchResponse, UnwrapRequest,
};
use e2e::connection::frame;
use e2e::setup::{MATERIAL, wrap};
use e2e::{Answer, Connection, Daemon, DaemonFiles, RsaKey, Token, Version};
use prost::Message;
use tonic::Code;

/// The keys of the items, in their order: every second one lies in the module that hangs.
const ITEMS: [&str; 4] = ["in-token", "in-file", "in-token", "in-file"];

async fn call(connection: &Connection, method: &str, message: &impl Message) -> Answer {
    let path = format!("/claviger.v1.KeyService/{method}");
    let body = frame(&message.encode_to_vec());
    connection.call(&path, body, &[("grpc-timeout", "3S")]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_backend_hangs_is_late_alone_and_the_others_are_there() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let [in_token, in_file] = [2048, 2048].map(RsaKey::generate);
    let mut files = DaemonFiles::new();
    files.token("hsm-a", &token);
    token.import(&in_token, "in-token", "01");
    let version = Version::active(1, &in_token, "hsm-a", "pkcs11:object=in-token");
    files.key("in-token", &["RSA-OAEP"], vec![version]);
    files.key_folder("files", "keys");
    in_file.write_pem(&files.path("keys/in-file.pem"));
    files.key("in-file", &["RSA-OAEP"], vec![Version::active(1, &in_file, "files", "in-file.pem")]);
    let caller = files.caller_with(
        "key-connector",
        r#"[{ keys = ["in-token", "in-file"], operations = ["unwrap", "rewrap"], to = ["in-file"] }]"#,
    );
    let daemon = Daemon::start(&mut files);
    let connection =
        Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller)).await.unwrap();
    let wrapped = |key| if key == "in-token" { wrap(&in_token) } else { wrap(&in_file) };
    let unwraps = ITEMS.map(|key| UnwrapRequest {
        key: key.into(),
        wrapped: wrapped(key).into(),
        ..UnwrapRequest::default()
    });
    let rewraps = ITEMS.map(|key| RewrapRequest {
        source: Some(RewrapSource { key: key.into(), ..RewrapSource::default() }),
        wrapped: wrapped(key).into(),
        target: Some(RewrapTarget {
            recipient: Some(Recipient::Key("in-file".into())),
            ..RewrapTarget::default()
        }),
        max_key_material_len: None,
        approval: None,
    });
    let unwraps = UnwrapBatchRequest { items: unwraps.to_vec() };
    let rewraps = RewrapBatchRequest { items: rewraps.to_vec() };

    faults.on_every("C_Decrypt", "hang");
    let (unwrapped, rewrapped) = tokio::join!(
        call(&connection, "UnwrapBatch", &unwraps),
        call(&connection, "RewrapBatch", &rewraps)
    );
    assert_eq!(unwrapped.code(), Code::Ok, "{unwrapped}\n{}", daemon.log());
    assert_eq!(rewrapped.code(), Code::Ok, "{rewrapped}\n{}", daemon.log());
    let unwrapped = unwrapped.message::<UnwrapBatchResponse>().results;
    let rewrapped = rewrapped.message::<RewrapBatchResponse>().results;
    assert_eq!((unwrapped.len(), rewrapped.len()), (4, 4));
    for ((key, unwrapped), rewrapped) in ITEMS.iter().zip(unwrapped).zip(rewrapped) {
        match (*key, unwrapped.result.unwrap(), rewrapped.result.unwrap()) {
            ("in-token", Unwrapped::Error(unwrap), Rewrapped::Error(rewrap)) => {
                let late = Code::DeadlineExceeded as i32;
                assert_eq!((unwrap.code, rewrap.code), (late, late), "{unwrap:?} {rewrap:?}");
            }
            ("in-file", Unwrapped::Unwrapped(unwrapped), Rewrapped::Rewrapped(rewrapped)) => {
                assert_eq!(unwrapped.key_material, &MATERIAL[..]);
                assert_eq!(rewrapped.wrapped.len(), 256);
            }
            (_, unwrapped, rewrapped) => panic!("{key}: {unwrapped:?}, {rewrapped:?}"),
        }
    }
    faults.clear();
    assert_eq!(daemon.terminate().code, Some(0));
    // Each item has its record, and the record says what the caller was told.
    let records = files.audit_records();
    for operation in ["unwrap", "rewrap"] {
        for (item, key) in (0..).zip(ITEMS) {
            let outcome = if key == "in-token" { "DEADLINE_EXCEEDED" } else { "ok" };
            let mut of_item = records.iter().filter(|record| {
                record["operation"] == operation && record["batch_item"].as_i64() == Some(item)
            });
            let record = of_item.next().unwrap_or_else(|| panic!("{operation} {item}"));
            assert_eq!((&record["outcome"], &record["key"]), (&outcome.into(), &key.into()));
            assert!(of_item.next().is_none(), "{operation} {item}: one record");
        }
    }
}
