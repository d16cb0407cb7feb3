//! The provider on real SoftHSM tokens.
//!
//! SoftHSM reads SOFTHSM2_CONF when it is loaded, and a module belongs to the process: so each test
//! makes a token, and runs its inner half in a process of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_faults::counts;
use claviger_pkcs11::{Config, Provider, pin_latch};
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Cause, Digest, Error, ErrorKind, Hash, KeyMaterial, OpenKey,
    Parameters, SignAlgorithm, WrappingKey,
};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CryptokiError, RvError};
use serde_json::{Value, json};

/// Where distributions put SoftHSM.
const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];
const PIN: &str = "1234";
/// Return values of `C_Login` that do not say what the token made of the PIN: device removed, token
/// not present, session handle invalid, session closed, not initialised, and three about the logins
/// of others.
const LOGIN_OUTCOME_UNKNOWN: [u32; 8] = [0x32, 0xe0, 0xb3, 0xb0, 0x190, 0x100, 0x104, 0x105];
const MATERIAL: &[u8] = b"thirty-two bytes of key material";

/// Declares each test twice: the outer one makes a token and runs the inner one in a process.
macro_rules! on_softhsm {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run_in_a_process_of_its_own(stringify!($name));
            }
        )*
        mod inner {
            $(
                #[tokio::test(flavor = "multi_thread")]
                #[ignore = "run by the test of the same name, with SOFTHSM2_CONF"]
                async fn $name() {
                    super::scenario::$name(super::Bench::here()).await;
                    let left = claviger_pkcs11::wait_until_left(std::time::Duration::from_secs(10));
                    assert!(left, "a key was closed, but its module is still in use");
                }
            )*
        }
    };
}

on_softhsm! {
    a_key_opens_by_label_by_id_and_on_a_token_named_by_serial
    garbage_is_the_callers_fault_and_repairs_nothing
    sha_256_is_refused_in_words_natively_and_works_unpadded_in_software
    a_label_that_the_token_cannot_take_is_refused_without_asking_it
    every_signing_algorithm_gives_signatures_that_verify
    a_logout_behind_our_back_is_repaired
    a_finalize_behind_our_back_leaves_a_module_in_this_process_failing
    a_token_that_is_gone_opens_the_breaker
    another_key_under_the_same_id_never_serves
    a_key_that_is_gone_does_not_disturb_its_neighbour
    a_key_that_could_leave_the_token_is_refused
    two_keys_on_a_token_share_one_login
    a_wrong_pin_is_tried_once_and_a_right_one_needs_no_restart
    a_lost_login_with_a_wrong_pin_in_the_file_waits_for_the_operator
    no_pin_is_used_without_a_state_directory
    what_cannot_be_found_is_named_and_leaves_nothing_behind
    the_last_key_that_closes_finalises_the_module
    a_deadline_and_a_full_queue_are_kept
    a_miss_is_answered_before_its_session_closes
    a_missing_key_does_not_disturb_another_token_of_the_module
    a_missing_key_is_looked_for_without_a_new_start_of_the_module
    a_pin_source_acts_once_no_key_opened_with_another_is_left
    a_login_that_somebody_else_made_clears_no_refusal
    a_wrong_pin_counts_as_refused_whatever_is_returned_where_the_flags_tell
    a_wrong_pin_is_sent_twice_at_most_whatever_is_returned_where_no_flag_tells
    a_login_without_an_outcome_is_made_once_more
    tokens_with_one_serial_number_have_a_login_and_a_latch_each
    one_odd_field_of_its_token_information_makes_no_token_unusable
    a_token_that_was_not_initialised_is_named_and_serves_without_a_login
    one_odd_attribute_makes_no_key_unusable_and_is_never_taken_for_no
    a_key_that_is_not_there_is_told_from_those_that_are
    a_wrong_key_size_and_two_keys_of_one_name_have_causes_of_their_own
    rights_that_a_key_does_not_need_are_told
    a_fault_that_passes_does_not_cost_a_key_its_labels
    a_login_that_nobody_waits_for_any_more_is_recorded_before_the_end
}

fn run_in_a_process_of_its_own(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench { directory: directory.path().to_owned() };
    bench.make_token();
    // A test that fails while threads are inside SoftHSM may hang in the library's exit handlers.
    let output = Command::new("timeout")
        .args(["--signal=KILL", "240"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("inner::{name}"), "--ignored", "--nocapture"])
        .env("SOFTHSM2_CONF", bench.path("softhsm2.conf"))
        .env("CLAVIGER_FAULTS_MODULE", module())
        .env("CLAVIGER_FAULTS_COUNTS", bench.path("counts"))
        .env("CLAVIGER_FAULTS_RULES", bench.path("control"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A token with the keys `user-keys` (id 02) and `other` (id 03), and files around it.
struct Bench {
    directory: PathBuf,
}

impl Bench {
    /// The bench that the outer test made.
    fn here() -> Self {
        let conf = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").expect("set by the outer test"));
        Self { directory: conf.parent().unwrap().to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn make_token(&self) {
        fs::create_dir(self.path("tokens")).unwrap();
        fs::create_dir(self.path("state")).unwrap();
        fs::set_permissions(self.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            self.path("tokens").display()
        );
        fs::write(self.path("softhsm2.conf"), conf).unwrap();
        self.write_pin(PIN);
        self.run(
            "softhsm2-util",
            &["--init-token", "--free", "--label", "production", "--pin", PIN, "--so-pin", "5678"],
        );
        self.import("user-keys", "02");
        self.import("other", "03");
    }

    fn write_pin(&self, pin: &str) {
        fs::write(self.path("pin"), format!("{pin}\n")).unwrap();
        fs::set_permissions(self.path("pin"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Makes an RSA key and imports it, sensitive and not extractable.
    fn import(&self, label: &str, id: &str) {
        let pem = self.path(&format!("{label}-{id}.pem"));
        let pem = pem.to_str().unwrap();
        if !Path::new(pem).exists() {
            self.run(
                "openssl",
                &[
                    "genpkey",
                    "-quiet",
                    "-algorithm",
                    "RSA",
                    "-pkeyopt",
                    "rsa_keygen_bits:2048",
                    "-out",
                    pem,
                ],
            );
        }
        self.run(
            "softhsm2-util",
            &["--import", pem, "--token", "production", "--label", label, "--id", id, "--pin", PIN],
        );
    }

    /// Deletes both halves of a key, from another process.
    fn delete(&self, id: &str) {
        for kind in ["privkey", "pubkey"] {
            self.pkcs11_tool(&["--delete-object", "--type", kind, "--id", id]);
        }
    }

    fn pkcs11_tool(&self, arguments: &[&str]) {
        let common = ["--module", module(), "--token-label", "production", "--login", "--pin", PIN];
        self.run("pkcs11-tool", &[&common, arguments].concat());
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program)
            .args(arguments)
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .output()
            .unwrap_or_else(|error| {
                panic!("{program} (install softhsm2, opensc and openssl): {error}")
            });
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn provider(&self, change: impl FnOnce(&mut Value)) -> Provider {
        let mut options = json!({
            "module": module(),
            "token": { "label": "production" },
            "pin": { "file": self.path("pin") },
            "sessions": 2,
            // Each case has a process of its own, which is not the daemon's program.
            "isolation": "none",
        });
        change(&mut options);
        let config: Config = serde_json::from_value(options).unwrap();
        Provider::new("hsm", &config, Some(&self.path("state"))).unwrap()
    }

    /// A provider whose calls pass the fault module.
    fn faulty_provider(&self) -> Provider {
        self.faulty_provider_with(|_| ())
    }

    fn faulty_provider_with(&self, change: impl FnOnce(&mut Value)) -> Provider {
        let test = std::env::current_exe().unwrap();
        let module = test.with_file_name("libclaviger_faults.so");
        assert!(module.exists(), "{} was not built", module.display());
        self.provider(|options| {
            options["module"] = json!(module);
            options["oaep"] = json!("software");
            options["sessions"] = json!(1);
            change(options);
        })
    }

    /// What the fault module does from now on: lines of `function:calls:action`.
    fn faults(&self, rules: &str) {
        fs::write(self.path("control.new"), rules).unwrap();
        fs::rename(self.path("control.new"), self.path("control")).unwrap();
    }

    /// Another token with a key of id 03.
    fn make_staging_token(&self) {
        self.make_token_beside("staging", PIN);
    }

    /// A token beside the first one, with a key of id 03.
    fn make_token_beside(&self, label: &str, pin: &str) {
        self.run(
            "softhsm2-util",
            &["--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "5678"],
        );
        let pem = self.path("other-03.pem");
        let import = ["--import", pem.to_str().unwrap(), "--token", label, "--label", "other"];
        self.run("softhsm2-util", &[&import[..], &["--id", "03", "--pin", pin]].concat());
    }

    async fn open(&self, locator: &str) -> Arc<dyn WrappingKey> {
        open(&self.provider(|_| ()), locator, &[Algorithm::RsaOaep]).await.unwrap()
    }

    /// How often a function of the fault module was called so far; 0 before it is loaded.
    fn calls(&self, function: &str) -> u64 {
        fs::read(self.path("counts")).map_or(0, |file| counts::read(&file, function).unwrap())
    }

    /// Logins that the token refused and that are not forgotten.
    fn refused_logins(&self) -> usize {
        let tokens = pin_latch::list(&self.path("state")).unwrap();
        tokens.iter().map(|token| token.refused).sum()
    }
}

fn module() -> &'static str {
    MODULES
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| panic!("no SoftHSM in {MODULES:?}: install softhsm2"))
}

/// The module as another part of the same process would have it.
fn somebody_else() -> Pkcs11 {
    Pkcs11::new(module()).unwrap()
}

fn log_out_behind_our_back() {
    let pkcs11 = somebody_else();
    let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
    pkcs11.open_ro_session(slot).unwrap().logout().unwrap();
}

/// Waits until nobody in this process has the module initialised.
async fn finalised() {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match somebody_else().initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) => break somebody_else().finalize().unwrap(),
            Err(CryptokiError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
                assert!(Instant::now() < until, "the module stays initialised");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn open(
    provider: &Provider,
    locator: &str,
    algorithms: &[Algorithm],
) -> Result<Arc<dyn WrappingKey>, Error> {
    provider
        .open(&OpenKey { locator, algorithms, sign_algorithms: &[], public_key_sha256: None })
        .await
}

fn call() -> Call {
    Call { caller: CallerSlot(1), deadline: Instant::now() + Duration::from_secs(20) }
}

fn wrapped(key: &dyn WrappingKey, parameters: &Parameters<'_>) -> Vec<u8> {
    key.public_key().wrap(&KeyMaterial::copied_from(MATERIAL), parameters).unwrap()
}

/// Unwraps as the daemon does: a failure that may be the backend's is followed by a check, and one
/// retry if something was repaired.
async fn unwrap(key: &dyn WrappingKey) -> Result<(), Error> {
    let parameters = Parameters::of(key.algorithms().iter().next().unwrap());
    let wrapped = wrapped(key, &parameters);
    let before = key.repairs();
    let mut outcome = key.unwrap_key(&wrapped, &parameters, call()).await;
    if outcome.as_ref().is_err_and(|error| error.kind().may_retry_after_repair()) {
        key.check().await?;
        if key.repairs() != before {
            outcome = key.unwrap_key(&wrapped, &parameters, call()).await;
        }
    }
    assert_eq!(outcome?.material.expose(), MATERIAL);
    Ok(())
}

/// Checks until it goes well, for as long as a breaker may take.
async fn recovers(key: &dyn WrappingKey) {
    let until = Instant::now() + Duration::from_secs(15);
    while let Err(error) = key.check().await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Error>, kind: ErrorKind, words: &str) {
    let Err(error) = outcome else { panic!("not refused ({words})") };
    assert!(
        error.kind() == kind && error.to_string().contains(words),
        "{:?}: {error}",
        error.kind()
    );
}

/// A key pair with the id 09 that is seen without a login.
fn make_public_key_pair(bench: &Bench) {
    use cryptoki::mechanism::Mechanism;
    use cryptoki::object::Attribute;
    use cryptoki::session::UserType;
    use cryptoki::types::AuthPin;

    let pkcs11 = somebody_else();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
    let session = pkcs11.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).unwrap();
    let both = [Attribute::Token(true), Attribute::Private(false), Attribute::Id(vec![9])];
    let public = [
        &both[..],
        &[Attribute::ModulusBits(2048.into()), Attribute::PublicExponent(vec![1, 0, 1])],
    ]
    .concat();
    let private = [
        &both[..],
        &[Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Decrypt(true)],
    ]
    .concat();
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
    drop(session);
    pkcs11.finalize().unwrap();
    assert!(bench.path("tokens").exists());
}

mod scenario {
    use super::*;

    pub(super) async fn a_key_opens_by_label_by_id_and_on_a_token_named_by_serial(bench: Bench) {
        let by_label = bench.open("pkcs11:object=user-keys").await;
        let by_id = bench.open("pkcs11:id=%02;type=private").await;
        let other = bench.open("pkcs11:object=other;id=%03").await;
        assert_eq!(by_label.public_key().sha256(), by_id.public_key().sha256());
        assert_ne!(by_label.public_key().sha256(), other.public_key().sha256());
        let pkcs11 = somebody_else();
        let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
        let serial = pkcs11.get_token_info(slot).unwrap().serial_number().to_owned();
        let provider = bench.provider(|options| options["token"] = json!({ "serial": serial }));
        let by_serial = open(&provider, "pkcs11:id=%02", &[Algorithm::Rsa15]).await.unwrap();
        for key in [by_label, by_id, other, by_serial] {
            unwrap(&*key).await.unwrap();
            key.check().await.unwrap();
            assert_eq!(key.repairs(), 0);
        }
    }

    pub(super) async fn garbage_is_the_callers_fault_and_repairs_nothing(bench: Bench) {
        let key = bench.open("pkcs11:object=user-keys").await;
        assert!(key.failure_needs_check());
        let parameters = Parameters::of(Algorithm::RsaOaep);
        let good = wrapped(&*key, &parameters);
        let mut flipped = good.clone();
        flipped[200] ^= 1;
        let mut one = vec![0; 256];
        one[255] = 1;
        let mut two = one.clone();
        two[255] = 2;
        let mut largest = key.public_key().modulus().to_vec();
        largest[255] -= 1;
        let modulus = key.public_key().modulus().to_vec();
        let lengths = [vec![], good[1..].to_vec(), [&good[..], &[0]].concat()];
        let values = [flipped, vec![0; 256], one, two, largest, modulus, vec![0xff; 256]];
        for bad in values.into_iter().chain(lengths) {
            let outcome = key.unwrap_key(&bad, &parameters, call()).await;
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::UnwrapFailed);
            key.check().await.unwrap();
        }
        let mut many = Vec::new();
        for n in 0..200_u32 {
            let key = Arc::clone(&key);
            let mut bad = good.clone();
            bad[100] ^= u8::try_from(n % 255).unwrap() + 1;
            many.push(tokio::spawn(async move {
                let outcome =
                    key.unwrap_key(&bad, &Parameters::of(Algorithm::RsaOaep), call()).await;
                // More than the queue holds is refused, nothing else happens.
                let kind = outcome.unwrap_err().kind();
                let full = matches!(kind, ErrorKind::Throttled { .. });
                assert!(full || kind == ErrorKind::UnwrapFailed, "{kind:?}");
                key.check().await.unwrap();
            }));
        }
        for task in many {
            task.await.unwrap();
        }
        unwrap(&*key).await.unwrap();
        assert_eq!(key.repairs(), 0, "garbage repaired something");
    }

    pub(super) async fn sha_256_is_refused_in_words_natively_and_works_unpadded_in_software(
        bench: Bench,
    ) {
        let native = bench.provider(|_| ());
        let locator = "pkcs11:object=user-keys";
        let refused = open(&native, locator, &[Algorithm::RsaOaep, Algorithm::RsaOaep256]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "RSA-OAEP-256 does not work");
        let refused = open(&native, locator, &[Algorithm::RsaOaep256]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "oaep = \"software\"");

        let software = bench.provider(|options| options["oaep"] = json!("software"));
        let oaep = [
            Algorithm::RsaOaep256,
            Algorithm::RsaOaep,
            Algorithm::RsaOaep384,
            Algorithm::RsaOaep512,
        ];
        let key = open(&software, locator, &oaep).await.unwrap();
        assert!(!key.failure_needs_check());
        for algorithm in oaep {
            for label in [&b""[..], b"tenant"] {
                let parameters = Parameters { algorithm, label };
                let wrapped = wrapped(&*key, &parameters);
                let unwrapped = key.unwrap_key(&wrapped, &parameters, call()).await.unwrap();
                assert_eq!(unwrapped.material.expose(), MATERIAL);
                let other = Parameters { algorithm, label: b"other" };
                let outcome = key.unwrap_key(&wrapped, &other, call()).await;
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::UnwrapFailed);
            }
        }
        key.check().await.unwrap();
        assert_eq!(key.repairs(), 0);
        let mixed = open(&software, locator, &[Algorithm::RsaOaep256, Algorithm::Rsa15]).await;
        assert!(mixed.unwrap().failure_needs_check(), "the token removes the padding of RSA1_5");
    }

    pub(super) async fn a_label_that_the_token_cannot_take_is_refused_without_asking_it(
        bench: Bench,
    ) {
        let key = bench.open("pkcs11:object=user-keys").await;
        let parameters = Parameters { algorithm: Algorithm::RsaOaep, label: b"tenant" };
        let wrapped = wrapped(&*key, &parameters);
        let outcome = key.unwrap_key(&wrapped, &parameters, call()).await;
        assert_refused(outcome, ErrorKind::OperatorNeeded, "takes no OAEP label");
        let undeclared = Parameters::of(Algorithm::RsaOaep512);
        let outcome = key.unwrap_key(&wrapped, &undeclared, call()).await;
        assert_refused(outcome, ErrorKind::Internal, "RSA-OAEP-512 was not listed");
    }

    pub(super) async fn every_signing_algorithm_gives_signatures_that_verify(bench: Bench) {
        let provider = bench.provider(|_| ());
        let sign_algorithms = &SignAlgorithm::ALL;
        let locator = "pkcs11:object=other";
        let open = OpenKey { locator, algorithms: &[], sign_algorithms, public_key_sha256: None };
        let key = provider.open(&open).await.unwrap();
        for algorithm in SignAlgorithm::ALL {
            let hash = algorithm.hash();
            let digest = Digest::new(hash, &vec![7; hash.len()]).unwrap();
            let signature = key.sign(&digest, algorithm, call()).await.unwrap();
            assert!(key.public_key().verify(&digest, algorithm, &signature.bytes), "{algorithm}");
        }
        let digest = Digest::new(Hash::Sha256, &[7; 32]).unwrap();
        let outcome = key.sign(&digest, SignAlgorithm::Ps512, call()).await;
        assert_refused(outcome, ErrorKind::Internal, "digest for PS512");
        key.check().await.unwrap();
        log_out_behind_our_back();
        key.check().await.unwrap();
        assert!(key.repairs() > 0);
        key.sign(&digest, SignAlgorithm::Rs256, call()).await.unwrap();
    }

    pub(super) async fn a_logout_behind_our_back_is_repaired(bench: Bench) {
        let provider = bench.provider(|_| ());
        let key = open(&provider, "pkcs11:object=user-keys", &[Algorithm::RsaOaep]).await.unwrap();
        let neighbour =
            open(&provider, "pkcs11:object=other", &[Algorithm::RsaOaep]).await.unwrap();
        for round in 1..=3 {
            log_out_behind_our_back();
            unwrap(&*key).await.unwrap();
            assert!(key.repairs() >= round);
            // Its handle was found again in the same run.
            let before = neighbour.repairs();
            unwrap(&*neighbour).await.unwrap();
            assert_eq!(neighbour.repairs(), before);
        }
        log_out_behind_our_back();
        key.check().await.unwrap();
        log_out_behind_our_back();
        // A key opened meanwhile logs in again too.
        unwrap(&*bench.open("pkcs11:object=other").await).await.unwrap();
    }

    /// Only a new process would help: an operator restarts the daemon.
    pub(super) async fn a_finalize_behind_our_back_leaves_a_module_in_this_process_failing(
        bench: Bench,
    ) {
        let key = bench.open("pkcs11:object=user-keys").await;
        somebody_else().finalize().unwrap();
        for _ in 0..3 {
            assert_refused(unwrap(&*key).await, ErrorKind::Unavailable, "NOT_INITIALIZED");
        }
    }

    pub(super) async fn a_token_that_is_gone_opens_the_breaker(bench: Bench) {
        let key = bench.open("pkcs11:object=user-keys").await;
        fs::rename(bench.path("tokens"), bench.path("taken")).unwrap();
        fs::create_dir(bench.path("tokens")).unwrap();
        assert_refused(unwrap(&*key).await, ErrorKind::Unavailable, "not in its slot any more");
        // The breaker answers at once, without the token.
        let parameters = Parameters::of(Algorithm::RsaOaep);
        let value = wrapped(&*key, &parameters);
        let outcome = key.unwrap_key(&value, &parameters, call()).await;
        assert_refused(outcome, ErrorKind::Unavailable, "not in its slot any more");
    }

    pub(super) async fn another_key_under_the_same_id_never_serves(bench: Bench) {
        let key = bench.open("pkcs11:id=%02").await;
        unwrap(&*key).await.unwrap();
        bench.delete("02");
        bench.import("impostor", "02");
        assert_refused(unwrap(&*key).await, ErrorKind::OperatorNeeded, "is another key now");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_refused(key.check().await, ErrorKind::OperatorNeeded, "is another key now");
        assert_refused(unwrap(&*key).await, ErrorKind::OperatorNeeded, "is another key now");
        bench.delete("02");
        bench.import("user-keys", "02");
        recovers(&*key).await;
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn a_key_that_is_gone_does_not_disturb_its_neighbour(bench: Bench) {
        let key = bench.open("pkcs11:id=%02").await;
        let neighbour = bench.open("pkcs11:id=%03").await;
        bench.delete("02");
        assert_refused(unwrap(&*key).await, ErrorKind::OperatorNeeded, "has no private key");
        let before = neighbour.repairs();
        unwrap(&*neighbour).await.unwrap();
        neighbour.check().await.unwrap();
        assert_eq!(neighbour.repairs(), before);
        bench.import("user-keys", "02");
        recovers(&*key).await;
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn a_key_that_could_leave_the_token_is_refused(bench: Bench) {
        let generate = ["--keypairgen", "--key-type", "rsa:2048", "--usage-decrypt"];
        bench.pkcs11_tool(
            &[&generate[..], &["--label", "leaky", "--id", "05", "--extractable"]].concat(),
        );
        let strict = bench.provider(|_| ());
        let refused = open(&strict, "pkcs11:object=leaky", &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "CKA_EXTRACTABLE is true");
        let lax = bench.provider(|options| options["allow_extractable"] = json!(true));
        let key = open(&lax, "pkcs11:object=leaky", &[Algorithm::RsaOaep]).await.unwrap();
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn two_keys_on_a_token_share_one_login(bench: Bench) {
        let first = bench.open("pkcs11:object=user-keys").await;
        // A login would fail now.
        bench.write_pin("9999");
        let second = bench.open("pkcs11:object=other").await;
        drop(first);
        unwrap(&*second).await.unwrap();
        assert_eq!(bench.refused_logins(), 0);
        let other_user = bench.provider(|options| options["user"] = json!("so"));
        let refused = open(&other_user, "pkcs11:object=other", &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "one login per token");
        unwrap(&*second).await.unwrap();
    }

    pub(super) async fn a_wrong_pin_is_tried_once_and_a_right_one_needs_no_restart(bench: Bench) {
        bench.write_pin("9999");
        let provider = bench.provider(|_| ());
        let locator = "pkcs11:object=user-keys";
        let refused = open(&provider, locator, &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "CKR_PIN_INCORRECT from C_Login");
        assert_eq!(bench.refused_logins(), 1);
        for _ in 0..3 {
            let refused = open(&provider, locator, &[Algorithm::RsaOaep]).await;
            let Err(error) = refused else { panic!("opened with a wrong PIN") };
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            assert!(!error.to_string().contains("CKR_"), "it was tried again: {error}");
            assert!(error.to_string().contains("claviger pin clear"), "{error}");
        }
        assert_eq!(bench.refused_logins(), 1);
        bench.write_pin("8888");
        let refused = open(&provider, locator, &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "CKR_PIN_INCORRECT from C_Login");
        // Two were refused: whatever the PIN, an operator must say that it may be tried.
        bench.write_pin(PIN);
        let refused = open(&provider, locator, &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "claviger pin clear");
        assert_eq!(bench.refused_logins(), 2);
        for token in pin_latch::list(&bench.path("state")).unwrap() {
            assert!(pin_latch::clear(&bench.path("state"), &token.serial).unwrap());
        }
        let key = open(&provider, locator, &[Algorithm::RsaOaep]).await.unwrap();
        unwrap(&*key).await.unwrap();
        assert_eq!(bench.refused_logins(), 0);
    }

    pub(super) async fn a_lost_login_with_a_wrong_pin_in_the_file_waits_for_the_operator(
        bench: Bench,
    ) {
        let key = bench.open("pkcs11:object=user-keys").await;
        bench.write_pin("9999");
        log_out_behind_our_back();
        assert_refused(unwrap(&*key).await, ErrorKind::OperatorNeeded, "CKR_PIN_INCORRECT");
        for _ in 0..20 {
            let error = key.check().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(bench.refused_logins(), 1);
        bench.write_pin(PIN);
        recovers(&*key).await;
        unwrap(&*key).await.unwrap();
        assert_eq!(bench.refused_logins(), 0);
    }

    pub(super) async fn no_pin_is_used_without_a_state_directory(bench: Bench) {
        let options = json!({
            "module": module(),
            "token": { "label": "production" },
            "pin": { "file": bench.path("pin") },
            "isolation": "none",
        });
        let config: Config = serde_json::from_value(options).unwrap();
        let provider = Provider::new("hsm", &config, None).unwrap();
        let refused = open(&provider, "pkcs11:object=user-keys", &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "server.state_dir");
    }

    pub(super) async fn what_cannot_be_found_is_named_and_leaves_nothing_behind(bench: Bench) {
        let rsa = [Algorithm::RsaOaep];
        let provider = bench.provider(|_| ());
        let refused = open(&provider, "pkcs11:object=nobody", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "no private key pkcs11:object=nobody");
        bench.run(
            "softhsm2-util",
            &[
                "--import",
                bench.path("other-03.pem").to_str().unwrap(),
                "--token",
                "production",
                "--label",
                "user-keys",
                "--id",
                "04",
                "--pin",
                PIN,
            ],
        );
        let refused = open(&provider, "pkcs11:object=user-keys", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "2 private keys match");
        let elsewhere = bench.provider(|options| options["token"] = json!({ "label": "staging" }));
        let refused = open(&elsewhere, "pkcs11:id=%02", &rsa).await;
        assert_refused(refused, ErrorKind::Unavailable, "present: \"production\"");
        finalised().await;
        unwrap(&*bench.open("pkcs11:id=%02").await).await.unwrap();
    }

    pub(super) async fn the_last_key_that_closes_finalises_the_module(bench: Bench) {
        let first = bench.open("pkcs11:id=%02").await;
        let second = bench.open("pkcs11:id=%03").await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(200)).await;
        unwrap(&*second).await.unwrap();
        assert_eq!(second.repairs(), 0);
        drop(second);
        assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(10)));
        finalised().await;
        unwrap(&*bench.open("pkcs11:id=%02").await).await.unwrap();
    }

    pub(super) async fn a_deadline_and_a_full_queue_are_kept(bench: Bench) {
        let provider = bench.provider(|options| {
            options["queue"] = json!(2);
            options["sessions"] = json!(1);
        });
        let key = open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await.unwrap();
        let parameters = Parameters::of(Algorithm::RsaOaep);
        let value = wrapped(&*key, &parameters);
        let late = Call { caller: CallerSlot(1), deadline: Instant::now() };
        let outcome = key.unwrap_key(&value, &parameters, late).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        let flood: Vec<_> = (0..50).map(|_| key.unwrap_key(&value, &parameters, call())).collect();
        let quiet = Call { caller: CallerSlot(2), ..call() };
        let (flood, quiet) = tokio::join!(
            futures::future::join_all(flood),
            key.unwrap_key(&value, &parameters, quiet)
        );
        assert!(quiet.is_ok(), "one caller's flood stopped another");
        let full = flood.iter().filter(|outcome| {
            matches!(outcome, Err(error) if matches!(error.kind(), ErrorKind::Throttled { .. }))
        });
        assert!(full.count() > 0);
        assert!(flood.iter().any(Result::is_ok));
    }

    pub(super) async fn a_miss_is_answered_before_its_session_closes(bench: Bench) {
        let provider = bench.faulty_provider();
        let algorithms = [Algorithm::RsaOaep, Algorithm::Rsa15];
        let key = open(&provider, "pkcs11:id=%02", &algorithms).await.unwrap();
        bench.faults("C_CloseSession:*:sleep=5000");
        let parameters = Parameters::of(Algorithm::Rsa15);
        let mut bad = wrapped(&*key, &parameters);
        bad[100] ^= 1;
        let begun = Instant::now();
        let outcome = key.unwrap_key(&bad, &parameters, call()).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::UnwrapFailed);
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        bench.faults("");
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn a_missing_key_does_not_disturb_another_token_of_the_module(bench: Bench) {
        bench.make_staging_token();
        fs::copy(bench.path("pin"), bench.path("staging-pin")).unwrap();
        let staging = bench.provider(|options| {
            options["token"] = json!({ "label": "staging" });
            options["pin"] = json!({ "file": bench.path("staging-pin") });
        });
        let key = bench.open("pkcs11:id=%02").await;
        let neighbour = open(&staging, "pkcs11:id=%03", &[Algorithm::RsaOaep]).await.unwrap();
        // A login to it would fail now.
        fs::write(bench.path("staging-pin"), "9999").unwrap();
        bench.delete("02");
        for _ in 0..3 {
            assert_refused(unwrap(&*key).await, ErrorKind::OperatorNeeded, "has no private key");
            unwrap(&*neighbour).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        assert_eq!(neighbour.repairs(), 0);
        assert_eq!(bench.refused_logins(), 0);
        bench.import("user-keys", "02");
        recovers(&*key).await;
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn a_missing_key_is_looked_for_without_a_new_start_of_the_module(
        bench: Bench,
    ) {
        let key = bench.open("pkcs11:id=%02").await;
        bench.delete("02");
        assert_refused(key.check().await, ErrorKind::OperatorNeeded, "has no private key");
        let pkcs11 = somebody_else();
        let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
        let witness = pkcs11.open_ro_session(slot).unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_refused(key.check().await, ErrorKind::OperatorNeeded, "has no private key");
        }
        witness.get_session_info().expect("the module was started again");
        drop(witness);
        bench.import("user-keys", "02");
        recovers(&*key).await;
        unwrap(&*key).await.unwrap();
    }

    pub(super) async fn a_pin_source_acts_once_no_key_opened_with_another_is_left(bench: Bench) {
        let old = bench.open("pkcs11:id=%02").await;
        let changed = bench.provider(|options| {
            options["pin"] = json!({ "file": bench.path("new-pin") });
        });
        let mode = fs::Permissions::from_mode(0o600);
        fs::write(bench.path("new-pin"), "9999").unwrap();
        fs::set_permissions(bench.path("new-pin"), mode).unwrap();
        // A reload that is refused leaves nothing behind.
        let refused = open(&changed, "pkcs11:object=nobody", &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "no private key");
        log_out_behind_our_back();
        unwrap(&*old).await.unwrap();
        // Nor does one that is accepted change the login of keys that are open.
        let new = open(&changed, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await.unwrap();
        log_out_behind_our_back();
        unwrap(&*old).await.unwrap();
        assert_eq!(bench.refused_logins(), 0);
        drop(old);
        fs::write(bench.path("new-pin"), PIN).unwrap();
        bench.write_pin("9999");
        log_out_behind_our_back();
        unwrap(&*new).await.unwrap();
        assert_eq!(bench.refused_logins(), 0);
    }

    pub(super) async fn a_login_that_somebody_else_made_clears_no_refusal(bench: Bench) {
        let provider = bench.faulty_provider();
        bench.write_pin("9999");
        let rsa = [Algorithm::RsaOaep];
        let refused = open(&provider, "pkcs11:id=%02", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "CKR_PIN_INCORRECT");
        bench.write_pin(PIN);
        bench.faults("C_Login:*:late-rv=0x100");
        unwrap(&*open(&provider, "pkcs11:id=%02", &rsa).await.unwrap()).await.unwrap();
        assert_eq!(bench.refused_logins(), 1);
        bench.faults("");
        unwrap(&*open(&provider, "pkcs11:id=%02", &rsa).await.unwrap()).await.unwrap();
    }

    pub(super) async fn a_wrong_pin_counts_as_refused_whatever_is_returned_where_the_flags_tell(
        bench: Bench,
    ) {
        let provider = bench.faulty_provider();
        for rv in LOGIN_OUTCOME_UNKNOWN {
            // A success: SoftHSM counts anew.
            bench.write_pin(PIN);
            bench.faults("");
            drop(open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await.unwrap());
            assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(10)));
            bench.write_pin("9999");
            bench.faults(&format!("C_Login:*:late-rv={rv:#x}"));
            let before = bench.calls("C_Login");
            for _ in 0..3 {
                let refused = open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await;
                assert_refused(refused, ErrorKind::OperatorNeeded, "claviger pin clear");
            }
            assert_eq!(bench.calls("C_Login") - before, 1, "{rv:#x}");
            assert_eq!(bench.refused_logins(), 1, "{rv:#x}");
            let serial = &pin_latch::list(&bench.path("state")).unwrap()[0].serial;
            assert!(pin_latch::clear(&bench.path("state"), serial).unwrap());
        }
    }

    pub(super) async fn a_wrong_pin_is_sent_twice_at_most_whatever_is_returned_where_no_flag_tells(
        bench: Bench,
    ) {
        let provider = bench.faulty_provider();
        bench.write_pin("9999");
        for rv in LOGIN_OUTCOME_UNKNOWN {
            let no_flags = "C_GetTokenInfo:*:clear-flags=count-low";
            bench.faults(&format!("{no_flags}\nC_Login:*:late-rv={rv:#x}"));
            let before = bench.calls("C_Login");
            for attempt in 1..=4 {
                let refused = open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await;
                if attempt <= 2 {
                    assert_refused(refused, ErrorKind::Unavailable, "without an outcome");
                } else {
                    assert_refused(refused, ErrorKind::OperatorNeeded, "claviger pin clear");
                }
            }
            assert_eq!(bench.calls("C_Login") - before, 2, "{rv:#x}");
            let tokens = pin_latch::list(&bench.path("state")).unwrap();
            assert_eq!((tokens[0].attempts, tokens[0].refused), (2, 0), "{rv:#x}");
            assert!(pin_latch::clear(&bench.path("state"), &tokens[0].serial).unwrap());
        }
    }

    pub(super) async fn a_login_without_an_outcome_is_made_once_more(bench: Bench) {
        let provider = bench.faulty_provider();
        bench.faults("C_Login:1:rv=0x32");
        let refused = open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await;
        assert_refused(refused, ErrorKind::Unavailable, "CKR_DEVICE_REMOVED from C_Login");
        assert_eq!(pin_latch::list(&bench.path("state")).unwrap()[0].attempts, 1);
        unwrap(&*open(&provider, "pkcs11:id=%02", &[Algorithm::RsaOaep]).await.unwrap())
            .await
            .unwrap();
        assert_eq!(pin_latch::list(&bench.path("state")).unwrap(), []);
    }

    pub(super) async fn tokens_with_one_serial_number_have_a_login_and_a_latch_each(bench: Bench) {
        let rsa = [Algorithm::RsaOaep];
        bench.make_token_beside("staging", "4321");
        fs::copy(bench.path("pin"), bench.path("staging-pin")).unwrap();
        fs::write(bench.path("staging-pin"), "9999").unwrap();
        bench.faults("C_GetTokenInfo:*:serial=0000000000000000");
        let production = bench.faulty_provider();
        let staging = bench.faulty_provider_with(|options| {
            options["token"] = json!({ "label": "staging" });
            options["pin"] = json!({ "file": bench.path("staging-pin") });
        });
        let by_serial = bench.faulty_provider_with(|options| {
            options["token"] = json!({ "serial": "0000000000000000" });
        });
        let refused = open(&by_serial, "pkcs11:id=%02", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "write token = { label");
        for _ in 0..2 {
            // The first one's successes are no reason to try the other one's PIN again.
            let key = open(&production, "pkcs11:id=%02", &rsa).await.unwrap();
            let refused = open(&staging, "pkcs11:id=%03", &rsa).await;
            let Err(error) = refused else { panic!("opened with a wrong PIN") };
            assert!(error.to_string().contains("claviger pin clear"), "{error}");
            unwrap(&*key).await.unwrap();
            drop(key);
            assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(10)));
        }
        assert_eq!((bench.refused_logins(), bench.calls("C_Login")), (1, 3));
        fs::write(bench.path("staging-pin"), "4321").unwrap();
        let key = open(&production, "pkcs11:id=%02", &rsa).await.unwrap();
        let other = open(&staging, "pkcs11:id=%03", &rsa).await.unwrap();
        assert_eq!(bench.calls("C_Login"), 5, "a login for each of the two tokens");
        let missing = open(&staging, "pkcs11:id=%02", &rsa).await;
        assert_refused(missing, ErrorKind::OperatorNeeded, "pkcs11:object=other;id=%03");
        for key in [&key, &other] {
            unwrap(&**key).await.unwrap();
            key.check().await.unwrap();
            assert_eq!(key.repairs(), 0);
        }
        assert_ne!(key.public_key().sha256(), other.public_key().sha256());
        assert_eq!(bench.refused_logins(), 0);
    }

    pub(super) async fn one_odd_field_of_its_token_information_makes_no_token_unusable(
        bench: Bench,
    ) {
        let rsa = [Algorithm::RsaOaep];
        let pkcs11 = somebody_else();
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
        let serial = pkcs11.get_token_info(slot).unwrap().serial_number().to_owned();
        pkcs11.finalize().unwrap();
        for odd in ["nul-padded", "right-aligned", "bad-clock", "serial=", "serial=A1"] {
            bench.faults(&format!("C_GetTokenInfo:*:{odd}"));
            let key = open(&bench.faulty_provider(), "pkcs11:id=%02", &rsa).await.unwrap();
            unwrap(&*key).await.unwrap();
            drop(key);
            let serial = if odd == "serial=A1" { "a1" } else { &serial };
            let by_serial = bench
                .faulty_provider_with(|options| options["token"] = json!({ "serial": serial }));
            let opened = open(&by_serial, "pkcs11:id=%02", &rsa).await;
            assert_eq!(opened.is_ok(), odd != "serial=", "{odd}: {:?}", opened.err());
        }
    }

    pub(super) async fn a_token_that_was_not_initialised_is_named_and_serves_without_a_login(
        bench: Bench,
    ) {
        let rsa = [Algorithm::RsaOaep];
        make_public_key_pair(&bench);
        bench.faults("C_GetTokenInfo:*:clear-flags=0x400");
        let refused = open(&bench.faulty_provider(), "pkcs11:id=%09", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "is not initialised");
        let elsewhere =
            bench.faulty_provider_with(|options| options["token"] = json!({ "label": "staging" }));
        let refused = open(&elsewhere, "pkcs11:id=%09", &rsa).await;
        assert_refused(refused, ErrorKind::Unavailable, "not initialised");
        let without_login = bench.faulty_provider_with(|options| {
            options["login"] = json!("none");
            options["pin"].take();
        });
        let key = open(&without_login, "pkcs11:id=%09", &rsa).await.unwrap();
        unwrap(&*key).await.unwrap();
        assert_eq!(bench.calls("C_Login"), 0);
    }

    pub(super) async fn one_odd_attribute_makes_no_key_unusable_and_is_never_taken_for_no(
        bench: Bench,
    ) {
        const EXTRACTABLE: &str = "0x162";
        const ALWAYS_AUTHENTICATE: &str = "0x202";
        let rsa = [Algorithm::RsaOaep];
        let locator = "pkcs11:id=%02";
        for action in [
            "attribute-refused=0x202",
            "attribute-unknown=0x202",
            "attribute-untouched=0x202",
            "attribute-empty=0x202",
            "attribute-refused=0x1",
        ] {
            let function =
                if action.ends_with("=0x1") { "C_FindObjectsInit" } else { "C_GetAttributeValue" };
            bench.faults(&format!("{function}:*:{action}"));
            let key = open(&bench.faulty_provider(), locator, &rsa).await.unwrap();
            assert_eq!(key.extractable(), Some(false), "{action}");
            unwrap(&*key).await.unwrap();
        }
        for odd in ["refused", "unknown", "untouched", "empty"] {
            let quirks = [EXTRACTABLE, ALWAYS_AUTHENTICATE]
                .map(|attribute| format!("C_GetAttributeValue:*:attribute-{odd}={attribute}"));
            bench.faults(&quirks.join("\n"));
            let refused = open(&bench.faulty_provider(), locator, &rsa).await;
            assert_refused(refused, ErrorKind::OperatorNeeded, "does not tell whether it can");
            let lax =
                bench.faulty_provider_with(|options| options["allow_extractable"] = json!(true));
            let key = open(&lax, locator, &rsa).await.unwrap();
            assert_eq!(key.extractable(), None, "{odd}");
        }
    }

    pub(super) async fn a_key_that_is_not_there_is_told_from_those_that_are(bench: Bench) {
        let rsa = [Algorithm::RsaOaep];
        let provider = bench.provider(|_| ());
        let Err(error) = open(&provider, "pkcs11:object=user-key", &rsa).await else {
            panic!("no such key")
        };
        assert_eq!(
            (error.kind(), error.cause()),
            (ErrorKind::OperatorNeeded, Some(Cause::KeyAbsent))
        );
        for said in [
            "pkcs11:object=user-key ",
            "pkcs11:object=user-keys;id=%02",
            "pkcs11:object=other;id=%03",
        ] {
            assert!(error.to_string().contains(said), "{said}: {error}");
        }
        // As `pkcs11-tool -O` prints the id.
        let refused = open(&provider, "pkcs11:id=02", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "write pkcs11:id=%02");
        for n in 0..12 {
            bench.import("other", &format!("{:02x}", 0x20 + n));
        }
        let refused = open(&provider, "pkcs11:object=nothing", &rsa).await;
        assert_refused(refused, ErrorKind::OperatorNeeded, "and 4 more");
        let key = bench.open("pkcs11:id=%02").await;
        bench.delete("02");
        // Which of them are named is the token's choice.
        assert_refused(
            key.check().await,
            ErrorKind::OperatorNeeded,
            "shows pkcs11:object=other;id=%",
        );
        assert_eq!(key.check().await.unwrap_err().cause(), Some(Cause::KeyAbsent));
    }

    pub(super) async fn a_wrong_key_size_and_two_keys_of_one_name_have_causes_of_their_own(
        bench: Bench,
    ) {
        let rsa = [Algorithm::RsaOaep];
        bench.import("user-keys", "04");
        let pair =
            ["--keypairgen", "--key-type", "rsa:1024", "--usage-decrypt", "--label", "small"];
        bench.pkcs11_tool(&[&pair[..], &["--id", "05"]].concat());
        let lax = bench.provider(|options| options["allow_extractable"] = json!(true));
        for (locator, cause, words) in [
            ("pkcs11:object=user-keys", Cause::KeyAmbiguous, "object=user-keys;id=%04"),
            ("pkcs11:object=small", Cause::KeyUnfit, "RSA key of 1024 bits"),
        ] {
            let Err(error) = open(&lax, locator, &rsa).await else { panic!("{locator} opened") };
            assert_eq!(error.cause(), Some(cause), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    pub(super) async fn rights_that_a_key_does_not_need_are_told(bench: Bench) {
        let key = bench.open("pkcs11:id=%02").await;
        // What softhsm2-util gives a key that it imports.
        assert_eq!(key.unneeded_rights(), ["CKA_SIGN", "CKA_SIGN_RECOVER", "CKA_UNWRAP"]);
    }

    pub(super) async fn a_fault_that_passes_does_not_cost_a_key_its_labels(bench: Bench) {
        let provider = bench.faulty_provider();
        let rsa = [Algorithm::RsaOaep];
        // The first operation is the canary's, the second one the label's.
        bench.faults("C_Decrypt:2:rv=0x32");
        let key = open(&provider, "pkcs11:id=%02", &rsa).await.unwrap();
        assert!(key.label_algorithms().contains(Algorithm::RsaOaep));
        drop(key);
        bench.faults("C_DecryptInit:*:rv=0x32");
        let refused = open(&provider, "pkcs11:id=%02", &rsa).await;
        assert_refused(refused, ErrorKind::Unavailable, "CKR_DEVICE_REMOVED");
    }

    pub(super) async fn a_login_that_nobody_waits_for_any_more_is_recorded_before_the_end(
        bench: Bench,
    ) {
        let provider = bench.faulty_provider();
        bench.faults("C_Login:*:sleep=1500");
        let rsa = [Algorithm::RsaOaep];
        let opening = open(&provider, "pkcs11:id=%02", &rsa);
        assert!(tokio::time::timeout(Duration::from_secs(1), opening).await.is_err());
        assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(20)));
        assert_eq!(pin_latch::list(&bench.path("state")).unwrap(), []);
        // Nor is a thread missed that has only just been started.
        let opening = open(&provider, "pkcs11:id=%02", &rsa);
        drop(tokio::time::timeout(Duration::ZERO, opening).await);
        assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(20)));
        assert_eq!(pin_latch::list(&bench.path("state")).unwrap(), []);
    }
}
