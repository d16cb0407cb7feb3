//! Every return code of PKCS#11 from every function on the way of a call: once, at the third call, or always.
//!
//! Whatever a token answers, the daemon lives, no answer is wrong, a caller sees a code of the contract, a PIN
//! is sent once, and the key serves again when the fault is over.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_faults::CODES;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::{Connection, Daemon, Faults, Setup, Token};
use tonic::Code;

/// What is called when a module is loaded and a key opened.
const OPENING: [&str; 12] = [
    "C_Initialize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_GetAttributeValue",
];
/// What is called for each value, or for each new session.
const CALLING: [&str; 5] =
    ["C_OpenSession", "C_CloseSession", "C_GetSessionInfo", "C_DecryptInit", "C_Decrypt"];
/// A code of a vendor's own.
const OF_A_VENDOR: (&str, u64) = ("CKR_VENDOR_DEFINED + 0x4711", 0x8000_4711);
/// How soon the key serves after the fault is over, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(30);
/// Calls during a fault.
const CALLS: usize = 4;

/// Which calls of the function fail.
#[derive(Clone, Copy, Debug)]
enum When {
    First,
    Third,
    Always,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    function: &'static str,
    code: (&'static str, u64),
    when: When,
}

/// What callers saw of one function's faults.
#[derive(Default)]
struct Row {
    cases: usize,
    answers: BTreeMap<&'static str, usize>,
    slowest: Duration,
}

/// A daemon with a token of its own.
struct Site {
    token: Token,
    faults: Faults,
    setup: Setup,
    daemon: Daemon,
    connection: Connection,
}

impl Site {
    async fn start() -> Self {
        let (token, faults) = Token::softhsm().through_fault_module();
        let mut setup = Setup::on(&token);
        let daemon = setup.start();
        let connection = setup.connect(&daemon).await;
        Self { token, faults, setup, daemon, connection }
    }

    async fn try_out(&mut self, case: Case) -> (Vec<Code>, Duration) {
        let Case { function, code: (name, number), when } = case;
        self.serves_again(case).await;
        let logins = self.faults.count("C_Login");
        let action = format!("rv={number:#x}");
        match when {
            When::First => self.faults.on_call(1, function, &action),
            When::Third => self.faults.on_call(3, function, &action),
            When::Always => self.faults.on_every(function, &action),
        }
        if OPENING.contains(&function) {
            // Nothing works any more, so that the module is loaded and the key opened anew.
            self.faults.on_call(1, "C_DecryptInit", "finalize");
        }
        let mut answers = Vec::new();
        for _ in 0..CALLS {
            answers.push(self.setup.ask_over(&self.connection).await);
        }
        let sent = self.faults.count("C_Login") - logins;
        self.faults.clear();
        if function == "C_Login" {
            assert!(sent <= 1, "{name} from {function}, {when:?}: the PIN was sent {sent} times");
            self.clear_pin();
        }
        let recovery = self.serves_again(case).await;
        assert!(self.daemon.is_running(), "{case:?}\n{}", self.daemon.log());
        (answers, recovery)
    }

    async fn serves_again(&self, case: Case) -> Duration {
        let begun = Instant::now();
        while self.setup.ask_over(&self.connection).await != Code::Ok {
            assert!(begun.elapsed() < RECOVERY, "{case:?}\n{}", self.daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }

    /// Forgets a login that failed; there may have been none.
    fn clear_pin(&self) {
        let mut clear = command(claviger());
        clear.args(["pin", "clear", "--serial", self.token.serial(), "--state-dir"]);
        let cleared = clear.arg(self.setup.files.path("state")).output().expect("it starts");
        let said = String::from_utf8_lossy(&cleared.stderr);
        assert!(cleared.status.success() || said.contains("has no failed logins"), "{said}");
    }
}

/// Runs the cases with so many daemons at a time, and gives a row for each function.
async fn try_out(cases: Vec<Case>, daemons: usize) -> BTreeMap<&'static str, Row> {
    let cases = Arc::new(Mutex::new(cases.into_iter()));
    let rows = Arc::new(Mutex::new(BTreeMap::<_, Row>::new()));
    let mut workers = Vec::new();
    for _ in 0..daemons {
        let mut site = Site::start().await;
        let (cases, rows) = (Arc::clone(&cases), Arc::clone(&rows));
        workers.push(async move {
            loop {
                let Some(case) = cases.lock().unwrap().next() else { break };
                let (answers, recovery) = site.try_out(case).await;
                note(&mut rows.lock().unwrap(), case, &answers, recovery);
            }
            let log = site.daemon.log();
            assert!(!log.contains("panicked"), "{log}");
        });
    }
    // Only now: a start waits in its thread, and connections must not wait with it.
    let workers: Vec<_> = workers.into_iter().map(tokio::spawn).collect();
    for worker in workers {
        worker.await.unwrap();
    }
    Arc::into_inner(rows).expect("the workers have ended").into_inner().unwrap()
}

fn note(rows: &mut BTreeMap<&'static str, Row>, case: Case, answers: &[Code], recovery: Duration) {
    let row = rows.entry(case.function).or_default();
    row.cases += 1;
    row.slowest = row.slowest.max(recovery);
    for answer in answers {
        *row.answers.entry(word(*answer, case)).or_default() += 1;
    }
}

/// The contract's codes for a value that is good.
fn word(code: Code, case: Case) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Unavailable => "UNAVAILABLE",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Internal => "INTERNAL",
        // A token that says that a value is bad, and opens another one right after, is believed.
        Code::InvalidArgument if case.function == "C_Decrypt" => "INVALID_ARGUMENT",
        other => panic!("{other:?} is not for a good value: {case:?}"),
    }
}

fn table(rows: &BTreeMap<&'static str, Row>) -> String {
    let mut table = String::new();
    for (function, row) in rows {
        let answers: Vec<_> =
            row.answers.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let _ = writeln!(
            table,
            "code matrix: {function}: {} cases, {}; serves again after {:.1} s at most",
            row.cases,
            answers.join(", "),
            row.slowest.as_secs_f64()
        );
    }
    table
}

fn cases(codes: &[(&'static str, u64)], whens: &[When]) -> Vec<Case> {
    let functions = OPENING.iter().chain(&CALLING);
    functions
        .flat_map(|function| codes.iter().map(move |code| (*function, *code)))
        .flat_map(|(function, code)| {
            whens.iter().map(move |when| Case { function, code, when: *when })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_codes_from_every_function_break_nothing() {
    let codes = [("CKR_DEVICE_ERROR", 0x30), ("CKR_SESSION_HANDLE_INVALID", 0xb3), OF_A_VENDOR];
    let cases = cases(&codes, &[When::Always]);
    let count = cases.len();
    let rows = try_out(cases, 6).await;
    println!("{}", table(&rows));
    assert_eq!(rows.values().map(|row| row.cases).sum::<usize>(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 5,400 cases"]
async fn every_code_from_every_function_breaks_nothing() {
    let mut codes: Vec<_> = CODES.iter().copied().filter(|(name, _)| *name != "CKR_OK").collect();
    codes.push(OF_A_VENDOR);
    let cases = cases(&codes, &[When::First, When::Third, When::Always]);
    let count = cases.len();
    let rows = try_out(cases, 8).await;
    println!("{}", table(&rows));
    println!("code matrix: {count} cases, {} codes", codes.len());
    assert_eq!(rows.values().map(|row| row.cases).sum::<usize>(), count);
}
