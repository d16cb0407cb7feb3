//! What was wrong is over: the key serves again within five seconds, without a restart of the daemon,
//! and those who wait cost the token nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::setup::KEY;
use e2e::{Connection, Daemon, Faults, RsaKey, Setup, Token};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

/// How soon a key serves after the cause has ended.
const SOON: Duration = Duration::from_secs(5);

/// A daemon that serves a key on a token whose calls are counted.
struct Serving {
    token: Token,
    faults: Faults,
    setup: Setup,
    daemon: Daemon,
    connection: Connection,
}

impl Serving {
    async fn begin() -> Self {
        Self::by(r#"exec "$0" "$@""#).await
    }

    /// The daemon is started by a shell script.
    async fn by(script: &str) -> Self {
        let (token, faults) = Token::softhsm().through_fault_module();
        let setup = Setup::on(&token);
        let mut daemon = Daemon::spawn_by(&setup.files, script, Stdio::null());
        daemon.wait_until_ready().unwrap_or_else(|exit| panic!("{}", exit.log));
        let connection = setup.connect(&daemon).await;
        let serving = Self { token, faults, setup, daemon, connection };
        assert_eq!(serving.ask().await, Code::Ok, "{}", serving.daemon.log());
        serving
    }

    async fn ask(&self) -> Code {
        self.setup.ask_over(&self.connection).await
    }

    /// Asks until this code comes: how long that took.
    async fn until(&self, code: Code) -> Duration {
        let begun = Instant::now();
        loop {
            let got = self.ask().await;
            if got == code {
                return begun.elapsed();
            }
            let waited = begun.elapsed();
            assert!(waited.as_secs() < 30, "{got:?}, not {code:?}:\n{}", self.daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The cause has ended just now.
    async fn serves_soon(&self, what: &str) {
        let took = self.until(Code::Ok).await;
        println!("{what}: serves after {took:?}");
        assert!(took < SOON, "{what}: {took:?}\n{}", self.daemon.log());
    }

    fn logins(&self) -> u64 {
        self.faults.count("C_Login")
    }

    fn child(&self) -> u32 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let children = tasks.flatten().filter_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).ok()?;
            children.split_ascii_whitespace().find_map(|child| child.parse().ok())
        });
        children.max().expect("the module has a process")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_away_serves_soon_after_it_is_back() {
    let serving = Serving::begin().await;
    for seconds in [0.3, 3.0] {
        serving.token.take_away();
        serving.until(Code::Unavailable).await;
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        serving.token.bring_back();
        serving.serves_soon("the store is back").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_could_not_be_read_serves_soon_after_it_can() {
    // Root may read all, but for this.
    let script = r#"
        if [ "$(id -u)" = 0 ]; then
            exec setpriv --bounding-set=-dac_override,-dac_read_search "$0" "$@"
        fi
        exec "$0" "$@""#;
    let serving = Serving::by(script).await;
    let store = serving.token.folder().join("tokens");
    let own: Vec<_> = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect();
    let chmod = |mode| {
        for folder in &own {
            fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
        }
    };
    chmod(0o000);
    serving.until(Code::Unavailable).await;
    chmod(0o700);
    serving.serves_soon("the store can be read").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_deleted_serves_soon_after_it_was_imported_again() {
    let serving = Serving::begin().await;
    serving.token.delete(KEY);
    serving.until(Code::FailedPrecondition).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (logins, starts) = (serving.logins(), serving.faults.count("C_Initialize"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(serving.logins(), logins, "a look for the key needs no login");
    assert_eq!(serving.faults.count("C_Initialize"), starts, "nor a new process");
    serving.token.import(&serving.setup.key, KEY, "01");
    serving.serves_soon("the key is back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_module_does_to_its_own_process_is_repaired_in_silence() {
    let serving = Serving::begin().await;
    for (action, logins) in [("logout", 1), ("close-all", 1), ("finalize", 1)] {
        let before = serving.logins();
        serving.faults.on_call(1, "C_DecryptInit", action);
        assert_eq!(serving.ask().await, Code::Ok, "{action}: {}", serving.daemon.log());
        serving.faults.clear();
        assert_eq!(serving.ask().await, Code::Ok, "{action}");
        assert_eq!(serving.logins() - before, logins, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_is_replaced_before_its_hang_limit() {
    let serving = Serving::begin().await;
    let pid = Pid::from_raw(serving.child().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    serving.serves_soon("the process is stopped").await;
    serving.daemon.wait_for_log("is stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_was_not_there_serves_soon_after_it_is() {
    let (token, _faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    let module = setup.files.path("module.so");
    setup.files.set("providers.hsm-a.module", module.to_str().unwrap());
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::FailedPrecondition);
    fs::copy(token.module(), &module).unwrap();
    let begun = Instant::now();
    setup.wait_for(&daemon, Code::Ok).await;
    assert!(begun.elapsed() < SOON, "{:?}\n{}", begun.elapsed(), daemon.log());
}

/// How often the module was started in so many seconds of an outage, with so many callers that wait.
async fn starts_with(callers: usize, seconds: u64) -> u64 {
    let serving = Arc::new(Serving::begin().await);
    serving.token.take_away();
    serving.until(Code::Unavailable).await;
    let before = serving.faults.count("C_Initialize");
    let until = Instant::now() + Duration::from_secs(seconds);
    let waiting = (0..callers).map(|_| {
        let serving = Arc::clone(&serving);
        tokio::spawn(async move {
            while Instant::now() < until {
                assert_eq!(serving.ask().await, Code::Unavailable);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    });
    for caller in waiting.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let starts = serving.faults.count("C_Initialize") - before;
    serving.token.bring_back();
    serving.serves_soon("the store is back").await;
    starts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_callers_who_wait_cost_the_token_no_more_attempts_than_one() {
    let (one, fifty) = (starts_with(1, 6).await, starts_with(50, 6).await);
    println!("{one} starts of the module for one caller, {fifty} for fifty");
    // The token is looked at every half a second at most.
    assert!((2..=12).contains(&one), "{one}");
    assert!(fifty <= one + 1, "{fifty} against {one}");
}

/// A wrong store with other keys, and one with another PIN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_store_serves_soon_after_one_with_another_pin_was_in_its_place() {
    const OTHER_PIN: &str = "99887766";
    let (token, faults) = Token::softhsm().through_fault_module();
    let mut setup = Setup::on(&token);
    setup.files.set("providers.hsm-a.token", toml::toml! { label = "claviger-test" });
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let wrong = Token::softhsm();
    wrong.import(&RsaKey::generate(2048), KEY, "01");
    wrong.change_pin(e2e::token::PIN, OTHER_PIN);
    token.exchange_stores(&wrong);
    setup.wait_for(&daemon, Code::FailedPrecondition).await;
    let logins = faults.count("C_Login");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(faults.count("C_Login"), logins, "a refused PIN is not sent again");
    token.exchange_stores(&wrong);
    let begun = Instant::now();
    setup.wait_for(&daemon, Code::Ok).await;
    assert!(begun.elapsed() < SOON, "{:?}\n{}", begun.elapsed(), daemon.log());
}
