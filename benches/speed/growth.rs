//! What a call costs with 10,000 keys or callers, against what it costs with one.

use claviger::cli::bench::load::Sample;
use tokio::runtime::Runtime;

use crate::daemon_files::{DaemonFiles, Size};
use crate::stack::{Target, compare};
use crate::table::{Row, Wanted};
use crate::{Effort, Outcome};

const MANY: usize = 10_000;
const IN_FLIGHT: usize = 64;

pub(crate) fn measure(runtime: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    runtime.block_on(async {
        let sizes = [
            DaemonFiles::new(Size::ONE)?,
            DaemonFiles::new(Size { keys: MANY, ..Size::ONE })?,
            DaemonFiles::new(Size { callers: MANY, ..Size::ONE })?,
        ];
        let mut targets = Vec::new();
        for files in &sizes {
            targets.push(Target::noop(files)?);
        }
        let (mut keys, mut callers) = (Vec::new(), Vec::new());
        for round in 1..=effort.rounds {
            eprintln!("growth: round {round} of {}", effort.rounds);
            let mut samples = Vec::new();
            for target in &targets {
                samples.push(target.unary(IN_FLIGHT, effort.time).await?);
            }
            keys.push((samples[0], samples[1]));
            callers.push((samples[0], samples[2]));
        }
        let cpu = |sample: &Sample| sample.cpu_us;
        let at_most = Wanted::AtMost(1.1);
        Ok(vec![
            compare("cost per call with 10,000 keys, of one", at_most, "µs", &keys, cpu),
            compare("cost per call with 10,000 callers, of one", at_most, "µs", &callers, cpu),
        ])
    })
}
