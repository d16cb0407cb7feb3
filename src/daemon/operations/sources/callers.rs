//! The series of callers: of the hundred whose certificates end soonest, and of the hundred budgets with the
//! least left. There may be ten thousand callers, so they are no label of anything else.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::Sources;
use crate::daemon::records::metrics::render::{gauge, sample_gauge};
use crate::daemon::records::metrics::seconds;

/// Series of each family.
const MOST: usize = 100;

impl Sources {
    pub(super) fn callers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let active = self.active.load();
        let (mut ends, mut left) = (Vec::new(), Vec::new());
        for caller in active.snapshot.callers() {
            let peer = caller.calls.seen.peer();
            if let Some(certificate) = peer.as_ref().and_then(|peer| peer.certificate.as_ref()) {
                ends.push((seconds(certificate.not_after), [("caller", caller.name.to_string())]));
            }
            for (key, granted) in &caller.grants {
                let spent = granted.budget.spent();
                let Some(limit) = spent.limit.filter(|_| spent.failed > 0) else { continue };
                let rest = i64::from(limit.count.saturating_sub(spent.failed as u32));
                let labels = [("caller", caller.name.to_string()), ("key", key.clone())];
                left.push((rest, labels));
            }
        }
        let help =
            "When the certificate of a caller's last call ends; the hundred that end soonest";
        let name = "caller_certificate_not_after_timestamp_seconds";
        lowest(ends, name, help, encoder)?;
        let help = "Failed unwraps that a caller may still have on a key where it has some; the hundred lowest";
        lowest(left, "caller_failed_unwraps_left", help, encoder)
    }
}

/// A gauge for each of the lowest [`MOST`] values.
fn lowest<L: EncodeLabelSet + Ord>(
    mut series: Vec<(i64, L)>,
    name: &str,
    help: &str,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    series.sort_unstable();
    series.truncate(MOST);
    let mut family = gauge(encoder, name, help)?;
    for (value, labels) in &series {
        sample_gauge(&mut family, labels, *value)?;
    }
    Ok(())
}
