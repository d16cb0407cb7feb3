//! Fresh tokens in temporary folders: SoftHSM, and kryoptic for what SoftHSM cannot.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use tempfile::TempDir;

use crate::faults::Faults;
use crate::process::{command, path_from_script, run, target_folder};
use crate::rsa_key::RsaKey;

/// The user PIN of each token at first; kryoptic wants eight characters.
pub const PIN: &str = "12345678";
const SO_PIN: &str = "87654321";

/// Where Debian, Fedora, Homebrew and a build of one's own put SoftHSM.
const SOFTHSM: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// An initialised token with a user PIN.
#[derive(Debug)]
pub struct Token {
    folder: Arc<TempDir>,
    /// Where the token keeps its objects: a folder (SoftHSM) or a file (kryoptic).
    storage: PathBuf,
    /// The module that fixtures use.
    own_module: PathBuf,
    /// The module that the daemon is to use.
    module: PathBuf,
    own_environment: Vec<(OsString, OsString)>,
    environment: Vec<(OsString, OsString)>,
    label: String,
    serial: String,
    pin_file: PathBuf,
}

/// What a key object in a token may do. The default is what an unwrapping key should be.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are PKCS#11's own attributes")]
pub struct Attributes {
    /// CKA_DECRYPT.
    pub decrypt: bool,
    /// CKA_SIGN.
    pub sign: bool,
    /// CKA_SENSITIVE.
    pub sensitive: bool,
    /// CKA_EXTRACTABLE.
    pub extractable: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { decrypt: true, sign: true, sensitive: true, extractable: false }
    }
}

impl Token {
    /// A fresh SoftHSM token in a folder of its own.
    pub fn softhsm() -> Self {
        let folder = temporary_folder();
        let storage = folder.path().join("tokens");
        let configuration = folder.path().join("softhsm2.conf");
        fs::create_dir(&storage).expect("a fresh folder is writable");
        fs::write(&configuration, format!("directories.tokendir = {}\n", storage.display()))
            .expect("a fresh folder is writable");
        let module =
            SOFTHSM.iter().map(Path::new).find(|path| path.exists()).unwrap_or_else(|| {
                panic!("no SoftHSM at any of {SOFTHSM:?}: apt-get install softhsm2")
            });
        let environment = vec![("SOFTHSM2_CONF".into(), configuration.into())];
        Self::softhsm_in(folder, storage, module.into(), environment, "claviger-test")
    }

    /// A second SoftHSM token, with another label, in the same store and so in the same module.
    #[must_use]
    pub fn softhsm_beside(&self, label: &str) -> Self {
        assert!(self.storage.is_dir(), "kryoptic has one token to a store");
        let environment = self.own_environment.clone();
        let mut token = Self::softhsm_in(
            Arc::clone(&self.folder),
            self.storage.clone(),
            self.own_module.clone(),
            environment,
            label,
        );
        token.module.clone_from(&self.module);
        token.environment.clone_from(&self.environment);
        token
    }

    fn softhsm_in(
        folder: Arc<TempDir>,
        storage: PathBuf,
        module: PathBuf,
        environment: Vec<(OsString, OsString)>,
        label: &str,
    ) -> Self {
        run(command("softhsm2-util").envs(environment.clone()).args([
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            PIN,
            "--so-pin",
            SO_PIN,
        ]));
        Self::new(folder, storage, module, environment, label)
    }

    /// A fresh kryoptic token in a folder of its own. The first call on a machine builds the module.
    pub fn kryoptic() -> Self {
        static MODULE: LazyLock<PathBuf> =
            LazyLock::new(|| path_from_script("kryoptic-token", &[]));
        let folder = temporary_folder();
        let storage = folder.path().join("token.sql");
        let environment = vec![("KRYOPTIC_CONF".into(), storage.clone().into())];
        let label = "claviger-test";
        let tool = || {
            let mut tool = command("pkcs11-tool");
            tool.envs(environment.clone()).arg("--module").arg(&*MODULE);
            tool
        };
        run(tool().args(["--init-token", "--label", label, "--so-pin", SO_PIN]));
        run(tool().args(["--login", "--login-type", "so", "--so-pin", SO_PIN]).args([
            "--init-pin",
            "--new-pin",
            PIN,
        ]));
        Self::new(folder, storage, MODULE.clone(), environment, label)
    }

    fn new(
        folder: Arc<TempDir>,
        storage: PathBuf,
        module: PathBuf,
        environment: Vec<(OsString, OsString)>,
        label: &str,
    ) -> Self {
        let mut token = Self {
            pin_file: folder.path().join(format!("{label}.pin")),
            folder,
            storage,
            own_module: module.clone(),
            module,
            own_environment: environment.clone(),
            environment,
            label: label.to_owned(),
            serial: String::new(),
        };
        token.serial = token.read_serial();
        token.write_pin(PIN);
        token
    }

    /// The same token as the daemon sees it through the fault module, and the handle that counts
    /// its calls and injects faults. Fixtures go on using the real module, so that what they do is
    /// not counted.
    #[must_use]
    pub fn through_fault_module(mut self) -> (Self, Faults) {
        let module = target_folder().join("deps/libclaviger_faults.so");
        assert!(module.exists(), "{} was not built: cargo test -p e2e", module.display());
        let faults = Faults::new(self.folder.path());
        self.environment.extend(faults.environment(&self.own_module));
        self.module = module;
        (self, faults)
    }

    /// The module that the daemon is to load.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The folder with all that the token has.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What must be in the environment of a process that loads the module.
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// The token's label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The token's serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// A file with the PIN, mode 0600.
    pub fn pin_file(&self) -> &Path {
        &self.pin_file
    }

    /// Replaces the PIN file by rename; the token's own PIN stays.
    pub fn write_pin(&self, pin: &str) {
        let new = self.pin_file.with_extension("new");
        fs::write(&new, format!("{pin}\n")).expect("the token's folder is writable");
        fs::set_permissions(&new, Permissions::from_mode(0o600)).expect("it is our own file");
        fs::rename(&new, &self.pin_file).expect("the token's folder is writable");
    }

    /// Changes the token's own PIN; the PIN file stays.
    pub fn change_pin(&self, old: &str, new: &str) {
        run(self.tool().args(["--login", "--pin", old, "--change-pin", "--new-pin", new]));
    }

    /// The provider's table for a daemon's configuration. The module's environment is not in it:
    /// [`crate::DaemonFiles::token`] passes that to the process.
    pub fn provider(&self) -> toml::Table {
        let mut provider = toml::Table::new();
        provider.insert("type".into(), "pkcs11".into());
        provider.insert("module".into(), text(&self.module).into());
        provider.insert("token".into(), table("serial", &self.serial).into());
        provider.insert("pin".into(), table("file", &text(&self.pin_file)).into());
        provider
    }

    /// [`Self::provider`] with the environment in it, which the module's own process has and no other.
    pub fn provider_alone(&self) -> toml::Table {
        let mut provider = self.provider();
        let text = |value: &OsString| value.to_str().expect("UTF-8").to_owned();
        let environment = self.environment.iter().map(|(n, v)| (text(n), text(v).into()));
        provider.insert("environment".into(), environment.collect::<toml::Table>().into());
        provider.insert("hang_limit".into(), "3s".into());
        provider
    }

    /// Puts a private key into the token, as an unwrapping key should be. `id` is hexadecimal.
    pub fn import(&self, key: &RsaKey, label: &str, id: &str) {
        self.import_with(key, label, id, Attributes::default());
    }

    /// The same where the token's PIN was changed.
    pub fn import_as(&self, pin: &str, key: &RsaKey, label: &str, id: &str) {
        self.import_all(pin, key, label, id, Attributes::default());
    }

    /// The same with other attributes.
    pub fn import_with(&self, key: &RsaKey, label: &str, id: &str, attributes: Attributes) {
        self.import_all(PIN, key, label, id, attributes);
    }

    fn import_all(&self, pin: &str, key: &RsaKey, label: &str, id: &str, attributes: Attributes) {
        let file = self.folder.path().join(format!("import-{id}.der"));
        fs::write(&file, key.pkcs8()).expect("the token's folder is writable");
        let mut tool = self.tool();
        tool.args(["--login", "--pin", pin, "--type", "privkey", "--label", label, "--id", id])
            .arg("--write-object")
            .arg(&file);
        for (set, flag) in [
            (attributes.decrypt, "--usage-decrypt"),
            (attributes.sign, "--usage-sign"),
            (attributes.sensitive, "--sensitive"),
            (attributes.extractable, "--extractable"),
        ] {
            tool.args(set.then_some(flag));
        }
        run(&mut tool);
        fs::remove_file(file).expect("it was just written");
    }

    /// Deletes a private key, as another process would.
    pub fn delete(&self, label: &str) {
        run(self
            .tool()
            .args(["--login", "--pin", PIN, "--delete-object", "--type", "privkey"])
            .args(["--label", label]));
    }

    /// Takes the token's storage away under a running daemon.
    pub fn take_away(&self) {
        fs::rename(&self.storage, self.storage.with_extension("away")).expect("the token is here");
    }

    /// Brings it back.
    pub fn bring_back(&self) {
        fs::rename(self.storage.with_extension("away"), &self.storage).expect("it was taken away");
    }

    /// Puts another store in the place of this token's, and its own in the other's place.
    pub fn exchange_stores(&self, other: &Self) {
        let aside = self.storage.with_extension("aside");
        for (from, to) in
            [(&self.storage, &aside), (&other.storage, &self.storage), (&aside, &other.storage)]
        {
            fs::rename(from, to).expect("both stores are on one file system");
        }
    }

    /// Takes this token alone away from a SoftHSM store that it shares with others.
    pub fn take_away_alone(&self) {
        let (here, away) = self.own_places();
        fs::rename(here, away).expect("the token is here");
    }

    /// Brings it back.
    pub fn bring_back_alone(&self) {
        let (here, away) = self.own_places();
        fs::rename(away, here).expect("it was taken away alone");
    }

    /// A token's folder has a UUID for its name that ends in the serial number; a token that is
    /// away has its folder beside the store.
    fn own_places(&self) -> (PathBuf, PathBuf) {
        let away = self.folder.path().join(format!("{}.away", self.serial));
        let folders = fs::read_dir(&self.storage).expect("SoftHSM's store is a folder");
        let names = folders.map(|entry| entry.expect("it is readable").file_name());
        let own = names.map(|name| name.to_string_lossy().into_owned()).find(|name| {
            let digits: String = name.chars().filter(|c| *c != '-').collect();
            digits.ends_with(&self.serial)
        });
        let remembered = || fs::read_to_string(away.with_extension("name")).expect("it was here");
        let name = own.unwrap_or_else(remembered);
        fs::write(away.with_extension("name"), &name).expect("the token's folder is writable");
        (self.storage.join(name), away)
    }

    /// pkcs11-tool on the module and in the environment that the daemon would use.
    pub fn tool_as_the_daemon(&self) -> Command {
        let mut tool = command("pkcs11-tool");
        tool.envs(self.environment.clone()).arg("--module").arg(&self.module);
        tool.args(["--token-label", &self.label]);
        tool
    }

    fn tool(&self) -> Command {
        let mut tool = command("pkcs11-tool");
        tool.envs(self.own_environment.clone()).arg("--module").arg(&self.own_module);
        tool.args(["--token-label", &self.label]);
        tool
    }

    /// From the list of slots: the serial number that follows our label.
    fn read_serial(&self) -> String {
        let output = run(self.tool().arg("--list-token-slots"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut ours = false;
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            match name.trim() {
                "token label" => ours = value.trim() == self.label,
                "serial num" if ours => return value.trim().to_owned(),
                _ => {}
            }
        }
        panic!("no token {:?} in\n{text}", self.label)
    }
}

fn temporary_folder() -> Arc<TempDir> {
    let folder = tempfile::Builder::new().prefix("claviger-token-").tempdir();
    Arc::new(folder.expect("the temporary folder is writable"))
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary paths are UTF-8").to_owned()
}

fn table(name: &str, value: &str) -> toml::Table {
    toml::Table::from_iter([(name.to_owned(), toml::Value::from(value))])
}
