//! Tokens that are not made for tests, each as its package installs it and started by a script.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::RsaKey;
use e2e::process::{command, repository};
use e2e::token::PIN;
use tempfile::TempDir;
use toml::{Table, Value};

use super::{Listed, OAEP, SIGN, SIZES, conform_program, judge, object, write_plan};

/// A folder with the PIN and the keys for a token that a script makes.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pin = folder.path().join("token.pin");
    fs::write(&pin, format!("{PIN}\n")).unwrap();
    fs::set_permissions(&pin, Permissions::from_mode(0o600)).unwrap();
    for bits in SIZES {
        let file = folder.path().join(object(bits)).with_extension("der");
        fs::write(file, RsaKey::shared(bits).pkcs8()).unwrap();
    }
    folder
}

/// The options of a provider; `more` is TOML.
fn provider(folder: &Path, module: &str, label: &str, more: &str) -> Table {
    let mut provider: Table = more.parse().unwrap();
    provider.insert("module".into(), format!("/usr/lib/x86_64-linux-gnu/{module}").into());
    let table =
        |name: &str, value: &str| Value::from(Table::from_iter([(name.into(), value.into())]));
    provider.insert("token".into(), table("label", label));
    provider.insert("pin".into(), table("file", folder.join("token.pin").to_str().unwrap()));
    provider
}

/// A free port whose successor is free, too: swtpm has a port for commands and one for control.
fn two_ports() -> u16 {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
        })
        .expect("two free ports")
}

/// The suite under a script of this folder, by `wrapper`.
fn conform(folder: &Path, wrapper: &[&str], script: &str, port: u16, plan: &Path, known: &[&str]) {
    let script = repository().join("e2e/tests/conformance").join(script);
    let [program, arguments @ ..] = wrapper else { panic!("a program") };
    let mut suite = command(program);
    suite.args(arguments).arg(script).arg(conform_program()).arg(plan);
    suite.env("FOLDER", folder).env("PIN", PIN).env("PIN_FILE", folder.join("token.pin"));
    judge(suite.env("PORT", port.to_string()), known);
}

/// What openCryptoki 3.8 gives for the wrapped empty value is wrong. No key material is empty.
const OF_OPENCRYPTOKI: &str = "RSA1_5: material of every size unwraps: \
                               RSA1_5 gave 1 other bytes for 0 bytes of key material";

#[test]
#[ignore = "long: needs root and the package opencryptoki"]
fn opencryptoki_conforms_with_everything_but_an_empty_value_under_rsa1_5() {
    let folder = folder();
    let listed = Listed {
        name: "opencryptoki",
        algorithms: &[OAEP[0], OAEP[1], OAEP[2], OAEP[3], "RSA1_5"],
        sign_algorithms: &SIGN,
        labels: true,
    };
    let module = "pkcs11/libopencryptoki.so";
    // pkcs11-tool does not say CKA_EXTRACTABLE, and here that means true.
    let options = "allow_extractable = true";
    let provider = provider(folder.path(), module, "claviger-test", options);
    let plan = write_plan(folder.path(), provider, &listed, &SIZES);
    let wrapper = ["unshare", "--mount", "--ipc", "sh"];
    conform(folder.path(), &wrapper, "opencryptoki.sh", 0, &plan, &[OF_OPENCRYPTOKI]);
}

#[test]
#[ignore = "long: needs NSS"]
fn nss_conforms() {
    let folder = folder();
    let listed = Listed {
        name: "nss",
        algorithms: &[OAEP[0], OAEP[1], OAEP[2], OAEP[3], "RSA1_5"],
        sign_algorithms: &SIGN,
        labels: true,
    };
    // As pk12util imports them.
    let options = format!(
        "allow_extractable = true\ninit_reserved = \"configdir='sql:{}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=\"",
        folder.path().join("database").display()
    );
    let provider = provider(folder.path(), "libsoftokn3.so", "NSS Certificate DB", &options);
    let plan = write_plan(folder.path(), provider, &listed, &SIZES);
    conform(folder.path(), &["sh"], "nss.sh", 0, &plan, &[]);
}

#[test]
#[ignore = "long: needs swtpm and tpm2-pkcs11"]
fn a_tpm_conforms() {
    let folder = folder();
    let listed = Listed {
        name: "tpm2",
        algorithms: &[OAEP[0], OAEP[1], OAEP[2], OAEP[3], "RSA1_5"],
        sign_algorithms: &SIGN,
        labels: false,
    };
    let port = two_ports();
    let store = folder.path().join("store");
    let store = store.display();
    let environment = format!(
        "environment = {{ TPM2_PKCS11_TCTI = \"swtpm:host=127.0.0.1,port={port}\", \
         TPM2_PKCS11_STORE = \"{store}\", TPM2_PKCS11_LOG_LEVEL = \"0\" }}"
    );
    let options = format!("sessions = 1\nsandbox = {{ network = true }}\n{environment}");
    let module = "pkcs11/libtpm2_pkcs11.so";
    let provider = provider(folder.path(), module, "claviger-test", &options);
    // One key at a time: without a resource manager the TPM has no room for the sessions of both.
    for bits in [2048, 3072] {
        let plan = write_plan(folder.path(), provider.clone(), &listed, &[bits]);
        conform(folder.path(), &["sh"], "tpm2.sh", port, &plan, &[]);
    }
}
