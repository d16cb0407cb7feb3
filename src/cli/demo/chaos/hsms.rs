//! Two SoftHSM tokens with one key, each behind the module that injects faults.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_provider_api::PrivateKey;

use super::super::failed;
use crate::cli::failure::{Exit, Failure};
use crate::cli::local_daemon::softhsm::{CONFIGURATION, LOCATOR, make_tokens, module, quoted};
use crate::cli::local_daemon::{LocalDaemon, LocalKey, read_public, write};
use crate::daemon::operations::control;
use crate::daemon::operations::status::Status;

/// The providers, whose tokens have the same labels.
pub(super) const NAMES: [&str; 2] = ["hsm-a", "hsm-b"];
/// The module that injects faults.
const MODULE: &str = "libclaviger_faults.so";
/// How long the daemon may take to tell how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The two HSMs.
#[derive(Debug)]
pub(super) struct Hsms {
    dir: PathBuf,
    state_dir: PathBuf,
    /// How each was when it was last looked at.
    states: [String; 2],
    /// When it last did its work; it was no sooner.
    proven_at: [Option<Instant>; 2],
    /// The fault that each has.
    is_failing: [bool; 2],
}

impl Hsms {
    /// The tokens of this folder and their key, made if they are missing.
    pub(super) fn prepare(local: &LocalDaemon, faults: &Path) -> Result<(Self, LocalKey), Failure> {
        let dir = &local.dir;
        let pins = NAMES.map(|name| dir.join(format!("{name}.pin")));
        let public_file = dir.join("user-keys.spki");
        if !public_file.exists() {
            let key = new_key()?;
            let tokens = [(NAMES[0], &*pins[0]), (NAMES[1], &*pins[1])];
            make_tokens(dir, &tokens, &key)?;
            write(&public_file, key.public_key().spki())?;
        }
        let module = module()?;
        let providers = NAMES.map(|name| provider(name, dir, &module, faults));
        let key = LocalKey {
            providers: providers.join("\n"),
            replicas: NAMES.map(|name| (name, LOCATOR)).to_vec(),
            algorithms: r#"["RSA-OAEP"]"#,
            public_key: read_public(&public_file)?,
        };
        let hsms = Self {
            dir: dir.clone(),
            state_dir: dir.join("state"),
            states: NAMES.map(|_| String::new()),
            proven_at: [None; 2],
            is_failing: [false; 2],
        };
        hsms.mend_files()?;
        Ok((hsms, key))
    }

    /// Has one of them fail from now on.
    pub(super) fn fail(&mut self, hsm: usize, rules: &str) -> Result<(), Failure> {
        self.is_failing[hsm] = true;
        write(&rules_of(&self.dir, NAMES[hsm]), rules.as_bytes())
    }

    /// Ends all faults.
    pub(super) fn mend(&mut self) -> Result<(), Failure> {
        self.is_failing = [false; 2];
        self.mend_files()
    }

    fn mend_files(&self) -> Result<(), Failure> {
        NAMES.iter().try_for_each(|name| write(&rules_of(&self.dir, name), b""))
    }

    /// Asks the daemon how they are; gives what has changed.
    pub(super) async fn look(&mut self) -> Vec<String> {
        let state_dir = self.state_dir.clone();
        let ask = move || control::ask::<Status>(&state_dir, &control::Command::Status, PATIENCE);
        // A daemon that does not answer has ended, or is about to tell.
        let Ok(Ok(status)) = tokio::task::spawn_blocking(ask).await else { return Vec::new() };
        let (mut changes, looked) = (Vec::new(), Instant::now());
        let versions = status.keys.iter().flat_map(|key| &key.versions);
        for replica in versions.flat_map(|version| &version.replicas) {
            let Some(hsm) = NAMES.iter().position(|name| *name == replica.provider) else {
                continue;
            };
            let ago = replica.proven_ago_s.map(|seconds| Duration::from_secs(seconds + 1));
            self.proven_at[hsm] = ago.and_then(|ago| looked.checked_sub(ago));
            let now = match &*replica.reason {
                "ok" | "opening" => replica.state.clone(),
                reason => format!("{}: {reason}", replica.state),
            };
            if self.states[hsm] != now {
                changes.push(format!("{} {now}", NAMES[hsm]));
                self.states[hsm] = now;
            }
        }
        changes
    }

    /// Whether both serve, and have done their work since then.
    pub(super) fn have_served_since(&self, then: Instant) -> bool {
        let has_served = |proven_at: &Option<Instant>| proven_at.is_some_and(|at| at >= then);
        self.states.iter().all(|state| state == "serves") && self.proven_at.iter().all(has_served)
    }

    /// Name, state, and whether it has a fault now.
    pub(super) fn states(&self) -> impl Iterator<Item = (&'static str, &str, bool)> {
        let states = self.states.iter().map(String::as_str).zip(self.is_failing);
        NAMES.iter().zip(states).map(|(name, (state, is_failing))| (*name, state, is_failing))
    }
}

/// Where the module that injects faults is.
pub(super) fn faults_module(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return std::path::absolute(given).map_err(|error| failed("--faults", &error));
    }
    let program = std::env::current_exe().map_err(|error| failed("this program", &error))?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let found = [beside.to_owned(), beside.join("deps")]
        .into_iter()
        .chain(packaged())
        .map(|folder| folder.join(MODULE))
        .find(|path| path.exists());
    found.ok_or_else(|| {
        Failure::new(Exit::Unavailable, format!("there is no {MODULE}")).advise(
            "Build it: cargo build --package claviger-faults; or install the package \
             claviger-faults; or name it with --faults.",
        )
    })
}

/// Where the package puts it.
fn packaged() -> impl Iterator<Item = PathBuf> {
    let architecture = std::env::consts::ARCH;
    let folders =
        [format!("/usr/lib/{architecture}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into()];
    folders.into_iter().map(|folder| Path::new(&folder).join("claviger"))
}

fn rules_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.rules"))
}

fn provider(name: &str, dir: &Path, module: &Path, faults: &Path) -> String {
    let (faults, module) = (quoted(faults), quoted(module));
    let (softhsm, rules) = (quoted(&dir.join("softhsm2.conf")), quoted(&rules_of(dir, name)));
    format!(
        "[providers.{name}]\n\
         type       = \"pkcs11\"\n\
         module     = {faults}\n\
         token      = {{ label = \"{name}\" }}\n\
         pin        = {{ file = \"{name}.pin\" }}\n\
         hang_limit = \"3s\"\n\
         [providers.{name}.environment]\n\
         {CONFIGURATION} = {softhsm}\n\
         CLAVIGER_FAULTS_MODULE = {module}\n\
         CLAVIGER_FAULTS_RULES = {rules}\n"
    )
}

fn new_key() -> Result<PrivateKey, Failure> {
    let refused = |_| Failure::new(Exit::Failure, "no RSA key could be made");
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(refused)?;
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(refused)?;
    PrivateKey::from_pkcs8(der.as_ref().to_vec().into()).map_err(|error| failed("the key", &error))
}
