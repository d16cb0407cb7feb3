//! A grant with `wrapped_sha256` opens the values that it lists and no other: a value that is not
//! listed fails as any bad value does, reaches no backend, costs nothing, and alarms.

use claviger_proto::v1::rewrap_target::Recipient;
use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::v1::{
    RewrapRequest, RewrapSource, RewrapTarget, UnwrapBatchRequest, UnwrapRequest,
};
use claviger_provider_api::public_key::sha256;
use e2e::connection::frame;
use e2e::setup::{KEY, MATERIAL, wrap};
use e2e::{Backend, Connection, Daemon, DaemonFiles, Faults, Identity, RsaKey};
use prost::Message;
use tonic::Code;

/// One key in a token whose calls are counted.
struct Setup {
    files: DaemonFiles,
    faults: Faults,
    /// Its folder is gone once this is dropped.
    _backend: Backend,
    key: RsaKey,
}

impl Setup {
    fn new() -> Self {
        let (backend, faults) = Backend::softhsm_with_faults();
        let mut files = DaemonFiles::new();
        backend.configure(&mut files);
        let key = RsaKey::shared(2048);
        let version = backend.version(&files, 1, &key, 1);
        files.key(KEY, &["RSA-OAEP"], vec![version]);
        Self { files, faults, _backend: backend, key }
    }

    /// A caller that may unwrap `values` only.
    fn narrow(&mut self, name: &str, values: &[&[u8]]) -> Identity {
        let listed: Vec<String> =
            values.iter().map(|value| format!("\"{}\"", hex::encode(sha256(value)))).collect();
        self.files.caller_with(
            name,
            &format!(
                r#"[{{ keys = ["{KEY}"], operations = ["unwrap", "read"], wrapped_sha256 = [{}] }}]"#,
                listed.join(", ")
            ),
        )
    }

    async fn connect(&self, identity: &Identity) -> Connection {
        let ca = self.files.pki.ca_der();
        Connection::open(self.files.address(), ca, Some(identity)).await.unwrap()
    }
}

fn request(wrapped: &[u8]) -> UnwrapRequest {
    UnwrapRequest { key: KEY.into(), wrapped: wrapped.to_vec().into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_listed_fails_like_any_other_and_reaches_no_token() {
    let mut setup = Setup::new();
    let [own, second, other] = [(); 3].map(|()| wrap(&setup.key));
    let narrow = setup.narrow("narrow", &[&own, &second]);
    let wide = setup.files.caller("wide", &[KEY], &["unwrap"]);
    let daemon = Daemon::start(&mut setup.files);
    let (narrow, wide) = (setup.connect(&narrow).await, setup.connect(&wide).await);
    let path = "/claviger.v1.KeyService/Unwrap";
    let call = async |connection: &Connection, wrapped: &[u8]| {
        let body = frame(&request(wrapped).encode_to_vec());
        connection.call(path, body, &[]).await.unwrap()
    };

    for value in [&own, &second] {
        assert_eq!(narrow.unwrap(&request(value)).await.unwrap().key_material, &MATERIAL[..]);
    }
    // It is a good value: for a caller without the list.
    assert_eq!(wide.unwrap(&request(&other)).await.unwrap().key_material, &MATERIAL[..]);
    let mut bad = other.clone();
    bad[100] ^= 1;
    let uniform = call(&wide, &bad).await;
    assert_eq!(uniform.code(), Code::InvalidArgument);

    let before = setup.faults.count("C_DecryptInit");
    for wrapped in [other.clone(), bad.clone(), vec![0xff; 256]] {
        let answer = call(&narrow, &wrapped).await;
        assert_eq!(answer.comparable(), uniform.comparable());
    }
    let items = vec![request(&other), request(&bad)];
    let results = narrow.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap().results;
    for result in results {
        let Some(ItemResult::Error(error)) = result.result else { panic!("{result:?}") };
        assert_eq!((error.code, error.message.as_str()), (3, uniform.status().message()));
        assert_eq!((error.field.as_str(), error.retry_after_ms), ("", 0));
    }
    assert_eq!(setup.faults.count("C_DecryptInit"), before, "no backend was asked");
    // What is decided without the value still names its field.
    let short = call(&narrow, &other[1..]).await;
    assert!(short.status_message().contains("wrapped"), "{short}");

    // Counted and recorded as what they are, with the cause that no caller sees.
    assert_eq!(daemon.count("claviger_failed_unwraps_total", &[]), 1, "the one of the wide caller");
    assert_eq!(daemon.count("claviger_values_not_granted_total", &[]), 5);
    daemon.wait_for_log("a value that the caller's grant does not list");
    let records = setup.files.audit_records();
    let unlisted: Vec<_> =
        records.iter().filter(|record| record["cause"] == "value_not_granted").collect();
    assert_eq!(unlisted.len(), 5);
    for record in unlisted {
        assert_eq!(record["event"], "refusal");
        assert_eq!(record["caller"], "narrow");
        assert_eq!(record["reason"], "unwrap_failed");
        assert_eq!((&record["version"], &record["algorithm"]), (&1.into(), &"RSA-OAEP".into()));
        assert!(record["provider"].is_null(), "{record}");
    }
    let hash = hex::encode(sha256(&other));
    assert!(records.iter().any(|record| record["wrapped_sha256"] == hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_not_listed_cost_no_budget_and_no_room_on_the_disk_and_alarm_once() {
    let mut setup = Setup::new();
    let own = wrap(&setup.key);
    let narrow = setup.narrow("narrow", &[&own]);
    setup.files.limit("narrow", "failed_unwraps", "3/h");
    let daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&narrow).await;
    for _ in 0..20 {
        let other = wrap(&setup.key);
        let answer = connection.unwrap(&request(&other)).await.unwrap_err();
        assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
    }
    assert_eq!(connection.unwrap(&request(&own)).await.unwrap().key_material, &MATERIAL[..]);
    assert_eq!(daemon.terminate().code, Some(0));
    let records = setup.files.audit_records();
    let alarms = records.iter().filter(|record| record["alarm"] == "value_not_granted");
    assert_eq!(alarms.count(), 1);
    let own_lines = records.iter().filter(|record| record["cause"] == "value_not_granted");
    assert_eq!(own_lines.count(), 5);
    let counted = records.iter().find(|record| record["event"] == "refusals").unwrap();
    assert_eq!(counted["reasons"]["value_not_granted"], 15, "{counted}");
    assert_eq!(counted["keys"][KEY], 15, "{counted}");
    assert_eq!(counted["identities"]["spiffe://example.org/narrow"], 15, "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_several_grants_add_up_and_each_holds_for_its_own_target() {
    let mut setup = Setup::new();
    let [for_both, for_device, unlisted] = [(); 3].map(|()| wrap(&setup.key));
    let device = RsaKey::generate(2048);
    let list = |values: &[&[u8]]| {
        let values: Vec<_> =
            values.iter().map(|v| format!("\"{}\"", hex::encode(sha256(v)))).collect();
        values.join(", ")
    };
    let grants = format!(
        r#"[
            {{ keys = ["{KEY}"], operations = ["rewrap"], to = ["{KEY}"], wrapped_sha256 = [{}] }},
            {{ keys = ["{KEY}"], operations = ["rewrap"], to_public_keys = ["{}"], wrapped_sha256 = [{}] }},
            {{ keys = ["{KEY}"], operations = ["rewrap"], to_public_keys = ["{}"], wrapped_sha256 = [{}] }},
        ]"#,
        list(&[&for_both]),
        device.public_key_sha256(),
        list(&[&for_both]),
        device.public_key_sha256(),
        list(&[&for_device]),
    );
    let mover = setup.files.caller_with("mover", &grants);
    let _daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&mover).await;
    let ask = async |wrapped: &[u8], recipient: Recipient| {
        let algorithm = "RSA-OAEP".to_owned();
        let request = RewrapRequest {
            source: Some(RewrapSource { key: KEY.into(), ..Default::default() }),
            wrapped: wrapped.to_vec().into(),
            target: Some(RewrapTarget {
                recipient: Some(recipient),
                algorithm,
                ..Default::default()
            }),
            max_key_material_len: None,
            approval: None,
        };
        connection.rewrap(&request).await.map_or_else(|answer| answer.code(), |_| Code::Ok)
    };
    let to_key = || Recipient::Key(KEY.into());
    let to_device = || Recipient::PublicKey(device.public_key().spki().to_vec().into());
    assert_eq!(ask(&for_both, to_key()).await, Code::Ok);
    assert_eq!(ask(&for_both, to_device()).await, Code::Ok);
    assert_eq!(ask(&for_device, to_key()).await, Code::InvalidArgument);
    assert_eq!(ask(&for_device, to_device()).await, Code::Ok);
    assert_eq!(ask(&unlisted, to_device()).await, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_list_for_the_next_call() {
    let mut setup = Setup::new();
    let [own, other] = [(); 2].map(|()| wrap(&setup.key));
    let narrow = setup.narrow("narrow", &[&own]);
    let daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&narrow).await;
    assert_eq!(
        connection.unwrap(&request(&other)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let text = setup.files.configuration.to_string();
    let changed = text.replace(&hex::encode(sha256(&own)), &hex::encode(sha256(&other)));
    setup.files.configuration = changed.parse().unwrap();
    setup.files.write();
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    assert_eq!(connection.unwrap(&request(&other)).await.unwrap().key_material, &MATERIAL[..]);
    assert_eq!(connection.unwrap(&request(&own)).await.unwrap_err().code(), Code::InvalidArgument);
}
