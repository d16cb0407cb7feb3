//! A key's whole life by commands: made, rotated, activated, its first version retired, with a daemon
//! that serves all the time. A value that was wrapped before the rotation unwraps after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use claviger_client::{Client, UnwrapOptions, WrapOptions};
use e2e::daemon::claviger;
use e2e::process::{command, repository, run};
use e2e::python::interpreter;
use e2e::setup::{KEY, MATERIAL, client_config, client_file};
use e2e::{
    Backend, Daemon, DaemonFiles, Identity, RsaKey, ServiceKind, TestService, Token, Version,
    doctor,
};
use serde_json::{Value, json};

/// Where the key is made in Google Cloud KMS, key ring included.
const AT_GOOGLE: &str = "projects/test-project/locations/europe-west3/keyRings/made/cryptoKeys/user-keys/cryptoKeyVersions/1";

/// A daemon's files, and an operator who may do with the key what a rotation needs.
struct Setup {
    files: DaemonFiles,
    operator: Identity,
    /// Options of the provider for who makes keys.
    admin: Option<PathBuf>,
}

impl Setup {
    /// The key is made by the command, in the provider `backend`, for one algorithm.
    fn create(files: DaemonFiles, admin: Option<PathBuf>, algorithm: &str) -> Self {
        Self::create_at(files, admin, algorithm, None)
    }

    /// The same where the key's place must be said.
    fn create_at(
        files: DaemonFiles,
        admin: Option<PathBuf>,
        algorithm: &str,
        locator: Option<&str>,
    ) -> Self {
        files.write();
        let operator = files.pki.client("spiffe://example.org/operator");
        let mut setup = Self { files, operator, admin };
        let mut arguments = vec!["--provider", "backend", "--algorithm", algorithm];
        arguments.extend(locator.into_iter().flat_map(|locator| ["--locator", locator]));
        let made = setup.make("create", &arguments);
        assert_eq!((&made["key"], &made["version"]), (&json!(KEY), &json!(1)), "{made}");
        setup.read_again();
        let grants = format!(
            r#"[
                {{ keys = ["{KEY}"], operations = ["wrap", "unwrap", "read"] }},
                {{ keys = ["{KEY}"], operations = ["rewrap"], to = ["{KEY}"] }},
            ]"#
        );
        setup.operator = setup.files.caller_with("operator", &grants);
        setup.files.write();
        setup
    }

    /// `claviger keys WHAT user-keys … --write --json` with the operator's login.
    fn make(&self, what: &str, arguments: &[&str]) -> Value {
        let mut all = vec!["keys", what, KEY, "--bits", "2048", "--write", "--json"];
        all.extend(arguments);
        let admin = self.admin.as_deref().map(|path| path.to_str().unwrap());
        all.extend(admin.into_iter().flat_map(|admin| ["--admin", admin]));
        let output = self.run(&all);
        assert!(output.status.success(), "{all:?}: {}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["written"], true, "{report}");
        report
    }

    fn run(&self, arguments: &[&str]) -> Output {
        command(claviger())
            .args(arguments)
            .arg("--config")
            .arg(self.files.configuration_file())
            .envs(self.files.environment().iter().cloned())
            .output()
            .unwrap()
    }

    /// The command wrote the file: the next daemon is to start with what it wrote.
    fn read_again(&mut self) {
        let text = fs::read_to_string(self.files.configuration_file()).unwrap();
        self.files.configuration = text.parse().unwrap();
    }

    fn reload(&self) {
        let output = self.run(&["reload"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn activate(&self, client: &Path) -> Output {
        self.run(&["keys", "activate", KEY, "--write", "--client", client.to_str().unwrap()])
    }

    fn retire(&self, client: &Path, more: &[&str]) -> Output {
        let all = ["keys", "retire", KEY, "--key-version", "1", "--write"];
        let client = ["--client", client.to_str().unwrap()];
        self.run(&[&all[..], &client, more].concat())
    }

    /// Every replica is sound, and may do nothing that it is not for.
    fn examine(&self) {
        let (code, report) = doctor::report(&self.files);
        assert_eq!(code, Some(0), "{report:#}");
        let versions = report["keys"][0]["versions"].as_array().unwrap();
        for replica in versions.iter().filter_map(|version| version["replicas"].get(0)) {
            if let Some(rights) = replica["unneeded_rights"].as_array() {
                assert!(rights.is_empty(), "{report:#}");
            }
            let in_a_file = self.files.configuration["providers"]["backend"]["type"].as_str();
            let in_a_file = in_a_file == Some("software");
            assert_eq!(replica["extractable"] == json!(true), in_a_file, "{report:#}");
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn wrap(client: &Client) -> (u32, Vec<u8>) {
    let wrapped = client.wrap(KEY, &MATERIAL, &WrapOptions::default()).await.unwrap();
    (wrapped.key_version, wrapped.wrapped)
}

/// The version that unwrapped.
async fn unwrap(client: &Client, wrapped: &[u8]) -> Option<u32> {
    let unwrapped = client.unwrap_key(KEY, wrapped, &UnwrapOptions::default()).await.ok()?;
    assert_eq!(*unwrapped.key_material, MATERIAL, "never a wrong answer");
    Some(unwrapped.key_version)
}

/// From a configuration without the key to a first version that is retired.
async fn a_whole_life(mut setup: Setup) {
    let daemon = Daemon::start(&mut setup.files);
    setup.examine();
    let client = Client::new(&client_config(&setup.files, &daemon, &setup.operator)).unwrap();
    let (version, before) = wrap(&client).await;
    assert_eq!(version, 1);
    let named = client_file(&setup.files, &daemon, &setup.operator);

    let made = setup.make("rotate", &[]);
    assert_eq!(made["version"], 2, "{made}");
    let kept = fs::read_to_string(made["kept"].as_str().unwrap()).unwrap();
    assert!(!kept.contains("version = 2"), "{kept}");
    let early = setup.activate(&named);
    assert_eq!(early.status.code(), Some(69), "{}", text(&early.stderr));
    assert!(text(&early.stderr).contains("does not have it"), "{}", text(&early.stderr));
    setup.reload();
    assert_eq!(wrap(&client).await.0, 1, "the new version does not wrap before it is active");
    let activated = setup.activate(&named);
    assert!(activated.status.success(), "{}", text(&activated.stderr));
    setup.reload();
    setup.examine();
    let (version, after) = wrap(&client).await;
    assert_eq!(version, 2);
    assert_eq!(unwrap(&client, &before).await, Some(1), "what was wrapped before the rotation");
    assert_eq!(unwrap(&client, &after).await, Some(2));

    let stored = setup.files.path("stored");
    let new = setup.files.path("new");
    fs::write(&stored, &before).unwrap();
    let paths = [&stored, &new].map(|path| path.to_str().unwrap());
    let without = setup.retire(&named, &[]);
    assert_eq!(without.status.code(), Some(2), "{}", text(&without.stderr));
    assert!(text(&without.stderr).contains("proves nothing"), "{}", text(&without.stderr));
    let needed = setup.retire(&named, &["--out", paths[1], paths[0]]);
    assert_eq!(needed.status.code(), Some(1), "{}", text(&needed.stderr));
    assert!(text(&needed.stderr).contains("in its place"), "{}", text(&needed.stderr));
    setup.reload();
    assert_eq!(unwrap(&client, &before).await, Some(1), "nothing was disabled");
    fs::rename(new.join("stored"), &stored).unwrap();
    let retired = setup.retire(&named, &[paths[0]]);
    assert!(retired.status.success(), "{}", text(&retired.stderr));
    setup.reload();
    assert_eq!(unwrap(&client, &fs::read(&stored).unwrap()).await, Some(2));
    assert_eq!(unwrap(&client, &before).await, None);
    setup.examine();
}

fn files(backend: &Backend) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    backend.configure(&mut files);
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_made_rotated_and_retired() {
    a_whole_life(Setup::create(files(&Backend::software()), None, "RSA-OAEP-256")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_softhsm_is_made_rotated_and_retired() {
    a_whole_life(Setup::create(files(&Backend::softhsm()), None, "RSA-OAEP")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_kryoptic_is_made_rotated_and_retired() {
    a_whole_life(Setup::create(files(&Backend::kryoptic()), None, "RSA-OAEP-256")).await;
}

/// A key in a service, which the daemon's own login may not make.
async fn in_a_service(kind: ServiceKind) {
    let service = TestService::start(kind).await;
    let mut files = DaemonFiles::new();
    service.configure(&mut files, "backend", None).await;
    let admin = service.admin(&files);
    let locator = (kind == ServiceKind::Google).then_some(AT_GOOGLE);
    a_whole_life(Setup::create_at(files, Some(admin), "RSA-OAEP-256", locator)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_aws_kms_is_made_rotated_and_retired() {
    in_a_service(ServiceKind::Aws).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_azure_key_vault_is_made_rotated_and_retired() {
    in_a_service(ServiceKind::Azure).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_google_cloud_kms_is_made_rotated_and_retired() {
    in_a_service(ServiceKind::Google).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_openbao_is_made_rotated_and_retired() {
    in_a_service(ServiceKind::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_key_in_vault_is_made_rotated_and_retired() {
    in_a_service(ServiceKind::Vault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_may_not_make_keys_is_told_to_bring_an_operators() {
    let service = TestService::start(ServiceKind::OpenBao).await;
    let mut files = DaemonFiles::new();
    service.configure(&mut files, "backend", None).await;
    let admin = service.admin(&files);
    let setup = Setup::create(files, Some(admin), "RSA-OAEP-256");
    let before = fs::read_to_string(setup.files.configuration_file()).unwrap();
    let output = setup.run(&["keys", "rotate", KEY, "--write"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--admin FILE"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), before);
}

/// A key that lies in a file goes into another backend as a replica of the same version: what was wrapped
/// before unwraps when the file is gone.
async fn goes_into(mut files: DaemonFiles, admin: Option<PathBuf>, locator: Option<&str>) {
    files.key_folder("old", "old");
    let key = RsaKey::generate(2048);
    let pem = files.path("old/one.pem");
    key.write_pem(&pem);
    let version = Version::active(1, &key, "old", "one.pem");
    files.key(KEY, &["RSA-OAEP-256"], vec![version]);
    let operator = files.caller("operator", &[KEY], &["wrap", "unwrap", "read"]);
    let mut setup = Setup { files, operator, admin };
    let daemon = Daemon::start(&mut setup.files);
    let client = Client::new(&client_config(&setup.files, &daemon, &setup.operator)).unwrap();
    let (_, before) = wrap(&client).await;

    let mut all = vec!["keys", "import", KEY, "--provider", "backend", "--write", "--json"];
    all.extend(["--from", pem.to_str().unwrap()]);
    all.extend(locator.into_iter().flat_map(|locator| ["--locator", locator]));
    let admin = setup.admin.clone();
    all.extend(admin.iter().flat_map(|admin| ["--admin", admin.to_str().unwrap()]));
    let output = setup.run(&all);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["public_key_sha256"], json!(key.public_key_sha256()), "{report}");
    setup.reload();
    setup.read_again();
    let (code, report) = doctor::report(&setup.files);
    assert_eq!(code, Some(0), "{report:#}");
    let replicas = &report["keys"][0]["versions"][0]["replicas"];
    assert_eq!(replicas.as_array().map(Vec::len), Some(2), "{report:#}");
    assert_ne!(replicas[1]["extractable"], json!(true), "{report:#}");
    let rights = replicas[1]["unneeded_rights"].as_array();
    assert!(rights.is_none_or(Vec::is_empty), "{report:#}");

    let versions = setup.files.configuration["keys"][KEY]["versions"].as_array_mut().unwrap();
    versions[0]["replicas"].as_array_mut().unwrap().remove(0);
    setup.files.write();
    setup.reload();
    fs::remove_file(pem).unwrap();
    assert_eq!(unwrap(&client, &before).await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_imported_into_tokens() {
    for backend in [Backend::softhsm_with_software_oaep(), Backend::kryoptic()] {
        goes_into(files(&backend), None, None).await;
    }
}

/// The same for a service.
async fn goes_into_a_service(kind: ServiceKind) {
    let service = TestService::start(kind).await;
    let mut files = DaemonFiles::new();
    service.configure(&mut files, "backend", None).await;
    let admin = service.admin(&files);
    goes_into(files, Some(admin), (kind == ServiceKind::Google).then_some(AT_GOOGLE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_imported_into_each_service() {
    for kind in ServiceKind::USUAL {
        goes_into_a_service(kind).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn a_key_in_a_file_is_imported_into_vault() {
    goes_into_a_service(ServiceKind::Vault).await;
}

/// Azure's own form, opened by a library that is not ours.
#[test]
fn a_transfer_file_opens_with_the_key_exchange_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (kek, key) = (RsaKey::generate(3072), RsaKey::generate(2048));
    kek.write_pem(&path("kek-private.pem"));
    key.write_pem(&path("key.pem"));
    let mut openssl = command("openssl");
    openssl.args(["pkey", "-pubout", "-in"]).arg(path("kek-private.pem"));
    run(openssl.arg("-out").arg(path("kek.pem")));
    let id = "https://contoso.managedhsm.azure.net/keys/kek/0123456789abcdef0123456789abcdef";
    let write = || {
        let mut program = command(claviger());
        program.args(["keys", "byok", "--json", "--kek-id", id]);
        for (option, name) in [("--from", "key.pem"), ("--kek", "kek.pem"), ("--out", "key.byok")] {
            program.arg(option).arg(path(name));
        }
        program.output().unwrap()
    };
    let output = write();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["public_key_sha256"], json!(key.public_key_sha256()));
    let transfer: Value = serde_json::from_slice(&fs::read(path("key.byok")).unwrap()).unwrap();
    assert_eq!(transfer["header"]["kid"], json!(id));
    let opened = command(interpreter())
        .arg(repository().join("e2e/python/open_transfer_file.py"))
        .args([path("key.byok"), path("kek-private.pem")])
        .output()
        .unwrap();
    assert!(opened.status.success(), "{}", text(&opened.stderr));
    assert_eq!(opened.stdout, key.pkcs8());
    let again = write();
    assert_eq!(
        again.status.code(),
        Some(78),
        "a file that is there stays: {}",
        text(&again.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_pin_makes_the_key_where_the_daemons_cannot() {
    let token = Token::softhsm();
    let mut files = DaemonFiles::new();
    files.token("backend", &token);
    // The daemon's own source of the PIN is not there yet.
    let pin = fs::read_to_string(token.pin_file()).unwrap();
    fs::remove_file(token.pin_file()).unwrap();
    let admin = files.file("admin.toml", "pin = { file = \"operators.pin\" }\n", 0o644);
    files.file("operators.pin", &pin, 0o600);
    let setup = Setup::create(files, Some(admin.into()), "RSA-OAEP");
    let written = fs::read_to_string(setup.files.configuration_file()).unwrap();
    assert!(!written.contains("operators.pin"), "{written}");
    let without = setup.run(&["keys", "rotate", KEY, "--write"]);
    assert_eq!(without.status.code(), Some(78), "{}", text(&without.stderr));
}

#[test]
fn a_name_that_is_taken_in_the_token_is_refused_and_nothing_is_made() {
    let token = Token::softhsm();
    let mut files = DaemonFiles::new();
    files.token("backend", &token);
    token.import(&RsaKey::shared(2048), "taken", "01");
    let setup = Setup::create(files, None, "RSA-OAEP");
    let before = fs::read_to_string(setup.files.configuration_file()).unwrap();
    for locator in ["pkcs11:object=taken", "pkcs11:object=free;id=%01"] {
        let output = setup.run(&["keys", "rotate", KEY, "--write", "--locator", locator]);
        assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("already, which stays as it is"), "{output:?}");
    }
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), before);
}

#[test]
fn lines_are_printed_and_nothing_is_written_unless_it_is_asked_for() {
    let setup = Setup::create(files(&Backend::software()), None, "RSA-OAEP");
    let before = fs::read_to_string(setup.files.configuration_file()).unwrap();
    let output = setup.run(&["keys", "rotate", KEY, "--bits", "2048"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("[[keys.user-keys.versions]]\nversion = 2\n"), "{said}");
    assert_eq!(fs::read_to_string(setup.files.configuration_file()).unwrap(), before);
    // The lines are complete.
    let (_, lines) = said.split_once("\n\n").unwrap();
    let (lines, _) = lines.split_once("\nnext:").unwrap();
    fs::write(setup.files.configuration_file(), format!("{before}\n{lines}")).unwrap();
    let checked = setup.run(&["config", "check"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}
