//! Tests of the options: what is left out, what is read, and what is refused with what to write.

use super::*;
use serde_json::{Value, json};

fn config(change: impl FnOnce(&mut Value)) -> Result<Config, String> {
    let mut value = json!({
        "module": "/usr/lib/softhsm/libsofthsm2.so",
        "token": { "label": "production" },
        "pin": { "file": "/etc/claviger/pin" },
    });
    change(&mut value);
    let config: Config = serde_json::from_value(value).map_err(|error| error.to_string())?;
    config.validate().map(|()| config)
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = config(|_| ()).unwrap();
    assert_eq!((config.user, config.login), (User::User, Login::Pin));
    assert_eq!((config.oaep, config.allow_extractable), (Oaep::Native, false));
    assert_eq!(config.queue(), 1024);
    assert!(config.sessions() >= 1);
    assert!(config.environment().is_empty());
}

#[test]
fn every_option_is_read() {
    let config = config(|value| {
        value["token"] = json!({ "serial": "0123456789abcdef" });
        value["pin"] = json!({ "credential": "pin" });
        value["user"] = json!(0x8000_0001_u32);
        value["environment"] = json!({ "SOFTHSM2_CONF": "/etc/softhsm2.conf" });
        value["init_reserved"] = json!("configdir='sql:/var/lib/nss'");
        value["sessions"] = json!(8);
        value["oaep"] = json!("software");
        value["allow_extractable"] = json!(true);
        value["queue"] = json!(7);
        value["sandbox"] = json!({ "network": true, "write": ["/var/lib/softhsm"] });
        value["memory_limit"] = json!("1GiB");
        value["hang_limit"] = json!("30s");
    })
    .unwrap();
    assert_eq!(config.token, TokenName::Serial("0123456789abcdef".to_owned()));
    assert_eq!(config.user, User::Vendor(0x8000_0001));
    assert_eq!((config.sessions(), config.queue()), (8, 7));
    assert_eq!(config.oaep, Oaep::Software);
    assert_eq!(config.environment()["SOFTHSM2_CONF"], "/etc/softhsm2.conf");
    assert_eq!(config.init_reserved.as_deref(), Some("configdir='sql:/var/lib/nss'"));
    assert_eq!(
        (config.memory_limit.bytes(), config.hang_limit.duration().as_secs()),
        (1 << 30, 30)
    );
    assert!(config.sandbox.network);
    // As it goes to the module's process.
    let sent = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&sent).unwrap(), config);
}

#[test]
fn a_module_in_the_daemon_has_no_options_of_a_process() {
    for (option, written) in [
        ("environment", json!({ "A": "" })),
        ("init_reserved", json!("configdir='sql:/var/lib/nss'")),
        ("sandbox", json!({ "network": true })),
        ("memory_limit", json!("1GiB")),
        ("hang_limit", json!("30s")),
    ] {
        let error = config(|value| {
            value[option] = written;
            value["isolation"] = json!("none");
        });
        assert!(error.unwrap_err().contains("isolation = \"none\""), "{option}");
    }
}

#[test]
fn a_token_is_never_named_by_its_slot() {
    for token in [json!({ "slot": 0 }), json!({ "label": "a", "slot": 0 })] {
        let error = config(|value| value["token"] = token).unwrap_err();
        assert!(error.contains("never named by its slot number"), "{error}");
    }
    for token in [json!(3), json!("production")] {
        let error = config(|value| value["token"] = token).unwrap_err();
        assert!(error.contains("never a slot number"), "{error}");
    }
    for token in [json!({}), json!({ "label": "a", "serial": "b" })] {
        let error = config(|value| value["token"] = token).unwrap_err();
        assert!(error.contains("either label"), "{error}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_what_to_write() {
    let cases: [(&str, Value, &str); 18] = [
        ("module", json!("libsofthsm2.so"), "absolute path"),
        ("token", json!({ "label": "" }), "1 to 32 bytes"),
        ("token", json!({ "serial": "0123456789abcdef0" }), "1 to 16 bytes"),
        ("pin", Value::Null, "pin = { file"),
        ("login", json!("none"), "leave one of them out"),
        ("login", json!("protected-path"), "leave one of them out"),
        ("user", json!(1), "user = \"user\" or \"so\""),
        ("user", json!("admin"), "\"so\" or the number"),
        ("environment", json!({ "A=B": "" }), "is no name"),
        ("init_reserved", json!("a\0b"), "zero byte"),
        ("isolation", json!("thread"), "unknown variant"),
        ("memory_limit", json!("1MiB"), "512MiB"),
        ("hang_limit", json!("5m"), "\"5s\""),
        ("sandbox", json!({ "write": ["tokens"] }), "not absolute"),
        ("sandbox", json!({ "exec": true }), "unknown field"),
        ("sessions", json!(0), "1 to 256"),
        ("queue", json!(0), "1 to 65536"),
        ("slots", json!(1), "unknown field"),
    ];
    for (option, written, expected) in cases {
        let error = config(|value| value[option] = written).unwrap_err();
        assert!(error.contains(expected), "{option}: {error}");
    }
}
