//! Every answer of the PKCS#11 module, right and wrong, as the standard wants it: tolerant and
//! strict, with the daemon behind it.

use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::module::{BY_ID, answers, library};
use e2e::process::{command, run};
use e2e::setup::{KEY, MATERIAL};
use e2e::{Daemon, Module, RsaKey, Setup};
use toml::Value;

/// A setup whose key may do everything, with a certificate for it in `certificate.crt`.
fn setup() -> Setup {
    let mut setup = Setup::software();
    let list = |names: &[&str]| Value::Array(names.iter().map(|name| (*name).into()).collect());
    setup.files.set(&format!("keys.{KEY}.algorithms"), list(&["RSA-OAEP", "RSA-OAEP-256"]));
    setup.files.set(&format!("keys.{KEY}.sign_algorithms"), list(&["RS256", "PS256"]));
    let all = list(&["wrap", "unwrap", "sign", "verify", "read"]);
    setup.files.configuration["callers"][0]["grants"][0]["operations"] = all;
    let pem = setup.files.path("key.pem");
    setup.key.write_pem(&pem);
    run(command("openssl")
        .args(["req", "-x509", "-subj", "/CN=user-keys", "-days", "10", "-key"])
        .arg(pem)
        .arg("-out")
        .arg(setup.files.path("certificate.crt")));
    setup
}

fn module(setup: &Setup, daemon: &Daemon, strict: bool) -> Module {
    let mut module = Module::new(setup, &[daemon]);
    module.key().insert("certificate".into(), "certificate.crt".into());
    module.configuration.insert("strict".into(), strict.into());
    module.write();
    module
}

fn ask(module: &Module, setup: &Setup, mode: &str) {
    let mut program = module.program(answers());
    program.arg(library()).arg(mode);
    program.arg(setup.files.path("wrapped")).arg(setup.files.path("material"));
    let output = program.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}\n{}", output.status, module.log());
    assert_eq!((output.stdout.as_slice(), &*errors), (&b""[..], ""), "nobody was to say anything");
}

#[test]
fn a_tolerant_module_answers_as_the_standard_wants_but_forgives() {
    let mut setup = setup();
    let daemon = setup.start();
    ask(&module(&setup, &daemon, false), &setup, "tolerant");
    let unwraps = |outcome: &str| {
        let records = setup.files.audit_records();
        let of = |record: &&serde_json::Value| {
            record["operation"] == "unwrap" && record["outcome"] == outcome
        };
        records.iter().filter(of).count()
    };
    // One for a buffer that was too small at first, one for what was encrypted here.
    assert_eq!(unwraps("ok"), 2, "{:#?}", setup.files.audit_records());
}

#[test]
fn a_strict_module_answers_as_the_standard_wants() {
    let mut setup = setup();
    let daemon = setup.start();
    ask(&module(&setup, &daemon, true), &setup, "strict");
}

#[test]
fn a_certificate_for_another_key_is_not_shown_and_the_log_says_why() {
    let mut setup = setup();
    let daemon = setup.start();
    let module = module(&setup, &daemon, false);
    let (other, _) = setup.files.pki.server().write(&setup.files.path("."), "other");
    std::fs::copy(other, setup.files.path("certificate.crt")).unwrap();
    let mut tool = module.program("pkcs11-tool");
    let output = run(tool.arg("--module").arg(library()).arg("--list-objects"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Public Key Object") && !text.contains("Certificate Object"), "{text}");
    let log = module.log();
    assert!(log.contains("its certificate is for another public key"), "{log}");
}

#[test]
fn a_key_with_two_versions_is_one_object_that_unwraps_with_both() {
    let mut setup = setup();
    let key = RsaKey::generate(2048);
    key.write_pem(&setup.files.path("keys/newer.pem"));
    let versions = setup.files.configuration["keys"][KEY]["versions"].as_array_mut().unwrap();
    let mut newer = versions[0].as_table().unwrap().clone();
    versions[0]["state"] = "unwrap-only".into();
    newer.insert("version".into(), 2.into());
    newer.insert("public_key_sha256".into(), key.public_key_sha256().into());
    newer["replicas"][0]["locator"] = "newer.pem".into();
    versions.insert(0, newer.into());
    let daemon = setup.start();
    let module = Module::new(&setup, &[&daemon]);
    // What the old version wrapped, then what the new one did.
    module.act(BY_ID, &["sequential", "1"]);
    let material = KeyMaterial::copied_from(&MATERIAL);
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();
    std::fs::write(setup.files.path("wrapped"), wrapped).unwrap();
    module.act(BY_ID, &["sequential", "1"]);
}
