//! Backends that are down, come back, lie, hang, or hold another key: never a wrong answer, honest
//! health, no restart.

use std::time::{Duration, Instant};

use claviger_client::{Client, Code as ClientCode, Health, UnwrapOptions};
use e2e::connection::frame;
use e2e::setup::{KEY, wrap};
use e2e::token::Attributes;
use e2e::{Connection, Daemon, Load, RsaKey, Setup, Token, Version};
use tonic::Code;

async fn not_serving_and(setup: &Setup, daemon: &Daemon, code: Code) {
    assert_eq!(setup.ask(daemon).await, code, "{}", daemon.log());
    assert_eq!(setup.key_health(daemon).await, Health::NotServing, "{}", daemon.log());
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200, "one key is not the daemon");
}

async fn serving(setup: &Setup, daemon: &Daemon) {
    setup.wait_for(daemon, Code::Ok).await;
    assert_eq!(setup.key_health(daemon).await, Health::Serving, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_key_is_not_the_pinned_one_never_serves() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let other = RsaKey::generate(2048);
    let version = Version::active(1, &other, "hsm-a", "pkcs11:object=user-keys");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    let daemon = setup.start();
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    let connection = setup.connect(&daemon).await;
    let request = claviger_proto::v1::WrapRequest {
        key: KEY.into(),
        key_material: vec![7; 32].into(),
        ..Default::default()
    };
    let refused = connection.wrap(&request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (log, request_id) = (daemon.log(), refused.request_id().unwrap());
    let told = |line: &str| line.contains(request_id) && line.contains("another key lies here");
    assert!(log.lines().any(told), "what is wrong, under {request_id}: {log}");
    assert!(log.contains(&setup.key.public_key_sha256()), "what was found: {log}");
    assert!(log.contains(&other.public_key_sha256()), "what is pinned: {log}");

    // The pin is put right: a reload is all it takes.
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    setup.files.write();
    daemon.reload();
    serving(&setup, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_away_at_the_start_comes_back_without_a_restart() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    token.take_away();
    let daemon = setup.start();
    not_serving_and(&setup, &daemon, Code::Unavailable).await;
    assert_eq!(faults.count("C_Login"), 0);
    token.bring_back();
    serving(&setup, &daemon).await;
    assert_eq!(faults.count("C_Login"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_goes_away_and_comes_back_is_used_again_without_a_restart() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    token.take_away();
    setup.wait_for(&daemon, Code::Unavailable).await;
    not_serving_and(&setup, &daemon, Code::Unavailable).await;
    token.bring_back();
    serving(&setup, &daemon).await;
    // Each login was with the right PIN and worked: none is on record as failed.
    assert!(faults.count("C_Login") >= 2);
    assert_eq!(std::fs::read_dir(setup.files.path("state/pin")).unwrap().count(), 1, "the lock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_plainly_not_the_values_fault_is_repaired_and_retried_once_in_silence() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    for (function, rv, what) in [
        ("C_Decrypt", "0xb3", "CKR_SESSION_HANDLE_INVALID"),
        ("C_Decrypt", "0xb0", "CKR_SESSION_CLOSED"),
        ("C_Decrypt", "0x32", "CKR_DEVICE_REMOVED"),
        ("C_Decrypt", "0xe0", "CKR_TOKEN_NOT_PRESENT"),
        ("C_Decrypt", "0x101", "CKR_USER_NOT_LOGGED_IN"),
        ("C_Decrypt", "0x91", "CKR_OPERATION_NOT_INITIALIZED"),
        ("C_DecryptInit", "0x90", "CKR_OPERATION_ACTIVE"),
        ("C_DecryptInit", "0x60", "CKR_KEY_HANDLE_INVALID"),
        ("C_DecryptInit", "0x82", "CKR_OBJECT_HANDLE_INVALID"),
        ("C_DecryptInit", "0x101", "CKR_USER_NOT_LOGGED_IN"),
        ("C_DecryptInit", "0x30", "CKR_DEVICE_ERROR"),
        ("C_DecryptInit", "0x5", "CKR_GENERAL_ERROR"),
        ("C_DecryptInit", "0x190", "CKR_CRYPTOKI_NOT_INITIALIZED"),
    ] {
        let before = faults.count(function);
        faults.on_call(1, function, &format!("rv={rv}"));
        let code = setup.ask_over(&connection).await;
        assert_eq!(code, Code::Ok, "{what} from {function}\n{}", daemon.log());
        assert!(faults.count(function) > before + 1, "{what} was injected");
        faults.clear();
        assert_eq!(setup.ask_over(&connection).await, Code::Ok, "after {what}");
    }
    assert_eq!(faults.count("C_Login"), 1);
    assert_eq!(setup.key_health(&daemon).await, Health::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_the_values_fault_is_the_values_fault_where_the_canary_is_well() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    for rv in ["0x5", "0x6", "0x30", "0x40", "0x80000001"] {
        faults.on_call(1, "C_Decrypt", &format!("rv={rv}"));
        assert_eq!(setup.ask_over(&connection).await, Code::InvalidArgument, "{rv}");
        assert_eq!(setup.ask_over(&connection).await, Code::Ok, "after {rv}");
        faults.clear();
    }
    assert_eq!((faults.count("C_Login"), faults.count("C_Initialize")), (1, 1));
    assert_eq!(setup.key_health(&daemon).await, Health::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_in_trouble_is_unavailable_as_long_as_it_is_and_no_longer() {
    for (function, rv) in [
        ("C_Decrypt", "0x30"),
        ("C_Decrypt", "0x5"),
        ("C_DecryptInit", "0xb3"),
        ("C_OpenSession", "0x32"),
    ] {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut setup = Setup::on(&token);
        let daemon = setup.start();
        let connection = setup.connect(&daemon).await;
        assert_eq!(setup.ask_over(&connection).await, Code::Ok);
        // A value that fails makes the worker open its next session.
        faults.on_call(1, "C_Decrypt", "rv=0xb3");
        faults.on_every(function, &format!("rv={rv}"));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let code = setup.ask_over(&connection).await;
            assert!(
                code == Code::Unavailable || (function == "C_OpenSession" && code == Code::Ok),
                "{code:?} while {function} gives {rv}\n{}",
                daemon.log()
            );
        }
        not_serving_and(&setup, &daemon, Code::Unavailable).await;
        // A caller with short deadlines causes no further attempts.
        let logins = faults.count("C_Login");
        assert!(logins <= 6, "{logins} logins in two seconds of {function} {rv}");
        faults.clear();
        serving(&setup, &daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_whose_canary_comes_back_wrong_does_not_serve() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    // From the start.
    faults.on_every("C_Decrypt", "garbage");
    let daemon = setup.start();
    assert_ne!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(setup.key_health(&daemon).await, Health::NotServing, "{}", daemon.log());
    faults.clear();
    serving(&setup, &daemon).await;
    // And while it runs: the periodic canary finds out.
    faults.on_every("C_Decrypt", "garbage");
    setup.wait_for_key_health(&daemon, Health::NotServing).await;
    assert_eq!(setup.ask(&daemon).await, Code::Internal, "an answer that cannot be");
    faults.clear();
    serving(&setup, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_that_does_not_verify_is_not_given_out() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    let version = version.with("algorithms", Vec::<String>::new());
    setup.files.key("signing", &[], vec![version.with("sign_algorithms", vec!["PS256"])]);
    setup.files.configuration["keys"].as_table_mut().unwrap().remove(KEY);
    setup.files.configuration["keys"]["signing"].as_table_mut().unwrap().remove("algorithms");
    setup.files.configuration.remove("callers");
    let signer = setup.files.caller("signer", &["signing"], &["sign"]);
    let daemon = setup.start();
    let connection = setup.connect_as(&daemon, &signer).await;
    let request = claviger_proto::v1::SignRequest {
        key: "signing".into(),
        digest: vec![7; 32].into(),
        algorithm: "PS256".into(),
        key_version: None,
    };
    connection.sign(&request).await.unwrap_or_else(|e| panic!("{e}\n{}", daemon.log()));
    faults.on_every("C_Sign", "garbage");
    assert_eq!(connection.sign(&request).await.unwrap_err().code(), Code::Internal);
    faults.clear();
    connection.sign(&request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_hangs_costs_its_own_callers_their_deadline_and_nobody_else_anything() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let folder = setup.files.path("keys");
    std::fs::create_dir(&folder).unwrap();
    let other = RsaKey::generate(2048);
    other.write_pem(&folder.join("other.pem"));
    let mut files = toml::Table::new();
    files.insert("type".into(), "software".into());
    files.insert("directory".into(), folder.to_str().unwrap().into());
    setup.files.provider("files", files);
    setup.files.key("other", &["RSA-OAEP"], vec![Version::active(1, &other, "files", "other.pem")]);
    let neighbour = setup.files.caller("neighbour", &["other"], &["unwrap"]);
    let mut of_other = setup.request();
    of_other.key = "other".into();
    of_other.wrapped = wrap(&other).into();
    let daemon = setup.start();
    let connection = setup.connect(&daemon).await;
    let neighbour = setup.connect_as(&daemon, &neighbour).await;

    faults.on_every("C_Decrypt", "hang");
    for _ in 0..4 {
        let (code, took) = with_timeout(&connection, &setup, "700m").await;
        assert_eq!(code, Code::DeadlineExceeded);
        assert!(
            took >= Duration::from_millis(650) && took < Duration::from_millis(1500),
            "{took:?}"
        );
        let begun = Instant::now();
        neighbour.unwrap(&of_other).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(500));
    }
    setup.wait_for_key_health(&daemon, Health::NotServing).await;
    neighbour.unwrap(&of_other).await.unwrap();
    faults.clear();
    serving(&setup, &daemon).await;
    faults.on_every("C_Decrypt", "hang");
    let (code, _) = with_timeout(&connection, &setup, "300m").await;
    assert_eq!(code, Code::DeadlineExceeded);
    let begun = Instant::now();
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// One unwrap with a deadline: the code, and when it came.
async fn with_timeout(connection: &Connection, setup: &Setup, timeout: &str) -> (Code, Duration) {
    let call = frame(&prost::Message::encode_to_vec(&setup.request()));
    let begun = Instant::now();
    let headers = [("grpc-timeout", timeout)];
    let answer = connection.call("/claviger.v1.KeyService/Unwrap", call, &headers).await;
    (answer.unwrap().code(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_swapped_under_its_name_is_never_used() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    let impostor = RsaKey::generate(2048);
    token.delete(KEY);
    token.import(&impostor, KEY, "01");
    let connection = setup.connect(&daemon).await;
    let mut of_impostor = setup.request();
    of_impostor.wrapped = wrap(&impostor).into();
    // SoftHSM may still hold the old key in memory, with which the right value is right and that of
    // the impostor is wrong; never the other way round. Once the swap is seen it stays seen.
    let mut seen = false;
    let begun = Instant::now();
    while !seen || begun.elapsed() < Duration::from_secs(3) {
        assert!(begun.elapsed() < Duration::from_mins(1), "the swap was not seen");
        let code = connection.unwrap(&of_impostor).await.unwrap_err().code();
        seen |= code == Code::FailedPrecondition;
        assert!(seen || code == Code::InvalidArgument, "{code:?}");
        let code = setup.ask_over(&connection).await;
        assert!(code == Code::FailedPrecondition || (!seen && code == Code::Ok), "{code:?}");
        seen |= code == Code::FailedPrecondition;
    }
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    let log = daemon.log();
    assert!(log.contains(&impostor.public_key_sha256()), "what was found: {log}");
    token.delete(KEY);
    token.import(&setup.key, KEY, "01");
    serving(&setup, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_key_lies_at_its_locator_no_look_uses_that() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    let connection = setup.connect(&daemon).await;
    let (initialized, found) = (faults.count("C_Initialize"), faults.count("C_FindObjectsInit"));
    token.delete(KEY);
    token.import(&RsaKey::generate(2048), KEY, "01");
    let begun = Instant::now();
    // A new process of the module is the last that is tried; it never has the right key.
    while faults.count("C_Initialize") == initialized
        || setup.ask_over(&connection).await != Code::FailedPrecondition
    {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
    }
    let (looked, used) = (faults.count("C_FindObjectsInit"), faults.count("C_Decrypt"));
    assert!(looked > found);
    while faults.count("C_FindObjectsInit") < looked + 3 {
        assert_eq!(setup.ask_over(&connection).await, Code::FailedPrecondition);
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", daemon.log());
    }
    assert_eq!(faults.count("C_Decrypt"), used, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_needs_an_operator_and_is_found_again_when_it_is_back() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    token.delete(KEY);
    setup.wait_for(&daemon, Code::FailedPrecondition).await;
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    daemon.wait_for_log("no private key");
    token.import(&setup.key, KEY, "01");
    serving(&setup, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_replica_that_is_well_serves() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let folder = setup.files.path("keys");
    std::fs::create_dir(&folder).unwrap();
    setup.key.write_pem(&folder.join("user-keys.pem"));
    let mut files = toml::Table::new();
    files.insert("type".into(), "software".into());
    files.insert("directory".into(), folder.to_str().unwrap().into());
    setup.files.provider("files", files);
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    let version = version.replica("files", "user-keys.pem");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    // Down at the start.
    token.take_away();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(setup.key_health(&daemon).await, Health::Serving);
    // Back: it is the first again.
    token.bring_back();
    daemon.wait_for_log("replica serves provider=hsm-a");
    let before = faults.count("C_Decrypt");
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert_eq!(faults.count("C_Decrypt"), before + 1);
    // Gone while it runs: at most the call that finds out pays for it.
    token.take_away();
    setup.ask(&daemon).await;
    setup.wait_for(&daemon, Code::Ok).await;
    assert_eq!(setup.key_health(&daemon).await, Health::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_its_token_would_hand_out_is_refused_unless_the_configuration_says_otherwise() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let attributes = Attributes { extractable: true, ..Attributes::default() };
    token.import_with(&setup.key, "loose", "02", attributes);
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=loose");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    let daemon = setup.start();
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    assert!(daemon.log().contains("allow_extractable"), "{}", daemon.log());
    setup.files.set("providers.hsm-a.allow_extractable", true);
    setup.files.write();
    daemon.reload();
    serving(&setup, &daemon).await;
}

#[test]
fn a_required_provider_that_is_down_ends_the_daemon_in_words() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    setup.files.set("providers.hsm-a.required", true);
    token.take_away();
    let exit = Daemon::spawn(&setup.files).wait();
    assert_eq!(exit.code, Some(69), "{}", exit.log);
    assert!(exit.log.contains("providers.hsm-a is required and does not serve"), "{}", exit.log);
    token.bring_back();
    let daemon = setup.start();
    assert_eq!(daemon.terminate().code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_is_not_there_needs_an_operator_and_stops_nobody_else() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    setup.files.set("providers.hsm-a.module", "/nonexistent/module.so");
    let daemon = setup.start();
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    assert!(daemon.log().contains("/nonexistent/module.so"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_holds_another_key_is_never_used() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    let file = setup.files.path("keys/user-keys.pem");
    let impostor = RsaKey::generate(2048);
    let mut of_impostor = setup.request();
    of_impostor.wrapped = wrap(&impostor).into();
    std::fs::remove_file(&file).unwrap();
    impostor.write_pem(&file);
    // What is open stays open, and is what was pinned.
    let connection = setup.connect(&daemon).await;
    assert_eq!(connection.unwrap(&of_impostor).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    daemon.terminate();
    let daemon = setup.start();
    not_serving_and(&setup, &daemon, Code::FailedPrecondition).await;
    let connection = setup.connect(&daemon).await;
    let refused = connection.unwrap(&of_impostor).await.unwrap_err().code();
    assert_eq!(refused, Code::FailedPrecondition);
    assert!(daemon.log().contains(&impostor.public_key_sha256()), "{}", daemon.log());
    std::fs::remove_file(&file).unwrap();
    setup.key.write_pem(&file);
    serving(&setup, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_may_be_numbered_anew() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    let beside: Vec<Token> =
        ["first", "second", "third"].map(|label| token.softhsm_beside(label)).into();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    daemon.terminate();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    assert!(beside.iter().all(|other| other.serial() != token.serial()));
}

/// Two tokens in one module, each in a process of its own: only a new start of the module shows
/// SoftHSM that the files of one went away and came back, and the other does not notice it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_breaks_costs_its_neighbour_in_the_same_module_no_call() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let beside = token.softhsm_beside("beside");
    let other = RsaKey::generate(2048);
    beside.import(&other, "other", "02");
    setup.files.provider("hsm-b", beside.provider());
    let version = Version::active(1, &other, "hsm-b", "pkcs11:object=other");
    setup.files.key("other", &["RSA-OAEP"], vec![version]);
    let keys = vec![toml::Value::from(KEY), "other".into()];
    let caller = &mut setup.files.configuration["callers"][0]["grants"][0];
    caller.as_table_mut().unwrap().insert("keys".into(), keys.into());
    let daemon = setup.start();
    let load = Load::on_key(&setup.client_config(&daemon), "other", &wrap(&other), 4);
    load.more(20).await;
    token.take_away_alone();
    setup.wait_for(&daemon, Code::Unavailable).await;
    not_serving_and(&setup, &daemon, Code::Unavailable).await;
    load.more(20).await;
    token.bring_back_alone();
    serving(&setup, &daemon).await;
    load.more(20).await;
    let tally = load.stop().await;
    assert!(
        tally.failed.is_empty(),
        "{} of {} failed: {:?}\n{}",
        tally.failed.len(),
        tally.right.len(),
        tally.failed,
        daemon.log()
    );
    assert!(faults.count("C_Initialize") > 2, "the module of one token was started again");
    assert_eq!(daemon.terminate().code, Some(0));
}

/// Another token with the same label and PIN, and another key or none under the key's label: as when
/// a wrong folder was mounted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_token_serves_within_five_seconds_after_a_wrong_one_was_in_its_place() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    setup.files.set("providers.hsm-a.token", toml::toml! { label = "claviger-test" });
    let daemon = setup.start();
    serving(&setup, &daemon).await;
    for name in [KEY, "something-else"] {
        let wrong = Token::softhsm();
        wrong.import(&RsaKey::generate(2048), name, "01");
        token.exchange_stores(&wrong);
        setup.wait_for(&daemon, Code::FailedPrecondition).await;
        // Until the pauses between checks have grown to their longest.
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
        token.exchange_stores(&wrong);
        let back = Instant::now();
        setup.wait_for(&daemon, Code::Ok).await;
        let took = back.elapsed();
        assert!(took < Duration::from_secs(5), "{name}: {took:?}\n{}", daemon.log());
    }
}

/// Faults of all kinds under load, in an order that is the same each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_under_load_no_answer_is_wrong_and_all_is_well_afterwards() {
    const FAULTS: [(&str, &str); 14] = [
        ("C_Decrypt", "rv=0x30"),
        ("C_Decrypt", "rv=0xb3"),
        ("C_Decrypt", "late-rv=0x5"),
        ("C_Decrypt", "sleep=300"),
        ("C_DecryptInit", "rv=0x101"),
        ("C_DecryptInit", "rv=0x82"),
        ("C_DecryptInit", "rv=0x90"),
        ("C_OpenSession", "rv=0x32"),
        ("C_OpenSession", "rv=0xb1"),
        ("C_GetSessionInfo", "rv=0x30"),
        ("C_FindObjects", "length=0"),
        ("C_FindObjectsInit", "rv=0x190"),
        // Not C_Login: after two without an outcome an operator must act (see pin.rs).
        ("C_GetTokenInfo", "rv=0x32"),
        ("C_Initialize", "rv=0x5"),
    ];
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let load = Load::start(&setup.client_config(&daemon), &setup.wrapped, 8, 1);
    load.more(20).await;
    for round in 0..28 {
        // Two at a time, in changing pairs.
        let pair = [FAULTS[round % 14], FAULTS[(round * 5 + 3) % 14]];
        for (function, action) in pair {
            faults.on_next(1 + round as u64 % 7 * 3, function, action);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        faults.clear();
    }
    let tally = load.stop().await;
    for error in &tally.failed {
        use ClientCode::{FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable};
        let expected = [FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable];
        assert!(expected.contains(&error.code), "{error:?}\n{}", daemon.log());
    }
    serving(&setup, &daemon).await;
    let client: Client = setup.client(&daemon);
    for _ in 0..50 {
        client.unwrap_key(KEY, &setup.wrapped, &UnwrapOptions::default()).await.unwrap();
    }
    println!("{} right, {} failed", tally.right.len(), tally.failed.len());
}
