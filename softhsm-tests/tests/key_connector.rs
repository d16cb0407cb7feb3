//! `deploy/key-connector/`: its files are read and the commands of its page are run as they stand
//! there, from a PFX file and from AWS KMS to SoftHSM; the same 32 bytes come out at the end.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::Algorithm;
use serde_json::{Value, json};
use softhsm_tests::daemon::claviger;
use softhsm_tests::encoding::random;
use softhsm_tests::module::library;
use softhsm_tests::pki::uri;
use softhsm_tests::process::{command, repository, run};
use softhsm_tests::remote::{Remote, Which};
use softhsm_tests::{Daemon, RsaKey, Site, Token};
use toml::Table;

/// A list entry that no value matches: "put what is printed here".
const NO_VALUE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const PFX_PASSWORD: &str = "pfx password";

/// One file of the folder.
fn file(name: &str) -> String {
    let path = repository().join("deploy/key-connector").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The commands of the page under `<!-- steps: NAME -->`.
fn steps(name: &str) -> String {
    let page = file("README.md");
    let marker = format!("<!-- steps: {name} -->\n```");
    let (_, rest) = page.split_once(&marker).unwrap_or_else(|| panic!("no steps {name:?}"));
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("\n```").unwrap().0.to_owned()
}

/// The host of a Key Connector and of its daemon, with both systems' folders in a site.
struct Host {
    site: Site,
    _token: Token,
    /// The new key, of which the test alone has the private half too.
    new: RsaKey,
    /// What the Key Connector keeps.
    material: Vec<u8>,
}

impl Host {
    /// The configuration of the page with `more` added, for a key in a fresh SoftHSM token.
    fn new(more: &str) -> Self {
        let mut site = Site::new();
        let token = Token::softhsm();
        let new = RsaKey::generate(3072);
        token.import(&new, "user-keys", "01");
        site.token("hsm", &token);
        for folder in ["bitwarden", "bitwarden/claviger", "claviger"] {
            fs::create_dir(site.path(folder)).unwrap();
        }
        let text = format!("{}\n{more}", file("claviger.toml"));
        let documented: Table = here(&site, &text).parse().unwrap();
        let mut configuration = documented;
        // Ports, certificates and places of the test's own.
        for section in ["server", "operations", "audit"] {
            configuration.insert(section.into(), site.configuration[section].clone());
        }
        let providers = configuration["providers"].as_table_mut().unwrap();
        assert_eq!(providers["hsm"]["type"].as_str(), Some("pkcs11"));
        providers.insert("hsm".into(), site.configuration["providers"]["hsm"].clone());
        site.configuration = configuration;
        Self { site, _token: token, new, material: random(32) }
    }

    /// The Key Connector's folder.
    fn bitwarden(&self, name: &str) -> PathBuf {
        self.site.path("bitwarden").join(name)
    }

    /// A Key Connector's JSON database with one wrapped key and one user.
    fn store(&self, wrapped: &[u8]) {
        let data = json!({
            "symmetricKey": STANDARD.encode(wrapped),
            "userKey": [{"id": "9d3a1d2b-0000-4000-8000-000000000001", "key": "ciphertext"}],
        });
        fs::write(self.bitwarden("data.json"), format!("{data:#}\n")).unwrap();
    }

    fn stored(&self) -> Value {
        serde_json::from_slice(&fs::read(self.bitwarden("data.json")).unwrap()).unwrap()
    }

    /// Issues the clients' certificates and writes their files, as the page asks for.
    fn clients(&self) {
        let folder = self.bitwarden("claviger");
        fs::write(folder.join("ca.crt"), self.site.pki.ca_pem()).unwrap();
        for name in ["key-connector", "migration"] {
            let name_of = vec![uri(&format!("spiffe://example.org/{name}"))];
            let month = std::time::Duration::from_hours(30 * 24);
            let identity = self.site.pki.client_with(name_of, month);
            let (certificate, private_key) = identity.write(&folder, name);
            assert_eq!(certificate, folder.join(format!("{name}.crt")));
            assert_eq!(private_key, folder.join(format!("{name}.key")));
        }
        for name in ["client.toml", "migration.toml", "pkcs11.toml", "rehearse"] {
            fs::write(folder.join(name), here(&self.site, &file(name))).unwrap();
        }
        std::os::unix::fs::symlink(library(), folder.join("libclaviger_pkcs11.so")).unwrap();
    }

    fn command(&self, script: &str) -> Command {
        let programs = claviger().parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        let mut shell = command("sh");
        shell
            .args(["-euc", &here(&self.site, script)])
            .env("PATH", format!("{programs}:{path}"))
            .env("PFX_PASSWORD", PFX_PASSWORD)
            .env("CLAVIGER_CONFIG", self.site.configuration_file())
            .envs(self.site.environment().iter().cloned());
        shell
    }

    /// Runs commands of the page; gives what they print.
    fn run(&self, name: &str) -> String {
        let output = run(&mut self.command(&steps(name)));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs commands of the page whose last line is a hash.
    fn hash(&self, name: &str) -> String {
        let printed = self.run(name);
        let hash = printed.lines().last().unwrap().to_owned();
        assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{printed}");
        hash
    }

    /// Puts a hash into the grant of one caller.
    fn narrow(&mut self, caller: &str, hash: &str) {
        let callers = self.site.configuration["callers"].as_array_mut().unwrap();
        let caller = callers.iter_mut().find(|c| c["name"].as_str() == Some(caller)).unwrap();
        caller["grants"][0]["wrapped_sha256"] = vec![toml::Value::from(hash)].into();
    }

    /// `claviger config pin && claviger config check`, then the daemon.
    fn serve(&mut self) -> Daemon {
        self.site.write();
        run(&mut self.command("claviger config pin && claviger config check"));
        let pinned = fs::read_to_string(self.site.configuration_file()).unwrap();
        self.site.configuration = pinned.parse().unwrap();
        let daemon = Daemon::start(&mut self.site);
        self.clients();
        daemon
    }

    fn reload(&self, daemon: &Daemon) {
        let before = daemon.log().matches("configuration reloaded").count();
        self.site.write();
        daemon.reload();
        let begun = std::time::Instant::now();
        while daemon.log().matches("configuration reloaded").count() == before {
            assert!(begun.elapsed().as_secs() < 60, "{}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Steps 2 to 4 of the page, and what they promise.
    fn move_over(&mut self, old: &[u8]) {
        self.store(old);
        let before = self.stored();
        let named = self.hash("name-the-value");
        self.narrow("migration", &named);
        let daemon = self.serve();

        let rewrapped = self.hash("rewrap");
        assert_ne!(named, rewrapped);
        // The Key Connector may not open it before its grant names it.
        let early = self.command(&steps("rehearse-new")).output().unwrap();
        assert_eq!(early.status.code(), Some(65), "{early:?}");
        self.narrow("key-connector", &rewrapped);
        self.reload(&daemon);
        assert!(self.run("rehearse-new").contains(": 32 bytes, not shown"));

        self.run("change-over");
        let after = self.stored();
        assert_eq!(after["userKey"], before["userKey"], "no user's key is touched");
        let value = STANDARD.decode(after["symmetricKey"].as_str().unwrap()).unwrap();
        let opened = self.new.unwrap_oaep(&value, Algorithm::RsaOaep, b"").expect("OAEP, SHA-1");
        assert_eq!(opened, self.material, "the same 32 bytes");
        // And as the Key Connector asks for them, from the row as it is stored.
        let unwrap = "jq --raw-output .symmetricKey /etc/bitwarden/data.json | claviger unwrap user-keys --base64-in --client /etc/bitwarden/claviger/client.toml";
        assert_eq!(run(&mut self.command(unwrap)).stdout, self.material);

        self.the_daily_rehearsal_works();
        self.the_certificate_is_over_the_new_key();
        let records = self.site.audit_records();
        let moved: Vec<_> =
            records.iter().filter(|record| record["operation"] == "rewrap").collect();
        let [moved] = moved.as_slice() else { panic!("{moved:?}") };
        assert_eq!(
            (&moved["caller"], &moved["target_key"]),
            (&"migration".into(), &"user-keys".into())
        );
        assert_eq!(moved["target_public_key_sha256"], self.new.public_key_sha256());
        assert_eq!(moved["target_wrapped_sha256"], rewrapped);

        // A database gets the same by its row.
        let new = fs::read_to_string(self.bitwarden("claviger/new.txt")).unwrap();
        let update = steps("change-over-database").replace("the content of new.txt", new.trim());
        let database = self.site.path("kc.db");
        let sql = |statement: &str| run(command("sqlite3").arg(&database).arg(statement)).stdout;
        sql(
            "CREATE TABLE \"ApplicationDatas\" (\"Id\" INTEGER PRIMARY KEY, \"SymmetricKey\" TEXT); INSERT INTO \"ApplicationDatas\" VALUES (1, 'old');",
        );
        sql(&update);
        let row = sql("SELECT \"SymmetricKey\" FROM \"ApplicationDatas\"");
        assert_eq!(String::from_utf8(row).unwrap().trim(), after["symmetricKey"].as_str().unwrap());

        self.run("rollback");
        assert_eq!(self.stored(), before);
    }

    /// The commands of the page, of the systemd unit and of the Kubernetes job; and what each part
    /// that fails does to the rest.
    fn the_daily_rehearsal_works(&self) {
        assert_eq!(self.hash("stored-value").len(), 64);
        let by_the_page = steps("rehearse");
        let unit = file("claviger-rehearsal.service");
        let of_the_unit: Vec<_> =
            unit.lines().filter_map(|line| line.strip_prefix("Exec")).collect();
        let [of_the_unit] = of_the_unit.as_slice() else {
            panic!("systemd stops at the first command that fails: {of_the_unit:?}")
        };
        let by_the_unit = of_the_unit.strip_prefix("Start=").unwrap();
        let job = file("rehearsal.cronjob.yaml");
        let by_the_job =
            job.lines().find_map(|line| line.trim().strip_prefix("command: ")).unwrap();
        let by_the_job: Vec<String> = serde_json::from_str(by_the_job).unwrap();
        assert!(job.contains("- name: CLAVIGER_PKCS11_MODULE\n"));

        let port = self.site.address().port();
        let [a, b] =
            ["localhost", "127.0.0.1"].map(|host| format!("https://{host}:{port} unwraps"));
        let [shows, module] = ["the module shows user-keys", "the module unwraps"];
        let lasts = "key-connector.crt lasts two weeks and more";
        for script in [by_the_page, by_the_unit.to_owned(), by_the_job.join(" ")] {
            let output = self.command(&script).output().unwrap();
            let said = rehearsed(&output);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            assert_eq!(
                said,
                [shows, module, "pkcs11.toml names daemons", &a, &b, lasts].map(ok),
                "{output:?}"
            );
            let printed = String::from_utf8(output.stdout).unwrap();
            assert_eq!(printed.matches(": 32 bytes, not shown").count(), 2, "{printed}");
        }
        let unwraps = || {
            let records = self.site.audit_records();
            records.iter().filter(|record| record["operation"] == "unwrap").count()
        };
        let before = unwraps();
        let failed = self.rehearsal_with("rehearse", "1209600", "9999999");
        assert_eq!(fails(&failed), [lasts], "{failed:?}");
        assert_eq!(unwraps() - before, 3, "the module, and each daemon, in spite of it");

        let label = "label = \"user-keys\"";
        let failed = self.rehearsal_with("pkcs11.toml", label, "label = \"another\"");
        assert_eq!(fails(&failed)[0], shows, "{failed:?}");
        let failed = self.rehearsal_with("pkcs11.toml", "serial ", "number ");
        assert_eq!(fails(&failed), [shows, module], "{failed:?}");

        let nobody = "https://127.0.0.1:9";
        let there = format!("https://127.0.0.1:{port}");
        let failed = self.rehearsal_with("pkcs11.toml", &there, nobody);
        assert_eq!(fails(&failed), [format!("{nobody} unwraps")], "{failed:?}");

        let other = STANDARD.encode(random(384));
        let stored = fs::read_to_string(self.bitwarden("claviger/wrapped.txt")).unwrap();
        let failed = self.rehearsal_with("wrapped.txt", stored.trim(), &other);
        assert_eq!(fails(&failed), [module, &a, &b], "{failed:?}");
        // What `docker logs` shows of it: the reason, and the id to look for.
        let log = String::from_utf8(failed.stderr).unwrap();
        let line = log.lines().find(|line| line.starts_with("claviger-pkcs11[")).unwrap_or("");
        assert!(line.contains("unwrap with key `user-keys`: InvalidArgument"), "{log}");
        let id = line.split("(request id ").nth(1).and_then(|id| id.strip_suffix(')'));
        let records = self.site.audit_records();
        assert!(records.iter().any(|record| record["request_id"].as_str() == id), "{log}");
        assert!(log.contains("C_Decrypt: CKR_ENCRYPTED_DATA_INVALID (0x40)"), "{log}");
    }

    /// The rehearsal with one change to one file.
    fn rehearsal_with(&self, name: &str, from: &str, to: &str) -> Output {
        let path = self.bitwarden("claviger").join(name);
        let before = fs::read_to_string(&path).unwrap();
        let changed = before.replace(from, to);
        assert_ne!(before, changed, "{name} has no {from:?}");
        fs::write(&path, changed).unwrap();
        let output = self.command(&steps("rehearse")).output().unwrap();
        fs::write(&path, before).unwrap();
        assert_eq!(output.status.code(), Some(1), "{to:?} in {name}: {output:?}");
        output
    }

    fn the_certificate_is_over_the_new_key(&self) {
        self.narrow_is_no_hindrance_to_reading();
        self.run("certificate");
        let settings = file("key-connector.env");
        let setting = |name: &str| {
            let name = format!("keyConnectorSettings__certificate__{name}=");
            settings.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        };
        let pfx = here(&self.site, &setting("filesystemPath"));
        let password = format!("pass:{}", setting("filesystemPassword"));
        let certificate =
            run(command("openssl").args(["pkcs12", "-nokeys", "-passin", &password, "-in", &pfx]));
        let pem = self.site.path("from-pfx.crt");
        fs::write(&pem, certificate.stdout).unwrap();
        let script = format!(
            "openssl x509 -noout -pubkey -in {} | openssl pkey -pubin -outform DER",
            pem.display()
        );
        let spki = run(command("sh").args(["-ec", &script])).stdout;
        assert_eq!(spki, self.new.public_key().spki());
    }

    /// Its grant has "read" too: `keys show` is the page's word on health.
    fn narrow_is_no_hindrance_to_reading(&self) {
        let show = "claviger keys show user-keys --client /etc/bitwarden/claviger/client.toml";
        let shown = String::from_utf8(run(&mut self.command(show)).stdout).unwrap();
        assert!(shown.contains("serving"), "{shown}");
    }
}

/// What a rehearsal tried, and whether it worked; what works first.
fn rehearsed(output: &Output) -> Vec<(String, bool)> {
    let lines = |bytes: &[u8], mark: &str, is_ok: bool| -> Vec<_> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let told = text.lines().filter_map(|line| line.strip_prefix(mark));
        told.map(|what| (what.to_owned(), is_ok)).collect()
    };
    let mut tried = lines(&output.stdout, "ok: ", true);
    tried.extend(lines(&output.stderr, "FAILED: ", false));
    tried
}

fn ok(what: &str) -> (String, bool) {
    (what.to_owned(), true)
}

/// What failed, where all six were tried.
fn fails(output: &Output) -> Vec<String> {
    let tried = rehearsed(output);
    assert_eq!(tried.len(), 6, "{output:?}");
    tried.into_iter().filter(|(_, is_ok)| !is_ok).map(|(what, _)| what).collect()
}

/// A text of the page with the system's folders and the daemon's address as they are here.
fn here(site: &Site, text: &str) -> String {
    let folder = |name: &str| site.path(name).to_str().unwrap().to_owned();
    text.replace("/etc/bitwarden", &folder("bitwarden"))
        .replace("/etc/claviger", &folder("claviger"))
        .replace("claviger-a.example.org:8443", &format!("localhost:{}", site.address().port()))
        .replace("claviger-b.example.org:8443", &format!("127.0.0.1:{}", site.address().port()))
}

/// `material` wrapped by OpenSSL to a certificate or a public key (PEM).
fn openssl_wrap(host: &Host, key: &[&str], options: &[&str]) -> Vec<u8> {
    let input = host.site.path("material");
    fs::write(&input, &host.material).unwrap();
    fs::set_permissions(&input, Permissions::from_mode(0o600)).unwrap();
    let mut openssl = command("openssl");
    openssl.args(["pkeyutl", "-encrypt"]).args(key).args(["-pkeyopt", "rsa_padding_mode:oaep"]);
    for option in options {
        openssl.args(["-pkeyopt", option]);
    }
    let wrapped = run(openssl.arg("-in").arg(&input)).stdout;
    fs::remove_file(input).unwrap();
    wrapped
}

#[test]
fn a_key_connector_moves_from_its_pfx_file_to_softhsm_by_the_steps_of_the_page() {
    let mut host = Host::new(&file("move-from-pfx.toml"));
    // As its own documentation makes the PFX.
    let script = format!(
        "cd /etc/bitwarden
        openssl req -x509 -newkey rsa:2048 -sha256 -nodes -keyout bwkc.key -out bwkc.crt -subj '/CN=Bitwarden Key Connector' -days 36500 2> /dev/null
        openssl pkcs12 -export -out ./key.pfx -inkey bwkc.key -in bwkc.crt -passout 'pass:{PFX_PASSWORD}'
        rm bwkc.key"
    );
    run(&mut host.command(&script));
    let certificate = host.bitwarden("bwkc.crt");
    let old = openssl_wrap(&host, &["-certin", "-inkey", certificate.to_str().unwrap()], &[]);
    host.run("old-pfx");
    host.move_over(&old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_connector_moves_from_aws_kms_to_softhsm_by_the_steps_of_the_page() {
    let aws = Remote::start(Which::Aws).await;
    let key = RsaKey::generate(2048);
    let place = aws.import(&key, "user-keys", None).await.remove(0);
    let documented = file("move-from-aws.toml");
    let arn = documented.lines().find_map(|line| line.split("locator = \"").nth(1)).unwrap();
    let arn = arn.split('"').next().unwrap();
    let mut host = Host::new(&documented.replace(arn, &place.locator));
    let old = host.site.configuration["providers"]["old"].clone();
    aws.configure(&mut host.site, "old", None).await;
    // The same but for where ministack is and who may ask it.
    for (name, value) in old.as_table().unwrap() {
        assert_eq!(host.site.configuration["providers"]["old"][name], *value, "{name}");
    }
    let public_key = host.site.path("aws.der");
    fs::write(&public_key, key.public_key().spki()).unwrap();
    let to = ["-pubin", "-keyform", "DER", "-inkey", public_key.to_str().unwrap()];
    let old = openssl_wrap(&host, &to, &["rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]);
    tokio::task::spawn_blocking(move || host.move_over(&old)).await.unwrap();
    drop(aws);
}

#[test]
fn the_files_agree_with_each_other() {
    let daemon: Table = file("claviger.toml").parse().unwrap();
    let module: Table = file("pkcs11.toml").parse().unwrap();
    let environment = file("key-connector.env");
    let settings: std::collections::BTreeMap<&str, &str> = environment
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line:?} sets nothing")))
        .collect();
    let rsa = |name: &str| settings[&*format!("keyConnectorSettings__rsaKey__{name}")];
    let token = &module["tokens"][0];
    let key = &token["keys"][0];
    assert_eq!(rsa("provider"), "pkcs11");
    assert_eq!(
        key["name"].as_str(),
        daemon["keys"].as_table().unwrap().keys().next().map(|n| &**n)
    );
    assert_eq!(key["label"].as_str(), Some(rsa("pkcs11PrivateKeyLabel")));
    assert_eq!(token["serial"].as_str(), Some(rsa("pkcs11SlotTokenSerialNumber")));
    assert_eq!(settings["CLAVIGER_PKCS11_CONF"], "/etc/bitwarden/claviger/pkcs11.toml");
    let folder = "/etc/bitwarden/claviger";
    for name in ["client.toml", "migration.toml"] {
        let client: Table = file(name).parse().unwrap();
        assert_eq!(client["endpoint"], token["endpoints"], "{name}");
    }
    let client: Table = file("client.toml").parse().unwrap();
    for name in ["ca", "certificate", "private_key"] {
        // The module takes relative paths from its file's folder.
        let path = format!("{folder}/{}", token[name].as_str().unwrap());
        assert_eq!(client[name].as_str(), Some(&*path));
    }
    // The rehearsal loads what the Key Connector loads, and asks for what it asks for.
    assert_eq!(module["log"].as_str(), Some("stderr"), "`docker logs` tells why");
    let rehearse = file("rehearse");
    for option in [
        format!("--token-label {} ", token["label"].as_str().unwrap()),
        format!("--label {} ", rsa("pkcs11PrivateKeyLabel")),
        format!("--login --pin {} ", rsa("pkcs11LoginPin")),
        "CLAVIGER_PKCS11_CONF=$PWD/pkcs11.toml ".to_owned(),
        rsa("pkcs11LibraryPath").replace(folder, "$PWD"),
        "--output-file /dev/null\n".to_owned(),
    ] {
        assert!(rehearse.contains(&option), "{option}");
    }
    // Everything that is said to be in the folder is mounted with it.
    let compose = file("compose.yaml");
    assert!(
        compose.contains(&format!("{folder}:{folder}:ro")) && compose.contains("key-connector.env")
    );
    for setting in ["pkcs11LibraryPath"].map(rsa) {
        assert!(setting.starts_with(folder), "{setting}");
    }
    assert!(file("claviger.toml").contains(NO_VALUE), "a placeholder, and no value");
    // Each file is on the page, and each step on it is run by a test.
    let page = file("README.md");
    for entry in fs::read_dir(repository().join("deploy/key-connector")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "README.md"
                || page.contains(&name.replace("claviger-rehearsal.timer", ".timer")),
            "{name}"
        );
    }
    let here = include_str!("key_connector.rs");
    for marker in page.split("<!-- steps: ").skip(1) {
        let name = marker.split(" -->").next().unwrap();
        assert!(here.contains(&format!("\"{name}\"")), "nobody runs the steps {name:?}");
    }
}
