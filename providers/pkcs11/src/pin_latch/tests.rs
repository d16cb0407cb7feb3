//! The latch's promises, in one process and in several, with crashes in between.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::token_info::TokenIdentity;

const SERIAL: &str = "5e6f a/7\u{e9}";

/// The user PIN of a token with this serial number.
fn owner_of(serial: &str) -> PinOwner {
    let text = str::to_owned;
    let token = TokenIdentity {
        label: text("production"),
        serial: text(serial),
        manufacturer: text("a vendor"),
        model: text("v2"),
    };
    PinOwner { token, user: text("user") }
}

fn owner() -> PinOwner {
    owner_of(SERIAL)
}

fn names() -> Names {
    Names::of(&owner()).unwrap()
}

fn pin(digits: &str) -> Secret {
    Secret::new(Zeroizing::new(digits.as_bytes().to_vec()))
}

/// A latch that is as good as any other, but with one round of PBKDF2 and little patience.
fn fast(state_dir: &Path) -> Latch {
    let patience = Duration::from_millis(100);
    Latch { state_dir: state_dir.to_owned(), rounds: NonZeroU32::MIN, patience }
}

fn state_dir() -> (TempDir, Latch) {
    let directory = tempfile::tempdir().unwrap();
    let latch = fast(directory.path());
    (directory, latch)
}

fn record_path(directory: &TempDir) -> PathBuf {
    directory.path().join("pin").join(names().record())
}

fn only_clear_helps(directory: &TempDir, latch: &Latch) {
    for digits in ["1", "2", "3"] {
        let error = latch.attempt(&owner(), &pin(digits)).unwrap_err();
        assert!(matches!(error, LatchError::Exhausted { .. }), "{error}");
        assert!(error.to_string().contains("claviger pin clear --serial"), "{error}");
    }
    assert!(clear(directory.path(), SERIAL).unwrap());
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
}

#[test]
fn a_success_leaves_no_record() {
    let (directory, latch) = state_dir();
    for _ in 0..5 {
        latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
        let files = fs::read_dir(directory.path().join("pin")).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, [names().lock().as_str()]);
    }
    assert!(!clear(directory.path(), SERIAL).unwrap());
}

#[test]
fn a_refused_pin_is_never_tried_again() {
    let (_directory, latch) = state_dir();
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    for _ in 0..3 {
        let error = latch.attempt(&owner(), &pin("1")).unwrap_err();
        assert!(matches!(error, LatchError::SamePin { .. }));
        let text = error.to_string();
        assert!(text.contains("looks the same") && text.contains("claviger pin clear"), "{text}");
    }
}

#[test]
fn a_refusal_is_known_without_its_verifier_until_the_record_or_the_pin_changes() {
    let (directory, latch) = state_dir();
    assert!(latch.refused_before(&owner(), &pin("1")).is_none());
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    latch.attempt(&owner(), &pin("1")).unwrap_err();
    // So many rounds would take hours.
    let slow = Latch { rounds: NonZeroU32::MAX, ..latch.clone() };
    let error = slow.attempt(&owner(), &pin("1")).unwrap_err();
    assert!(matches!(error, LatchError::SamePin { .. }), "{error}");
    assert!(latch.refused_before(&owner(), &pin("1")).is_some());
    assert!(latch.refused_before(&owner(), &pin("2")).is_none());
    assert!(clear(directory.path(), SERIAL).unwrap());
    assert!(latch.refused_before(&owner(), &pin("1")).is_none());
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    assert!(latch.refused_before(&owner(), &pin("1")).is_none(), "it is another record");
    latch.attempt(&owner(), &pin("2")).unwrap().refused().unwrap();
    let error = latch.attempt(&owner(), &pin("3")).unwrap_err();
    assert!(matches!(error, LatchError::Exhausted { .. }), "{error}");
    let error = latch.refused_before(&owner(), &pin("4")).unwrap();
    assert!(matches!(error, LatchError::Exhausted { .. }), "{error}");
}

#[test]
fn a_success_with_another_pin_begins_the_count_anew_and_leaves_the_refused_one_refused() {
    let (directory, latch) = state_dir();
    for refused in 1..=20 {
        latch.attempt(&owner(), &pin(&refused.to_string())).unwrap().refused().unwrap();
        latch.attempt(&owner(), &pin("good")).unwrap().succeeded().unwrap();
        assert_eq!(list(directory.path()).unwrap(), [], "no attempt counts any more");
    }
    // What is kept has a bound.
    latch.attempt(&owner(), &pin("12")).unwrap().take_back().unwrap();
    for _ in 0..2 {
        let error = latch.attempt(&owner(), &pin("20")).unwrap_err();
        assert!(matches!(error, LatchError::SamePin { .. }), "{error}");
        let listed = list(directory.path()).unwrap();
        assert_eq!((listed[0].attempts, listed[0].refused), (1, 1), "it shows again, once");
    }
    latch.attempt(&owner(), &pin("good")).unwrap().succeeded().unwrap();
    assert_eq!(list(directory.path()).unwrap(), []);
    latch.attempt(&owner(), &pin("20")).unwrap_err();
    assert!(clear(directory.path(), SERIAL).unwrap());
    latch.attempt(&owner(), &pin("20")).unwrap().succeeded().unwrap();
}

#[test]
fn tokens_with_one_serial_number_and_the_users_of_one_token_are_counted_apart() {
    let (directory, latch) = state_dir();
    let mut others = [(); 4].map(|()| owner());
    others[0].token.label = "staging".to_owned();
    others[1].token.manufacturer = "another vendor".to_owned();
    others[2].token.model = "v3".to_owned();
    others[3].user = "so".to_owned();
    for refused in ["1", "2"] {
        latch.attempt(&owner(), &pin(refused)).unwrap().refused().unwrap();
    }
    for other in &others {
        latch.attempt(other, &pin("1")).unwrap().refused().unwrap();
        latch.attempt(other, &pin("3")).unwrap().succeeded().unwrap();
        let error = latch.attempt(&owner(), &pin("3")).unwrap_err();
        assert!(matches!(error, LatchError::Exhausted { .. }), "{error}");
        assert!(error.to_string().contains("\"production\""), "{error}");
    }
    let listed = list(directory.path()).unwrap();
    assert_eq!((listed.len(), listed[0].label.as_str()), (1, "production"));
    // One command for all that have the serial number.
    assert!(clear(directory.path(), SERIAL).unwrap());
    for owner in others.iter().chain([&owner()]) {
        latch.attempt(owner, &pin("1")).unwrap().succeeded().unwrap();
    }
}

/// As an older version wrote it, of a PIN with this verifier that was refused.
fn write_old_record(directory: &TempDir, verifier: &str) -> PathBuf {
    fs::create_dir(directory.path().join("pin")).unwrap();
    fs::set_permissions(directory.path().join("pin"), fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("pin").join(Names::of_old(SERIAL).record());
    let record = format!(
        "{{\"format\":1,\"serial\":\"{SERIAL}\",\"salt\":\"{}\",\"attempts\":[{{\"verifier\":\"{verifier}\",\
         \"began\":1700000000,\"verdict\":\"refused\"}}]}}\n",
        "00".repeat(16)
    );
    fs::write(&path, record).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_record_of_an_older_version_counts_for_each_token_of_its_serial_number() {
    let (directory, latch) = state_dir();
    let salted = Record::new(&owner(), [0; 16]);
    let path = write_old_record(&directory, &verifier(&salted, &pin("1"), latch.rounds));
    let listed = list(directory.path()).unwrap();
    assert_eq!((listed[0].serial.as_str(), listed[0].refused), (SERIAL, 1));
    let mut other = owner();
    other.token.label = "staging".to_owned();
    for owner in [&owner(), &other] {
        let error = latch.attempt(owner, &pin("1")).unwrap_err();
        assert!(matches!(error, LatchError::SamePin { .. }), "{error}");
        latch.attempt(owner, &pin("2")).unwrap().succeeded().unwrap();
        // Not taken over a second time, and the PIN is still known.
        let listed = list(directory.path()).unwrap();
        assert!(listed.iter().all(|token| token.label != owner.token.label), "{listed:?}");
        latch.attempt(owner, &pin("1")).unwrap_err();
    }
    assert!(path.exists());
    assert!(clear(directory.path(), SERIAL).unwrap());
    assert!(!path.exists());
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
}

#[test]
fn a_record_of_an_older_version_that_cannot_be_read_refuses_until_it_is_cleared() {
    let (directory, latch) = state_dir();
    write_old_record(&directory, "not hex");
    let error = latch.attempt(&owner(), &pin("1")).unwrap_err();
    assert!(matches!(error, LatchError::Unreadable { .. }), "{error}");
    assert!(clear(directory.path(), SERIAL).unwrap());
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
}

#[test]
fn after_two_refusals_only_clear_helps_whatever_the_pin() {
    let (directory, latch) = state_dir();
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    latch.attempt(&owner(), &pin("2")).unwrap().refused().unwrap();
    only_clear_helps(&directory, &latch);
}

#[test]
fn a_crash_allows_the_same_pin_once_more_and_no_more() {
    let (directory, latch) = state_dir();
    drop(latch.attempt(&owner(), &pin("1")).unwrap());
    drop(latch.attempt(&owner(), &pin("1")).unwrap());
    only_clear_helps(&directory, &latch);

    drop(latch.attempt(&owner(), &pin("1")).unwrap());
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    only_clear_helps(&directory, &latch);

    drop(latch.attempt(&owner(), &pin("1")).unwrap());
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
    assert_eq!(list(directory.path()).unwrap(), []);
}

#[test]
fn a_refused_pin_stays_refused_after_a_crash_with_another() {
    let (directory, latch) = state_dir();
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    drop(latch.attempt(&owner(), &pin("2")).unwrap());
    only_clear_helps(&directory, &latch);
}

#[test]
fn a_transport_failure_takes_back_only_its_own_attempt() {
    let (directory, latch) = state_dir();
    for _ in 0..5 {
        latch.attempt(&owner(), &pin("1")).unwrap().take_back().unwrap();
        assert_eq!(list(directory.path()).unwrap(), []);
    }
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    for _ in 0..5 {
        latch.attempt(&owner(), &pin("2")).unwrap().take_back().unwrap();
        assert!(matches!(latch.attempt(&owner(), &pin("1")), Err(LatchError::SamePin { .. })));
    }
    latch.attempt(&owner(), &pin("2")).unwrap().refused().unwrap();
    only_clear_helps(&directory, &latch);

    drop(latch.attempt(&owner(), &pin("1")).unwrap());
    latch.attempt(&owner(), &pin("1")).unwrap().take_back().unwrap();
    assert_eq!(list(directory.path()).unwrap()[0].attempts, 1);
}

#[test]
fn tokens_are_counted_apart_whatever_their_serials_look_like() {
    let (directory, latch) = state_dir();
    let serials = ["", "../../etc/passwd", "a", "A", "a b", "\u{1f511}", "\n", "61"];
    for serial in serials {
        latch.attempt(&owner_of(serial), &pin("1")).unwrap().refused().unwrap();
    }
    let listed: Vec<_> = list(directory.path()).unwrap().into_iter().map(|t| t.serial).collect();
    let mut sorted = serials;
    sorted.sort_unstable();
    assert_eq!(listed, sorted);
    assert!(clear(directory.path(), "a").unwrap());
    latch.attempt(&owner_of("a"), &pin("1")).unwrap().succeeded().unwrap();
    assert!(latch.attempt(&owner_of("A"), &pin("1")).is_err());
    let long = owner_of(&"x".repeat(65));
    assert!(matches!(latch.attempt(&long, &pin("1")), Err(LatchError::Serial(65))));
}

#[test]
fn a_pin_that_collides_with_a_refused_one_waits_for_clear_and_then_succeeds() {
    let (directory, latch) = state_dir();
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    let record = Record::from_bytes(&fs::read(record_path(&directory)).unwrap(), &names()).unwrap();
    let same = |digits: &u32| {
        verifier(&record, &pin(&digits.to_string()), latch.rounds) == record.attempts[0].verifier
    };
    let collision = pin(&(2..10_000_000).find(same).unwrap().to_string());
    assert!(matches!(latch.attempt(&owner(), &collision), Err(LatchError::SamePin { .. })));
    assert!(clear(directory.path(), SERIAL).unwrap());
    latch.attempt(&owner(), &collision).unwrap().succeeded().unwrap();
    assert_eq!(list(directory.path()).unwrap(), []);
}

#[test]
fn the_verifier_is_two_bytes_of_pbkdf2_with_600_000_rounds() {
    let salt = std::array::from_fn(|index| index as u8);
    let record = Record::new(&owner(), salt);
    // Python: hashlib.pbkdf2_hmac("sha256", b"1234", bytes(range(16)), 600_000)[:2].hex()
    let rounds = Latch::new(Path::new("/")).rounds;
    assert_eq!(verifier(&record, &pin("1234"), rounds), "9f39");
}

#[test]
fn files_are_ours_alone_and_hold_no_pin() {
    let (directory, latch) = state_dir();
    let attempt = latch.attempt(&owner(), &pin("4711-marker")).unwrap();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = directory.path().join("pin");
    assert_eq!(mode(&folder), 0o700);
    let mut files = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        assert!(!fs::read_to_string(&path).unwrap().contains("4711"));
        files += 1;
    }
    assert_eq!(files, 3, "the record, its refusal written ahead, the lock");
    assert!(!format!("{attempt:?}").contains("4711"));
    attempt.refused().unwrap();
    assert!(
        !format!("{}", latch.attempt(&owner(), &pin("4711-marker")).unwrap_err()).contains("4711")
    );
}

#[test]
fn the_list_tells_refusals_from_attempts_without_an_outcome() {
    let (directory, latch) = state_dir();
    assert_eq!(list(directory.path()).unwrap(), []);
    drop(latch.attempt(&owner_of("b"), &pin("1")).unwrap());
    latch.attempt(&owner_of("b"), &pin("1")).unwrap().refused().unwrap();
    let _under_way = latch.attempt(&owner_of("a"), &pin("1")).unwrap();
    let tokens = list(directory.path()).unwrap();
    let told: Vec<_> = tokens.iter().map(|t| (t.serial.as_str(), t.attempts, t.refused)).collect();
    assert_eq!(told, [("a", 1, 0), ("b", 2, 1)]);
    assert!(tokens[0].since.elapsed().unwrap() < Duration::from_mins(1));
}

#[test]
fn a_record_that_is_not_right_refuses_until_it_is_cleared() {
    let (directory, latch) = state_dir();
    latch.attempt(&owner(), &pin("1")).unwrap().refused().unwrap();
    let path = record_path(&directory);
    let good = fs::read_to_string(&path).unwrap();
    let entry = &good[good.find("{\"verifier").unwrap()..=good.find("}]").unwrap()];
    for bad in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.repeat(2),
        "x".repeat(10_000),
        good.replace("\"format\":2", "\"format\":3"),
        good.replace("\"refused\"", "\"forgiven\""),
        good.replace("\"began\"", "\"begun\""),
        good.replace(entry, &[entry, entry, entry].join(",")),
        good.replace("\"verifier\":\"", "\"verifier\":\"x"),
        good.replace("\"salt\":\"", "\"salt\":\"00"),
        good.replace("\"began\":", "\"began\":99999999"),
        good.replace("5e6f", "5e60"),
        good.replace("production", "staging"),
        good.replace("\"user\":\"user\"", "\"user\":\"so\""),
    ] {
        assert_ne!(bad, good);
        fs::write(&path, &bad).unwrap();
        let error = latch.attempt(&owner(), &pin("2")).unwrap_err();
        assert!(matches!(error, LatchError::Unreadable { .. }), "{bad}: {error}");
        assert!(error.to_string().contains("claviger pin clear --serial"), "{error}");
        assert!(matches!(list(directory.path()), Err(LatchError::Unreadable { .. })));
    }
    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(latch.attempt(&owner(), &pin("2")), Err(LatchError::Unreadable { .. })));
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(matches!(latch.attempt(&owner(), &pin("2")), Err(LatchError::Unreadable { .. })));
    assert!(clear(directory.path(), SERIAL).unwrap());
    assert!(elsewhere.exists());
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
}

#[test]
fn what_is_not_durable_is_not_attempted() {
    let (directory, latch) = state_dir();
    // A directory in the place of a file: no process may write there, not even root's.
    let names = names();
    for file in [&names.refused(), &names.unfinished()] {
        let path = directory.path().join("pin").join(file);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(directory.path().join("pin"), fs::Permissions::from_mode(0o700))
            .unwrap();
        let error = latch.attempt(&owner(), &pin("1")).unwrap_err();
        assert!(matches!(error, LatchError::NotDurable { .. }), "{error}");
        assert_eq!(list(directory.path()).unwrap(), []);
        fs::remove_dir(&path).unwrap();
    }
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
}

#[test]
fn a_refusal_is_recorded_even_where_nothing_can_be_written_any_more() {
    let (directory, latch) = state_dir();
    let attempt = latch.attempt(&owner(), &pin("1")).unwrap();
    fs::create_dir(directory.path().join("pin").join(names().unfinished())).unwrap();
    attempt.refused().unwrap();
    assert_eq!(list(directory.path()).unwrap()[0].refused, 1);
}

#[test]
fn an_outcome_that_cannot_be_recorded_is_an_error_and_leaves_the_attempt_counted() {
    let (directory, latch) = state_dir();
    let attempt = latch.attempt(&owner(), &pin("1")).unwrap();
    fs::remove_file(directory.path().join("pin").join(names().refused())).unwrap();
    let error = attempt.refused().unwrap_err();
    assert!(matches!(error, LatchError::Outcome { .. }), "{error}");
    assert_eq!(list(directory.path()).unwrap()[0].attempts, 1);
}

#[test]
fn a_state_directory_that_others_may_change_is_refused_with_what_to_do() {
    let (directory, latch) = state_dir();
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let refusal = |latch: &Latch| match latch.attempt(&owner(), &pin("1")) {
        Err(error @ LatchError::StateDir { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    for mode in [0o777, 0o720, 0o702, 0o1777] {
        chmod(directory.path(), mode);
        assert!(refusal(&latch).contains("chmod go-w"), "{mode:o}");
        assert!(clear(directory.path(), SERIAL).is_err());
    }
    chmod(directory.path(), 0o755);
    latch.attempt(&owner(), &pin("1")).unwrap().succeeded().unwrap();
    for mode in [0o750, 0o701, 0o770] {
        chmod(&directory.path().join("pin"), mode);
        assert!(refusal(&latch).contains("chmod 700"), "{mode:o}");
    }
    assert!(refusal(&fast(&directory.path().join("missing"))).contains("make it a directory"));
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refusal(&fast(&file)).contains("make it a directory"));
    let linked = directory.path().join("linked");
    fs::create_dir(&linked).unwrap();
    chmod(&linked, 0o700);
    symlink("/", linked.join("pin")).unwrap();
    assert!(matches!(fast(&linked).attempt(&owner(), &pin("1")), Err(LatchError::Io { .. })));
}

#[test]
fn a_second_attempt_waits_for_the_first_and_sees_its_outcome() {
    let (directory, latch) = state_dir();
    let first = latch.attempt(&owner(), &pin("1")).unwrap();
    assert!(matches!(latch.attempt(&owner(), &pin("1")), Err(LatchError::Busy { .. })));
    latch.attempt(&owner_of("another token"), &pin("1")).unwrap().succeeded().unwrap();
    let patient = Latch { patience: Duration::from_secs(20), ..fast(directory.path()) };
    let second = std::thread::spawn(move || patient.attempt(&owner(), &pin("1")));
    std::thread::sleep(Duration::from_millis(100));
    first.refused().unwrap();
    assert!(matches!(second.join().unwrap(), Err(LatchError::SamePin { .. })));
}

/// What the process that other tests start does; by itself it logs in with success, in a directory
/// of its own.
#[test]
fn a_process_makes_one_attempt() {
    let own = tempfile::tempdir().unwrap();
    let given = |name: &str| std::env::var(name).ok();
    let directory = given("LATCH_STATE_DIR").map_or(own.path().to_owned(), PathBuf::from);
    let digits = given("LATCH_PIN").unwrap_or_else(|| "1".to_owned());
    let outcome = given("LATCH_OUTCOME").unwrap_or_else(|| "success".to_owned());
    let latch = Latch { patience: Duration::from_mins(1), ..fast(&directory) };
    let attempt = match latch.attempt(&owner(), &pin(&digits)) {
        Ok(attempt) => attempt,
        Err(LatchError::SamePin { .. } | LatchError::Exhausted { .. }) => {
            return println!("\nkept out");
        }
        Err(error) => panic!("{error}"),
    };
    // Only one is ever between here and its outcome.
    let inside = directory.join("inside");
    fs::File::create_new(&inside).unwrap();
    println!("\nlogging in");
    if outcome == "hang" {
        loop {
            std::thread::park();
        }
    }
    std::thread::sleep(Duration::from_millis(30));
    fs::remove_file(&inside).unwrap();
    if outcome == "refusal" {
        attempt.refused().unwrap();
    } else {
        attempt.succeeded().unwrap();
        assert_eq!(list(&directory).unwrap(), []);
    }
}

fn process(directory: &TempDir, digits: &str, outcome: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pin_latch::tests::a_process_makes_one_attempt", "--nocapture"])
        .env("LATCH_STATE_DIR", directory.path())
        .env("LATCH_PIN", digits)
        .env("LATCH_OUTCOME", outcome)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How many of these processes logged in.
fn logins(processes: Vec<Child>) -> usize {
    let output = processes.into_iter().map(|process| {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    output.filter(|output| output.contains("\nlogging in\n")).count()
}

#[test]
fn of_many_processes_with_the_same_wrong_pin_one_logs_in() {
    let (directory, latch) = state_dir();
    let processes = (0..8).map(|_| process(&directory, "1", "refusal")).collect();
    assert_eq!(logins(processes), 1);
    assert!(matches!(latch.attempt(&owner(), &pin("1")), Err(LatchError::SamePin { .. })));
}

#[test]
fn of_many_processes_with_different_wrong_pins_two_log_in() {
    let (directory, latch) = state_dir();
    let processes = (0..8).map(|n| process(&directory, &n.to_string(), "refusal")).collect();
    assert_eq!(logins(processes), 2);
    only_clear_helps(&directory, &latch);
}

#[test]
fn of_many_processes_with_the_right_pin_all_log_in_one_after_the_other() {
    let (directory, _latch) = state_dir();
    let processes = (0..8).map(|_| process(&directory, "1", "success")).collect();
    assert_eq!(logins(processes), 8);
    assert_eq!(list(directory.path()).unwrap(), []);
}

#[test]
fn a_process_killed_inside_its_login_counts_as_an_attempt() {
    let (directory, latch) = state_dir();
    for killed in 1..=2 {
        let mut process = process(&directory, "1", "hang");
        let output = BufReader::new(process.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == "logging in"));
        assert!(matches!(clear_now(&directory), Err(LatchError::Busy { .. })));
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_file(directory.path().join("inside")).unwrap();
        let tokens = list(directory.path()).unwrap();
        assert_eq!((tokens[0].attempts, tokens[0].refused), (killed, 0));
    }
    only_clear_helps(&directory, &latch);
}

/// Takes the lock that `clear` takes, without its patience.
fn clear_now(directory: &TempDir) -> Result<Lock, LatchError> {
    let pins = Directory::open(directory.path()).unwrap().unwrap();
    pins.lock(&names(), Duration::ZERO)
}

/// A token as it counts: how often each PIN was sent to it since the last success or the last clear.
#[derive(Debug, Default)]
struct Counted {
    /// Attempts with PIN n that count against it: it was refused, or a crash hid the outcome.
    refused: [u32; 3],
    crashed: [u32; 3],
}

/// What becomes of a login that was tried.
#[derive(Clone, Copy, Debug)]
enum Becomes {
    /// What the token says of the PIN.
    Judged,
    /// The process dies in it.
    Crashed,
    /// No PIN was sent.
    NotSent,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Login {
        pin: usize,
        becomes: Becomes,
    },
    /// The token has this PIN from now on.
    Changed {
        pin: usize,
    },
    /// An operator forgets what was counted.
    Cleared,
}

fn any_step() -> impl Strategy<Value = Step> {
    let becomes = prop_oneof![
        4 => Just(Becomes::Judged),
        2 => Just(Becomes::Crashed),
        1 => Just(Becomes::NotSent),
    ];
    prop_oneof![
        12 => (0..3_usize, becomes).prop_map(|(pin, becomes)| Step::Login { pin, becomes }),
        2 => (0..3_usize).prop_map(|pin| Step::Changed { pin }),
        1 => Just(Step::Cleared),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However logins end, and also where the PIN is changed in between.
    #[test]
    fn no_pin_is_sent_again_that_was_refused_and_no_third_one_without_a_success(
        steps in prop::collection::vec(any_step(), 1..30),
    ) {
        let (directory, latch) = state_dir();
        let (mut right, mut counted) = (0, Counted::default());
        // Refused since the last clear: a success with another PIN leaves it refused.
        let mut refused_before = [false; 3];
        for step in steps {
            let Step::Login { pin: n, becomes } = step else {
                if let Step::Changed { pin } = step {
                    right = pin;
                } else {
                    clear(directory.path(), SERIAL).unwrap();
                    (counted, refused_before) = (Counted::default(), [false; 3]);
                }
                continue;
            };
            let attempts: u32 = counted.refused.iter().chain(&counted.crashed).sum();
            let Ok(attempt) = latch.attempt(&owner(), &pin(&n.to_string())) else {
                // Two bytes of a verifier are the same for two PINs once in 65,536 pairs.
                let is_refused = refused_before.iter().any(|refused| *refused);
                prop_assert!(is_refused || attempts >= 2, "refused for no reason: {counted:?}");
                // A PIN that is in use again counts again.
                if attempts < 2 && refused_before[n] && counted.refused[n] == 0 {
                    counted.refused[n] = 1;
                }
                continue;
            };
            prop_assert!(attempts < 2, "a third attempt: {counted:?}");
            prop_assert!(!refused_before[n], "PIN {n} was refused: {counted:?}");
            match becomes {
                Becomes::NotSent => attempt.take_back().unwrap(),
                Becomes::Crashed => {
                    attempt.without_outcome();
                    counted.crashed[n] += 1;
                }
                Becomes::Judged if n == right => {
                    attempt.succeeded().unwrap();
                    counted = Counted::default();
                }
                Becomes::Judged => {
                    attempt.refused().unwrap();
                    (counted.refused[n], refused_before[n]) = (counted.refused[n] + 1, true);
                }
            }
        }
    }
}
