//! Each kind of file that a configuration names, good and bad.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};

/// `good.toml` in a folder with everything that it names, and more.
struct Setup {
    folder: tempfile::TempDir,
    text: String,
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

fn crl(issuer: &Issuer<'static, KeyPair>) -> rcgen::CertificateRevocationList {
    CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(issuer)
    .unwrap()
}

impl Setup {
    fn new() -> Self {
        let text = include_str!("../../../../tests/config/good.toml")
            .replace("off = true", "file = \"audit.jsonl\"")
            .replace("state_dir = \"state\"", "state_dir = \"state\"\ndenied_callers = \"denied\"")
            .replace("\"clients.pem\" }", "\"clients.pem\" }\ncrl = [\"clients.crl\"]")
            .replace(
                "locator = \"other.pem\" }]",
                "locator = \"other.pem\" }]\ncertificate = \"other.crt\"",
            );
        let setup = Self { folder: tempfile::tempdir().unwrap(), text };
        let (ca, issuer) = authority("clients");
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        setup.write("server.crt", params.signed_by(&key, &issuer).unwrap().pem());
        setup.write("server.key", key.serialize_pem());
        setup.write("clients.pem", ca);
        setup.write("clients.crl", crl(&issuer).pem().unwrap());
        setup.write("denied", "# nobody\n");
        setup.write("pin", "1234");
        setup.write("libhsm.so", "");
        std::fs::create_dir(setup.folder.path().join("keys")).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        setup.write("other.crt", params.self_signed(&key).unwrap().pem());
        setup
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn checked(&self) -> Result<Vec<String>, String> {
        let path = self.folder.path().join("claviger.toml");
        self.write("claviger.toml", &self.text);
        let said = check_files(&Config::load(&path).unwrap());
        let folder = format!("{}/", self.folder.path().display());
        said.map_err(|errors| errors.to_string().replace(&folder, ""))
    }
}

#[test]
fn good_files_pass_in_both_forms() {
    let setup = Setup::new();
    assert_eq!(setup.checked(), Ok(Vec::new()));
    let (ca, issuer) = authority("clients");
    setup.write("clients.pem", ca);
    setup.write("clients.crl", crl(&issuer).der());
    assert_eq!(setup.checked(), Ok(Vec::new()));
}

#[test]
fn each_bad_file_is_named_by_its_field() {
    let (other_ca, other_issuer) = authority("others");
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let cases: &[(&str, &str, &str)] = &[
        (
            "server.crt",
            "",
            "claviger.toml:8: server.tls.certificate: refused server.crt: it holds no certificate in PEM",
        ),
        (
            "server.crt",
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            "claviger.toml:8: server.tls.certificate: refused server.crt: its certificate is not X.509",
        ),
        (
            "server.key",
            &other_key,
            "claviger.toml:9: server.tls.private_key: refused server.key: its key is not the one of the certificate server.crt",
        ),
        (
            "server.key",
            "no key",
            "claviger.toml:9: server.tls.private_key: refused server.key: it holds no private key in PEM",
        ),
        (
            "clients.pem",
            "",
            "claviger.toml:10: server.tls.client_ca.clients: refused clients.pem: it holds no certificate in PEM",
        ),
        (
            "clients.pem",
            &other_ca,
            "claviger.toml:10: server.tls.client_ca.clients: refused clients.pem: there is no CRL of CN=others",
        ),
        (
            "clients.crl",
            "",
            "claviger.toml:11: server.tls.crl[0]: refused clients.crl: it holds no X509 CRL in PEM",
        ),
        (
            "clients.crl",
            "0\u{0}",
            "claviger.toml:11: server.tls.crl[0]: refused clients.crl: it holds a CRL that cannot be parsed",
        ),
        ("denied", "\n", "claviger.toml:5: server.denied_callers: denied is empty"),
        (
            "other.crt",
            &leaf,
            "claviger.toml:51: keys.other.versions[0].certificate: other.crt is not for a key that could be used",
        ),
    ];
    for (file, content, expected) in cases {
        let setup = Setup::new();
        setup.write(file, content);
        let said = setup.checked().unwrap_err();
        assert!(said.starts_with(expected), "{file}: {said}");
        assert_eq!(said.lines().count(), 1, "{file}: {said}");
    }
    let setup = Setup::new();
    setup.write("clients.crl", crl(&other_issuer).pem().unwrap());
    assert!(setup.checked().unwrap_err().contains("there is no CRL of CN=clients"));
}

#[test]
fn a_secret_that_others_may_read_and_a_file_that_is_missing_are_refused() {
    for (file, field) in [("pin", "providers.hsm-a.pin"), ("server.key", "server.tls.private_key")]
    {
        let setup = Setup::new();
        let path = setup.folder.path().join(file);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let said = setup.checked().unwrap_err();
        assert!(said.contains(&format!(": {field}: refused {file}: mode 644")), "{said}");
        std::fs::remove_file(&path).unwrap();
        let said = setup.checked().unwrap_err();
        assert!(said.contains(&format!(": {field}: cannot read {file}: No such file")), "{said}");
    }
}

#[test]
fn a_module_and_a_folder_of_keys_that_are_missing_are_both_named() {
    let mut setup = Setup::new();
    let pin = format!("public_key_sha256 = \"{}\"", "33".repeat(32));
    setup.text = setup.text.replace("certificate = \"other.crt\"", &pin);
    std::fs::remove_file(setup.folder.path().join("libhsm.so")).unwrap();
    std::fs::remove_dir(setup.folder.path().join("keys")).unwrap();
    let said = setup.checked().unwrap_err();
    let expected = [
        "claviger.toml:22: providers.hsm-a.module: cannot read libhsm.so: No such file or directory (os error 2)",
        "claviger.toml:29: providers.files.directory: cannot read keys: No such file or directory (os error 2)",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_certificate_for_another_key_than_the_pin_prints_both() {
    let mut setup = Setup::new();
    let pin = format!("certificate = \"other.crt\"\npublic_key_sha256 = \"{}\"", "33".repeat(32));
    setup.text = setup.text.replace("certificate = \"other.crt\"", &pin);
    let said = setup.checked().unwrap_err();
    assert!(said.contains("keys.other.versions[0].certificate: other.crt is for the public key"));
    assert!(said.ends_with(&format!("and public_key_sha256 is {}", "33".repeat(32))), "{said}");
}

#[test]
fn a_state_directory_that_serve_would_refuse_is_named() {
    let setup = Setup::new();
    let path = setup.folder.path().join("state");
    assert_eq!(setup.checked(), Ok(Vec::new()));
    assert!(!path.exists(), "made by a check");
    setup.write("state", "");
    assert_eq!(
        setup.checked(),
        Err("claviger.toml:4: server.state_dir: state: is not a directory".to_owned())
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    assert_eq!(
        setup.checked(),
        Err("claviger.toml:4: server.state_dir: state: mode 777 lets others write; chmod 700 it"
            .to_owned())
    );
    std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(setup.checked(), Ok(Vec::new()));
}

#[test]
fn an_audit_file_that_serve_would_refuse_is_named() {
    let setup = Setup::new();
    let said = |content: &str, mode: u32| {
        setup.write("audit.jsonl", content);
        let path = setup.folder.path().join("audit.jsonl");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let said = setup.checked();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        said
    };
    for (content, mode) in [("", 0o600), ("{}\n", 0o640), ("{}\n{", 0o600)] {
        assert_eq!(said(content, mode), Ok(Vec::new()), "{content:?}");
    }
    let start = ": audit.file: the audit log audit.jsonl cannot be opened: it";
    for (content, mode, expected) in [
        ("notes", 0o600, "holds something that is not an audit log; name another file"),
        ("", 0o644, "s mode is 0644"),
    ] {
        let said = said(content, mode).unwrap_err();
        assert!(said.contains(start) && said.contains(expected), "{said}");
    }
    let path = setup.folder.path().join("audit.jsonl");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    let said = setup.checked().unwrap_err();
    assert!(said.contains(start) && said.contains("is a symbolic link"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_made_is_named_before_anybody_tries() {
    let mut setup = Setup::new();
    setup.text = setup
        .text
        .replace("state_dir = \"state\"", "state_dir = \"/proc/x\"")
        .replace("\"audit.jsonl\"", "\"/proc/audit\"");
    let said = setup.checked().unwrap_err();
    let expected = "cannot be made: /proc: only the kernel makes files there";
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!(lines[0], format!("claviger.toml:4: server.state_dir: /proc/x: {expected}"));
    assert!(lines[1].contains(": audit.file: the audit log /proc/audit cannot be opened: it"));
    assert!(lines[1].ends_with(expected), "{said}");
}

#[test]
fn an_audit_file_in_a_state_directory_that_serve_will_make_is_good() {
    let mut setup = Setup::new();
    setup.text = setup.text.replace("\"audit.jsonl\"", "\"state/audit.jsonl\"");
    assert_eq!(setup.checked(), Ok(Vec::new()));
    setup.text = setup.text.replace("\"state/audit.jsonl\"", "\"logs/audit.jsonl\"");
    assert!(setup.checked().unwrap_err().contains(": audit.file: "));
}

#[test]
fn serve_asks_for_its_own_files_and_not_for_those_of_a_backend() {
    let mut setup = Setup::new();
    let pin = format!("public_key_sha256 = \"{}\"", "33".repeat(32));
    setup.text = setup.text.replace("certificate = \"other.crt\"", &pin);
    std::fs::remove_file(setup.folder.path().join("libhsm.so")).unwrap();
    std::fs::remove_file(setup.folder.path().join("pin")).unwrap();
    assert!(setup.checked().is_err());
    let path = setup.folder.path().join("claviger.toml");
    let rest = check_for_start(&Config::load(&path).unwrap(), false).unwrap();
    let fields: Vec<_> = rest.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["providers.hsm-a.module", "providers.hsm-a.pin"], "it starts, and warns");
    std::fs::remove_file(setup.folder.path().join("server.key")).unwrap();
    setup.write("state", "");
    let said = check_for_start(&Config::load(&path).unwrap(), false).unwrap_err().to_string();
    let fields: Vec<_> = said.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    let all = [
        "server.state_dir",
        "server.tls.private_key",
        "providers.hsm-a.module",
        "providers.hsm-a.pin",
    ];
    assert_eq!(fields, all, "{said}");
}

#[test]
fn a_line_of_the_denied_callers_that_is_no_entry_is_named_and_keeps_no_daemon_from_starting() {
    let mut setup = Setup::new();
    let pin = format!("public_key_sha256 = \"{}\"", "33".repeat(32));
    setup.text = setup.text.replace("certificate = \"other.crt\"", &pin);
    let path = setup.folder.path().join("denied");
    setup.write("denied", "uid:1000\nuid:\n");
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let said = setup.checked().unwrap_err();
    assert!(said.contains(": server.denied_callers: denied, line 2: "), "{said}");
    let config = Config::load(&setup.folder.path().join("claviger.toml")).unwrap();
    let told = check_for_start(&config, false).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    setup.write("denied", "uid:1000\n");
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(setup.checked(), Ok(Vec::new()));
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let said = setup.checked().unwrap_err();
    assert!(said.contains("refused denied: mode 666 lets others write it"), "{said}");
}

#[test]
fn a_file_of_the_collector_of_traces_that_is_missing_is_named_and_keeps_no_daemon_from_starting() {
    let mut setup = Setup::new();
    let pin = format!("public_key_sha256 = \"{}\"", "33".repeat(32));
    setup.text = setup.text.replace("certificate = \"other.crt\"", &pin);
    setup.text.push_str("\n[telemetry]\nendpoint = \"https://localhost:4317\"\nca = \"no.pem\"\n");
    let said = setup.checked().unwrap_err();
    assert!(said.contains(": telemetry: ") && said.contains("no.pem"), "{said}");
    let config = Config::load(&setup.folder.path().join("claviger.toml")).unwrap();
    let told = check_for_start(&config, false).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn a_file_in_a_folder_that_others_can_write_is_refused() {
    for (file, field) in [
        ("clients.pem", "server.tls.client_ca.clients"),
        ("clients.crl", "server.tls.crl[0]"),
        ("server.key", "server.tls.private_key"),
        ("denied", "server.denied_callers"),
        ("pin", "providers.hsm-a.pin"),
    ] {
        let mut setup = Setup::new();
        let open = setup.folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::rename(setup.folder.path().join(file), open.join(file)).unwrap();
        setup.text = setup.text.replace(&format!("\"{file}\""), &format!("\"open/{file}\""));
        assert_eq!(setup.checked(), Ok(Vec::new()), "{file}");
        std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let said = setup.checked().unwrap_err();
        let expected = format!(": {field}: refused open/{file}: the folder open has mode 777");
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn a_state_directory_below_a_folder_that_others_can_write_is_named() {
    let mut setup = Setup::new();
    let open = setup.folder.path().join("open");
    std::fs::create_dir_all(open.join("state")).unwrap();
    setup.text = setup.text.replace("state_dir = \"state\"", "state_dir = \"open/state\"");
    assert_eq!(setup.checked(), Ok(Vec::new()));
    std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let said = setup.checked().unwrap_err();
    assert!(
        said.contains(": server.state_dir: open/state: the folder open has mode 777"),
        "{said}"
    );
}
