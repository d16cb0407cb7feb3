//! `claviger doctor` on real tokens: what it finds, what it says of what is wrong, and that it tries
//! no PIN twice.

use std::process::Output;

use claviger_proto::v1::UnwrapRequest;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::KEY;
use e2e::token::{Attributes, PIN};
use e2e::{Daemon, DaemonFiles, RsaKey, Setup, Token, Version};
use serde_json::{Value, json};
use tonic::Code;

const WRONG: &str = "00000000";

fn run(files: &DaemonFiles, arguments: &[&str]) -> Output {
    files.write();
    command(claviger())
        .args(["doctor", "--config"])
        .arg(files.configuration_file())
        .args(arguments)
        .envs(files.environment().iter().cloned())
        .output()
        .expect("the binary starts")
}

/// The exit code and the report, which is the same whatever the exit code.
fn doctor(files: &DaemonFiles, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = run(files, &[arguments, &["--json"]].concat());
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert!(output.stderr.is_empty(), "{output:?}");
    assert!(!format!("{report}").contains(WRONG) && !format!("{report}").contains(PIN));
    (output.status.code(), report)
}

/// The first version's replica of a key, by its place in the list.
fn replica(report: &Value, key: &str, index: usize) -> Value {
    let keys = report["keys"].as_array().expect("a list of keys");
    let key = keys.iter().find(|found| found["key"] == key).expect("the key was asked for");
    key["versions"][0]["replicas"][index].clone()
}

/// What is wrong with it, in one word each.
fn diagnoses(replica: &Value) -> Vec<String> {
    let troubles = replica["troubles"].as_array().expect("a list");
    let word = |trouble: &Value| trouble["diagnosis"].as_str().expect("a word").to_owned();
    troubles.iter().map(word).collect()
}

/// The one thing that is wrong with a key's first replica, and the exit code.
fn only_trouble(files: &DaemonFiles) -> (String, Option<i32>, Value) {
    let (exit, report) = doctor(files, &[]);
    let replica = replica(&report, KEY, 0);
    let words = diagnoses(&replica);
    assert_eq!((words.len(), &report["ok"]), (1, &json!(false)), "{report:#}");
    assert!(!replica["troubles"][0]["do"].as_str().unwrap().is_empty());
    (words[0].clone(), exit, replica)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_key_is_measured_beside_a_running_daemon_that_goes_on() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let daemon = setup.start();
    let (opened, closed) = (faults.count("C_OpenSession"), faults.count("C_CloseSession"));
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!((exit, &report["ok"]), (Some(0), &json!(true)), "{report:#}");
    let found = replica(&report, KEY, 0);
    for (field, expected) in [
        ("provider", json!("hsm-a")),
        ("locator", json!("pkcs11:object=user-keys")),
        ("reachable", json!(true)),
        ("authenticated", json!(true)),
        ("key_found", json!(true)),
        ("proven", json!(true)),
        ("pin_matches", json!(true)),
        ("modulus_bits", json!(2048)),
        ("public_key_sha256", json!(setup.key.public_key_sha256())),
        ("extractable", json!(false)),
        ("algorithms", json!([{ "algorithm": "RSA-OAEP", "proven": true, "said": null }])),
        ("troubles", json!([])),
    ] {
        assert_eq!(found[field], expected, "{field} of {found:#}");
    }
    let times = &found["unwrap_ms"];
    assert_eq!(times["canaries"], 5, "{found:#}");
    assert!(times["min"].as_f64() > Some(0.0) && times["median"].as_f64() >= times["min"].as_f64());
    assert_eq!(report["keys"][0]["versions"][0]["replicas_agree"], true);
    assert_eq!(report["providers"][0]["type"], "pkcs11");
    assert_eq!(report["latched_tokens"], json!([]));

    assert_eq!(faults.count("C_Login"), 2, "the daemon's and its own");
    let (opened, closed) =
        (faults.count("C_OpenSession") - opened, faults.count("C_CloseSession") - closed);
    assert!(closed >= opened, "{opened} sessions opened, {closed} closed");
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let text = String::from_utf8(run(&setup.files, &[]).stdout).unwrap();
    for said in ["RSA-2048; RSA-OAEP proven; not extractable; unwrap ", "1 replica asked: 1 sound"]
    {
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_wrong_pin_is_sent_once_over_three_runs_and_the_latch_is_named() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let other = RsaKey::generate(2048);
    token.import(&other, "other", "02");
    let version = Version::active(1, &other, "hsm-a", "pkcs11:object=other");
    setup.files.key("other", &["RSA-OAEP"], vec![version]);
    token.write_pin(WRONG);
    for round in 1..=3 {
        let (exit, report) = doctor(&setup.files, &[]);
        assert_eq!(exit, Some(78), "{report:#}");
        assert_eq!(faults.count("C_Login"), 1, "run {round}");
        let mut words: Vec<String> =
            ["other", KEY].iter().flat_map(|key| diagnoses(&replica(&report, key, 0))).collect();
        words.sort_unstable();
        // Two keys that wait for one login are both told how it ended.
        let expected: &[[&str; 2]] = match round {
            1 => &[["latched-pin", "wrong-pin"], ["wrong-pin", "wrong-pin"]],
            _ => &[["latched-pin", "latched-pin"]],
        };
        assert!(expected.iter().any(|expected| words == *expected), "{words:?} {report:#}");
        let first = replica(&report, KEY, 0);
        assert_eq!((&first["reachable"], &first["authenticated"]), (&json!(true), &json!(false)));
        assert_eq!(
            report["latched_tokens"],
            json!([{ "serial": token.serial(), "label": token.label(), "shut": true }])
        );
    }
    let text = String::from_utf8(run(&setup.files, &[KEY]).stdout).unwrap();
    for said in ["latched-pin: ", "do: ", "claviger pin clear", "reached: yes, logged in: no"] {
        assert!(text.contains(said), "{text}");
    }
    // The daemon knows it too.
    let daemon = setup.start();
    assert_eq!(faults.count("C_Login"), 1, "{}", daemon.log());
}

#[test]
fn a_token_that_is_about_to_lock_gets_no_pin() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let setup = Setup::on(&token);
    for flag in ["final-try", "locked"] {
        faults.clear();
        faults.on_every("C_GetTokenInfo", &format!("flags={flag}"));
        let (word, exit, _) = only_trouble(&setup.files);
        assert_eq!((word.as_str(), exit), ("locked-pin", Some(78)));
    }
    assert_eq!(faults.count("C_Login"), 0);
}

#[test]
fn another_key_than_the_pinned_one_is_printed_and_replicas_that_differ_are_named() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let other = RsaKey::generate(2048);
    token.import(&other, "other", "02");
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version.replica("hsm-a", "pkcs11:object=other")]);
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!(exit, Some(78));
    let (good, bad) = (replica(&report, KEY, 0), replica(&report, KEY, 1));
    assert_eq!((&good["ok"], &good["pin_matches"]), (&json!(true), &json!(true)), "{good:#}");
    assert_eq!(diagnoses(&bad), ["another-key"], "{bad:#}");
    assert_eq!((&bad["proven"], &bad["pin_matches"]), (&json!(true), &json!(false)));
    assert_eq!(bad["public_key_sha256"], other.public_key_sha256());
    assert!(bad["troubles"][0]["said"].as_str().unwrap().contains(&other.public_key_sha256()));
    assert_eq!(report["keys"][0]["versions"][0]["replicas_agree"], false);
    let text = String::from_utf8(run(&setup.files, &[]).stdout).unwrap();
    assert!(text.contains("THE REPLICAS DO NOT AGREE"), "{text}");

    let version = &mut setup.files.configuration["keys"][KEY]["versions"][0];
    version.as_table_mut().unwrap().remove("public_key_sha256");
    version["replicas"].as_array_mut().unwrap().pop();
    let (word, exit, found) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("not-pinned", Some(78)));
    assert_eq!(found["public_key_sha256"], setup.key.public_key_sha256());
}

#[test]
fn an_absent_key_and_an_absent_token_are_told_apart() {
    let token = Token::softhsm();
    let beside = token.softhsm_beside("beside");
    let mut setup = Setup::on(&token);
    setup.files.token("hsm-b", &beside);
    beside.import(&setup.key, KEY, "01");
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    let version = version.replica("hsm-b", "pkcs11:object=user-keys");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version.clone()]);
    token.delete(KEY);
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!(exit, Some(78), "{report:#}");
    let absent = replica(&report, KEY, 0);
    assert_eq!(diagnoses(&absent), ["key-absent"], "{absent:#}");
    assert_eq!((&absent["authenticated"], &absent["key_found"]), (&json!(true), &json!(false)));
    assert_eq!(replica(&report, KEY, 1)["ok"], true, "{report:#}");
    assert_eq!(report["keys"][0]["versions"][0]["replicas_agree"], Value::Null);

    token.import(&setup.key, KEY, "01");
    beside.take_away_alone();
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!(exit, Some(69), "it may come back: {report:#}");
    assert_eq!(replica(&report, KEY, 0)["ok"], true, "{report:#}");
    let away = replica(&report, KEY, 1);
    assert_eq!(diagnoses(&away), ["token-absent"], "{away:#}");
    assert_eq!((&away["reachable"], &away["authenticated"]), (&json!(false), &Value::Null));
}

#[test]
fn a_module_that_hangs_is_given_up_and_holds_up_nobody() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let software = Setup::software();
    let files = software.files.configuration["providers"]["files"].as_table().unwrap().clone();
    setup.files.provider("files", files);
    for (name, provider, locator) in [
        ("second", "hsm-a", "pkcs11:object=user-keys;id=%01"),
        ("in-a-file", "files", "user-keys.pem"),
    ] {
        let key = if name == "second" { &setup.key } else { &software.key };
        let version = Version::active(1, key, provider, locator);
        setup.files.key(name, &["RSA-OAEP"], vec![version]);
    }
    // One public key has one name: the others are there to be asked, not to be served.
    for name in ["second", "in-a-file"] {
        let version = &mut setup.files.configuration["keys"][name]["versions"][0];
        version.as_table_mut().unwrap().remove("public_key_sha256");
    }
    faults.on_every("C_OpenSession", "hang");
    let (exit, report) = doctor(&setup.files, &["--timeout", "10s"]);
    assert_eq!(exit, Some(78), "the file has no pin: {report:#}");
    for key in [KEY, "second"] {
        let silent = replica(&report, key, 0);
        assert_eq!(diagnoses(&silent), ["no-answer"], "{report:#}");
        assert_eq!(silent["reachable"], false);
    }
    let file = replica(&report, "in-a-file", 0);
    assert_eq!((diagnoses(&file), &file["proven"]), (vec!["not-pinned".into()], &json!(true)));
    let (exit, report) = doctor(&setup.files, &["--timeout", "1s", KEY]);
    assert_eq!((exit, report["keys"].as_array().unwrap().len()), (Some(69), 1), "{report:#}");
    assert_eq!(faults.count("C_Login"), 0);

    let output = run(&setup.files, &["--timeout", "5s", KEY]);
    let progress = String::from_utf8(output.stderr).unwrap();
    assert!(progress.contains("waiting for hsm-a (1 to go)"), "{progress}");
}

#[test]
fn a_key_that_may_leave_its_token_is_refused_or_said_to_be_so() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let leaky = RsaKey::generate(2048);
    let attributes = Attributes { extractable: true, ..Attributes::default() };
    token.import_with(&leaky, "leaky", "02", attributes);
    let version = Version::active(1, &leaky, "hsm-a", "pkcs11:object=leaky");
    setup.files.key(KEY, &["RSA-OAEP"], vec![version]);
    let (word, exit, found) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("extractable-refused", Some(78)));
    assert_eq!((&found["key_found"], &found["proven"]), (&json!(true), &json!(false)));
    setup.files.set("providers.hsm-a.allow_extractable", true);
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!(exit, Some(0));
    assert_eq!(replica(&report, KEY, 0)["extractable"], true, "{report:#}");
}

#[test]
fn of_a_list_of_algorithms_those_that_work_are_told_from_those_that_do_not() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
    let version = version.with("sign_algorithms", vec![toml::Value::from("PS256")]);
    setup.files.key(KEY, &["RSA-OAEP", "RSA-OAEP-256"], vec![version]);
    let (word, exit, found) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("algorithm-not-offered", Some(78)));
    let proven: Vec<_> = found["algorithms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (&a["algorithm"], &a["proven"]))
        .collect();
    let expected = [("RSA-OAEP", true), ("RSA-OAEP-256", false), ("PS256", true)]
        .map(|(algorithm, proven)| (json!(algorithm), json!(proven)));
    assert_eq!(proven, expected.each_ref().map(|(a, p)| (a, p)), "{found:#}");
    assert_eq!((&found["modulus_bits"], &found["pin_matches"]), (&json!(2048), &json!(true)));
    assert_eq!((&found["key_found"], &found["proven"]), (&json!(true), &json!(false)));
}

#[test]
fn every_algorithm_of_kryoptic_is_proven() {
    let setup_of = |token: &Token| {
        let mut setup = Setup::on(token);
        let version = Version::active(1, &setup.key, "hsm-a", "pkcs11:object=user-keys");
        let algorithms = ["RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"];
        setup.files.key(KEY, &algorithms, vec![version]);
        setup
    };
    let token = Token::kryoptic();
    let setup = setup_of(&token);
    let (exit, report) = doctor(&setup.files, &[]);
    assert_eq!(exit, Some(0), "{report:#}");
    let found = replica(&report, KEY, 0);
    let algorithms = found["algorithms"].as_array().unwrap();
    assert_eq!(algorithms.len(), 4, "{found:#}");
    assert!(algorithms.iter().all(|algorithm| algorithm["proven"] == true), "{found:#}");
    assert_eq!(found["extractable"], false);
    token.write_pin(WRONG);
    let (word, exit, _) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("wrong-pin", Some(78)));
}

#[test]
fn a_token_without_room_is_for_later() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let setup = Setup::on(&token);
    faults.on_every("C_OpenSession", "rv=0xb1");
    let (word, exit, found) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("throttled", Some(75)));
    assert!(found["troubles"][0]["said"].as_str().unwrap().contains("CKR_SESSION_COUNT"));
}

#[test]
fn a_token_that_unwraps_to_other_bytes_broke_its_promise() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let setup = Setup::on(&token);
    faults.on_every("C_Decrypt", "garbage");
    let (word, exit, _) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("wrong-answer", Some(78)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_are_disabled_are_not_asked_and_keys_can_be_chosen() {
    let mut setup = Setup::software();
    let gone = Version::active(1, &RsaKey::generate(2048), "files", "gone.pem");
    let version = Version::active(2, &setup.key, "files", "user-keys.pem");
    let gone = gone.with("state", "disabled");
    setup.files.key(KEY, &["RSA-OAEP", "RSA-OAEP-256"], vec![version, gone]);
    let (exit, report) = doctor(&setup.files, &[KEY]);
    assert_eq!(exit, Some(0), "{report:#}");
    assert_eq!(report["replicas"], json!({ "asked": 1, "sound": 1, "failing": 0 }));
    let disabled = &report["keys"][0]["versions"][1];
    assert_eq!((&disabled["state"], &disabled["replicas"]), (&json!("disabled"), &json!([])));
    assert_eq!(replica(&report, KEY, 0)["extractable"], true, "it is a file");
    assert_eq!(report["providers"][0]["hardware"], false);

    let unknown = run(&setup.files, &["--json", "user-key"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let error: Value = serde_json::from_slice(&unknown.stderr).unwrap();
    assert!(error["error"]["advice"].as_str().unwrap().contains(KEY), "{error}");

    // The daemon and the doctor agree.
    let daemon = Daemon::start(&mut setup.files);
    let request = UnwrapRequest { algorithm: "RSA-OAEP".into(), ..setup.request() };
    let unwrapped = setup.connect(&daemon).await.unwrap(&request).await;
    assert!(unwrapped.is_ok());
}

#[test]
fn a_file_that_is_missing_or_open_to_others_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::software();
    let file = setup.files.path("keys/user-keys.pem");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (word, exit, _) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("secret-file", Some(78)));
    std::fs::remove_file(&file).unwrap();
    let (word, exit, found) = only_trouble(&setup.files);
    assert_eq!((word.as_str(), exit), ("key-absent", Some(78)));
    assert!(found["troubles"][0]["said"].as_str().unwrap().contains("user-keys.pem"));
}

#[test]
fn what_confines_the_module_is_told() {
    let token = Token::softhsm();
    let mut setup = Setup::on(&token);
    let (code, report) = doctor(&setup.files, &[]);
    assert_eq!(code, Some(0), "{report}");
    let measures = report["providers"][0]["measures"].as_array().unwrap();
    let named = |name: &str| measures.iter().find(|measure| measure["name"] == name);
    for name in ["core dumps", "memory", "privileges", "seccomp", "landlock"] {
        let measure = named(name).unwrap_or_else(|| panic!("no {name}: {report}"));
        assert!(measure["in_force"].is_boolean() && measure["text"].is_string(), "{measure}");
    }
    let text = String::from_utf8(run(&setup.files, &[]).stdout).unwrap();
    assert!(text.contains("the module of hsm-a is confined: core dumps: off; "), "{text}");
    setup.files.set("providers.hsm-a.isolation", "none");
    let text = String::from_utf8(run(&setup.files, &[]).stdout).unwrap();
    let expected = "the module of hsm-a is NOT CONFINED: isolation: none: the module runs in the \
                    daemon's process";
    assert!(text.contains(expected), "{text}");
}
