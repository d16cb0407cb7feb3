//! What one caller may spend on one key, however it tries, and that no other caller notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claviger_proto::v1::unwrap_batch_result::Result as ItemResult;
use claviger_proto::v1::{GetKeyRequest, ListKeysRequest, UnwrapBatchRequest, UnwrapRequest};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::connection::frame;
use e2e::daemon::claviger;
use e2e::encoding::random;
use e2e::process::command;
use e2e::{Answer, Backend, Connection, Daemon, DaemonFiles, Faults, Identity, RsaKey};
use prost::Message;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt;

const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";

/// A configuration with two keys on the software provider and two callers that may unwrap with both.
struct Setup {
    files: DaemonFiles,
    key: RsaKey,
    hog: Identity,
    quiet: Identity,
}

impl Setup {
    fn new() -> Self {
        let mut files = DaemonFiles::new();
        let backend = Backend::software();
        backend.configure(&mut files);
        let (key, other) = (RsaKey::shared(2048), RsaKey::generate(2048));
        for (id, (name, key)) in (1..).zip([("user-keys", &key), ("other", &other)]) {
            let version = backend.version(&files, 1, key, id);
            files.key(name, &["RSA-OAEP"], vec![version]);
        }
        let keys = ["user-keys", "other"];
        let [hog, quiet] = ["hog", "quiet"].map(|name| files.caller(name, &keys, &["unwrap"]));
        Self { files, key, hog, quiet }
    }

    async fn connect(&self, identity: &Identity) -> Connection {
        let ca = self.files.pki.ca_der();
        Connection::open(self.files.address(), ca, Some(identity)).await.unwrap()
    }

    fn good(&self) -> UnwrapRequest {
        good(&self.key)
    }

    /// How many values of `caller` have reached a key and failed, by the audit log.
    fn failed(&self, caller: &str) -> usize {
        let records = self.files.audit_records();
        let failed = |record: &&serde_json::Value| {
            record["caller"] == caller
                && record["event"] == "operation"
                && record["reason"] == "unwrap_failed"
        };
        records.iter().filter(failed).count()
    }
}

fn good(key: &RsaKey) -> UnwrapRequest {
    let material = KeyMaterial::copied_from(&MATERIAL);
    let wrapped = key.public_key().wrap(&material, &Parameters::of(Algorithm::RsaOaep)).unwrap();
    request("user-keys", wrapped)
}

fn garbage(key: &str) -> UnwrapRequest {
    let mut wrapped = random(256);
    // Below every modulus of 2048 bits, and not one of the values that no token is asked for.
    wrapped[0] &= 0x7f;
    wrapped[1] |= 1;
    request(key, wrapped)
}

fn request(key: &str, wrapped: Vec<u8>) -> UnwrapRequest {
    UnwrapRequest { key: key.to_owned(), wrapped: wrapped.into(), ..UnwrapRequest::default() }
}

/// The delay of a refusal for want of budget; anything else is a panic.
fn retry_after(answer: &Answer) -> Duration {
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
    let details = answer.status().get_error_details();
    details.retry_info().and_then(|info| info.retry_delay).expect("RetryInfo with a delay")
}

/// Fails one after the other until the budget refuses; gives how many failed before that.
async fn use_up(connection: &Connection, key: &str) -> usize {
    for failed in 0..=1000 {
        let answer = connection.unwrap(&garbage(key)).await.unwrap_err();
        if answer.code() != Code::InvalidArgument {
            assert!(retry_after(&answer) > Duration::from_mins(50), "{answer}");
            return failed;
        }
    }
    panic!("the budget never refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_101st_failed_unwrap_in_an_hour_is_refused_also_when_200_come_at_once() {
    let mut setup = Setup::new();
    let daemon = Daemon::start(&mut setup.files);
    let (first, second) = (setup.connect(&setup.hog).await, setup.connect(&setup.hog).await);
    let quiet = setup.connect(&setup.quiet).await;

    let mut calls = JoinSet::new();
    for number in 0..200 {
        let connection = if number % 2 == 0 { first.clone() } else { second.clone() };
        calls.spawn(async move { connection.unwrap(&garbage("user-keys")).await.unwrap_err() });
    }
    let good = setup.good();
    let mut unnoticed = 0;
    let mut codes = Vec::new();
    while let Some(answer) = calls.join_next().await {
        codes.push(answer.unwrap().code());
        assert_eq!(quiet.unwrap(&good).await.unwrap().key_material, &MATERIAL[..]);
        unnoticed += 1;
    }
    let failed = codes.iter().filter(|code| **code == Code::InvalidArgument).count();
    let refused = codes.iter().filter(|code| **code == Code::ResourceExhausted).count();
    println!(
        "200 at once: {failed} failed, {refused} refused; {unnoticed} calls of another caller"
    );
    assert_eq!((failed, refused), (100, 100));
    assert_eq!(setup.failed("hog"), 100);

    // Now nothing of this caller is let in on this key, and all else goes on.
    let answer = first.unwrap(&garbage("user-keys")).await.unwrap_err();
    let wait = retry_after(&answer);
    assert!((3500..=3600).contains(&wait.as_secs()), "{wait:?}");
    assert!(answer.status_message().contains("failed"), "{answer}");
    assert_eq!(first.unwrap(&good).await.unwrap_err().code(), Code::ResourceExhausted);
    let answer = first.unwrap(&garbage("other")).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
    assert_eq!(quiet.unwrap(&good).await.unwrap().key_material, &MATERIAL[..]);
    assert_eq!(setup.failed("hog"), 101);
    assert_eq!(setup.failed("quiet"), 0);
    daemon.wait_for_log("failed_unwraps is used up");
    let counted = daemon.metric("claviger_failed_unwraps_total", &["key=\"user-keys\""]);
    assert_eq!(counted.to_string(), "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_batches_at_once_spend_the_same_budget() {
    let mut setup = Setup::new();
    let daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&setup.hog).await;
    let good = setup.good();
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let (connection, good) = (connection.clone(), good.clone());
        calls.spawn(async move {
            let mut items: Vec<_> = (0..63).map(|_| garbage("user-keys")).collect();
            items.insert(0, good);
            connection.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap().results
        });
    }
    let (mut failed, mut refused) = (0, 0);
    while let Some(results) = calls.join_next().await {
        let results = results.unwrap();
        assert_eq!(results.len(), 64);
        for result in &results[1..] {
            let Some(ItemResult::Error(error)) = &result.result else { panic!("{result:?}") };
            match Code::from(error.code) {
                Code::InvalidArgument => failed += 1,
                Code::ResourceExhausted => {
                    assert!(error.retry_after_ms > 3_000_000, "{error:?}");
                    refused += 1;
                }
                other => panic!("{other:?}: {error:?}"),
            }
        }
    }
    assert_eq!((failed, refused), (100, 89));
    assert_eq!(setup.failed("hog"), 100);
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_unwraps_stay_spent_over_restarts_kills_and_reloads() {
    let mut setup = Setup::new();
    let spend = async |connection: &Connection, calls: usize| {
        for _ in 0..calls {
            let answer = connection.unwrap(&garbage("user-keys")).await.unwrap_err();
            assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
        }
    };
    let daemon = Daemon::start(&mut setup.files);
    spend(&setup.connect(&setup.hog).await, 40).await;
    assert_eq!(daemon.terminate().code, Some(0));

    let daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&setup.hog).await;
    spend(&connection, 30).await;
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    spend(&connection, 15).await;
    assert_eq!(daemon.kill().signal, Some(9));

    let daemon = Daemon::start(&mut setup.files);
    let connection = setup.connect(&setup.hog).await;
    assert_eq!(use_up(&connection, "user-keys").await, 15, "a kill forgets none");
    assert_eq!(daemon.terminate().code, Some(0));

    let daemon = Daemon::start(&mut setup.files);
    assert_eq!(use_up(&setup.connect(&setup.hog).await, "user-keys").await, 0);
    assert_eq!(use_up(&setup.connect(&setup.hog).await, "other").await, 100);
    assert_eq!(use_up(&setup.connect(&setup.quiet).await, "user-keys").await, 100);
    // More is allowed by an operator's word, at once and on what is spent already.
    setup.files.limit("hog", "failed_unwraps", "103/h");
    setup.files.write();
    let reloads = daemon.log().matches("configuration reloaded").count();
    daemon.reload();
    while daemon.log().matches("configuration reloaded").count() == reloads {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(use_up(&setup.connect(&setup.hog).await, "other").await, 3);
}

/// A token whose calls are counted, one key, one caller.
fn in_a_token() -> (DaemonFiles, Backend, Faults, RsaKey, Identity) {
    let mut files = DaemonFiles::new();
    let (backend, faults) = Backend::softhsm_with_faults();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let version = backend.version(&files, 1, &key, 1);
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    let caller = files.caller("key-connector", &["user-keys"], &["unwrap"]);
    (files, backend, faults, key, caller)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_asked_a_thousand_times_by_fifty_at_once_does_not_lock_the_right_one_out() {
    let (mut files, _backend, faults, key, caller) = in_a_token();
    let daemon = Daemon::start(&mut files);
    let ca = files.pki.ca_der();
    let ca = || ca.clone();
    let connection = Connection::open(daemon.address(), ca(), Some(&caller)).await.unwrap();
    let (wrong, before) = (garbage("user-keys"), faults.count("C_DecryptInit"));
    let mut askers = JoinSet::new();
    for _ in 0..50 {
        let (connection, wrong) = (connection.clone(), wrong.clone());
        askers.spawn(async move {
            for _ in 0..20 {
                let answer = connection.unwrap(&wrong).await.unwrap_err();
                assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
            }
        });
    }
    while let Some(asker) = askers.join_next().await {
        asker.unwrap();
    }
    assert_eq!(connection.unwrap(&good(&key)).await.unwrap().key_material, &MATERIAL[..]);
    // The wrong value once, its canary, the right value; canaries of the monitor need ten seconds.
    let asked = faults.count("C_DecryptInit") - before;
    assert!((3..=4).contains(&asked), "{asked}");
    assert_eq!(daemon.count("claviger_failed_unwraps_total", &[]), 1);
    assert_eq!(daemon.count("claviger_repeated_failures_total", &[]), 999);
    daemon.wait_for_log("the same value keeps failing");
    let alarms = daemon.log().matches("the same value keeps failing").count();
    assert_eq!(alarms, 1);
    // Over a restart: answered as before, without the token.
    assert_eq!(daemon.kill().signal, Some(9));
    let daemon = Daemon::start(&mut files);
    let connection = Connection::open(daemon.address(), ca(), Some(&caller)).await.unwrap();
    assert_eq!(connection.unwrap(&wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(daemon.count("claviger_failed_unwraps_total", &[]), 0);
    assert_eq!(use_up(&connection, "user-keys").await, 99, "the 101st distinct one is refused");
}

/// The token answers after 200 ms, whatever it is asked, so that what takes part in a failure shows.
#[tokio::test(flavor = "multi_thread")]
async fn every_first_failure_takes_a_canary_too_and_a_repeated_one_asks_no_token() {
    let (mut files, _backend, faults, key, caller) = in_a_token();
    let daemon = Daemon::start(&mut files);
    let ca = files.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca, Some(&caller)).await.unwrap();
    faults.on_every("C_Decrypt", "sleep=200");
    // Another padding, another hash, and no padding at all.
    let wrap = |material: &[u8], algorithm| {
        let material = KeyMaterial::copied_from(material);
        let wrapped = key.public_key().wrap(&material, &Parameters::of(algorithm)).unwrap();
        request("user-keys", wrapped)
    };
    let wrong = [
        garbage("user-keys"),
        wrap(&MATERIAL, Algorithm::RsaOaep256),
        wrap(&MATERIAL, Algorithm::Rsa15),
    ];
    let mut timed = Vec::new();
    for value in &wrong {
        for _ in 0..2 {
            let (asked, begun) = (faults.count("C_Decrypt"), Instant::now());
            let answer = connection.unwrap(value).await.unwrap_err();
            assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
            timed.push((begun.elapsed(), faults.count("C_Decrypt") - asked));
        }
    }
    println!("failures, each first and repeated: {timed:.1?}");
    let both = Duration::from_millis(400);
    for pair in timed.chunks(2) {
        let [(first, asked), (repeated, asked_again)] = pair else { panic!("{timed:?}") };
        assert!(*first >= both && *asked >= 2, "{timed:?}");
        assert!(*repeated < both / 2 && *asked_again == 0, "{timed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_early_costs_as_much_as_staying_and_keeps_its_place_in_flight() {
    let (mut files, _backend, faults, key, caller) = in_a_token();
    files.limit("key-connector", "failed_unwraps", "4/h");
    let daemon = Daemon::start(&mut files);
    let ca = files.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca, Some(&caller)).await.unwrap();
    connection.unwrap(&good(&key)).await.unwrap();
    // A failure takes one decryption, and a second one of the canary.
    faults.on_every("C_Decrypt", "sleep=1000");
    let patience = Duration::from_millis(400);
    for number in 1..=4 {
        let body = frame(&garbage("user-keys").encode_to_vec());
        let path = "/claviger.v1.KeyService/Unwrap";
        if number % 2 == 0 {
            let answer = connection.call(path, body, &[("grpc-timeout", "400m")]).await.unwrap();
            assert_eq!(answer.code(), Code::DeadlineExceeded, "{answer}");
        } else {
            let call = connection.call(path, body, &[]);
            assert!(tokio::time::timeout(patience, call).await.is_err());
        }
        assert!(daemon.count("claviger_calls_in_flight", &[]) > 0, "it keeps its place");
        let begun = Instant::now();
        while daemon.count("claviger_abandoned_total", &[]) < number {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    faults.clear();
    retry_after(&connection.unwrap(&garbage("user-keys")).await.unwrap_err());
    let begun = Instant::now();
    while daemon.count("claviger_calls_in_flight", &[]) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "a place was not given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.count("claviger_failed_unwraps_total", &[]), 4);
    let records = files.audit_records();
    let ended: Vec<_> =
        records.iter().filter(|record| record["ended"] == "unwrap_failed").collect();
    assert_eq!(ended.len(), 4, "{records:#?}");
    let of = |outcome: &str| ended.iter().filter(|r| r["outcome"] == outcome).count();
    assert_eq!((of("DEADLINE_EXCEEDED"), of("CANCELLED")), (2, 2));
}

/// A session that is made anew after a failure, and not after a success, tells by the time of the next
/// call which it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_without_its_caller_has_its_session_made_anew_whatever_came_of_it() {
    let (mut site, _backend, faults, key, caller) = in_a_token();
    site.set("providers.backend.sessions", 1);
    let daemon = Daemon::start(&mut site);
    let ca = site.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca, Some(&caller)).await.unwrap();
    let opened = || faults.count("C_OpenSession");
    connection.unwrap(&good(&key)).await.unwrap();
    let before = opened();
    connection.unwrap(&good(&key)).await.unwrap();
    assert_eq!(opened(), before, "after a success whose caller waited it is kept");
    let path = "/claviger.v1.KeyService/Unwrap";
    for (number, leaves) in (1..).zip(["by its deadline", "before its deadline"]) {
        faults.on_next(1, "C_Decrypt", "sleep=1500");
        let body = frame(&good(&key).encode_to_vec());
        if leaves == "by its deadline" {
            let answer = connection.call(path, body, &[("grpc-timeout", "400m")]).await.unwrap();
            assert_eq!(answer.code(), Code::DeadlineExceeded, "{answer}");
        } else {
            let call = connection.call(path, body, &[]);
            assert!(tokio::time::timeout(Duration::from_millis(400), call).await.is_err());
        }
        let begun = Instant::now();
        while daemon.count("claviger_abandoned_total", &[]) < number {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = opened();
        connection.unwrap(&good(&key)).await.unwrap();
        assert_eq!(opened(), before + 1, "{leaves}\n{}", daemon.log());
        connection.unwrap(&good(&key)).await.unwrap();
        assert_eq!(opened(), before + 1, "{leaves}: once");
    }
    let records = site.audit_records();
    assert_eq!(records.iter().filter(|record| record["ended"] == "ok").count(), 2);
}

/// The process of the module ends, and no token has answered what was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_on_which_the_module_ends_counts_until_the_token_answers_it() {
    let (mut site, _backend, faults, key, caller) = in_a_token();
    let daemon = Daemon::start(&mut site);
    let ca = site.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca, Some(&caller)).await.unwrap();
    let value = good(&key);
    let spent = || {
        let output = command(claviger())
            .args(["--json", "budget", "show", "key-connector", "user-keys", "--config"])
            .arg(site.configuration_file())
            .output()
            .unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (shown["spent"]["failed"].as_u64(), shown["spent"]["unanswered"].as_u64())
    };
    faults.on_every("C_Decrypt", "crash");
    let answer = connection.unwrap(&value).await.unwrap_err();
    assert!(matches!(answer.code(), Code::Unavailable | Code::DeadlineExceeded), "{answer}");
    let begun = Instant::now();
    while spent() != (Some(1), Some(1)) {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    faults.clear();
    let begun = Instant::now();
    while connection.unwrap(&value).await.is_err() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(spent(), (Some(0), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_a_budget_and_gives_it_back_and_the_audit_log_says_so() {
    let (mut files, _backend, _faults, key, caller) = in_a_token();
    files.limit("key-connector", "failed_unwraps", "3/h");
    let daemon = Daemon::start(&mut files);
    let ca = files.pki.ca_der();
    let connection = Connection::open(daemon.address(), ca, Some(&caller)).await.unwrap();
    let budget = |arguments: &[&str]| {
        let output = command(claviger())
            .args(["--json", "budget"])
            .args(arguments)
            .arg("--config")
            .arg(files.configuration_file())
            .output()
            .unwrap();
        let text = if output.status.success() { output.stdout } else { output.stderr };
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(use_up(&connection, "user-keys").await, 3);
    let shown = budget(&["show", "key-connector", "user-keys"]);
    assert_eq!((&shown["spent"]["failed"], &shown["spent"]["limit"]), (&3.into(), &3.into()));
    assert_eq!(connection.unwrap(&good(&key)).await.unwrap_err().code(), Code::ResourceExhausted);
    let reset = budget(&["reset", "key-connector", "user-keys"]);
    assert_eq!(reset["spent"]["failed"], 3, "{reset}");
    assert_eq!(connection.unwrap(&good(&key)).await.unwrap().key_material, &MATERIAL[..]);
    assert_eq!(budget(&["show", "key-connector", "user-keys"])["spent"]["failed"], 0);
    let unknown = budget(&["show", "key-connector", "no-such-key"]);
    let said = unknown["error"]["message"].as_str().unwrap();
    assert!(said.contains("it has on user-keys"), "{unknown}");
    let records = files.audit_records();
    let recorded: Vec<_> = records.iter().filter(|r| r["event"] == "budget-reset").collect();
    assert_eq!(recorded.len(), 1);
    assert_eq!(
        (&recorded[0]["caller"], &recorded[0]["failed"]),
        (&"key-connector".into(), &3.into())
    );
    assert!(records.iter().any(|record| record["alarm"] == "failed_unwraps_used_up"));
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_refuses_its_own_caller_on_that_key_and_says_for_how_long() {
    let mut setup = Setup::new();
    setup.files.limit("hog", "rate", "20/m");
    setup.files.limit("hog", "failed_unwraps", "off");
    let daemon = Daemon::start(&mut setup.files);
    let (hog, quiet) = (setup.connect(&setup.hog).await, setup.connect(&setup.quiet).await);
    let good = setup.good();
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        let (hog, good) = (hog.clone(), good.clone());
        calls.spawn(async move { hog.unwrap(&good).await.map(|_| ()) });
    }
    let (mut passed, mut waits) = (0, Vec::new());
    while let Some(outcome) = calls.join_next().await {
        match outcome.unwrap() {
            Ok(()) => passed += 1,
            Err(answer) => waits.push(retry_after(&answer)),
        }
    }
    // One comes back each three seconds.
    assert!((20..=21).contains(&passed), "{passed} passed");
    let wait = waits.into_iter().max().unwrap();
    assert!(wait <= Duration::from_secs(3), "{wait:?}");

    let items = vec![good.clone(); 3];
    let batch = hog.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap();
    for result in batch.results {
        let Some(ItemResult::Error(error)) = result.result else { panic!("no item was free") };
        assert_eq!(error.code, Code::ResourceExhausted as i32);
        assert!(error.retry_after_ms > 0 && error.retry_after_ms <= 3000, "{error:?}");
    }
    let answer = hog.unwrap(&garbage("other")).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument, "another key has its own rate");
    for _ in 0..50 {
        quiet.unwrap(&good).await.unwrap();
    }
    tokio::time::sleep(wait).await;
    hog.unwrap(&good).await.unwrap();
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_keys_spends_a_rate_too() {
    let mut setup = Setup::new();
    let watcher = setup.files.caller("watcher", &["user-keys", "other"], &["read"]);
    setup.files.limit("watcher", "rate", "3/h");
    let daemon = Daemon::start(&mut setup.files);
    let watcher = setup.connect(&watcher).await;
    // A list is one call, however many keys and pages it has.
    let first = ListKeysRequest { page_size: 1, ..ListKeysRequest::default() };
    let page = watcher.list_keys(&first).await.unwrap();
    assert_eq!((page.keys.len(), page.next_page_token.as_str()), (1, "other"));
    let rest = ListKeysRequest { page_token: page.next_page_token, ..ListKeysRequest::default() };
    assert_eq!(watcher.list_keys(&rest).await.unwrap().keys.len(), 1);
    assert_eq!(watcher.list_keys(&ListKeysRequest::default()).await.unwrap().keys.len(), 2);
    let answer = watcher.list_keys(&ListKeysRequest::default()).await.unwrap_err();
    assert!(retry_after(&answer) > Duration::from_mins(15), "{answer}");
    // Each key has its own rate, and lists have theirs.
    let get = GetKeyRequest { key: "user-keys".into() };
    for _ in 0..3 {
        watcher.get_key(&get).await.unwrap();
    }
    assert!(retry_after(&watcher.get_key(&get).await.unwrap_err()) > Duration::from_mins(15));
    watcher.get_key(&GetKeyRequest { key: "other".into() }).await.unwrap();

    // What was spent stays spent over a reload, and another limit acts.
    daemon.reload();
    daemon.wait_for_log("configuration reloaded");
    let answer = watcher.list_keys(&ListKeysRequest::default()).await.unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
    setup.files.limit("watcher", "rate", "off");
    setup.files.write();
    daemon.reload();
    let begun = Instant::now();
    while watcher.list_keys(&ListKeysRequest::default()).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_unwraps_more_than_is_usual_alarms_once_and_is_refused_nothing() {
    let mut setup = Setup::new();
    setup.files.limit("quiet", "rate", "1000/s");
    let daemon = Daemon::start(&mut setup.files);
    let (hog, quiet) = (setup.connect(&setup.hog).await, setup.connect(&setup.quiet).await);
    let good = setup.good();
    let alarms = || daemon.count("claviger_unwraps_alarms_total", &["key=\"user-keys\""]);
    for _ in 0..100 {
        hog.unwrap(&good).await.unwrap();
    }
    assert_eq!(alarms(), 0, "100 an hour are usual where nothing else is said");
    let items = vec![good.clone(); 30];
    let batch = hog.unwrap_batch(&UnwrapBatchRequest { items }).await.unwrap();
    assert!(batch.results.iter().all(|r| matches!(r.result, Some(ItemResult::Unwrapped(_)))));
    for _ in 0..130 {
        quiet.unwrap(&good).await.unwrap();
    }
    assert_eq!(alarms(), 1, "a rate says itself how much is usual");
    let told = daemon.log().matches("more unwraps than unwraps_alarm").count();
    assert_eq!(told, 1, "{}", daemon.log());
    assert!(daemon.log().contains("caller=hog"), "{}", daemon.log());
    assert_eq!(daemon.count("claviger_unwraps_alarms_total", &["key=\"other\""]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_of_one_caller_does_no_harm_to_another() {
    flood(2000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: scripts/test --all"]
async fn a_hundred_thousand_garbage_unwraps_do_no_harm_to_another() {
    flood(100_000).await;
}

async fn flood(calls: usize) {
    let mut files = DaemonFiles::new();
    let (backend, faults) = Backend::softhsm_with_faults();
    backend.configure(&mut files);
    let key = RsaKey::shared(2048);
    let version = backend.version(&files, 1, &key, 1);
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    let [hog, quiet] = ["hog", "quiet"].map(|name| files.caller(name, &["user-keys"], &["unwrap"]));
    files.limit("hog", "failed_unwraps", "off");
    let daemon = Daemon::start(&mut files);
    let (initialised, logins) = (faults.count("C_Initialize"), faults.count("C_Login"));
    assert_eq!(logins, 1);
    let ca = || files.pki.ca_der();
    let hog = Connection::open(daemon.address(), ca(), Some(&hog)).await.unwrap();
    let quiet = Connection::open(daemon.address(), ca(), Some(&quiet)).await.unwrap();

    let alone = Instant::now();
    for _ in 0..50 {
        quiet.unwrap(&good(&key)).await.unwrap();
    }
    let alone = alone.elapsed() / 50;
    let ended = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn({
        let (quiet, good, ended) = (quiet.clone(), good(&key), Arc::clone(&ended));
        async move {
            let (mut served, mut slowest) = (0, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let unwrapped = quiet.unwrap(&good).await.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(unwrapped.key_material, &MATERIAL[..]);
                slowest = slowest.max(begun.elapsed());
                served += 1;
            }
            (served, slowest)
        }
    });
    let begun = Instant::now();
    let mut senders = JoinSet::new();
    let in_flight = 64;
    for sender in 0..in_flight {
        let hog = hog.clone();
        let share = calls / in_flight + usize::from(sender < calls % in_flight);
        senders.spawn(async move {
            for _ in 0..share {
                let answer = hog.unwrap(&garbage("user-keys")).await.unwrap_err();
                assert_eq!(answer.code(), Code::InvalidArgument, "{answer}");
            }
            share
        });
    }
    let sent: usize = senders.join_all().await.into_iter().sum();
    let took = begun.elapsed();
    ended.store(true, Ordering::Relaxed);
    let (served, slowest) = other.await.expect("no error of the other caller");
    println!(
        "{sent} garbage unwraps in {:.1} s; another caller: {alone:.1?} a call alone, {:.1?} beside it, slowest {slowest:.1?}, {served} calls, 0 errors",
        took.as_secs_f64(),
        took / served,
    );
    assert_eq!(sent, calls);
    assert!(served > 10);
    assert_eq!(faults.count("C_Login"), 1);
    assert_eq!(faults.count("C_Initialize"), initialised);
    assert_eq!(faults.count("C_Finalize"), 0);
    assert!(faults.count("C_Decrypt") >= calls as u64, "the values reached the token");
    let counted = daemon.metric("claviger_failed_unwraps_total", &[]);
    assert_eq!(counted.to_string(), calls.to_string());
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    for sign_of_alarm in ["replica fails", "breaker", " ERROR "] {
        assert!(!exit.log.contains(sign_of_alarm), "{sign_of_alarm} in:\n{}", exit.log);
    }
}
