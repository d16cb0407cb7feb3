//! `deploy/key-connector/`: its files are read and the commands of its page are run as they stand
//! there, in a `bwdata` folder as Bitwarden's installer lays it out: a first start on each kind of store,
//! and a move from a PFX file and from AWS KMS to SoftHSM, at whose end the same 32 bytes come out.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::Algorithm;
use e2e::daemon::claviger;
use e2e::encoding::random;
use e2e::module::library;
use e2e::pki::uri;
use e2e::process::{command, repository, run};
use e2e::test_service::{ServiceKind, TestService};
use e2e::{Daemon, DaemonFiles, RsaKey, Token};
use serde_json::{Value, json};
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

/// Where the page takes the installer's folder to be, on the host and in the container.
const BWDATA: &str = "/opt/bitwarden/bwdata";
const IN_CONTAINER: &str = "/etc/bitwarden/key-connector/claviger";
/// The settings that the installer writes at first, but for the password of its PFX file.
const SETTINGS: &str = "\
keyConnectorSettings__webVaultUri=https://vault.example.org
keyConnectorSettings__identityServerUri=http://identity:5000
keyConnectorSettings__database__provider=json
keyConnectorSettings__database__jsonFilePath=/etc/bitwarden/key-connector/data.json
keyConnectorSettings__rsaKey__provider=certificate
keyConnectorSettings__certificate__provider=filesystem
keyConnectorSettings__certificate__filesystemPath=/etc/bitwarden/key-connector/bwkc.pfx
";

/// The host of a Key Connector and of its daemon, with both systems' folders.
struct Host {
    files: DaemonFiles,
    _token: Token,
    /// The new key, of which the test alone has the private half too.
    new: RsaKey,
    /// What the Key Connector keeps.
    material: Vec<u8>,
    /// What the commands' own clients need, such as `PGHOST`.
    environment: Vec<(&'static str, String)>,
}

impl Host {
    /// The configuration of the page with `more` added, for a key in a fresh SoftHSM token.
    fn new(more: &str) -> Self {
        let mut files = DaemonFiles::new();
        let token = Token::softhsm();
        let new = RsaKey::generate(3072);
        token.import(&new, "user-keys", "01");
        files.token("hsm", &token);
        let folders =
            ["bwdata", "bwdata/env", "bwdata/key-connector", "bwdata/key-connector/claviger"];
        for folder in folders.into_iter().chain(["claviger"]) {
            fs::create_dir(files.path(folder)).unwrap();
        }
        // As who installed; root may give the files to another user.
        let own = rustix::process::geteuid().as_raw();
        let ids = if own == 0 {
            "LOCAL_UID=1000\nLOCAL_GID=1000\n".to_owned()
        } else {
            format!("LOCAL_UID={own}\n")
        };
        fs::write(files.path("bwdata/env/uid.env"), ids).unwrap();
        let settings = format!(
            "{SETTINGS}keyConnectorSettings__certificate__filesystemPassword={PFX_PASSWORD}\n"
        );
        files.file("bwdata/env/key-connector.override.env", &settings, 0o600);
        let text = format!("{}\n{more}", file("claviger.toml"));
        let documented: Table = here(&files, &text).parse().unwrap();
        let mut configuration = documented;
        // Ports, certificates and places of the test's own.
        for section in ["server", "operations", "audit"] {
            configuration.insert(section.into(), files.configuration[section].clone());
        }
        let providers = configuration["providers"].as_table_mut().unwrap();
        assert_eq!(providers["hsm"]["type"].as_str(), Some("pkcs11"));
        providers.insert("hsm".into(), files.configuration["providers"]["hsm"].clone());
        files.configuration = configuration;
        Self { files, _token: token, new, material: random(32), environment: Vec::new() }
    }

    /// The Key Connector's folder.
    fn bitwarden(&self, name: &str) -> PathBuf {
        self.files.path("bwdata/key-connector").join(name)
    }

    /// The Key Connector's settings.
    fn settings(&self) -> String {
        fs::read_to_string(self.files.path("bwdata/env/key-connector.override.env")).unwrap()
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
        fs::write(folder.join("ca.crt"), self.files.pki.ca_pem()).unwrap();
        for name in ["key-connector", "migration", "seed"] {
            let name_of = vec![uri(&format!("spiffe://example.org/{name}"))];
            let month = std::time::Duration::from_hours(30 * 24);
            let identity = self.files.pki.client_with(name_of, month);
            let (certificate, private_key) = identity.write(&folder, name);
            assert_eq!(certificate, folder.join(format!("{name}.crt")));
            assert_eq!(private_key, folder.join(format!("{name}.key")));
        }
        let files = ["client.toml", "migration.toml", "seed.toml", "pkcs11.toml", "rehearse"];
        for name in files.into_iter().chain(["key-connector.env"]) {
            fs::write(folder.join(name), here(&self.files, &file(name))).unwrap();
        }
        std::os::unix::fs::symlink(library(), folder.join("libclaviger_pkcs11.so")).unwrap();
    }

    fn command(&self, script: &str) -> Command {
        let programs = claviger().parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        let mut shell = command("sh");
        shell
            .args(["-euc", &here(&self.files, script)])
            .env("PATH", format!("{programs}:{path}"))
            .env("CLAVIGER_CONFIG", self.files.configuration_file())
            .envs(self.files.environment().iter().cloned())
            .envs(self.environment.iter().cloned());
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
        let callers = self.files.configuration["callers"].as_array_mut().unwrap();
        let caller = callers.iter_mut().find(|c| c["name"].as_str() == Some(caller)).unwrap();
        caller["grants"][0]["wrapped_sha256"] = vec![toml::Value::from(hash)].into();
    }

    /// `claviger config pin && claviger config check`, then the daemon.
    fn serve(&mut self) -> Daemon {
        self.files.write();
        run(&mut self.command("claviger config pin && claviger config check"));
        let pinned = fs::read_to_string(self.files.configuration_file()).unwrap();
        self.files.configuration = pinned.parse().unwrap();
        let daemon = Daemon::start(&mut self.files);
        self.clients();
        daemon
    }

    fn reload(&self, daemon: &Daemon) {
        let before = daemon.log().matches("configuration reloaded").count();
        self.files.write();
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
        let unwrap = "cd /opt/bitwarden/bwdata/key-connector && jq --raw-output .symmetricKey data.json | claviger unwrap user-keys --base64-in --client claviger/client.toml";
        assert_eq!(run(&mut self.command(unwrap)).stdout, self.material);
        let before_settings = self.settings();
        self.run("settings");
        self.the_settings_are_those_of_the_page();

        self.the_daily_rehearsal_works();
        self.the_certificate_is_over_the_new_key();
        let records = self.files.audit_records();
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
        let database = self.files.path("kc.db");
        let sql = |statement: &str| run(command("sqlite3").arg(&database).arg(statement)).stdout;
        sql(
            "CREATE TABLE \"ApplicationDatas\" (\"Id\" INTEGER PRIMARY KEY, \"SymmetricKey\" TEXT); INSERT INTO \"ApplicationDatas\" VALUES (1, 'old');",
        );
        sql(&update);
        let row = sql("SELECT \"SymmetricKey\" FROM \"ApplicationDatas\"");
        assert_eq!(String::from_utf8(row).unwrap().trim(), after["symmetricKey"].as_str().unwrap());

        self.run("rollback");
        assert_eq!(self.stored(), before);
        assert_eq!(self.settings(), before_settings);
    }

    /// Each of them once, and of the installer's those that have other names.
    fn the_settings_are_those_of_the_page(&self) {
        let settings = self.settings();
        let mut names: Vec<&str> =
            settings.lines().map(|line| line.split_once('=').unwrap().0).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{settings}");
        let ours = here(&self.files, &file("key-connector.env"));
        for line in ours.lines().filter(|line| !line.starts_with('#')) {
            assert!(settings.lines().any(|other| other == line), "{line}");
        }
        assert!(settings.contains("database__provider=json\n"), "{settings}");
        assert!(!settings.contains(PFX_PASSWORD), "{settings}");
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

        let port = self.files.address().port();
        let [a, b] =
            ["localhost", "127.0.0.1"].map(|host| format!("https://{host}:{port} unwraps"));
        let [row, shows, module] = [
            "one row is stored, and it is wrapped.txt",
            "the module shows user-keys",
            "the module unwraps",
        ];
        let lasts = "key-connector.crt lasts two weeks and more";
        for script in [by_the_page, by_the_unit.to_owned(), by_the_job.join(" ")] {
            let output = self.command(&script).output().unwrap();
            let said = rehearsed(&output);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            assert_eq!(
                said,
                [row, shows, module, "pkcs11.toml names daemons", &a, &b, lasts].map(ok),
                "{output:?}"
            );
            let printed = String::from_utf8(output.stdout).unwrap();
            assert_eq!(printed.matches(": 32 bytes, not shown").count(), 2, "{printed}");
        }
        let unwraps = || {
            let records = self.files.audit_records();
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

        let failed = self.rehearsal_with("stored", "../data.json", "../data.json; echo another");
        assert_eq!(fails(&failed), [row], "{failed:?}");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(said.contains("2 rows are stored") && said.contains("cannot sign in"), "{said}");

        let other = STANDARD.encode(random(384));
        let stored = fs::read_to_string(self.bitwarden("claviger/wrapped.txt")).unwrap();
        let failed = self.rehearsal_with("wrapped.txt", stored.trim(), &other);
        assert_eq!(fails(&failed), [row, module, &a, &b], "{failed:?}");
        // What `docker logs` shows of it: the reason, and the id to look for.
        let log = String::from_utf8(failed.stderr).unwrap();
        let line = log.lines().find(|line| line.starts_with("claviger-pkcs11[")).unwrap_or("");
        assert!(line.contains("unwrap with key `user-keys`: InvalidArgument"), "{log}");
        let id = line.split("(request id ").nth(1).and_then(|id| id.strip_suffix(')'));
        let records = self.files.audit_records();
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
        let pfx = here(&self.files, &setting("filesystemPath"));
        let password = format!("pass:{}", setting("filesystemPassword"));
        let certificate =
            run(command("openssl").args(["pkcs12", "-nokeys", "-passin", &password, "-in", &pfx]));
        let pem = self.files.path("from-pfx.crt");
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
        let show = "claviger keys show user-keys --client /opt/bitwarden/bwdata/key-connector/claviger/client.toml";
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

/// What failed, where all seven were tried.
fn fails(output: &Output) -> Vec<String> {
    let tried = rehearsed(output);
    assert_eq!(tried.len(), 7, "{output:?}");
    tried.into_iter().filter(|(_, is_ok)| !is_ok).map(|(what, _)| what).collect()
}

/// A text of the page with the system's folders and the daemon's address as they are here.
fn here(files: &DaemonFiles, text: &str) -> String {
    let folder = |name: &str| files.path(name).to_str().unwrap().to_owned();
    text.replace(BWDATA, &folder("bwdata"))
        .replace("/etc/bitwarden/key-connector", &folder("bwdata/key-connector"))
        .replace("/etc/claviger", &folder("claviger"))
        // The daemon of the tests runs as their own user.
        .replace(" -g claviger", "")
        .replace("claviger-a.example.org:8443", &format!("localhost:{}", files.address().port()))
        .replace("claviger-b.example.org:8443", &format!("127.0.0.1:{}", files.address().port()))
}

/// `material` wrapped by OpenSSL to a certificate or a public key (PEM).
fn openssl_wrap(host: &Host, key: &[&str], options: &[&str]) -> Vec<u8> {
    let input = host.files.path("material");
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
        "cd /opt/bitwarden/bwdata/key-connector
        openssl req -x509 -newkey rsa:2048 -sha256 -nodes -keyout bwkc.key -out bwkc.crt -subj '/CN=Bitwarden Key Connector' -days 36500 2> /dev/null
        openssl pkcs12 -export -out ./bwkc.pfx -inkey bwkc.key -in bwkc.crt -passout 'pass:{PFX_PASSWORD}'
        rm bwkc.key"
    );
    run(&mut host.command(&script));
    let certificate = host.bitwarden("bwkc.crt");
    let old = openssl_wrap(&host, &["-certin", "-inkey", certificate.to_str().unwrap()], &[]);
    host.run("old-pfx");
    host.move_over(&old);
}

/// A new installation with the value made and stored by the steps of the page; gives the host, its daemon
/// and the value.
fn seeded(store: &str, prepare: &str) -> (Host, Daemon, String) {
    seeded_on(Host::new(&file("first-start.toml")), store, prepare)
}

fn seeded_on(mut host: Host, store: &str, prepare: &str) -> (Host, Daemon, String) {
    let daemon = host.serve();
    run(&mut host.command(prepare));
    let hash = host.hash("seed");
    host.narrow("key-connector", &hash);
    host.reload(&daemon);
    host.run(store);
    let read = "cd /opt/bitwarden/bwdata/key-connector/claviger && sh stored";
    let stored = String::from_utf8(run(&mut host.command(read)).stdout).unwrap();
    let value = STANDARD.decode(stored.trim()).unwrap();
    let opened = host.new.unwrap_oaep(&value, Algorithm::RsaOaep, b"").expect("OAEP, SHA-1");
    assert_eq!(opened.len(), 32, "what a Key Connector would have made");
    // Its certificate opens this one value, by the module too.
    let output = host.command(&steps("rehearse")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // From here on the files are those of the container's user, who alone may use the private key.
    host.run("owner");
    (host, daemon, stored)
}

#[test]
fn a_first_start_with_the_json_file_finds_the_one_value_that_was_seeded() {
    let (host, _daemon, stored) = seeded("seed-json", "true");
    assert_eq!(host.stored()["symmetricKey"], stored.trim());
    // A value that is there is never written over.
    assert!(!host.command(&steps("seed-json")).output().unwrap().status.success());
    assert_eq!(host.stored()["symmetricKey"], stored.trim());
}

/// The table as the Key Connector makes it at its first start, where the store is SQL.
const TABLE: &str =
    "CREATE TABLE \"ApplicationDatas\" (\"Id\" INTEGER PRIMARY KEY, \"SymmetricKey\" TEXT)";

#[test]
fn a_first_start_with_sqlite_finds_the_one_value_that_was_seeded() {
    let table = format!("sqlite3 /opt/bitwarden/bwdata/key-connector/key-connector.db '{TABLE}'");
    let (host, _daemon, stored) = seeded("seed-sqlite", &table);
    // A second time adds no row.
    host.run("seed-sqlite");
    let read = "cd /opt/bitwarden/bwdata/key-connector/claviger && sh stored";
    assert_eq!(run(&mut host.command(read)).stdout, stored.as_bytes());
}

/// What the original does with its store at its first request, without any lock: it looks for the one
/// value, would make one where there is none, unwraps it with the module, and keeps the key.
fn first_request(host: &Host) -> Vec<u8> {
    let read = "cd /opt/bitwarden/bwdata/key-connector/claviger && sh stored";
    let rows = String::from_utf8(run(&mut host.command(read)).stdout).unwrap();
    let value = rows.lines().next().expect("the value was seeded: none has to be made");
    let unwrap = format!(
        "cd /opt/bitwarden/bwdata/key-connector/claviger
        echo {value} | base64 --decode | CLAVIGER_PKCS11_CONF=$PWD/pkcs11.toml pkcs11-tool \
            --module $PWD/libclaviger_pkcs11.so --token-label claviger --login --pin unused \
            --decrypt --label user-keys --mechanism RSA-PKCS-OAEP --hash-algorithm SHA-1 --mgf MGF1-SHA1"
    );
    let key = run(&mut host.command(&unwrap)).stdout;
    assert_eq!(key.len(), 32);
    key
}

/// Three instances that have just started, each with several first requests at once: their keys.
fn three_instances(host: &Host) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..3 * 4).map(|_| scope.spawn(|| first_request(host))).collect();
        let keys: Vec<_> = requests.into_iter().map(|request| request.join().unwrap()).collect();
        keys.chunks(4).map(|of_one| of_one[of_one.len() - 1].clone()).collect()
    })
}

#[test]
fn a_hundred_users_of_three_instances_at_once_are_all_there_after_a_restart() {
    let table = format!(
        "sqlite3 /opt/bitwarden/bwdata/key-connector/key-connector.db '{TABLE};
        CREATE TABLE \"UserKeys\" (\"Id\" INTEGER PRIMARY KEY, \"Key\" TEXT)'"
    );
    let (host, _daemon, stored) = seeded("seed-sqlite", &table);
    // The test is the user that the instances run as.
    run(&mut host.command("chown \"$(id -u)\" /opt/bitwarden/bwdata/key-connector/claviger/*.key"));
    let database = host.bitwarden("key-connector.db");
    let sql = |statement: &str| {
        let output =
            run(command("sqlite3").args(["-cmd", ".timeout 60000"]).arg(&database).arg(statement));
        String::from_utf8(output.stdout).unwrap()
    };
    let cipher = |key: &[u8]| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let of_user = |user: usize| format!("the key of user {user}").into_bytes();

    let keys = three_instances(&host);
    std::thread::scope(|scope| {
        for user in 0..100 {
            let (sql, key) = (&sql, &keys[user % 3]);
            scope.spawn(move || {
                let mut key_of_user = of_user(user);
                // Each user's key has a nonce of its own in the original; here a key that is used once.
                let unique = [key.as_slice(), &user.to_be_bytes()].concat();
                let unique = claviger_provider_api::public_key::sha256(&unique);
                cipher(&unique)
                    .seal_in_place_append_tag(nonce(), Aad::empty(), &mut key_of_user)
                    .unwrap();
                sql(&format!(
                    "INSERT INTO \"UserKeys\" VALUES ({user}, '{}')",
                    hex::encode(key_of_user)
                ));
            });
        }
    });

    for key in three_instances(&host) {
        for line in sql("SELECT \"Id\", \"Key\" FROM \"UserKeys\"").lines() {
            let (user, sealed) = line.split_once('|').unwrap();
            let (user, mut sealed): (usize, _) =
                (user.parse().unwrap(), hex::decode(sealed).unwrap());
            let unique = [key.as_slice(), &user.to_be_bytes()].concat();
            let unique = claviger_provider_api::public_key::sha256(&unique);
            let opened = cipher(&unique).open_in_place(nonce(), Aad::empty(), &mut sealed);
            assert_eq!(opened.expect("no user is lost"), of_user(user));
        }
    }
    assert_eq!(sql("SELECT count(*) FROM \"UserKeys\"").trim(), "100");
    assert_eq!(sql("SELECT \"SymmetricKey\" FROM \"ApplicationDatas\""), stored, "one row");
}

/// A database server of its own, which ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits until `client` reaches it.
fn server(host: &Host, start: &str, client: &str) -> Server {
    let child = host.command(start).spawn().unwrap();
    let server = Server(child);
    let begun = std::time::Instant::now();
    while !host.command(client).output().unwrap().status.success() {
        assert!(begun.elapsed().as_secs() < 60, "{client}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    server
}

#[test]
#[ignore = "needs the Debian package postgresql, whose server it starts in a folder of its own; and root"]
fn a_first_start_with_postgresql_finds_the_one_value_that_was_seeded() {
    let mut host = Host::new(&file("first-start.toml"));
    let folder = host.files.path("postgresql");
    fs::create_dir(&folder).unwrap();
    let shown = folder.display().to_string();
    // Its server refuses to run as root.
    run(&mut host.command(&format!(
        "chmod a+x {}; chown nobody {shown}; cd {shown}
        setpriv --reuid=nobody --clear-groups $(ls -d /usr/lib/postgresql/*/bin/initdb) --auth=trust --username=kc --pgdata={shown}/data",
        host.files.path("").display()
    )));
    host.environment = vec![
        ("PGHOST", shown.clone()),
        ("PGUSER", "kc".to_owned()),
        ("PGDATABASE", "postgres".to_owned()),
    ];
    let start = format!(
        "cd {shown}; exec setpriv --reuid=nobody --clear-groups $(ls -d /usr/lib/postgresql/*/bin/postgres) -D {shown}/data -k {shown} -c listen_addresses="
    );
    let _server = server(&host, &start, "psql --command 'SELECT 1'");
    let table = TABLE.replace("INTEGER PRIMARY KEY", "SERIAL PRIMARY KEY");
    let (host, _daemon, stored) =
        seeded_on(host, "seed-postgresql", &format!("psql --command '{table}'"));
    host.run("seed-postgresql");
    let read = "cd /opt/bitwarden/bwdata/key-connector/claviger && sh stored";
    assert_eq!(run(&mut host.command(read)).stdout, stored.as_bytes());
}

#[test]
#[ignore = "needs the Debian packages mariadb-server and mariadb-client, whose server it starts in a folder of its own"]
fn a_first_start_with_mariadb_finds_the_one_value_that_was_seeded() {
    let mut host = Host::new(&file("first-start.toml"));
    let folder = host.files.path("mariadb");
    fs::create_dir(&folder).unwrap();
    let shown = folder.display().to_string();
    let options = format!("[client]\nsocket={shown}/sock\nuser=root\n[mysql]\ndatabase=kc\n");
    host.files.file("mariadb/.my.cnf", &options, 0o600);
    host.environment = vec![("HOME", shown.clone())];
    run(&mut host.command(&format!(
        "mariadb-install-db --no-defaults --user=$(id -un) --datadir={shown}/data --skip-test-db --auth-root-authentication-method=normal > /dev/null"
    )));
    let start = format!(
        "exec mariadbd --no-defaults --user=$(id -un) --datadir={shown}/data --socket={shown}/sock --skip-networking --pid-file={shown}/pid 2> {shown}/log"
    );
    let create = format!("mariadb --no-defaults --socket={shown}/sock --user=root --execute");
    let _server = server(&host, &start, &format!("{create} 'CREATE DATABASE IF NOT EXISTS kc'"));
    let table = TABLE.replace('"', "").replace("INTEGER", "INTEGER AUTO_INCREMENT");
    let (host, _daemon, stored) =
        seeded_on(host, "seed-mariadb", &format!("mariadb --execute '{table}'"));
    host.run("seed-mariadb");
    let read = "cd /opt/bitwarden/bwdata/key-connector/claviger && sh stored";
    assert_eq!(run(&mut host.command(read)).stdout, stored.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_connector_moves_from_aws_kms_to_softhsm_by_the_steps_of_the_page() {
    let aws = TestService::start(ServiceKind::Aws).await;
    let key = RsaKey::generate(2048);
    let place = aws.import(&key, "user-keys", None).await.remove(0);
    let documented = file("move-from-aws.toml");
    let arn = documented.lines().find_map(|line| line.split("locator = \"").nth(1)).unwrap();
    let arn = arn.split('"').next().unwrap();
    let mut host = Host::new(&documented.replace(arn, &place.locator));
    let old = host.files.configuration["providers"]["old"].clone();
    aws.configure(&mut host.files, "old", None).await;
    // The same but for where ministack is and who may ask it.
    for (name, value) in old.as_table().unwrap() {
        assert_eq!(host.files.configuration["providers"]["old"][name], *value, "{name}");
    }
    let public_key = host.files.path("aws.der");
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
    assert_eq!(settings["CLAVIGER_PKCS11_CONF"], format!("{IN_CONTAINER}/pkcs11.toml"));
    let folder = IN_CONTAINER;
    for name in ["client.toml", "migration.toml", "seed.toml"] {
        let client: Table = file(name).parse().unwrap();
        assert_eq!(client["endpoint"], token["endpoints"], "{name}");
    }
    let client: Table = file("client.toml").parse().unwrap();
    for name in ["ca", "certificate", "private_key"] {
        // Both take relative paths from their file's folder.
        assert_eq!(client[name], token[name]);
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
    // What is in the folder is mounted with the one above it, and the user is set.
    let compose = file("compose.yaml");
    let mounted = folder.strip_suffix("/claviger").unwrap();
    assert!(compose.contains(&format!("- ./key-connector:{mounted}\n")), "{compose}");
    assert!(compose.contains("key-connector.env") && compose.contains("LOCAL_UID: "), "{compose}");
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
