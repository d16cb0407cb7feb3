//! The table: what was measured, what is wanted, and whether it is met.

use std::fmt;

use claviger::cli::bench::cpu;

/// The first two lines.
pub(crate) const HEAD: &str =
    "| what | wanted | measured | met | in figures |\n|---|---|---|---|---|";

/// One line.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) wanted: Option<Wanted>,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
    pub(crate) figures: String,
}

/// The bound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, measured, unit, figures } = self;
        let (wanted, met) = match wanted {
            None => ("-".to_owned(), "-"),
            Some(Wanted::AtLeast(least)) => (format!("≥ {least}{unit}"), yes(measured >= least)),
            Some(Wanted::AtMost(most)) => (format!("≤ {most}{unit}"), yes(measured <= most)),
        };
        write!(f, "| {what} | {wanted} | {measured:.2}{unit} | {met} | {figures} |")
    }
}

fn yes(met: bool) -> &'static str {
    if met { "yes" } else { "**no**" }
}

/// Where and when this is measured.
pub(crate) fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, model)| model);
    let load = cpu::load_average().map_or("unknown".to_owned(), |load| format!("{load:.2}"));
    format!(
        "{} cores of {model}, {}-{}, load average {load} when it began; claviger {}.\n",
        cpu::cores(),
        std::env::consts::ARCH,
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION"),
    )
}
