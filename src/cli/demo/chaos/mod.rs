//! `claviger demo --chaos`: two HSMs fail by a schedule, and a client goes on calling.
//!
//! - `hsms`: two SoftHSM tokens with one key, behind the module that injects faults
//! - `schedule`: which faults, in which order
//! - `calls`: the client, and what became of its calls
//! - `daemon_log`: what the daemon says meanwhile
//! - `view`: on a terminal one screen, elsewhere one line for each event

mod calls;
mod daemon_log;
mod hsms;
mod schedule;
mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::calls::Calls;
use self::daemon_log::DaemonLog;
use self::hsms::Hsms;
use self::schedule::{FAULTS, Fault, LASTS, QUIET};
use self::view::View;
use super::super::failure::{Exit, Failure};
use super::super::local_daemon::{Daemon, KEY, LocalDaemon, edit, softhsm};
use super::{Args, how_to_remove, open, runtime, say};

/// How often is looked at everything.
const TICK: Duration = Duration::from_millis(250);
/// How long a fault may be felt before the next one comes in any case.
const PATIENCE: Duration = Duration::from_secs(20);

/// The arguments of `claviger demo --chaos`.
#[derive(clap::Args, Debug)]
pub(super) struct ChaosArgs {
    /// Have two SoftHSM tokens fail by a schedule, while a client goes on calling
    #[arg(long, conflicts_with = "softhsm")]
    chaos: bool,
    /// With --chaos: end after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "chaos",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// With --chaos: write one line for each event, as into a pipe
    #[arg(long, requires = "chaos")]
    plain: bool,
    /// With --chaos: the module that injects faults [default: libclaviger_faults.so beside this program or
    /// in /usr/lib]
    #[arg(long, value_name = "FILE", requires = "chaos")]
    faults: Option<PathBuf>,
}

impl ChaosArgs {
    /// Whether it was asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.chaos
    }
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let dir = args.dir_or("demo-chaos")?;
    let module = hsms::faults_module(args.chaos.faults.as_deref())?;
    softhsm::enter_environment(&dir)?;
    let mut local = open(&dir)?;
    let _alone = local.alone()?;
    local.check_two()?;
    if let Some(port) = args.port {
        local.use_port(port)?;
    }
    local.check_ports_are_free()?;
    local.prepare_certificates()?;
    let (hsms, key) = Hsms::prepare(&local, &module)?;
    local.configure_anew(&key, true)?;
    edit(&local.config, |config| {
        config["log"]["format"] = toml_edit::value("json");
        // Both have calls all the time, so that both are seen to fail and to be back.
        config["keys"][KEY]["balance"] = toml_edit::value("least-busy");
    })?;
    say(
        "Two SoftHSM tokens hold one key: hsm-a and hsm-b. A client unwraps all the time, and they fail.",
    )?;
    runtime()?.block_on(async {
        let mut daemon = Daemon::start(&local).await?;
        let mut show = Show::new(args, &local, hsms, key.public_key).await?;
        let shown = show.run(&mut daemon).await;
        show.hsms.mend()?;
        let summary = show.summary().await;
        daemon.stop().await?;
        shown?;
        say(&summary)?;
        say(&how_to_remove(&local))?;
        show.judge()
    })
}

/// The demo while it runs.
struct Show {
    hsms: Hsms,
    calls: Calls,
    log: DaemonLog,
    view: View,
    begun: Instant,
    ends_at: Option<Instant>,
    once: bool,
    faults: usize,
    /// The longest time from the end of a fault until its HSM served.
    slowest: Duration,
    /// When the calls were last looked at.
    ticked_at: Instant,
}

/// Why it ends.
enum Ended {
    /// It was asked to, or its time is over.
    Asked,
    /// Something failed.
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Show {
    async fn new(
        args: &Args,
        local: &LocalDaemon,
        hsms: Hsms,
        key: claviger_provider_api::PublicKey,
    ) -> Result<Self, Failure> {
        let begun = Instant::now();
        Ok(Self {
            hsms,
            calls: Calls::begin(local, key).await?,
            log: DaemonLog::new(&local.dir),
            view: View::new(args.chaos.plain || !std::io::stdout().is_terminal()),
            begun,
            ends_at: args.chaos.seconds.map(|seconds| begun + Duration::from_secs(seconds)),
            once: args.once,
            faults: 0,
            slowest: Duration::ZERO,
            ticked_at: begun,
        })
    }

    /// One fault after the other, until it is over.
    async fn run(&mut self, daemon: &mut Daemon) -> Result<(), Failure> {
        let ended = tokio::select! {
            ended = self.faults() => ended,
            ended = daemon.wait() => ended.map_err(Ended::Failed),
        };
        match ended {
            Ok(()) | Err(Ended::Asked) => Ok(()),
            Err(Ended::Failed(failure)) => Err(failure),
        }
    }

    async fn faults(&mut self) -> Result<(), Ended> {
        self.watch_for(QUIET).await?;
        for turn in 0.. {
            if self.once && turn == FAULTS.len() {
                return Ok(());
            }
            self.one_fault(turn % 2, &FAULTS[turn % FAULTS.len()]).await?;
        }
        Ok(())
    }

    /// One HSM has this fault for a while. The next one comes when both serve again.
    async fn one_fault(&mut self, hsm: usize, fault: &Fault) -> Result<(), Ended> {
        let name = hsms::NAMES[hsm];
        self.view.tell(self.begun, "FAULT", &format!("{name}: {}", fault.words))?;
        self.faults += 1;
        self.hsms.fail(hsm, fault.rules)?;
        self.watch_for(LASTS).await?;
        self.hsms.mend()?;
        self.view.tell(self.begun, "over", name)?;
        let mended = Instant::now();
        while !self.hsms.have_served_since(mended) {
            if mended.elapsed() > PATIENCE {
                self.view.tell(self.begun, "LATE", "the next fault comes all the same")?;
                break;
            }
            self.watch_for(TICK).await?;
        }
        self.slowest = self.slowest.max(mended.elapsed());
        self.watch_for(QUIET).await
    }

    /// Looks at everything for so long.
    async fn watch_for(&mut self, time: Duration) -> Result<(), Ended> {
        let until = Instant::now() + time;
        loop {
            for line in self.log.news()? {
                self.view.tell(self.begun, "daemon", &line)?;
            }
            for change in self.hsms.look().await {
                self.view.tell(self.begun, "replica", &change)?;
            }
            if self.ticked_at.elapsed() >= TICK {
                self.ticked_at = Instant::now();
                self.view.tick(self.begun, &self.hsms, self.calls.tick())?;
            }
            if self.ends_at.is_some_and(|ends_at| Instant::now() >= ends_at) {
                return Err(Ended::Asked);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(TICK)).await;
        }
    }

    /// What became of it all.
    async fn summary(&mut self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        let total = self.calls.end().await;
        format!(
            "\n{seconds:.1} s, {} faults. Calls: {}, failed: {}. The longest wait for an answer: {} ms.\n\
             An HSM was seen to serve again {:.1} s after its fault was over, at the latest.",
            self.faults,
            total.answered + total.failed,
            total.failed,
            total.longest.as_millis(),
            self.slowest.as_secs_f64()
        )
    }

    /// A failure if a call failed.
    fn judge(&self) -> Result<(), Failure> {
        match self.calls.first_failure() {
            None => Ok(()),
            Some(error) => Err(Failure::new(Exit::Failure, format!("a call failed: {error}"))),
        }
    }
}
