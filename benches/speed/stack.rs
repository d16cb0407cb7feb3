//! The whole daemon over a key that does nothing, against a bare tonic echo of the same messages.

use std::path::Path;
use std::time::{Duration, Instant};

use claviger::cli::bench::load::{self, Sample, Work, median};
use claviger::daemon::records::audit::Head;
use claviger_client::Client;
use tokio::runtime::Runtime;

use crate::child::Server;
use crate::daemon_files::{DaemonFiles, Size};
use crate::echo::PORT_FILE;
use crate::noop::WRAPPED;
use crate::table::{Row, Wanted};
use crate::{Effort, Outcome};

/// Connections that share many calls in flight.
pub(crate) const CONNECTIONS: usize = 4;

/// A server and connections to it.
pub(crate) struct Target {
    server: Server,
    clients: Vec<Client>,
    keys: Vec<String>,
}

impl Target {
    pub(crate) fn noop(files: &DaemonFiles) -> Outcome<Self> {
        Self::noop_of(&std::env::current_exe()?, files)
    }

    fn noop_of(program: &Path, files: &DaemonFiles) -> Outcome<Self> {
        let server = Server::noop(program, &files.config(), files.port)?;
        Ok(Self { server, clients: files.clients(CONNECTIONS)?, keys: files.keys() })
    }

    fn echo(files: &mut DaemonFiles) -> Outcome<Self> {
        let file = files.path(PORT_FILE);
        let server = Server::start("--serve-echo", &files.path(""), || {
            std::fs::read_to_string(&file).is_ok_and(|port| !port.is_empty())
        })?;
        files.port = std::fs::read_to_string(&file)?.parse()?;
        Ok(Self { server, clients: files.clients(CONNECTIONS)?, keys: files.keys() })
    }

    pub(crate) async fn unary(&self, in_flight: usize, time: Duration) -> Outcome<Sample> {
        let work = Work {
            keys: self.keys.clone().into(),
            // Below the modulus of the key that does nothing.
            wrapped: vec![0x55; WRAPPED],
            batch: 1,
            in_flight,
            time,
        };
        let clients = if in_flight == 1 { &self.clients[..1] } else { &self.clients };
        Ok(load::run(clients, &work, Some(self.server.pid())).await?)
    }
}

pub(crate) fn measure(runtime: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    runtime.block_on(async {
        let noop_files = DaemonFiles::new(Size::ONE)?;
        let audited_files = DaemonFiles::new(Size { audit: true, ..Size::ONE })?;
        let mut echo_files = DaemonFiles::new(Size::ONE)?;
        let noop = Target::noop(&noop_files)?;
        let audited = Target::noop(&audited_files)?;
        let echo = Target::echo(&mut echo_files)?;
        let before_files = DaemonFiles::new(Size::ONE)?;
        let before = effort.before.map(|program| Target::noop_of(program, &before_files));
        let before = before.transpose()?;
        let (mut many, mut one, mut one_audited) = (Vec::new(), Vec::new(), Vec::new());
        let mut many_audited = Vec::new();
        let (mut many_before, mut one_before) = (Vec::new(), Vec::new());
        for round in 1..=effort.rounds {
            eprintln!("stack: round {round} of {}", effort.rounds);
            many.push((echo.unary(64, effort.time).await?, noop.unary(64, effort.time).await?));
            one.push((echo.unary(1, effort.time).await?, noop.unary(1, effort.time).await?));
            one_audited.push(audited.unary(1, effort.time).await?);
            many_audited
                .push((noop.unary(64, effort.time).await?, audited.unary(64, effort.time).await?));
            if let Some(before) = &before {
                many_before
                    .push((before.unary(64, effort.time).await?, noop.unary(64, effort.time).await?));
                one_before
                    .push((before.unary(1, effort.time).await?, noop.unary(1, effort.time).await?));
            }
        }
        let p50 = |sample: &Sample| Some(sample.p50_us);
        let cpu_64 = compare(
            "server CPU per call, nothing behind the daemon, 64 in flight, of a bare tonic mTLS echo's",
            Wanted::AtMost(1.5),
            "µs",
            &many,
            |sample| sample.cpu_us,
        );
        let p50_1 = compare(
            "p50 at one in flight, of the same echo's",
            Wanted::AtMost(1.3),
            "µs",
            &one,
            p50,
        );
        let cpu_1 = "server CPU per call at one in flight, likewise";
        let cpu_1 = compare_freely(cpu_1, "µs", &one, |sample| sample.cpu_us);
        let sync = Row {
            what: "p50 at one in flight with audit: the sync of its record".to_owned(),
            wanted: None,
            measured: median(one_audited.iter().filter_map(p50).collect()).unwrap_or_default()
                / 1e3,
            unit: " ms",
            figures: String::new(),
        };
        let mut rows = vec![cpu_64, p50_1, cpu_1, sync];
        rows.extend(audited_rows(&many_audited));
        rows.push(chain());
        if before.is_some() {
            let of = |what: &str| format!("{what}, of the other commit's daemon");
            let cpu = |sample: &Sample| sample.cpu_us;
            rows.extend([
                compare_freely(&of("server CPU per call, 64 in flight"), "µs", &many_before, cpu),
                compare_freely(&of("p50 at one in flight"), "µs", &one_before, p50),
                compare_freely(&of("server CPU per call at one in flight"), "µs", &one_before, cpu),
            ]);
        }
        Ok(rows)
    })
}

/// With audit, chain and checkpoints beside audit off, 64 in flight.
fn audited_rows(pairs: &[(Sample, Sample)]) -> [Row; 3] {
    let with = "with audit, chain and checkpoints, nothing behind the daemon, 64 in flight";
    let rate = |sample: &Sample| Some(sample.per_second);
    let ratio = compare_freely(&format!("{with}: unwraps/s, of audit off"), "/s", pairs, rate);
    let cpu = |sample: &Sample| sample.cpu_us;
    let cpu =
        compare_freely(&format!("{with}: server CPU per call, of audit off"), "µs", pairs, cpu);
    let rates = pairs.iter().map(|(_, audited)| audited.per_second).collect();
    let rate = Row {
        what: format!("{with}, on a disk that syncs in 4 ms or less: unwraps/s"),
        wanted: Some(Wanted::AtLeast(5000.0)),
        measured: median(rates).unwrap_or_default(),
        unit: "",
        figures: String::new(),
    };
    [rate, ratio, cpu]
}

/// What the chain takes for a record: its place and the SHA-256 of the line.
fn chain() -> Row {
    const RECORDS: u32 = 64;
    const TIMES: u32 = 2000;
    let line = format!("{{\"seq\":1000,\"of\":\"{}\"}}\n", "x".repeat(650));
    let lines = line.repeat(RECORDS as usize);
    let (mut head, mut linked) = (Head::START, Vec::new());
    let begun = Instant::now();
    for _ in 0..TIMES {
        linked.clear();
        head = head.link(lines.as_bytes(), &mut linked);
    }
    let took = begun.elapsed().as_secs_f64() * 1e6 / f64::from(RECORDS * TIMES);
    assert_eq!(head.records, u64::from(RECORDS * TIMES));
    Row {
        what: "CPU that the chain takes for a record of 750 bytes".to_owned(),
        wanted: Some(Wanted::AtMost(2.0)),
        measured: took,
        unit: " µs",
        figures: String::new(),
    }
}

/// The same without a bound.
pub(crate) fn compare_freely(
    what: &str,
    unit: &str,
    pairs: &[(Sample, Sample)],
    of: impl Fn(&Sample) -> Option<f64>,
) -> Row {
    Row { wanted: None, ..compare(what, Wanted::AtMost(0.0), unit, pairs, of) }
}

/// The second of each pair against the first; the median of that.
pub(crate) fn compare(
    what: &str,
    wanted: Wanted,
    unit: &str,
    pairs: &[(Sample, Sample)],
    of: impl Fn(&Sample) -> Option<f64>,
) -> Row {
    let middle = |values: Vec<f64>| median(values).unwrap_or(f64::NAN);
    let ratios = pairs.iter().filter_map(|(bare, ours)| Some(of(ours)? / of(bare)?)).collect();
    let bare = middle(pairs.iter().filter_map(|(bare, _)| of(bare)).collect());
    let ours = middle(pairs.iter().filter_map(|(_, ours)| of(ours)).collect());
    Row {
        what: what.to_owned(),
        wanted: Some(wanted),
        measured: middle(ratios),
        unit: "x",
        figures: format!("{ours:.1} {unit} against {bare:.1} {unit}"),
    }
}
