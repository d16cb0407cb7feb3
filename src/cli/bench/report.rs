//! What `claviger bench` found: medians over the rounds, as a table for people and as JSON.

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use super::load::{Sample, median};

/// What was measured, and where.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) backend: &'static str,
    pub(super) bits: Option<u16>,
    pub(super) audit: Option<bool>,
    pub(super) in_flight: usize,
    pub(super) batch: usize,
    pub(super) batches_in_flight: usize,
    pub(super) connections: usize,
    pub(super) rounds: u32,
    pub(super) seconds: u32,
    pub(super) cores: usize,
    pub(super) load_average: Option<f64>,
    pub(super) debug_build: bool,
}

/// Every sample; `raw` has one more than the others, or none.
#[derive(Debug)]
pub(super) struct Report {
    setting: Setting,
    pub(super) raw: Vec<Sample>,
    pub(super) unary: Vec<Sample>,
    pub(super) batch: Vec<Sample>,
}

/// The daemon against the raw backend of the same run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratios {
    /// Unwraps a second, of the raw rate before and after: 1 is as fast as the backend itself.
    rate: f64,
    /// The server's CPU time for an unwrap, of the raw CPU time.
    cpu: Option<f64>,
}

impl Report {
    pub(super) fn new(setting: Setting) -> Self {
        Self { setting, raw: Vec::new(), unary: Vec::new(), batch: Vec::new() }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let of = |samples: &[Sample]| {
            json!({
                "median": medians(samples),
                "ratio": self.ratios(samples),
                "rounds": samples,
            })
        };
        let raw = (!self.raw.is_empty())
            .then(|| json!({ "median": medians(&self.raw), "rounds": &self.raw }));
        json!({
            "setting": self.setting,
            "raw": raw,
            "unary": of(&self.unary),
            "batch": of(&self.batch),
        })
    }

    pub(super) fn to_text(&self) -> String {
        let setting = &self.setting;
        let mut text = setting.backend.to_owned();
        let mut say = |part: String| text.push_str(&part);
        setting.bits.iter().for_each(|bits| say(format!(", RSA-{bits}")));
        setting
            .audit
            .iter()
            .for_each(|on| say(format!(", audit {}", if *on { "on" } else { "off" })));
        say(format!(
            "; {} unary calls or {} batches of {} in flight on {} connections; {} cores",
            setting.in_flight,
            setting.batches_in_flight,
            setting.batch,
            setting.connections,
            setting.cores
        ));
        setting.load_average.iter().for_each(|load| say(format!(", load {load} before")));
        say(format!("\nmedians of {} rounds of {} s\n\n", setting.rounds, setting.seconds));
        say(format!(
            "{:<8}{:>12}{:>8}{:>10}{:>10}{:>12}{:>8}{:>12}\n",
            "", "unwraps/s", "ratio", "p50 ms", "p99 ms", "server us", "ratio", "client us"
        ));
        if !self.raw.is_empty() {
            say(row("raw", &medians(&self.raw), None));
        }
        for (name, samples) in [("unary", &self.unary), ("batch", &self.batch)] {
            say(row(name, &medians(samples), self.ratios(samples)));
        }
        text
    }

    /// Each round against the raw ones before and after it; the median of that.
    fn ratios(&self, samples: &[Sample]) -> Option<Ratios> {
        if self.raw.len() != samples.len() + 1 {
            return None;
        }
        let around = |of: fn(&Sample) -> Option<f64>| {
            let ratio = |(raw, sample): (&[Sample], &Sample)| {
                Some(of(sample)? / f64::midpoint(of(&raw[0])?, of(&raw[1])?))
            };
            median(self.raw.windows(2).zip(samples).filter_map(ratio).collect())
        };
        let rate = around(|sample| Some(sample.per_second))?;
        Some(Ratios { rate, cpu: around(|sample| sample.cpu_us) })
    }
}

fn row(name: &str, sample: &Sample, ratios: Option<Ratios>) -> String {
    let number = |value: Option<f64>, decimals| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let mut row = String::new();
    let _ = writeln!(
        row,
        "{name:<8}{:>12.0}{:>8}{:>10.2}{:>10.2}{:>12}{:>8}{:>12}",
        sample.per_second,
        number(ratios.map(|ratios| ratios.rate), 2),
        sample.p50_us / 1e3,
        sample.p99_us / 1e3,
        number(sample.cpu_us, 1),
        number(ratios.and_then(|ratios| ratios.cpu), 2),
        number(sample.client_cpu_us, 1),
    );
    row
}

fn medians(samples: &[Sample]) -> Sample {
    let of = |value: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(value).collect());
    Sample {
        per_second: of(|sample| Some(sample.per_second)).unwrap_or_default(),
        p50_us: of(|sample| Some(sample.p50_us)).unwrap_or_default(),
        p99_us: of(|sample| Some(sample.p99_us)).unwrap_or_default(),
        cpu_us: of(|sample| sample.cpu_us),
        client_cpu_us: of(|sample| sample.client_cpu_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64, cpu_us: f64) -> Sample {
        Sample { per_second, cpu_us: Some(cpu_us), ..Sample::default() }
    }

    fn report(raw: &[f64], unary: &[f64]) -> Report {
        let samples = |rates: &[f64]| rates.iter().map(|rate| sample(*rate, 100.0)).collect();
        let setting = Setting {
            backend: "software",
            bits: Some(2048),
            audit: Some(false),
            in_flight: 16,
            batch: 16,
            batches_in_flight: 4,
            connections: 4,
            rounds: unary.len() as u32,
            seconds: 1,
            cores: 2,
            load_average: None,
            debug_build: false,
        };
        Report { setting, raw: samples(raw), unary: samples(unary), batch: samples(unary) }
    }

    #[test]
    fn each_round_is_compared_with_the_raw_ones_around_it() {
        // The machine slows down by half in the middle: the ratio does not notice.
        let report = report(&[100.0, 100.0, 50.0, 50.0], &[90.0, 60.0, 45.0]);
        let ratios = report.ratios(&report.unary).unwrap();
        assert!((ratios.rate - 0.9).abs() < 1e-9, "{ratios:?}");
        assert_eq!(ratios.cpu, Some(1.0));
        assert!(report.to_text().contains("unary             60    0.90"), "{}", report.to_text());
        assert_eq!(report.to_json()["unary"]["median"]["per_second"], 60.0);
    }

    #[test]
    fn without_a_raw_backend_there_are_no_ratios() {
        let report = report(&[], &[90.0]);
        assert!(report.ratios(&report.unary).is_none());
        assert!(report.to_json()["raw"].is_null());
        assert!(!report.to_text().contains("raw"));
    }
}
